"""`doctor` tells all that will go wrong before hours are spent, and writes nothing but the list that --fix asks for."""

import dataclasses
import http.server
import json
import shutil
import threading
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vcutils import features
from vcutils.cli import main
from vcutils.config import Config, ExtractConfig, TrainConfig, UserError
from vcutils.corpora import doctor, load_corpus, open_corpus
from vcutils.corpora.doctor import check_msvd, estimate, examine, find_weights
from vcutils.corpora.readers import read_captions
from vcutils.corpus import make_splits, read_splits
from vcutils.features import extract_corpus
from vcutils.runtime.backbones import load_backbone


@pytest.fixture
def settings(tmp_path, monkeypatch, fake_backbone):
    """Function: the settings for a corpus, with a backbone of twelve numbers per frame."""
    monkeypatch.setattr(doctor, "load_backbone", lambda name, **_: features.load_backbone(name))

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
    config = settings(make_corpus(ids=tuple("abcdefgh")))
    corpus = load_corpus(config)
    guess = examine(corpus, config)["estimate"]
    assert guess["measured on"].startswith("6 of 8 clips") and guess["minutes of extraction"] >= 0
    report = extract_corpus(corpus, config.artifacts, config.extract, progress=False)
    written = sum(np.load(report.folder / f"{i}.npy").nbytes for i in report.written)
    assert guess["disk for features, MB"] == round(written / 1e6, 1)
    assert estimate(config, []) is None


def test_full_disk_missing_weights_and_impossible_split_are_problems(make_corpus, settings, monkeypatch):
    config = settings(make_corpus(ids=("a",)))
    guess = {"disk for features, MB": 0.1, "frames per clip": 5, "numbers per frame": 12}
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    monkeypatch.setattr("vcutils.corpora.doctor.estimate", lambda *args, **_: guess)
    report = examine(load_corpus(config), config)
    assert any("no room" in p for p in report["problems"]) and report["split"]["origin"] == "none"

    def refuse(*args, **_):
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


@pytest.fixture
def features_only(tmp_path):
    """Function: a corpus folder without clips, with features (5, 8) of some ids and the given captions."""

    def make(captions, ids=None):
        root = tmp_path / "ready"
        (folder := root / "features" / "hand").mkdir(parents=True)
        for i in captions if ids is None else ids:
            np.save(folder / f"{i}.npy", np.ones((5, 8), np.float16))
        (root / "captions.txt").write_text("".join(f"{i} {c}\n" for i in captions for c in captions[i]), "utf-8")
        return root

    return make


TWELVE = {f"c{n:02}": ["a cat runs", "the dog sleeps there"] for n in range(12)}


def test_corpus_with_features_needs_no_weights_and_is_told_memory_and_times(features_only, settings, monkeypatch):
    monkeypatch.setattr(doctor, "load_backbone", lambda *args, **_: pytest.fail("no network is needed"))
    config = settings(features_only(TWELVE))
    report = examine(load_corpus(config), config)
    json.dumps(report)
    assert report["weights"] == "not needed: the corpus brings its own features, hand"
    assert report["problems"] == [] and report["estimate"] is None
    assert "fits" in report["memory"]
    assert report["training"].startswith("18 epochs of ") and "for 3 test clips" in report["evaluation"]
    assert "may be wrong by half" in report["training"] and "may be wrong by half" in report["evaluation"]
    assert "self-critical" not in report["training"] and not config.data.exists()


def test_time_of_self_critical_epochs_counts(features_only, settings, monkeypatch):
    config = settings(features_only(TWELVE))
    config = dataclasses.replace(config, train=TrainConfig(epochs=2, scst_epochs=3))
    measured = doctor._step_seconds  # of two steps in an epoch, which take these seconds on a slow machine:
    monkeypatch.setattr(doctor, "_step_seconds", lambda *step: 0 * measured(*step) + (1000 if step[1] else 100))
    text = examine(load_corpus(config), config)["training"]
    assert text.startswith("2 epochs of 3 min and 3 self-critical ones of 33 min, at most 1.8 h in all"), text


def test_times_before_extraction_are_measured_on_features_of_the_backbones_shape(make_corpus, settings, monkeypatch):
    shapes = []
    monkeypatch.setattr(doctor, "rehearse", lambda _, __, ___, store: shapes.append(store["a"].shape) or {})
    config = settings(make_corpus(ids=tuple("abcdefgh")))
    assert examine(load_corpus(config), config)["estimate"]["numbers per frame"] == 12
    assert shapes == [(5, 12)]


def test_time_limit_bounds_the_training_time(features_only, settings, monkeypatch):
    monkeypatch.setattr(doctor, "_step_seconds", lambda trainer, rewarded: 3600.0)
    config = settings(features_only(TWELVE))
    train = dataclasses.replace(config.train, max_minutes=30.0)
    report = examine(load_corpus(config), dataclasses.replace(config, train=train))
    assert "at most 30 min in all" in report["training"]


