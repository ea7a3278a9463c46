"""The captioner that ships with the package: any clip is captioned right after the install, without a run."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vcutils.attention.explorer import Explorer
from vcutils.cli import main
from vcutils.config import UserError
from vcutils.corpora import open_run
from vcutils.features import clip_features
from vcutils.runtime.checkpoints import load_tensors, save_model
from vcutils.scores import runs
from vcutils.scores.runs import CAPTIONER, load_captioner, load_model


@pytest.fixture
def call(capfd):
    """Function: run the command line; (exit code, stdout, stderr)."""

    def run(*args):
        capfd.readouterr()
        code = main([str(a) for a in args])
        return (code, *capfd.readouterr())

    return run


@pytest.fixture
def clip(tiny_corpus):
    """A rendered clip."""
    return next(iter(tiny_corpus.clips.values()))


def test_it_is_small_says_what_it_is_and_needs_nothing_else():
    names = {"model.safetensors", "config.json", "vocab.json", "MODEL_CARD.md"}
    assert {path.name for path in CAPTIONER.iterdir()} == names
    assert sum(path.stat().st_size for path in CAPTIONER.iterdir()) <= 12e6
    assert {tensor.dtype for tensor in load_tensors(CAPTIONER / "model.safetensors")[0].values()} == {torch.float16}
    assert {tensor.dtype for tensor in load_captioner().model.parameters()} == {torch.float32}
    card = (CAPTIONER / "MODEL_CARD.md").read_text("utf-8")
    for part in ("2,851", "research", "constant caption", "nearest training clip", "one reference against", "unsure"):
        assert part in card


def test_a_clip_is_captioned_without_a_run(call, clip):
    code, out, _ = call("caption", clip, "--json")
    (row,) = json.loads(out).values()
    words, config = row["words"], open_run().config
    assert code == 0 and words and set(words) <= set(open_run().vocabulary.words)
    assert len(row["timestamps"]) == min(config["extracted"]["num_frames"], len(row["weights"][0]))
    assert row["mean_word_prob"] == pytest.approx(np.exp(np.mean(row["word_log_probs"])))
    assert row["unsure"] == (row["mean_word_prob"] < config["unsure_below"])


def test_a_real_clip_is_captioned_without_a_run(call, msvd_mini, tmp_path):
    clip = msvd_mini / "videos" / "rKF0ZW34FRk_41_54.avi"
    code, out, _ = call("caption", clip)
    assert code == 0 and out.startswith(f"{clip.name}: a ") and "mean word probability" in out
    code, out, _ = call("explore", clip, "--out", tmp_path / "page.html")
    assert code == 0 and clip.name in (tmp_path / "page.html").read_text("utf-8")


def test_unsure_is_said_where_the_mean_word_probability_is_low(call, clip, monkeypatch):
    for threshold, unsure in ((0.0, False), (1.0, True)):
        monkeypatch.setattr(runs, "load_captioner", lambda t=threshold: _with(load_captioner(), unsure_below=t))
        assert json.loads(call("caption", clip, "--json")[1])[str(clip)]["unsure"] is unsure
        assert ("(unsure: mean word probability 0." in call("caption", clip)[1]) is unsure


def _with(run, **changes):
    return replace(run, config=run.config | changes)


def test_a_run_may_stand_before_the_clips_or_behind_its_option(call, tiny_run, clip):
    before, behind = call("caption", tiny_run, clip, "--json"), call("caption", clip, "--run", tiny_run, "--json")
    shipped = call("caption", clip, "--json")
    assert before == behind and before[0] == 0 and shipped[1] != before[1]
    assert json.loads(before[1])[str(clip)]["unsure"] is None, "no limit was chosen for it"
    code, _, err = call("caption", tiny_run.parent / "typo", clip)
    assert code == 2 and "typo: not a run" in err, "never captioned by another model in silence"


def test_broken_and_missing_clips_are_named_and_the_others_captioned(call, clip, tmp_path):
    (tmp_path / "broken.mp4").write_text("no video")
    code, out, err = call("caption", tmp_path / "broken.mp4", clip, tmp_path / "missing.mp4", "--json")
    rows = list(json.loads(out).values())
    assert code == 1 and "broken.mp4: not a video" in err and "missing.mp4: no such file" in err
    assert ["error" in row for row in rows] == [True, False, True]
    code, out, err = call("explore", tmp_path / "broken.mp4", clip, "--out", tmp_path / "page.html")
    assert code == 1 and "broken.mp4" in out and (tmp_path / "page.html").is_file()


def test_an_id_or_a_check_needs_a_run(call, clip):
    for args, named in ((("video7",), "at least one clip"), ((clip, "--check"), "a run with --check")):
        code, out, err = call("explore", *args)
        assert code == 2 and named in err and err.count("\n") == 1 and not out


def test_without_its_folder_one_message_says_what_to_do(call, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "CAPTIONER", tmp_path / "captioner")
    for verb in ("caption", "explore"):
        code, out, err = call(verb, clip)
        assert code == 2 and not out and err.count("\n") == 1 and "install vcutils again" in err and "--run" in err


def test_features_that_are_made_otherwise_are_refused(call, clip, monkeypatch):
    made_by = load_captioner().config["extracted"] | {"weights": "of another network"}
    captioner = load_captioner()
    captioner.data.store.extracted = made_by
    monkeypatch.setattr(runs, "load_captioner", lambda: captioner)
    code, _, err = call("caption", clip)
    assert code == 2 and err.count("\n") == 1 and "of another network" in err and "efficientnet-lite0-57934424" in err


def test_features_are_those_that_it_was_trained_on(vtt_mini):
    """vtt-features was made elsewhere; vtt-mini has some of its clips: the same frames must give the same rows."""
    folder, captioner = vtt_mini.parent / "vtt-features" / "features" / "efficientnet_lite0", load_captioner()
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    for name in ("vtt6532.mp4", "vtt2765.avi"):
        trained = np.load(folder / f"video{name[3:7]}.npy").astype(np.float32)
        settings = replace(captioner.extract, num_frames=60)
        features = clip_features(captioner.backbone, vtt_mini / "videos" / name, settings)[0].numpy()
        trained, features = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (trained, features))
        assert (trained @ features.T).max(axis=1).mean() > 0.97, "0.91 and less when frames are cropped"


def test_float16_weights_say_what_float32_ones_say(tiny_run, tmp_path):
    exact = open_run(tiny_run)
    model, vocabulary, about = load_model(tiny_run / "best")
    save_model(tmp_path, model.half(), about, vocabulary)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    rounded = replace(exact, model=load_model(tmp_path)[0])
    ids = sorted(exact.data.store.ids)
    before, after = exact.predict(ids), rounded.predict(ids)
    assert [before[i].words for i in ids] == [after[i].words for i in ids]
    assert all(abs(before[i].log_prob - after[i].log_prob) < 0.02 for i in ids)


def test_the_explorer_opens_on_it_and_takes_an_upload(clip, tmp_path):
    explorer = Explorer(open_run())
    assert "upload" in explorer.view.message and not explorer.shown.beams
    with pytest.raises(UserError, match="nothing to save"):
        explorer.save(tmp_path / "page.html")
    explorer._on_message(None, {"open": "mine.mp4"}, [clip.read_bytes()])
    assert explorer.view.clip["title"] == "mine.mp4" and explorer.shown.beams[0].words
    explorer.hide_frames([0])
    assert explorer.save(tmp_path / "page.html").is_file()


def test_it_is_part_of_what_is_installed(repo, tmp_path):
    """A wheel holds it: pip installs nothing else."""
    pytest.importorskip("setuptools")
    shutil.copytree(repo / "vcutils", tmp_path / "vcutils", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repo / "pyproject.toml", tmp_path)
    shutil.copy(repo / "README.md", tmp_path)
    code = "from setuptools import setup; setup()"
    built = subprocess.run([sys.executable, "-c", code, "-q", "build"], cwd=tmp_path, capture_output=True, text=True)
    installed = tmp_path / "build" / "lib" / "vcutils" / "captioner" / "model.safetensors"
    assert installed.is_file() and installed.stat().st_size == (CAPTIONER / "model.safetensors").stat().st_size, built
