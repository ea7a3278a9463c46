"""Any folder that a person brings: captions files of every make, splits, what is passed over."""

import csv
import dataclasses
import json
from itertools import chain

import numpy as np
import pytest

from vcutils.config import Config, UserError
from vcutils.corpora import load_corpus, open_corpus
from vcutils.corpora.readers import msvd_splits, read_captions
from vcutils.corpus import make_splits, random_splits, read_splits, save_splits


def captions_of(tmp_path, content):
    path = tmp_path / "captions.txt"
    path.write_bytes(content)
    return read_captions(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"# about\nv1 a cat\n  # more\nv1 a dog\n", {"v1": ["a cat", "a dog"]}, id="comments"),
        pytest.param(b"\n\nv1 a cat\n   \nv2 b\n\n", {"v1": ["a cat"], "v2": ["b"]}, id="blank lines"),
        pytest.param(b"\xef\xbb\xbfv1 a cat\n", {"v1": ["a cat"]}, id="BOM"),
        pytest.param(b"\xef\xbb\xbf# about\nv1 a cat\n", {"v1": ["a cat"]}, id="BOM before a comment"),
        pytest.param(b"v1 a cat\r\nv1 a dog\r\n", {"v1": ["a cat", "a dog"]}, id="CRLF"),
        pytest.param(b"v1\ta cat\nv2 \t a dog\n", {"v1": ["a cat"], "v2": ["a dog"]}, id="tabs"),
        pytest.param("v1 кошка спит\n".encode(), {"v1": ["кошка спит"]}, id="Unicode"),
        pytest.param(b"v1 number # 1\n", {"v1": ["number # 1"]}, id="# within a caption"),
        pytest.param(b"v1 a caf\xe9\nv1 a cat", {"v1": ["a caf�", "a cat"]}, id="Latin-1, no last line end"),
    ],
)
def test_caption_lines(tmp_path, content, expected):
    assert captions_of(tmp_path, content) == expected


@pytest.mark.parametrize("content", [b"", b"# only comments\n\n", b"v1\nv2  \n"])
def test_captions_file_without_captions_is_refused_by_name(tmp_path, content):
    with pytest.raises(UserError, match=r"captions\.txt.*no captions"):
        captions_of(tmp_path, content)


def test_line_without_caption_is_a_problem_with_its_number(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("v1 a cat\nv2\n")
    problems = []
    assert read_captions(path, problems) == {"v1": ["a cat"]}
    assert len(problems) == 1 and "captions.txt:2" in problems[0] and "v2" in problems[0]


def test_missing_captions_file_says_which_names_are_looked_for(make_corpus):
    root = make_corpus()
    (root / "captions.txt").unlink()
    with pytest.raises(UserError, match=r"captions\.txt or AllVideoDescriptions\.txt"):
        open_corpus(root)


def test_missing_folder_and_missing_clips_are_refused(tmp_path, make_corpus):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        open_corpus(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "captions.txt").write_text("v1 a cat\n")
    with pytest.raises(UserError, match=r"no clips in videos or YouTubeClips"):
        open_corpus(tmp_path / "bare")
    with pytest.raises(UserError, match="no clip has a caption"):
        open_corpus(make_corpus(ids=("a",), captions="other a cat\n"))


def test_caption_of_an_unknown_clip_is_listed_and_the_rest_goes_on(make_corpus):
    corpus = open_corpus(make_corpus(ids=("a", "b", "silent"), captions="a a cat\nghost a dog\nb a man\n"))
    assert corpus.usable == ["a", "b"]
    assert any("ghost" in p and "no clip" in p for p in corpus.problems)
    assert any("silent" in p and "without captions" in p for p in corpus.problems)
    assert len(corpus.problems) == 2


def test_msvd_names_of_folder_and_file_are_known(make_corpus):
    root = make_corpus()
    (root / "videos").rename(root / "YouTubeClips")
    (root / "captions.txt").rename(root / "AllVideoDescriptions.txt")
    assert open_corpus(root).usable == ["a", "b", "c"]


def test_other_files_among_the_clips_are_passed_over_and_double_ids_told(make_corpus):
    root = make_corpus()
    (root / "videos" / "notes.txt").write_text("x")
    (root / "videos" / "._a.avi").write_text("x")
    (root / "videos" / "a.mp4").write_bytes((root / "videos" / "a.avi").read_bytes())
    corpus = open_corpus(root)
    assert sorted(corpus.clips) == ["a", "b", "c"]
    assert corpus.clips["a"].name == "a.avi"
    assert len(corpus.problems) == 1 and "a.mp4" in corpus.problems[0]


def test_corpus_of_features_alone(tmp_path):
    folder = tmp_path / "ready" / "features" / "c3d"
    folder.mkdir(parents=True)
    np.save(folder / "a.npy", np.ones((2, 3), np.float32))
    (tmp_path / "ready" / "captions.txt").write_text("a a cat\nb a dog\n")
    corpus = open_corpus(tmp_path / "ready")
    assert corpus.usable == ["a"] and list(corpus.features) == ["c3d"]


def test_own_splits_are_used_and_ids_that_are_not_at_hand_left_out(make_corpus):
    root = make_corpus(ids=("a", "b", "c", "d"))
    own = {"train": ["d", "a", "missing"], "val": ["b"], "test": ["c"]}
    (root / "splits.json").write_text(json.dumps(own))
    splits, origin = make_splits(open_corpus(root))
    assert splits == {"train": ["d", "a"], "val": ["b"], "test": ["c"]}
    assert "corpus" in origin


def test_id_in_two_splits_is_refused(make_corpus):
    root = make_corpus()
    (root / "splits.json").write_text(json.dumps({"train": ["a", "b"], "val": ["c"], "test": ["a"]}))
    with pytest.raises(UserError, match=r"splits\.json: a stands in both train and test"):
        open_corpus(root)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"train": [], "val": []}',
        '{"train": "a", "val": [], "test": []}',
        '{"train": [1], "val": [], "test": []}',
    ],
)
def test_other_splits_files_are_refused_by_name(tmp_path, text):
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(UserError, match=r"splits\.json"):
        read_splits(tmp_path / "splits.json")


