"""The explorer's kernel side: what it says of odd clips, and what it leaves behind."""

import dataclasses
import json
import re
import shutil
import tempfile
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from ipywidgets.widgets import widget as ipywidget

from vcutils.attention.embed import caption_content, clip_content
from vcutils.attention.explorer import Explorer, side_by_side
from vcutils.attention.measures import teacher_forced
from vcutils.attention.page import page_for
from vcutils.attention.views import corpus_clip, with_captions
from vcutils.config import DecodeConfig, ModelConfig, UserError
from vcutils.corpora import open_corpus
from vcutils.corpus import save_splits
from vcutils.dataset import load_data
from vcutils.features import extract_corpus
from vcutils.model import CaptionModel
from vcutils.runtime.store import FeatureStore
from vcutils.scores.runs import Run
from vcutils.vocab import build_vocabulary

IDS = ("one", "tall", "wide", "wide2", "wide3", "wide4")


@pytest.fixture
def run(tmp_path, tiny_config, write_video, fake_backbone):
    """An untrained model on odd clips: one frame, vertical, ordinary."""
    root = tmp_path / "odd"
    rng = np.random.default_rng(0)
    for i in IDS:
        size, count = ((160, 90), 12) if i == "tall" else ((60, 80), 1 if i == "one" else 12)
        frames = [cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), size[::-1]) for _ in range(count)]
        write_video(root / "videos" / f"{i}.avi", frames)
    (root / "captions.txt").write_text("".join(f"{i} a cat runs\n{i} <b>dog</b> سار 🐈 sits\n" for i in IDS), "utf-8")
    config = dataclasses.replace(tiny_config, data=tmp_path / "data", corpus=root)
    corpus = open_corpus(root)
    extract_corpus(corpus, config.artifacts, config.extract, progress=False)
    save_splits({"train": ["wide"], "val": ["wide2"], "test": list(IDS[:2])}, config.artifacts / "splits.json")
    vocabulary = build_vocabulary(corpus.captions, IDS, 1)
    vocabulary.save(config.artifacts / "vocab.json")
    torch.manual_seed(0)
    model = CaptionModel(ModelConfig(dropout=0.0), len(vocabulary), 12).eval()
    settings = json.loads(json.dumps(dataclasses.asdict(config), default=str)) | {"features": config.extract.backbone}
    data = load_data(corpus, config.artifacts, config.extract)
    return Run(config.artifacts / "runs" / "odd", settings, model, vocabulary, data, corpus.clips)


def titles_of(page):
    """The clips of a saved page."""
    rows = re.search('<script type="application/json">(.*)</script>', page.read_text("utf-8"))[1]
    return [row["title"] for row in json.loads(rows)]


def test_clips_of_every_shape_open(run):
    explorer = Explorer(run, decode=DecodeConfig(beam_size=3, max_length=6))
    for i, frames in (("one", 1), ("tall", 6), ("wide", 6)):
        explorer.show_clip(i)
        view = explorer.view
        assert (view.message, view.clip["title"], explorer.shown.title) == ("", i, i)
        assert len(view.clip["images"]) == len(view.clip["times"]) == frames
        assert len(view.captions["beams"]) == len(explorer.shown.beams)
        for hypothesis, beam in zip(explorer.shown.beams, view.captions["beams"], strict=True):
            assert hypothesis.attention.shape == (len(hypothesis.words), frames)
            np.testing.assert_allclose(hypothesis.attention.sum(axis=1), 1, atol=1e-5)
            rows = len(hypothesis.words) + (hypothesis.end_attention is not None)
            assert np.shape(beam["weights"]) == (rows, frames) and len(beam["probabilities"]) == rows


