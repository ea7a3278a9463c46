"""Nothing lost, nothing let in: files that are broken, hostile, or of another run, and what reads them.

Whatever is in a file, reading it ends in success or in one UserError that names the file (exit code 2), within seconds,
and nothing outside the data folder is written.
"""

import dataclasses
import json
import random
import re
import shutil
import struct
from time import monotonic

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vcutils.attention.measures import ground, read_events
from vcutils.cli import main
from vcutils.config import PROFILES, ExtractConfig, UserError
from vcutils.corpora import open_corpus, open_run
from vcutils.corpora.readers import read_captions
from vcutils.corpus import make_splits, read_splits
from vcutils.dataset import load_data
from vcutils.decode import Hypothesis
from vcutils.runtime.checkpoints import run_config, save_model
from vcutils.runtime.store import FeatureStore
from vcutils.scores.coco import References, read_predictions, read_references
from vcutils.scores.runs import load_model, sister_runs
from vcutils.train import Trainer
from vcutils.vocab import SPECIALS, Vocabulary, build_vocabulary

IDS = tuple("abcdef")
COLOURS = ExtractConfig("colours")
MANIFEST_ROW = {"backbone": "colours", "weights": "v1", "num_frames": 3, "T": 3, "D": 5, "timestamps": [0.0, 0.5, 1.0]}
ODD = (None, True, -1, 10**12, 1e308, float("nan"), "", "x", "..", "\ud800", [], [[]], {}, {"a": None})


@pytest.fixture
def home(tmp_path, small_model):
    """A corpus of six clips with features, split, vocabulary and a run whose model was never trained."""
    root, artifacts = tmp_path / "mine", tmp_path / "data" / "mine"
    (root / "videos").mkdir(parents=True)
    for i in IDS:
        (root / "videos" / f"{i}.mp4").touch()
    (root / "captions.txt").write_text("".join(f"{i} a cat sits\n{i} the dog runs\n" for i in IDS))
    features = artifacts / "features" / "colours"
    features.mkdir(parents=True)
    for n, i in enumerate(IDS):
        np.save(features / f"{i}.npy", np.random.default_rng(n).normal(size=(3, 5)).astype(np.float16))
    (features / "manifest.jsonl").write_text("".join(json.dumps({"id": i} | MANIFEST_ROW) + "\n" for i in IDS))
    splits = {"train": ["a", "b", "c"], "val": ["d"], "test": ["e", "f"]}
    (artifacts / "splits.json").write_text(json.dumps(splits))
    corpus = open_corpus(root)
    vocabulary = build_vocabulary(corpus.captions, splits["train"], 1)
    vocabulary.save(artifacts / "vocab.json")
    run = artifacts / "runs" / "r"
    model = small_model(vocab_size=len(vocabulary))
    data = load_data(corpus, artifacts, COLOURS)
    about = {
        "model": dataclasses.asdict(model.config),
        "vocab_size": len(vocabulary),
        "feature_dim": 5,
        "corpus": "mine",
    }
    about |= {"features": "colours", "extracted": data.store.extracted}
    for name in ("best", "last"):
        save_model(run / name, model, about, vocabulary)
    where = {"corpus_dir": str(root), "features": str(features)}
    (run / "config.json").write_text(json.dumps(where | dataclasses.asdict(PROFILES["tiny"]), default=str))
    return tmp_path


@pytest.fixture
def refused(capfd, monkeypatch):
    """Function: the one message with which the command line refuses, exit code 2."""
    monkeypatch.setenv("VCUTILS_PROFILE", "tiny")

    def call(*args):
        capfd.readouterr()
        assert main([str(a) for a in args]) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith("vcutils: ") and len(err) < 2000, err[:500]
        return err

    return call


