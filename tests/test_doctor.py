"""`doctor` tells all that will go wrong before hours are spent, and writes nothing but the list that --fix asks for."""

import dataclasses
import json
import shutil
from itertools import chain

import numpy as np
import pytest

from vcutils.cli import main
from vcutils.config import Config, ExtractConfig, UserError
from vcutils.corpora import load_corpus, open_corpus
from vcutils.corpora.doctor import estimate, examine
from vcutils.corpus import make_splits, read_splits
from vcutils.features import extract_corpus


@pytest.fixture
def settings(tmp_path, monkeypatch, fake_backbone):
    """Function: the settings for a corpus, with a backbone of twelve numbers per frame."""

    def make(root):
        return dataclasses.replace(Config(), corpus=root, data=tmp_path / "data", extract=ExtractConfig(num_frames=5))

    return make


def test_counts_reasons_and_machine_are_told_and_nothing_is_written(make_corpus, settings, snapshot, tmp_path):
    root = make_corpus(ids=("a", "b", "c", "silent"), captions="a x\na y\na z\nb x\nc y\nghost z\n")
    (root / "videos" / "c.avi").write_text("no video")
    before, config = snapshot(root), settings(root)
    report = examine(load_corpus(config), config)
    json.dumps(report)
    assert (report["clips"], report["clips with captions"], report["captions"]) == (4, 3, 5)
    assert (report["clips without captions"], report["captions without clips"]) == (1, 1)
    assert report["captions per clip"] == {"min": 1, "mean": 1.7, "max": 3}
    assert report["unreadable clips"] == ["c"] and "c.avi: not a video" in report["problems"][0]
    assert any("ghost" in p for p in report["problems"]) and any("silent" in p for p in report["problems"])
    assert sum(report["split"][s] for s in ("train", "val", "test")) == 3
    assert report["machine"].keys() == {"GPU", "cores", "python", "torch", "opencv"}
    assert report["free disk, MB"] == pytest.approx(shutil.disk_usage(tmp_path).free / 1e6, rel=0.1)
    assert report["METEOR"]
    assert snapshot(root) == before and not config.data.exists()


def test_estimate_is_marked_as_one_and_equals_what_extraction_then_writes(make_corpus, settings):
    config = settings(root := make_corpus(ids=tuple("abcdefgh")))
    corpus = load_corpus(config)
    guess = examine(corpus, config)["estimate"]
    assert guess["measured on"].startswith("6 of 8 clips") and guess["minutes of extraction"] >= 0
    report = extract_corpus(corpus, config.artifacts, config.extract, progress=False)
    written = sum(np.load(report.folder / f"{i}.npy").nbytes for i in report.written)
    assert guess["disk for features, MB"] == round(written / 1e6, 1)
    assert estimate(open_corpus(root), config, []) is None


def test_full_disk_missing_weights_and_impossible_split_are_problems(make_corpus, settings, monkeypatch):
    config = settings(make_corpus(ids=("a",)))
    monkeypatch.setattr("vcutils.corpora.doctor._free", lambda folder: 0)
    monkeypatch.setattr("vcutils.corpora.doctor.estimate", lambda *args: {"disk for features, MB": 0.1})
    report = examine(load_corpus(config), config)
    assert any("no room" in p for p in report["problems"]) and report["split"]["origin"] == "none"

    def refuse(*args):
        raise UserError("backbone x: its pretrained weights cannot be had")

    monkeypatch.setattr("vcutils.corpora.doctor.estimate", refuse)
    report = examine(load_corpus(config), config)
    assert report["estimate"] is None and any("weights cannot be had" in p for p in report["problems"])


def test_fix_lists_unreadable_clips_and_every_later_stage_leaves_them_out(
    make_corpus, settings, snapshot, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("VCUTILS_PROFILE", "tiny")
    root = make_corpus(ids=tuple("abcdef"))
    (root / "videos" / "b.avi").write_text("no video")
    before, data, listed = snapshot(root), tmp_path / "data", tmp_path / "data" / "mine" / "exclude.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("# by hand\nf")
    call = lambda verb, *more: main([verb, str(root), "--data", str(data), *more])  # noqa: E731
    assert call("doctor", "--fix", "--json") == 1
    assert str(listed) in json.loads(capsys.readouterr().out)["written"]
    lines = listed.read_text().splitlines()
    assert lines[:2] == ["# by hand", "f"] and lines[3:] == ["b"] and "b.avi: not a video" in lines[2]
    assert [p.name for p in data.rglob("*")] == ["mine", "exclude.txt"] and snapshot(root) == before
    for verb in ("doctor", "extract", "vocab"):
        assert call(verb) == 0
        assert "exclude.txt: 2 clip(s) are left out" in capsys.readouterr().err
    assert not {"b", "f"} & set(chain(*read_splits(data / "mine" / "splits.json").values()))
    assert call("doctor", "--fix", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["left out by exclude.txt"] == ["b", "f"] and report["written"].startswith("nothing")
    assert listed.read_text().splitlines() == lines


def test_fix_keeps_an_unreadable_clip_whose_features_the_corpus_brings(make_corpus, settings):
    root = make_corpus()
    (root / "videos" / "b.avi").write_text("no video")
    (root / "features" / "c3d").mkdir(parents=True)
    np.save(root / "features" / "c3d" / "b.npy", np.ones((2, 3), np.float32))
    config = settings(root)
    assert examine(load_corpus(config), config, fix=True)["written"].startswith("nothing")
    assert "b" in chain(*make_splits(load_corpus(config))[0].values())