def test_the_end_has_its_row_and_its_probability(run):
    view = corpus_clip(run, "wide")
    seen = with_captions(run, view, DecodeConfig(beam_size=4, max_length=6), {0, 5})
    ended = next(h for h in seen.beams if h.end_attention is not None)
    beam = caption_content(seen)["beams"][seen.beams.index(ended)]
    assert ended.end_attention[[0, 5]].tolist() == [0, 0]
    np.testing.assert_allclose(beam["weights"][-1], ended.end_attention, atol=1e-4)
    assert np.log(beam["probabilities"]).sum() == pytest.approx(ended.log_prob, rel=0.01)


def test_hidden_frames_never_reach_the_model(run):
    view = corpus_clip(run, "wide")
    decode = DecodeConfig(beam_size=2, max_length=6)
    seen = with_captions(run, view, decode, {1, 4})
    assert seen.hidden == {1, 4}
    for hypothesis in seen.beams:
        assert (hypothesis.attention[:, [1, 4]] == 0).all()
        np.testing.assert_allclose(hypothesis.attention.sum(axis=1), 1, atol=1e-5)
    poisoned = view.features.clone()
    poisoned[[1, 4]] = 1e6
    again = with_captions(run, dataclasses.replace(view, features=poisoned), decode, {1, 4})
    assert [h.score for h in again.beams] == [h.score for h in seen.beams]


def test_hide_show_and_the_last_frame(run):
    explorer = Explorer(run, "wide", DecodeConfig(beam_size=2, max_length=6))
    view, before = explorer.view, explorer.shown.beams[0]
    view.beam, view.wanted = (
        1,
        view.wanted | {"hidden": [2]},
    )  # what the browser sends after clicks on another caption and on a frame
    assert explorer.shown.hidden == {2} and view.captions["hidden"] == [2] and view.beam == 0
    assert view.captions["before"] == {"words": before.words, "score": before.score}
    view.wanted = view.wanted | {"hidden": [2, 4, 5]}
    assert explorer.shown.hidden == {2, 4, 5}
    explorer.hide_frames(np.arange(6))
    assert "At least one frame must stay visible" in view.message
    assert explorer.shown.hidden == {2, 4, 5} and view.wanted["hidden"] == [2, 4, 5]
    explorer.hide_frames(np.argsort([3, 1, 2, 0])[:2])
    assert view.wanted["hidden"] == [1, 3] and view.message == ""
    explorer.hide_frames(())
    assert (explorer.shown.hidden, view.wanted["hidden"], view.captions["before"]) == (frozenset(), [], None)
    assert explorer.shown.beams[0].score == before.score


def test_what_belongs_together_arrives_together(run):
    """A clip whose captions came a message later would be drawn with the captions of another."""
    explorer, comm = Explorer(run, "wide", DecodeConfig(beam_size=2, max_length=6)), Mock()
    explorer.view._trait_values["comm"] = comm  # ipywidgets 7 would take none but its own kind
    explorer.show_clip("tall")
    explorer.hide_frames({1})
    sent = [set(call.kwargs["data"]["state"]) for call in comm.send.call_args_list]
    assert sent == [
        {"clip", "captions", "needs"},  # none: the last clip's belong to other words
        {"needs"},
        {"wanted"},
        {"captions", "needs"},
        {"needs"},
    ], "and pictures are sent once, needs when they are there"


def test_what_the_view_asks_for_is_said_from_there_on(run):
    decode = DecodeConfig(beam_size=2, max_length=6)
    explorer = Explorer(run, "wide", decode)
    view = explorer.view
    own = view.captions["beams"][0]["words"]
    other = next(word for word in view.needs[0]["others"]["words"][1] if word not in (own[1], "<end>"))
    view.set_state({"wanted": {"start": [own[0], other], "size": 3, "hidden": [2]}})
    beams = view.captions["beams"]
    assert len(beams) == 3 and all(beam["words"][:2] == [own[0], other] for beam in beams)
    assert (view.captions["start"], view.captions["hidden"], view.captions["before"]["words"]) == (
        [own[0], other],
        [2],
        own,
    )
    best, visible = explorer.shown.beams[0], [0, 1, 3, 4, 5]
    features = run.data.store["wide"][visible]
    words = [*best.words, *["<end>"] * (best.end_attention is not None)]
    (log_probs,), _ = teacher_forced(run.model, run.vocabulary, [features], words)
    assert best.log_prob == pytest.approx(log_probs.sum(), abs=1e-4), "given words keep their own probability"
    np.testing.assert_allclose(best.word_log_probs, log_probs[: len(best.words)], atol=1e-4)
    view.set_state({"wanted": {"start": ["no-such-word"], "size": 99, "hidden": [2]}})
    assert "no caption can begin with “no-such-word”" in view.message
    assert view.wanted == {"start": [own[0], other], "size": 3, "hidden": [2]}, "what is shown stays"
    view.set_state({"wanted": {"start": [], "size": 99, "hidden": []}})
    assert len(view.captions["beams"]) == view.wanted["size"] == 10 and view.captions["before"] is None