def put(path, content):
    """Write text, bytes, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Captions


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"\xef\xbb\xbfv1 a\tcat\r\n\r\nv1\ta dog\r", {"v1": ["a cat", "a dog"]}, id="BOM, CRLF, CR, tabs"),
        pytest.param("v1 a cat\r\nкот a dog\r\n".encode("utf-16"), {"v1": ["a cat"], "кот": ["a dog"]}, id="UTF-16"),
        pytest.param(b"-x_1_2 a cat\n", {"-x_1_2": ["a cat"]}, id="leading dash, as YouTube's ids"),
        pytest.param('"q"\'s a cat\nкот a cat\n猫 a cat\n'.encode(), ['"q"\'s', "кот", "猫"], id="quotes, Unicode"),
        pytest.param(b"v..1 a cat\nconsole a cat\nnull a cat\n", ["v..1", "console", "null"], id="nearly bad ids"),
    ],
)
def test_unusual_captions_are_read(tmp_path, content, expected):
    problems = []
    found = read_captions(put(tmp_path / "captions.txt", content), problems)
    assert found == expected if isinstance(expected, dict) else list(found) == expected
    assert problems == []


@pytest.mark.parametrize("content", [b"v1 a c\xe9t\nv2 a\0cat\nv3 a dog\n", b"v1 a c\xff\xfet\nv2 a\0cat\nv3 a dog"])
def test_captions_that_are_not_utf8_are_kept_and_told(tmp_path, content):
    problems = []
    found = read_captions(put(tmp_path / "captions.txt", content), problems)
    assert list(found) == ["v1", "v2", "v3"] and found["v2"] == ["a�cat"]
    assert len(problems) == 1 and "captions.txt" in problems[0] and "2 caption" in problems[0]


def test_line_of_ten_megabytes_is_left_out_and_told(tmp_path):
    problems = []
    content = b"v1 a cat\nv2 " + b"a dog " * 2_000_000 + b"\nv3 a man\n"
    assert list(read_captions(put(tmp_path / "captions.txt", content), problems)) == ["v1", "v3"]
    assert len(problems) == 1 and "v2" in problems[0] and "11,999,999" in problems[0] and len(problems[0]) < 300
    with pytest.raises(UserError, match=r"captions\.txt") as error:
        read_captions(put(tmp_path / "captions.txt", b"x" * 10_000_000 + b" a cat"))
    assert len(str(error.value)) < 500


BAD_IDS = {
    "parent": "../../x",
    "dots": "..",
    "hidden": ".x",
    "absolute": "/etc/x",
    "slash": "a/b",
    "backslash": "..\\x",
    "drive": "C:x",
    "reserved": "CON",
    "reserved, small, with suffix": "nul.x",
    "port": "COM1",
    "trailing dot": "x.",
    "NUL": "a\0b",
    "escape sequence": "a\x1b[2Jb",
    "too long": "x" * 300,
    "too long in UTF-8": "猫" * 90,
}
NOT_IN_LINES = {
    "trailing space": "x ",
    "line end": "a\nb",
    "line separator": "a\u2028b",
    "lone surrogate": "a\ud800",
    "empty": "",
}


@pytest.mark.parametrize("bad", (BAD_IDS | NOT_IN_LINES).values(), ids=(BAD_IDS | NOT_IN_LINES).keys())
@pytest.mark.parametrize("kind", ["captions.txt", "videodatainfo.json", "coco.json", "raw.csv", "splits.json"])
def test_ids_that_are_no_file_names_are_refused_everywhere(tmp_path, kind, bad):
    if kind in ("captions.txt", "raw.csv") and bad in NOT_IN_LINES.values():
        pytest.skip("a line cannot hold it")
    path = tmp_path / kind
    with pytest.raises(UserError, match=re.escape(kind)) as error:
        if kind == "splits.json":
            read_splits(put(path, {"train": ["a"], "val": [bad], "test": []}))
        elif kind == "captions.txt":
            read_captions(put(path, f"a a cat\n{bad} a dog\n"))
        elif kind == "raw.csv":
            read_captions(put(path, f'VideoID,Start,End,Language,Description\n"{bad}/",1,2,English,a cat\n'))
        elif kind == "videodatainfo.json":
            read_captions(put(path, {"sentences": [{"video_id": bad, "caption": "a cat"}]}))
        else:
            annotations = [{"image_id": 1, "caption": "a cat"}]
            images = {"images": [{"id": 1, "file_name": f"{bad}.jpg"}], "annotations": annotations}
            found = read_captions(put(path, images))
            assert "/" in bad and not any("/" in i for i in found), "of a path only the file's name counts"
            raise UserError(f"{path}: not this one")
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("name", ["CON", "a\\b", "C:x", "x.", "x ", "a\x1bb", "a\udcff"])
def test_clips_whose_names_other_systems_cannot_hold_are_passed_over_and_told(home, name):
    try:
        (home / "mine" / "videos" / f"{name}.mp4").touch()
    except OSError:
        pytest.skip("this system cannot hold it either")
    corpus = open_corpus(home / "mine")
    assert sorted(corpus.clips) == list(IDS)
    assert len(corpus.problems) == 1 and repr(name)[1:-1] in corpus.problems[0]


def test_ids_with_spaces_and_quotes_work_where_the_format_allows(home):
    names = ["my clip", 'it\'s "one"', "-dash", "кот"]
    for name in names:
        (home / "mine" / "videos" / f"{name}.mp4").touch()
    (home / "mine" / "captions.txt").unlink()
    put(home / "mine" / "captions.json", {"sentences": [{"video_id": i, "caption": "a cat"} for i in names]})
    assert open_corpus(home / "mine").usable == sorted(names)


def test_ids_that_differ_by_case_alone_are_refused(home):
    with pytest.raises(UserError, match=r"captions\.txt.*V1.*v1|captions\.txt.*v1.*V1"):
        read_captions(put(home / "captions.txt", "v1 a cat\nV1 a dog\n"))
    (home / "mine" / "videos" / "A.mp4").touch()
    if len(list((home / "mine" / "videos").iterdir())) > len(IDS):
        with pytest.raises(UserError, match=r"videos.*A.*a"):
            open_corpus(home / "mine")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.txt", ""),
        ("captions.txt", "a a cat\n".encode("utf-32")),
        ("videodatainfo.json", "["),
        ("videodatainfo.json", "[" * 100_000),
        ("videodatainfo.json", {"sentences": [{"video_id": 1, "caption": "x"}]}),
        ("videodatainfo.json", {"sentences": [{"video_id": "a", "caption": None}]}),
        ("videodatainfo.json", {"sentences": [{"video_id": "a", "caption": "x"}], "videos": 5}),
        ("videodatainfo.json", {"sentences": [{"video_id": "a", "caption": "x"}], "videos": [{"split": "train"}]}),
        ("videodatainfo.json", {"sentences": [{"video_id": "a", "caption": "x"}], "videos": [{"split": []}]}),
        ("videodatainfo.json", {"sentences": [{"video_id": "a", "caption": "x"}], "videos": None}),
        ("coco.json", {"images": [{"id": 1, "file_name": 5}], "annotations": [{"image_id": 1, "caption": "x"}]}),
        ("coco.json", {"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": 7}]}),
        ("raw.csv", "VideoID,Start,End,Language,Description\na,1,2,English," + "x" * 200_000),
        ("raw.csv", "VideoID,Start\na,1\n"),
        ("raw.csv", "VideoID,Start,End,Language,Description\n\0,1,2,English,a cat\n"),
    ],
    ids=lambda value: str(value)[:60] if not isinstance(value, bytes) else "UTF-32",
)
def test_broken_caption_files_are_named_by_the_command_line(home, refused, name, content):
    (home / "mine" / "captions.txt").unlink()
    put(home / "mine" / name, content)
    assert name in refused("vocab", home / "mine", "--data", home / "data")


def test_hostile_corpus_writes_nothing_outside_the_data_folder(home, refused, snapshot):
    (home / "mine" / "captions.txt").write_text("a a cat\n../../../escaped a dog\nC:\\x a man\n")
    before = snapshot(home)
    for verb in ("vocab", "train", "doctor"):
        data = () if verb == "doctor" else ("--data", home / "data")
        assert "escaped" in refused(verb, home / "mine", *data)
    assert snapshot(home) == before


SPLITS = {
    "not JSON": "{",
    "deep": "[" * 100_000,
    "Latin-1": b'{"train": ["\xe9"], "val": [], "test": []}',
    "list": ["a"],
    "null": "null",
    "another split": {"train": ["a"], "val": ["b"], "test": ["c"], "dev": []},
    "no test": {"train": ["a"], "val": ["b"]},
    "text for a list": {"train": "abc", "val": ["d"], "test": ["e"]},
    "numbers": {"train": [1], "val": [2], "test": [3]},
    "id in two splits": {"train": ["a", "b"], "val": ["c"], "test": ["a"]},
    "ids of another corpus": {"train": ["x"], "val": ["y"], "test": ["z"]},
}


@pytest.mark.parametrize("content", SPLITS.values(), ids=SPLITS.keys())
@pytest.mark.parametrize("place", ["corpus", "artifacts"])
def test_broken_splits_are_named_by_the_command_line(home, refused, place, content):
    if place == "corpus":
        put(home / "mine" / "splits.json", content)
        assert "splits" in refused("vocab", home / "mine", "--data", home / "data").replace("split ", "splits ")
    else:
        put(home / "data" / "mine" / "splits.json", content)
        assert "splits.json" in refused("evaluate", home / "data" / "mine" / "runs" / "r")


def test_clips_that_a_split_does_not_know_are_told(home):
    put(home / "mine" / "splits.json", {"train": ["a", "b", "gone"], "val": ["c"], "test": ["d"]})
    corpus = open_corpus(home / "mine")
    assert make_splits(corpus)[0] == {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    assert [p[:9] for p in corpus.problems] == ["e: stands", "f: stands"]


# Predictions and references of `score`

SCORED = {
    "missing": None,
    "not JSON": "{",
    "deep": "[" * 100_000,
    "not UTF-8": b'{"a": "\xff"}',
    "list": ["a cat"],
    "number": 5,
    "empty": {},
    "wrong value": {"a": 5},
    "empty caption": {"a": " "},
    "twice": '{"a": "a cat", "a": "a dog"}',
}


@pytest.mark.parametrize("content", SCORED.values(), ids=SCORED.keys())
@pytest.mark.parametrize("broken", ["predictions.json", "references.json"])
def test_broken_files_of_score_are_named(tmp_path, refused, broken, content):
    paths = {"predictions.json": {"a": "a cat"}, "references.json": {"a": ["a cat"]}} | {broken: content}
    for name, value in paths.items():
        if value is not None:
            put(tmp_path / name, value)
    assert broken in refused("score", *(tmp_path / name for name in paths))


@pytest.mark.parametrize(
    ("predictions", "references", "named"),
    [
        ({"a": "x", "b": "y"}, {"a": ["x"]}, "b"),
        ({"a": "x"}, {"a": ["x"], "c": ["x"]}, "c"),
        ({"a": ["x"]}, {"a": ["x"]}, "predictions.json: a"),
        ({"a": "x"}, {"a": "x"}, "references.json: a"),
        ({"a": "x"}, {"a": []}, "references.json: a"),
        ({"a": "x"}, {"a": [None]}, "references.json: a"),
        ({"a": {"words": []}}, {"a": ["x"]}, "predictions.json: a"),
        ({"a": "x \ud800"}, {"a": ["x"]}, "predictions.json: a"),
        ({"a": "x" * 2_000_000}, {"a": ["x"]}, "predictions.json: a"),
        ({"a": "x"}, {"a": ["x " * 1_000_000]}, "references.json: a"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_files_of_score_that_do_not_fit_are_named(tmp_path, refused, predictions, references, named):
    paths = put(tmp_path / "predictions.json", predictions), put(tmp_path / "references.json", references)
    assert named in refused("score", *paths)


# Arrays


def array(**changes):
    values = np.ones((3, 5), np.float32)
    for place, value in changes.items():
        values[int(place[1]), int(place[2])] = value
    return values


def npy(shape, descr="<f4", data=b"\0" * 60):
    """A .npy file with any header."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