def test_batch_that_does_not_fit_is_a_problem(features_only, settings, monkeypatch):
    def full(trainer, rewarded):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(doctor, "_step_seconds", full)
    config = settings(features_only(TWELVE))
    report = examine(load_corpus(config), config)
    (problem,) = report["problems"]
    assert "a batch of 4 clips does not fit into memory; lower batch_size" in problem and "training" not in report


@pytest.fixture
def host():
    """Function: the address of a server that answers HEAD with so many bytes."""
    servers = []

    def start(size):
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(200)
                self.send_header("Content-Length", str(size))
                self.end_headers()

            def log_message(self, *args):
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/resnet18-0.pth"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_weights_are_in_the_cache_on_the_network_or_missing(tmp_path, monkeypatch, host):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    class Weights:
        url = host(46_827_520)

    monkeypatch.setattr(doctor, "torchvision_weights", lambda name: Weights)
    state, text = find_weights("resnet18")
    assert state == "on the network" and "to be downloaded, 47 MB from http://127.0.0.1" in text
    cached = tmp_path / "hub" / "checkpoints" / "resnet18-0.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"weights")
    state, text = find_weights("resnet18")
    assert state == "here" and str(cached) in text
    cached.unlink()
    Weights.url = "http://127.0.0.1:9/resnet18-0.pth"
    state, text = find_weights("resnet18")
    assert state == "missing" and str(tmp_path) in text and Weights.url in text and "efficientnet_lite0" in text
    assert find_weights("efficientnet_lite0")[0] == "here"


def test_unknown_backbone_is_named(monkeypatch):
    for name in ("resnet19", "timm/resnet19"):
        with pytest.raises(UserError, match=f"unknown backbone '{name}'"):
            find_weights(name)


def test_timm_weights_are_looked_for_at_hugging_face(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(doctor, "urlopen", lambda request, timeout: (_ for _ in ()).throw(OSError(request.full_url)))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    state, text = find_weights("timm/resnet18.a1_in1k")
    assert state == "missing" and "timm/resnet18.a1_in1k/resolve/main/model.safetensors" in text
    (cached := tmp_path / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: str(cached))
    assert find_weights("timm/resnet18.a1_in1k")[0] == "here"


def test_missing_weights_are_a_problem_and_the_times_are_told_all_the_same(make_corpus, settings, monkeypatch):
    monkeypatch.setattr(doctor, "find_weights", lambda name: ("missing", "resnet18: cannot be had"))
    monkeypatch.setattr(doctor, "load_backbone", load_backbone)
    config = settings(make_corpus(ids=tuple("abcd")))
    config = dataclasses.replace(config, extract=ExtractConfig(backbone="resnet18", num_frames=5))
    report = examine(load_corpus(config), config)
    assert report["problems"] == ["resnet18: cannot be had"]
    assert report["estimate"]["numbers per frame"] == 512 and report["training"]


@pytest.fixture
def msvd(msvd_mini, features_only):
    """Function: MSVD's captions, two of each clip, with made features of all clips but `without`."""
    captions = {i: texts[:2] for i, texts in read_captions(msvd_mini / "AllVideoDescriptions.txt").items()}

    def make(without=(), more=None):
        named = captions | (more or {})
        return open_corpus(features_only(named, [i for i in named if i not in without]))

    return make


def test_all_of_msvd_has_its_published_counts(msvd):
    problems = []
    assert check_msvd(msvd(), problems) == {"MSVD": "1,970 of 1,970 clips, 1,200 / 100 / 670 of 1,200 / 100 / 670"}
    assert problems == []


def test_clips_that_msvd_lacks_are_named(msvd):
    lost, problems = ["-4wsuPCjDBc_5_15", "mv89psg6zh4_33_46"], []
    report = check_msvd(msvd(without=lost), problems)
    assert report["MSVD"].startswith("1,968 of 1,970 clips, 1,199 / 100 / 669")
    assert report["MSVD, missing"] == lost
    assert len(problems) == 1 and "2 of 1,970 clips are missing" in problems[0]


def test_clip_of_another_origin_puts_the_official_split_out_of_use_and_is_named(msvd):
    problems = []
    report = check_msvd(msvd(more={"holiday": ["a beach", "the sea"]}), problems)
    assert report["MSVD"].startswith("1,970 of 1,970")
    assert len(problems) == 1 and "holiday" in problems[0] and "no official split" in problems[0]


def test_part_of_msvd_is_counted_without_a_problem(msvd_mini):
    problems = []
    report = check_msvd(open_corpus(msvd_mini), problems)
    assert report["MSVD"].startswith("18 of 1,970 clips") and problems == []


def test_other_corpora_are_told_nothing_about_msvd(features_only):
    problems = []
    assert check_msvd(open_corpus(features_only(TWELVE)), problems) == {} and problems == []