def test_need_and_the_likeliest_words_come_with_every_caption(run):
    explorer = Explorer(run, "wide", DecodeConfig(beam_size=3, max_length=6))
    explorer.hide_frames({1})
    needs, beams = explorer.view.needs, explorer.view.captions["beams"]
    assert len(needs) == len(beams)
    for n, (of_beam, beam) in enumerate(zip(needs, beams, strict=True)):
        rows = len(beam["weights"])
        assert np.shape(of_beam["needs"][1]) == np.shape(of_beam["needs"][3]) == (rows, 6)
        assert all(row[1] == 0 for row in of_beam["needs"][1]), "the model never saw the hidden frame"
        assert np.shape(of_beam["others"]["words"]) == np.shape(of_beam["others"]["probabilities"]) == (rows, 5)
        assert ("needs" in of_beam["others"]) == (n == 0)
        assert not {"<pad>", "<start>", "<unk>"} & {word for row in of_beam["others"]["words"] for word in row}
        likely = of_beam["others"]["words"], of_beam["others"]["probabilities"]
        for word, p, others, of_others in zip(beam["words"], beam["probabilities"], *likely, strict=False):
            if word in others:
                assert of_others[others.index(word)] == pytest.approx(p, abs=2e-4)
    explorer.show_clip("one")
    assert explorer.view.needs == [], "of one frame nothing can be left out"


def test_a_splits_clips_are_listed_and_opened(run):
    explorer = Explorer(run, "wide", DecodeConfig(beam_size=2, max_length=6))
    explorer.list_clips("test")
    one, tall = explorer.view.rows
    assert (one["title"], tall["title"], one["need"]) == ("one", "tall", None)
    explorer._on_message(None, {"open": "tall"}, [])
    assert explorer.shown.title == "tall" and tall["caption"] == explorer.shown.beams[0].caption
    needs = np.array(explorer.view.needs[0]["needs"][1])[: len(explorer.shown.beams[0].words)]
    assert tall["need"] == pytest.approx(needs.max(axis=1).mean(), abs=0.01) and tall["cider"] >= 0
    assert 0 <= tall["spread"] <= 1


def test_two_runs_stand_beside_each_other(run, tmp_path):
    other = dataclasses.replace(run, folder=run.folder.with_name("twin"))
    assert page_for(run, ["wide", "tall"], tmp_path / "page.html", DecodeConfig(max_length=6), other) == []
    assert titles_of(tmp_path / "page.html") == ["wide · odd", "wide · twin", "tall · odd", "tall · twin"]
    one, two = (Explorer(run, i, DecodeConfig(max_length=6)) for i in ("wide", "tall"))
    assert side_by_side(one, two).children == (one, two)


def test_recaptioning_leaves_no_widgets_behind(run):
    explorer = Explorer(run, "wide", DecodeConfig(beam_size=2, max_length=6))
    alive = getattr(ipywidget, "_instances", None) or ipywidget.Widget.widgets  # ipywidgets 8, 7
    count = len(alive)
    for _ in range(3):
        explorer.hide_frames({1})
        explorer.show_clip("tall")
    assert len(alive) == count