ARRAYS = {
    "NaN": array(_12=np.nan),
    "infinity": array(_20=-np.inf),
    "float64 beyond float32": array().astype(np.float64) * 1e300,
    "another D": np.ones((3, 6), np.float32),
    "another T than extracted": np.ones((4, 5), np.float32),
    "no frames": np.ones((0, 5), np.float32),
    "no numbers": np.ones((3, 0), np.float32),
    "one axis": np.ones(5, np.float32),
    "no axis": np.float32(1),
    "integers": np.ones((3, 5), np.int64),
    "truth values": np.ones((3, 5), bool),
    "complex": np.ones((3, 5), np.complex64),
    "text": np.full((3, 5), "x"),
    "dates": np.zeros((3, 5), "datetime64[s]"),
    "records": np.zeros((3,), [("x", "f4", 5)]),
    "objects": np.full((3, 5), {"a": 1}, object),
    "empty file": b"",
    "text file": b"hello",
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x8c\x06system\x93.",
    "truncated": npy((3, 5))[:-20],
    "cut header": npy((3, 5))[:30],
    "terabytes": npy((10**9, 5000)),
    "more than memory can address": npy((10**15, 5000)),
    "negative shape": npy((-3, 5)),
    "shape of text": npy("'abc'"),
    "nested header": npy("(" * 5000),
    "unknown type": npy((3, 5), descr="<q9"),
    "header of code": npy("__import__('os').system('x')"),
}