def test_split_without_a_test_clip_is_refused(make_corpus):
    root = make_corpus()
    (root / "splits.json").write_text(json.dumps({"train": ["a"], "val": ["b"], "test": ["gone"]}))
    with pytest.raises(UserError, match="test split"):
        make_splits(open_corpus(root))


def test_splits_round_trip(tmp_path):
    splits = {"train": ["b", "a"], "val": ["кот"], "test": ["c"]}
    save_splits(splits, tmp_path / "splits.json")
    assert read_splits(tmp_path / "splits.json") == splits


@pytest.mark.parametrize("count", [3, 7, 100, 1000])
def test_random_split_is_complete_disjoint_deterministic_and_70_15_15(count):
    ids = [f"v{i}" for i in range(count)]
    splits = random_splits(ids)
    assert splits == random_splits(reversed(ids))
    assert sorted(chain(*splits.values())) == sorted(ids)
    assert all(splits.values())
    if count >= 100:
        assert [len(splits[s]) / count for s in ("train", "val", "test")] == [0.7, 0.15, 0.15]
        assert splits["train"] != sorted(ids)[: len(splits["train"])]
        assert splits != random_splits(ids, seed=1)


def test_msvd_split_is_the_official_one(msvd_mini):
    with open(msvd_mini / "official_split.tsv", newline="") as file:
        official = {row["video_id"]: row["split"] for row in csv.DictReader(file, delimiter="\t")}
    assert len(official) == 1970
    splits = msvd_splits(official)
    assert {name: len(ids) for name, ids in splits.items()} == {"train": 1200, "val": 100, "test": 670}
    assert {i: name for name, ids in splits.items() for i in ids} == official


def test_one_foreign_clip_makes_it_another_corpus(msvd_mini):
    ids = open_corpus(msvd_mini).usable
    assert msvd_splits(ids) is not None
    assert msvd_splits([*ids, "holiday"]) is None


def test_msvd_mini_gets_a_validation_split_without_touching_the_test(msvd_mini):
    corpus = open_corpus(msvd_mini)
    official = msvd_splits(corpus.usable)
    splits, origin = make_splits(corpus)
    assert "official" in origin
    assert splits["test"] == official["test"]
    assert splits["val"] and splits["train"]
    assert set(splits["train"]) | set(splits["val"]) == set(official["train"]) | set(official["val"])
    assert sorted(chain(*splits.values())) == corpus.usable


def test_corpus_folder_is_only_read(make_corpus, snapshot):
    root = make_corpus()
    before = snapshot(root)
    corpus = open_corpus(root)
    make_splits(corpus)
    assert snapshot(root) == before


def test_ids_of_exclude_txt_are_left_out_and_the_rest_keeps_its_split(make_corpus, tmp_path, capsys):
    ids = tuple("abcdefghij")
    config = dataclasses.replace(Config(), corpus=make_corpus(ids), data=tmp_path / "data")
    before, _ = make_splits(load_corpus(config))
    assert capsys.readouterr().err == ""
    config.artifacts.mkdir(parents=True)
    (config.artifacts / "exclude.txt").write_text("# c.avi: no frame decodes\nc\n\n  d\r\nunknown\n")
    corpus = load_corpus(config)
    assert "exclude.txt: 2 clip(s) are left out" in capsys.readouterr().err
    assert corpus.excluded == ["c", "d"] and corpus.usable == sorted(set(ids) - {"c", "d"}) == sorted(corpus.clips)
    after, _ = make_splits(corpus)
    assert after == {name: [i for i in ids if i not in "cd"] for name, ids in before.items()}


@pytest.mark.parametrize(("content", "reason"), [(b"\xff\xfe", "UTF-8"), (b"a\nb\nc\n", "leaves no clip")])
def test_exclude_txt_that_is_no_use_is_named(make_corpus, tmp_path, content, reason):
    config = dataclasses.replace(Config(), corpus=make_corpus(), data=tmp_path / "data")
    config.artifacts.mkdir(parents=True)
    (config.artifacts / "exclude.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"exclude\.txt: .*{reason}"):
        load_corpus(config)


def test_embedded_corpus_is_rendered_when_none_is_named(tiny_config, tiny_corpus):
    assert tiny_corpus.root == tiny_config.corpus_dir.resolve()
    assert len(tiny_corpus.usable) == 12 and not tiny_corpus.problems
    assert all(len(c) == 5 for c in tiny_corpus.captions.values())
    assert load_corpus(tiny_config, progress=False).usable == tiny_corpus.usable


def test_users_corpus_is_never_replaced_by_the_embedded_one(make_corpus, snapshot):
    root = make_corpus()
    before = snapshot(root)
    assert load_corpus(dataclasses.replace(Config(), corpus=root)).usable == ["a", "b", "c"]
    assert snapshot(root) == before
