"""Predictions, scores beside their baselines, and captions of any clip."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from vcutils.config import DecodeConfig, UserError
from vcutils.corpora import open_run
from vcutils.corpus import read_splits
from vcutils.decode import predict
from vcutils.runtime.capture import VideoError
from vcutils.scores import coco as metrics
from vcutils.scores.baselines import (
    constant_caption,
    human_line,
    nearest_captions,
    training_captions,
    typical_caption,
)
from vcutils.scores.diagnostics import MEASURES, diagnostics_table
from vcutils.scores.report import evaluate, plot_examples, protocol, score_table
from vcutils.scores.runs import Run, sister_runs

METRICS = {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"}


@pytest.fixture(scope="module")
def run(tiny_run):
    return open_run(tiny_run)


@pytest.fixture(scope="module")
def result(run):
    return evaluate(run, "test", DecodeConfig(beam_size=2))


def test_predictions_file_has_the_contracts_shape(run, result):
    predictions = json.loads((run.folder / "predictions_test.json").read_text(encoding="utf-8"))
    assert sorted(predictions) == sorted(run.data.splits["test"])
    for row in predictions.values():
        assert set(row) == {"caption", "words", "log_prob"}
        assert row["caption"] == " ".join(row["words"]) and row["words"] and row["log_prob"] < 0


def test_metrics_file_has_the_contracts_shape(run, result):
    written = json.loads((run.folder / "metrics_test.json").read_text(encoding="utf-8"))
    assert written == result and set(written) == {"scores", "protocol", "baselines", "diagnostics", "seeds"}
    assert set(written["scores"]) == METRICS
    for name, value in written["scores"].items():
        assert value is None or 0 <= value <= (10 if name == "CIDEr" else 1), name
    assert written["scores"]["Bleu_1"] is not None and written["scores"]["CIDEr"] is not None


def test_scores_are_those_of_the_predictions_file(run, result):
    captions = metrics.read_predictions(run.folder / "predictions_test.json")
    references = {i: list(run.data.captions[i]) for i in run.data.splits["test"]}
    scores = metrics.References(references).score(captions)
    assert {n: scores[n] for n in METRICS} == pytest.approx({n: result["scores"][n] for n in METRICS})


def test_baselines_stand_beside_the_scores(result):
    names = [
        "constant caption",
        "nearest training clip",
        "other clips' features",
        "one reference against the others",
    ]
    assert list(result["baselines"]) == names
    for scores in result["baselines"].values():
        assert set(scores) == METRICS and scores["Bleu_1"] > 0
    assert result["baselines"]["one reference against the others"]["Bleu_1"] < 1, (
        "a reference was scored against itself"
    )


def test_diagnostics_stand_beside_their_floor_and_human_line(result):
    model, floor, human = result["diagnostics"].values()
    assert list(result["diagnostics"]) == ["this model", "constant caption", "one reference"]
    assert set(model) == set(floor) == set(human) == set(MEASURES)
    assert floor["copied"] == 1 and floor["self_bleu"] == pytest.approx(1, abs=1e-6) and floor["clip_nats"] == 0
    assert human["distinct_2"] > floor["distinct_2"] and human["vocabulary"] > floor["vocabulary"]
    assert model["best_of_beam"] >= 0 and floor["best_of_beam"] is human["best_of_beam"] is None
    assert model["clip_nats"] is not None and human["clip_nats"] is not None
    assert len(diagnostics_table(result["diagnostics"]).splitlines()) == 1 + len(MEASURES)


def test_protocol_tells_what_a_reader_must_know(run, result):
    protocol = result["protocol"]
    assert protocol["clips"] == len(run.data.splits["test"]) and protocol["split"] == "test" and protocol["beam"] == 2
    assert protocol["references per clip"] == {"min": 5, "mean": 5.0, "max": 5}
    assert protocol["features"] == "efficientnet_lite0" and protocol["frames per clip"] == {
        "min": 6,
        "mean": 6.0,
        "max": 6,
    }
    assert protocol["seeds"] == [0] and {"torch", "numpy", "pycocoevalcap"} <= set(protocol["versions"])


def test_protocol_counts_the_frames_of_features_that_a_corpus_brings(toy_data, small_model):
    """Clips of 3 to 6 frames: what the settings say about sampling is not what was measured."""
    model = small_model(feature_dim=8, vocab_size=len(toy_data.vocabulary))
    config = {"features": str(toy_data.store.folder), "extract": {"num_frames": 16}, "train": {"seed": 0}}
    brought = Run(toy_data.root, config, model, toy_data.vocabulary, toy_data, {})
    told = protocol([brought], "test", DecodeConfig())
    assert told["frames per clip"] == {"min": 3, "mean": 4.5, "max": 6} and told["features"] == "hand"


def test_unknown_split_lists_the_known_ones(run):
    with pytest.raises(UserError, match=r"'tests'.*train, val, test"):
        evaluate(run, "tests")


def test_validation_split_goes_to_files_of_its_own(run):
    evaluate(run, "val", DecodeConfig())
    assert (run.folder / "predictions_val.json").is_file() and (run.folder / "metrics_val.json").is_file()


def test_score_table_has_a_row_per_baseline_times_hundred(result):
    lines = score_table(result, "mine").splitlines()
    assert len(lines) == 2 + len(result["baselines"])
    assert lines[0].split()[0] == "Bleu_1" and lines[1].startswith("mine")
    assert f"{100 * result['scores']['Bleu_1']:.1f}" in lines[1]
    assert len({len(line) for line in lines}) == 1, "columns are not aligned"


def test_control_shows_other_clips_features(run):
    ids = run.data.splits["train"][:2]
    own = predict(run.model, run.vocabulary, run.data.store, ids, DecodeConfig())
    swapped = predict(run.model, run.vocabulary, run.data.store, ids, DecodeConfig(), sources=ids[::-1])
    assert list(swapped) == list(ids)
    assert swapped[ids[0]].log_prob == pytest.approx(own[ids[1]].log_prob, abs=1e-4)
    assert swapped[ids[0]].words == own[ids[1]].words


class TrainOnly(dict):
    """Captions that may be read for some clips only."""

    def __init__(self, captions, allowed):
        super().__init__(captions)
        self.allowed = set(allowed)

    def __getitem__(self, key):
        assert key in self.allowed, f"{key} is not of the training split"
        return super().__getitem__(key)

    def items(self):
        raise AssertionError("all captions are read")

    values = items


def test_constant_caption_reads_the_training_split_alone(toy_data):
    captions = {
        i: ["the best of all", f"c {i}"] if i in toy_data.splits["train"] else ["zebra"] for i in toy_data.captions
    }
    guarded = TrainOnly(captions, toy_data.splits["train"])
    training = training_captions(dataclasses.replace(toy_data, captions=guarded))
    assert constant_caption(training) == "the best of all"


def test_nearest_caption_comes_from_the_most_similar_training_clip(toy_data):
    ids = toy_data.splits["test"]
    guarded = dataclasses.replace(toy_data, captions=TrainOnly(toy_data.captions, toy_data.splits["train"]))
    for video_id, caption in nearest_captions(guarded, ids).items():
        nouns = {c.split()[1] for c in toy_data.captions[video_id]}  # same topic, known by its features
        assert caption.split()[1] in nouns


def test_typical_caption_shares_most_words():
    assert typical_caption(["zebra", "a cat sits here", "a cat sits", "a cat"]) == "a cat sits"


def test_human_line_leaves_the_judged_caption_out():
    references = {
        "a": ["one two three four five", "six seven eight nine ten"],
        "b": ["a b c d e", "f g h i j"],
    }
    captions, others = human_line(references)
    assert others.score(captions)["Bleu_1"] == pytest.approx(0, abs=1e-6)
    assert references["a"] == ["one two three four five", "six seven eight nine ten"], "the caller's lists are changed"
    assert human_line({"a": ["only one"]}) is None


def test_any_clip_is_captioned_as_the_corpus_was_and_a_broken_one_is_told(run, tiny_corpus, tmp_path):
    (tmp_path / "broken.mp4").write_text("no video")
    for name in ("broken.mp4", "missing.mp4"):
        with pytest.raises(VideoError, match=name):
            run.caption(tmp_path / name)
    hypothesis, times = run.caption(tiny_corpus.clips[run.data.splits["test"][0]], DecodeConfig())
    stored = predict(run.model, run.vocabulary, run.data.store, run.data.splits["test"][:1], DecodeConfig())
    assert hypothesis.words == next(iter(stored.values())).words
    assert len(times) == hypothesis.attention.shape[1] == 6


def test_thumbnails_and_times_are_those_of_the_features(run, tiny_corpus):
    video_id = run.data.splits["test"][0]
    pictures = run.thumbnails(video_id, height=60)
    assert len(pictures) == len(run.timestamps(video_id)) == len(run.data.store[video_id])
    assert pictures[0].shape == (60, 80, 3)
    assert run.timestamps(video_id) == sorted(run.timestamps(video_id)) and run.timestamps(video_id)[-1] > 1


def texts_of(figure):
    return [" ".join(t.get_text().split()) for axes in figure.axes for t in axes.texts]


def test_example_pictures_are_drawn_with_all_references(run, tmp_path):
    ids = run.data.splits["test"][:2]
    predictions = predict(run.model, run.vocabulary, run.data.store, ids, DecodeConfig())
    figure = plot_examples(run, predictions, ids)
    figure.savefig(tmp_path / "examples.png", dpi=40)
    assert (tmp_path / "examples.png").stat().st_size > 5000
    texts = texts_of(figure)
    for i in ids:
        assert predictions[i].caption in texts
        assert any(all(f"– {caption}" in text for caption in run.data.captions[i]) for text in texts)
    assert sum(len(axes.images) for axes in figure.axes) == 8


def test_example_pictures_count_equal_references_and_do_without_clips(run, tmp_path):
    first = run.data.splits["test"][0]
    references = ["a cat sleeps", "a cat rests", *["a cat sleeps"] * 2, *(f"number {n} of many" for n in range(30))]
    bare = dataclasses.replace(run, data=dataclasses.replace(run.data, captions={first: references}), clips={})
    predictions = predict(run.model, run.vocabulary, run.data.store, [first], DecodeConfig())
    figure = plot_examples(bare, predictions, [first])
    figure.savefig(tmp_path / "examples.png", dpi=40)
    text = next(text for text in texts_of(figure) if "sleeps" in text)
    assert text.startswith("– a cat sleeps (×3) – a cat rests") and text.endswith("– number 29 of many")
    assert not any(axes.images for axes in figure.axes)
    lowest = min(t.get_window_extent().y0 for axes in figure.axes for t in axes.texts)
    assert lowest >= 0, "a long list of references runs out of the picture"


def test_run_of_features_that_have_other_sizes_is_refused(tiny_run, tiny_config, tmp_path):
    artifacts = tmp_path / "artifacts"
    shutil.copytree(tiny_run, artifacts / "runs" / "tiny")
    for name in ("splits.json", "vocab.json"):
        shutil.copy(tiny_config.artifacts / name, artifacts / name)
    folder = artifacts / "features" / "efficientnet_lite0"
    folder.mkdir(parents=True)
    for ids in read_splits(artifacts / "splits.json").values():
        for i in ids:
            np.save(folder / f"{i}.npy", np.ones((2, 7), np.float16))
    with pytest.raises(UserError, match=r"7 numbers per frame.*1280 numbers"):
        open_run(artifacts / "runs" / "tiny")


def test_run_whose_corpus_is_gone_is_told(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny")
    config = json.loads((tmp_path / "runs" / "tiny" / "config.json").read_text())
    (tmp_path / "runs" / "tiny" / "config.json").write_text(json.dumps(config | {"corpus_dir": str(tmp_path / "gone")}))
    with pytest.raises(UserError, match="gone: no such folder"):
        open_run(tmp_path / "runs" / "tiny")


def test_what_exclude_txt_names_is_not_scored(run, tmp_path, capsys):
    shutil.copytree(run.folder.parent.parent, tmp_path / "data")
    out, *rest = run.data.splits["test"]
    (tmp_path / "data" / "exclude.txt").write_text(f"{out}\n", encoding="utf-8")
    assert open_run(tmp_path / "data" / "runs" / run.folder.name).data.splits["test"] == rest
    assert "exclude.txt: 1 clip(s) are left out" in capsys.readouterr().err


def test_seeds_are_reported_with_mean_and_standard_deviation(run, result, tiny_config, tmp_path):
    """A sister differs in the seed alone; a run with another recipe beside it does not count."""
    assert result["seeds"] is None
    folder = tmp_path / "data" / "runs"
    shutil.copytree(run.folder.parent.parent, folder.parent, dirs_exist_ok=True)
    for name, seed, epochs in (("b", 7, None), ("c", 8, 99)):
        shutil.copytree(run.folder, folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        config["train"]["seed"] = seed
        config["train"]["epochs"] = epochs or config["train"]["epochs"]
        (folder / name / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "b" / "best" / "model.safetensors")
    save_file({n: t * 0.5 for n, t in weights.items()}, folder / "b" / "best" / "model.safetensors")
    again = open_run(folder / run.folder.name)
    assert [sister.folder.name for sister in sister_runs(again)] == ["b"]
    both = evaluate(again, decode=DecodeConfig(beam_size=2))
    assert both["scores"] == result["scores"] and both["protocol"]["seeds"] == [run.config["train"]["seed"], 7]
    other = evaluate(open_run(folder / "b"), decode=DecodeConfig(beam_size=2))["scores"]
    pair = [result["scores"]["Bleu_1"], other["Bleu_1"]]
    assert pair[0] != pair[1]
    assert both["seeds"]["mean"]["Bleu_1"] == pytest.approx(sum(pair) / 2)
    assert both["seeds"]["sd"]["Bleu_1"] == pytest.approx(abs(pair[0] - pair[1]) / 2**0.5)
    assert "mean of 2 seeds" in score_table(both)