@pytest.mark.parametrize("content", ARRAYS.values(), ids=ARRAYS.keys())
def test_unusable_features_are_named_by_the_command_line(home, refused, content):
    path = home / "data" / "mine" / "features" / "colours" / "e.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    message = refused("evaluate", home / "data" / "mine" / "runs" / "r")
    assert str(path) in message and message.isprintable() is False and message.count("\n") == 1


def test_zip_archives_are_no_arrays(home, refused):
    path = home / "data" / "mine" / "features" / "colours" / "e.npy"
    with open(path, "wb") as file:
        np.savez(file, array())
    assert str(path) in refused("evaluate", home / "data" / "mine" / "runs" / "r")


def test_odd_first_clip_is_named_beside_the_others(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((3, 6), np.float32))
    np.save(tmp_path / "b.npy", np.ones((3, 5), np.float32))
    with pytest.raises(UserError, match=r"b\.npy.* 5 .*a\.npy.* 6"):
        FeatureStore(tmp_path)["b"]


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8", "longdouble"])
def test_floats_of_every_size_and_byte_order_become_tensors(tmp_path, dtype):
    np.save(tmp_path / "a.npy", np.arange(15).reshape(3, 5).astype(dtype))
    assert torch.from_numpy(FeatureStore(tmp_path)["a"]).sum() == 105