def test_a_lost_file_is_named_as_it_was_given(run):
    explorer = Explorer(run, "wide")
    explorer.show_file(Path("<b>no such</b>.mp4"))
    message = explorer.view.message
    assert "<b>no such</b>.mp4: no such file" in message and "Still shown: wide" in message


def test_own_clip_is_checked_and_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    corpus = sorted(p.name for p in run.data.root.rglob("*"))
    explorer = Explorer(run, "wide", DecodeConfig(max_length=6))

    def upload(name, content):
        explorer._on_message(None, {"open": name}, [memoryview(content)])
        return explorer.view.message

    clip = (run.data.root / "videos" / "tall.avi").read_bytes()
    assert upload("../../evil.avi", clip) == ""
    assert explorer.shown.title == explorer.view.clip["title"] == "../../evil.avi"
    assert "not a video file" in upload("notes.txt", b"text")
    assert "not a video that can be decoded" in upload("broken.mp4", b"broken" * 99)
    assert explorer.shown.title == "../../evil.avi", "a bad clip leaves the last good one in view"
    assert not list((tmp_path / "tmp").iterdir())
    assert sorted(p.name for p in run.data.root.rglob("*")) == corpus
    explorer._on_message(None, {"open": "one"}, [])
    assert explorer.shown.title == "one"


def test_lost_or_changed_clips_are_shown_as_numbers(run, write_video):
    videos = run.data.root / "videos"
    (videos / "wide.avi").write_bytes(b"cut")
    write_video(videos / "wide2.avi", [np.zeros((60, 80, 3), np.uint8)] * 2)
    (videos / "wide3.avi").unlink()
    explorer = Explorer(run, "wide", DecodeConfig(max_length=6))
    clip = explorer.view.clip
    assert clip["note"].startswith("No pictures") and "wide.avi" in clip["note"]
    for video_id, reason in (("wide2", "not the one"), ("wide3", "no such file"), ("wide4", "only the features")):
        explorer.run = dataclasses.replace(run, clips={i: clip for i, clip in run.clips.items() if i != "wide4"})
        explorer.show_clip(video_id)
        assert reason in explorer.view.clip["note"]
        assert explorer.view.clip["images"] == [] and len(explorer.view.clip["times"]) == 6


def test_features_without_times_are_counted(run):
    for manifest in run.data.store.folder.glob("manifest*"):
        manifest.unlink()
    store = FeatureStore(run.data.store.folder)
    view = corpus_clip(dataclasses.replace(run, data=dataclasses.replace(run.data, store=store)), "wide")
    clip = clip_content(view)
    assert (clip["timed"], clip["times"], clip["images"]) == (False, [0, 1, 2, 3, 4, 5], [])


def test_save_shows_the_clip_with_and_without_its_frames(run, tmp_path):
    explorer = Explorer(run, "wide", DecodeConfig(beam_size=2, max_length=6))
    explorer.hide_frames({0, 1})
    path = explorer.save(tmp_path / "out" / "page.html", ["wide", "tall"])
    assert titles_of(path) == ["wide", "wide (2 frames hidden)", "tall"]


def test_page_for_ids_and_files_with_problems_listed(run, tmp_path):
    shutil.copy(run.data.root / "videos" / "tall.avi", tmp_path / "own.avi")
    (tmp_path / "broken.mp4").write_bytes(b"broken")
    clips = ["wide", tmp_path / "own.avi", tmp_path / "broken.mp4", "nowhere"]
    out = tmp_path / "page.html"
    problems = page_for(run, clips, out, DecodeConfig(max_length=6))
    assert "broken.mp4: not a video" in problems[0]
    assert problems[1:] == ["nowhere: neither a clip of odd nor a file"]
    assert titles_of(out) == ["wide", "own.avi"]
    with pytest.raises(UserError, match="no page written"):
        page_for(run, ["nowhere"], tmp_path / "none.html", DecodeConfig(max_length=6))
    assert not (tmp_path / "none.html").exists()