def test_what_a_cut_extraction_left_behind_is_no_clip(home):
    folder = home / "data" / "mine" / "features" / "colours"
    (folder / ".tmp-x1.npy").write_bytes(b"half")
    np.save(folder / "stale.npy", array())  # of an earlier extraction: the manifest does not know it
    assert FeatureStore(folder).ids == set(IDS)


def test_features_are_looked_up_in_their_folder_alone(home):
    np.save(home / "data" / "secret.npy", array())
    with pytest.raises(UserError, match="no features of"):
        FeatureStore(home / "data" / "mine" / "features" / "colours")["../../../secret"]


# Checkpoints


def tensors_with(change):
    def apply(best):
        path = best / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return apply


def json_with(name, **changes):
    def apply(best):
        path = best / name
        put(path, json.loads(path.read_text()) | changes)

    return apply


def bytes_of(name, content):
    def apply(best):
        path = best / name
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)

    return apply


def words(best):
    return json.loads((best / "vocab.json").read_text())["words"]


def other_words(best):
    json_with("vocab.json", words=[*SPECIALS, *reversed(words(best)[4:])])(best)


WORDS = "decoder.output.bias"
CHECKPOINTS = {
    "missing weights": ("model.safetensors", lambda best: (best / "model.safetensors").unlink()),
    "truncated weights": ("model.safetensors", bytes_of("model.safetensors", lambda b: b[:-100])),
    "empty weights": ("model.safetensors", bytes_of("model.safetensors", b"")),
    "pickled weights": ("model.safetensors", bytes_of("model.safetensors", b"\x80\x02}q\x00.")),
    "endless header": ("model.safetensors", bytes_of("model.safetensors", b"\xff" * 100)),
    "weights are a folder": ("best", lambda b: ((b / "model.safetensors").unlink(), (b / "model.safetensors").mkdir())),
    "missing tensor": (WORDS, tensors_with(lambda t: t.pop(WORDS))),
    "surplus tensor": ("extra", tensors_with(lambda t: t.update(extra=torch.zeros(2)))),
    "other shape": (WORDS, tensors_with(lambda t: t.update({WORDS: torch.zeros(99)}))),
    "integers": (WORDS, tensors_with(lambda t: t.update({WORDS: t[WORDS].long()}))),
    "NaN": (WORDS, tensors_with(lambda t: t.update({WORDS: t[WORDS] * float("nan")}))),
    "config not JSON": ("config.json", bytes_of("config.json", b"{")),
    "config deep": ("config.json", bytes_of("config.json", b"[" * 100_000)),
    "config a list": ("config.json", bytes_of("config.json", b"[]")),
    "unknown field": ("heads", json_with("config.json", model={"heads": 2})),
    "text for a size": ("config.json", json_with("config.json", model={"embed_dim": "8"})),
    "negative size": ("config.json", json_with("config.json", model={"embed_dim": -8})),
    "unknown switch": ("best", json_with("config.json", model={"attention": "magic"})),
    "more than memory holds": ("1000000000000", json_with("config.json", vocab_size=10**12)),
    "features of text": ("config.json", json_with("config.json", feature_dim="x")),
    "another feature size": ("encoder", json_with("config.json", feature_dim=6)),
    "vocabulary not JSON": ("vocab.json", bytes_of("vocab.json", b"{")),
    "vocabulary without specials": ("vocab.json", json_with("vocab.json", words=list("abcdefghij"))),
    "vocabulary of numbers": ("vocab.json", json_with("vocab.json", words=[*SPECIALS, 5, 6], counts=[0] * 6)),
    "a word twice": ("vocab.json", json_with("vocab.json", words=[*SPECIALS, "a", "a"], counts=[0] * 6)),
    "counts of text": ("vocab.json", json_with("vocab.json", counts=["x"] * 10)),
    "larger vocabulary": ("vocab.json", json_with("vocab.json", words=[*SPECIALS, "a"], counts=[0] * 5)),
    "as large a vocabulary of another run": ("vocab.json", other_words),
    "as large a model of another run": ("config.json", json_with("config.json", corpus="another")),
}


@pytest.mark.parametrize(("named", "attack"), CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_broken_checkpoints_are_named_by_the_command_line(home, refused, named, attack):
    run = home / "data" / "mine" / "runs" / "r"
    attack(run / "best")
    message = refused("evaluate", run)
    assert named in message and str(run / "best") in message


RUN_CONFIGS = {
    "not JSON": "{",
    "not UTF-8": b"\xff",
    "list": [],
    "empty": {},
    "no features": {"corpus_dir": "x"},
    "features a number": {"corpus_dir": "x", "features": 5, "extract": {"num_frames": 3}, "train": {"seed": 0}},
    "extract a text": {"corpus_dir": "x", "features": "x", "extract": "x", "train": {"seed": 0}},
    "no seed": {"corpus_dir": "x", "features": "x", "extract": {"num_frames": 3}, "train": {}},
}


@pytest.mark.parametrize("content", RUN_CONFIGS.values(), ids=RUN_CONFIGS.keys())
def test_broken_run_settings_are_named_by_the_command_line(home, refused, content):
    run = home / "data" / "mine" / "runs" / "r"
    path = put(run / "config.json", content)
    for verb in (("evaluate", run), ("explore", run, "e"), ("caption", run, "e.mp4")):
        assert str(path) in refused(*verb)


# Features of another kind than the checkpoint's


def rewrite_manifest(home, change, ids=IDS):
    path = home / "data" / "mine" / "features" / "colours" / "manifest.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | (change if row["id"] in ids else {})) + "\n" for row in rows))
    return path


MISMATCHES = {
    "backbone": ({"backbone": "shapes"}, ("colours", "shapes")),
    "weights": ({"weights": "v2"}, ("v1", "v2")),
    "frames": ({"num_frames": 8}, ("3", "8")),
}


@pytest.mark.parametrize(("change", "named"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_features_of_another_kind_are_refused_with_both_sides(home, refused, change, named):
    run = home / "data" / "mine" / "runs" / "r"
    folder = rewrite_manifest(home, change).parent
    evaluated, explored = refused("evaluate", run), refused("explore", run, "e", "--out", home / "page.html")
    for message in (evaluated, explored):
        assert str(folder) in message and str(run) in message
        assert all(re.search(rf"\b{side}\b", message) for side in named), message
    assert not (home / "page.html").exists()


@pytest.mark.parametrize(("change", "named"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_features_of_two_kinds_are_refused(home, refused, change, named):
    rewrite_manifest(home, change, ids=("c", "f"))
    message = refused("evaluate", home / "data" / "mine" / "runs" / "r")
    assert "manifest" in message and all(re.search(rf"\b{side}\b", message) for side in named), message


def test_features_without_a_manifest_do_not_pass_for_those_of_the_checkpoint(home, refused):
    (home / "data" / "mine" / "features" / "colours" / "manifest.jsonl").unlink()
    message = refused("evaluate", home / "data" / "mine" / "runs" / "r")
    assert "manifest" in message and "colours" in message


@pytest.mark.parametrize("content", ["{", "[]\n", '{"T": 3}\n', "5\n", b"\xff\n", '{"id": []}\n', "[" * 100_000])
def test_broken_manifest_is_named(home, refused, content):
    path = put(home / "data" / "mine" / "features" / "colours" / "manifest.jsonl", content)
    assert str(path.parent) in refused("evaluate", home / "data" / "mine" / "runs" / "r")


def test_timm_features_are_not_taken_for_torchvision_ones_of_the_same_name(home):
    """`timm/x` lies in features/timm/x: a run on it must find that folder again, not features/x."""
    artifacts = home / "data" / "mine"
    shutil.copytree(artifacts / "features" / "colours", artifacts / "features" / "timm" / "colours")
    path = artifacts / "runs" / "r" / "config.json"
    features = artifacts / "features" / "timm" / "colours"
    put(path, json.loads(path.read_text()) | {"features": str(features)})
    run = open_run(artifacts / "runs" / "r")
    assert run.data.store.folder == features


def test_run_of_features_that_were_extracted_anew_is_no_sister(home):
    runs = home / "data" / "mine" / "runs"
    shutil.copytree(runs / "r", runs / "old")
    config = json.loads((runs / "old" / "config.json").read_text())
    put(runs / "old" / "config.json", config | {"train": config["train"] | {"seed": 1}})
    assert [sister.folder.name for sister in sister_runs(open_run(runs / "r"))] == ["old"]
    rewrite_manifest(home, {"num_frames": 8})
    model, vocabulary, about = load_model(runs / "r" / "best")
    extracted = load_data(open_corpus(home / "mine"), home / "data" / "mine", COLOURS).store.extracted
    save_model(runs / "r" / "best", model, about | {"extracted": extracted}, vocabulary)
    assert sister_runs(open_run(runs / "r")) == []


def test_new_clips_are_sampled_as_the_features_were(home, fake_backbone, monkeypatch):
    """The profile says six frames per clip; the run's features were extracted with three."""
    run = open_run(home / "data" / "mine" / "runs" / "r")
    assert run.config["extract"]["num_frames"] == 6 and run.extract.num_frames == 3
    with pytest.raises(UserError, match=r"weights v1.*weights none"):
        run.backbone  # noqa: B018


# What never appears in the code


def test_nothing_is_ever_unpickled(repo):
    sources = [*(repo / "vcutils").rglob("*.py"), *(repo / "notebooks").glob("*.py")]
    for path in sources:
        text = path.read_text("utf-8")
        assert not re.search(r"^\s*(import|from) (pickle|joblib|dill|shelve|marshal)\b", text, re.M), path
        assert "allow_pickle=True" not in text and "weights_only=False" not in text, path
        for name, needed in (("torch.load", "weights_only=True"), ("np.load", "allow_pickle=False")):
            for call in re.findall(rf"{re.escape(name)}\((?:[^()]|\([^()]*\))*\)", text):
                assert needed in call, f"{path.name}: {call}"


# Mutations: bytes flipped, cut, doubled and inserted; JSON values replaced


def mutated(rng, content):
    """The content with one to eight accidents."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data) + 1)
        size = rng.choice((1, 2, 7, 40))
        kind = rng.choice(("flip", "cut", "double", "insert", "end"))
        if kind == "flip" and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del data[at : at + size]
        elif kind == "double":
            data[at:at] = data[at : at + size] * rng.choice((1, 3))
        elif kind == "insert":
            data[at:at] = rng.choice(
                (b"\0", b"\xff\xfe", b'"', b"\\", b"[", b"\r", b"../", b"\x1a", rng.randbytes(size))
            )
        elif kind == "end" and rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def twisted(rng, value):
    """A JSON value of which one part, anywhere, is replaced or lost."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.8:
        copy = value.copy()
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        if rng.random() < 0.15:
            del copy[key]
        else:
            copy[key] = twisted(rng, value[key])
        return copy
    return rng.choice(ODD)


def attack(rng, path, read, count):
    """Damage a file `count` times; each time `read` succeeds or raises UserError. Returns how often it succeeded."""
    content, passed = path.read_bytes(), 0
    for n in range(count):
        if path.suffix == ".json" and n % 2:
            damaged = json.dumps(twisted(rng, json.loads(content))).encode()
        else:
            damaged = mutated(rng, content)
        path.write_bytes(damaged)
        started = monotonic()
        try:
            read()
            passed += 1
        except UserError as error:
            assert str(error) and len(str(error)) < 2000
        except Exception as error:
            pytest.fail(f"{path.name}, mutation {n}: {type(error).__name__}: {error}\n{damaged[:500]!r}")
        assert monotonic() - started < 5, f"{path.name}, mutation {n}: too slow"
    path.write_bytes(content)
    return passed


CAPTION_FILES = {
    "captions.txt": "# about\n" + "".join(f"{i} a cat sits down\n{i} the dög runs\n" for i in IDS),
    "raw.csv": "VideoID,Start,End,Source,Language,Description\n"
    + "".join(f'{i},1,2,clean,English,"a cat, sitting"\n' for i in IDS),
    "videodatainfo.json": {
        "videos": [{"video_id": i, "split": s} for i, s in zip(IDS, ["train", "validate", "test"] * 2, strict=True)],
        "sentences": [{"video_id": i, "caption": "a cat sits"} for i in IDS],
    },
    "coco.json": {
        "images": [{"id": n, "file_name": f"{i}.mp4"} for n, i in enumerate(IDS)],
        "annotations": [{"image_id": n, "caption": "a cat sits"} for n in range(len(IDS))],
    },
}


@pytest.mark.parametrize("name", CAPTION_FILES)
def test_mutated_caption_files_are_read_or_refused(home, snapshot, name):
    root = home / "mine"
    (root / "captions.txt").unlink()
    if name == "raw.csv":
        for i in IDS:
            (root / "videos" / f"{i}.mp4").rename(root / "videos" / f"{i}_1_2.mp4")
    path = put(root / name, CAPTION_FILES[name])

    def read():
        corpus = open_corpus(root)
        splits, _ = make_splits(corpus)
        vocabulary = build_vocabulary(corpus.captions, splits["train"], 1)
        vocabulary.save(home / "data" / "mine" / "vocab.json")
        assert Vocabulary.load(home / "data" / "mine" / "vocab.json") == vocabulary
        json.dumps(corpus.captions, ensure_ascii=False).encode()

    before = set(snapshot(home))
    passed = attack(random.Random(name), path, read, 60)
    assert set(snapshot(home)) == before and 0 < passed < 60


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("splits.json", 40),
        ("vocab.json", 40),
        ("features/colours/e.npy", 100),
        ("features/colours/manifest.jsonl", 30),
        ("runs/r/config.json", 40),
        ("runs/r/best/config.json", 60),
        ("runs/r/best/vocab.json", 40),
        ("runs/r/best/model.safetensors", 60),
    ],
)
def test_mutated_artifacts_are_read_or_refused(home, name, count):
    artifacts = home / "data" / "mine"

    def read():
        run = open_run(artifacts / "runs" / "r")
        for i in sorted(run.data.store.ids):
            torch.from_numpy(run.data.store[i])
        run_config(run.folder)
        load_model(run.folder / "best")

    assert attack(random.Random(name), artifacts / name, read, count) < count


SCENES = [{"kind": "thing", "words": ["cat"], "start": start, "end": start + 1} for start in (0.0, 1.5)]
EVENTS = {"a": {"duration": 3.0, "events": SCENES}}


def test_mutated_events_are_read_or_refused(tmp_path):
    path = put(tmp_path / "events.json", EVENTS)
    said = Hypothesis(["a", "cat"], 0.0, 0.0, np.zeros(2), np.full((2, 4), 0.25), None)

    def read():
        times = [0.0, 0.5, 1.0, 1.5]
        ground({"a": said, "unknown": said}, {"a": times, "unknown": times}, read_events(path))

    read()
    assert attack(random.Random(0), path, read, 150) < 150


def test_mutated_resume_file_is_read_or_refused(toy_data, toy_config, tmp_path):
    Trainer(tmp_path / "run", toy_config(epochs=1), toy_data, References, progress=False).fit()

    def resume():
        Trainer(tmp_path / "run", toy_config(epochs=1), toy_data, References, resume=True, progress=False)

    attack(random.Random(0), tmp_path / "run" / "last" / "model.safetensors", resume, 40)
    resume()
    data = dataclasses.replace(toy_data, vocabulary=Vocabulary((*SPECIALS, "x"), (0,) * 5))
    with pytest.raises(UserError, match="run"):
        Trainer(tmp_path / "run", toy_config(epochs=1), data, References, resume=True, progress=False)


@pytest.mark.parametrize("name", ["predictions.json", "references.json"])
def test_mutated_files_of_score_are_read_or_refused(tmp_path, name):
    predictions = name == "predictions.json"
    path = put(tmp_path / name, {i: "a cat" if predictions else ["a cat", "a dog"] for i in IDS})
    attack(random.Random(name), path, lambda: (read_predictions if predictions else read_references)(path), 60)
