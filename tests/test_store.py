"""Arrow parts give the same features as the files that they were made of, or say why not."""

import json
import pickle
import shutil
import sys

import numpy as np
import pytest

from vcutils import cli
from vcutils.cli import main
from vcutils.config import Config, ExtractConfig, UserError
from vcutils.corpora import indexed_corpus, load_corpus
from vcutils.dataset import CaptionDataset, load_data, make_loader
from vcutils.runtime.arrow import Parts, clip_record, corpus_state, pack, schema
from vcutils.runtime.store import INDEX, PARTS, FeatureStore

pa = pytest.importorskip("pyarrow", reason="needs vcutils[scale]")
pytest.importorskip("datasets", reason="needs vcutils[scale]")


@pytest.fixture
def folder(tmp_path):
    """Features as they come: of both types, one with pooled axes, one file that the manifest does not know."""
    random = np.random.default_rng(0)
    arrays = {"a": random.random((3, 4)), "b": random.random((5, 4, 1, 1)).astype(np.float32)}
    arrays |= {"кот 1": random.random((1, 4)).astype(np.float16), "stray": np.ones((2, 4))}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    rows = [{"id": name, "T": len(arrays[name]), "backbone": "x"} for name in arrays if name != "stray"]
    rows.append({"id": "c", "error": "no frames"})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def write_part(folder, name, records, columns=None):
    """A part as a cluster writes it."""
    (folder / PARTS).mkdir(exist_ok=True)
    table = pa.Table.from_pylist(records, columns or schema())
    with pa.OSFile(str(folder / PARTS / f"{name}.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)


def test_packed_features_are_the_same_arrays(folder):
    before = FeatureStore(folder)
    arrays = {i: before[i] for i in before.ids}
    pack(folder, progress=False)
    for path in folder.glob("*.npy"):
        path.unlink()
    store = FeatureStore(folder)
    assert list(store.ids) == ["a", "b", "кот 1"] and store.dim == 4
    assert store.extracted == before.extracted and store.manifest == before.manifest
    for one in (store, pickle.loads(pickle.dumps(store))):  # as worker processes get it
        for i, array in arrays.items():
            assert one[i].dtype == array.dtype and np.array_equal(one[i], array) and one[i].flags.writeable
    for ghost in ("ghost", "c", "stray"):
        with pytest.raises(UserError, match=f"no features of {ghost}"):
            store[ghost]


def test_packed_features_are_a_hugging_face_dataset(folder):
    from datasets import load_dataset

    parts = pack(folder, progress=False)
    rows = load_dataset("arrow", data_files=str(parts / "*.arrow"), split="train", cache_dir=str(folder / "cache"))
    assert rows["id"][:] == ["a", "b", "кот 1", "c"] and rows["features"][3] is None
    assert np.array_equal(np.frombuffer(rows[2]["features"], "<f2"), FeatureStore(folder)["кот 1"][0])


def test_parts_of_a_cluster_need_no_step_that_merges_them(folder):
    """Without manifest and index. A clip's newest row counts, which comes first: a file that broke has no features."""
    for path in folder.glob("*.*"):
        path.unlink()
    one, two = np.ones((2, 4), np.float16), np.full((2, 4), 2, np.float16)
    row = {"backbone": "x", "weights": "w", "num_frames": 2, "bytes": 5, "mtime": 6}
    write_part(folder, "0", [clip_record({"id": i, **row}, one) for i in "db"])
    store = FeatureStore(folder)
    assert list(store.ids) == ["b", "d"] and not (folder / INDEX).exists()  # reading writes nothing
    write_part(folder, "1", [clip_record({"id": "a", **row}, two), clip_record({"id": "c", "error": "cut"}, None)])
    write_part(folder, "2", [clip_record({"id": "a", "error": "cut"}, None), clip_record({"id": "b", **row}, two)])
    write_part(folder, "3", [clip_record({"id": "c", **row}, two), clip_record({"id": "d", "error": "gone"}, None)])
    assert list(FeatureStore(folder).ids) == ["a", "b", "d"]
    pack(folder)  # makes the index, no more
    assert sorted(path.name for path in (folder / PARTS).iterdir()) == [f"{n}.arrow" for n in range(4)]
    store = FeatureStore(folder)
    assert [float(store[i].max()) for i in ("a", "b", "d")] == [2, 1, 1]
    assert store.extracted == {"backbone": "x", "weights": "w", "num_frames": 2}
    assert store.manifest["a"] == {"id": "a", **row} and "c" not in store.manifest
    write_part(folder, "4", [clip_record({"id": "e", **row}, one)])  # newer than the index
    assert "e" in FeatureStore(folder).ids


@pytest.mark.parametrize("number", [3, 1000])
def test_ids_are_a_sequence(folder, number):
    names = sorted(f"clip {i}" for i in range(number))
    write_part(folder, "0", [clip_record({"id": i}, np.ones((1, 4), np.float16)) for i in names])
    ids = Parts(folder).ids
    assert list(ids) == names and len(ids) == number and ids[-1] == names[-1] and ids[::2] == names[::2]
    assert list(ids[1:3]) == names[1:3] and names[0] in ids and names[0] not in ids[1:3] and names[2] in ids[1:3]
    with pytest.raises(IndexError):
        ids[number]


def test_a_pack_that_fails_leaves_what_was_there(folder):
    before = pack(folder, progress=False)
    np.save(folder / "a.npy", np.full((3, 4), np.nan))
    with pytest.raises(UserError, match=r"a\.npy: holds NaN"):
        pack(folder, progress=False)
    assert [path.name for path in before.iterdir()] == ["packed-00000.arrow"] and not list(folder.glob(".tmp*"))
    assert len(FeatureStore(folder)["a"]) == 3


def test_packing_does_not_take_the_place_of_a_clusters_parts(folder):
    write_part(folder, "0", [clip_record({"id": "z"}, np.ones((1, 4), np.float16))])
    with pytest.raises(UserError, match="holds clips of another extraction; move"):
        pack(folder)
    assert list(FeatureStore(folder).ids) == ["z"]


def damage(path, kind):
    data = path.read_bytes()
    if kind == "a whole batch gone":
        data = data[: data.index(b"\xff\xff\xff\xff", 4)]
    cut = {"cut": data[:-1], "longer": data + b"0", "half": data[: len(data) // 2], "header cut": data[:50]}
    path.write_bytes(cut.get(kind, b"" if kind == "empty" else data))


KINDS = ["cut", "longer", "half", "header cut", "empty", "a whole batch gone"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_part_is_refused(folder, kind):
    damage(next(pack(folder, progress=False).iterdir()), kind)
    with pytest.raises(UserError, match=r"packed-00000\.arrow: not a whole Arrow stream .* delete it, or pack"):
        FeatureStore(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_index_is_refused(folder, kind):
    pack(folder, progress=False)
    damage(folder / INDEX, kind)
    with pytest.raises(UserError, match=r"index\.arrow: not a whole Arrow stream .* delete it, or pack .* again"):
        FeatureStore(folder)
    pack(folder, progress=False)
    assert "a" in FeatureStore(folder).ids


@pytest.mark.parametrize("change", [{"T": 4}, {"D": 5}, {"T": 0}, {"dtype": "f8"}, {"features": b""}])
def test_a_row_of_another_size_is_refused(folder, change):
    good = clip_record({"id": "a"}, np.ones((3, 4), np.float16))
    write_part(folder, "0", [good, good | {"id": "b"} | change])
    with pytest.raises(UserError, match=r"parts: not a whole dataset \(b: .*unlike a\); extract or pack .* again"):
        FeatureStore(folder)


def test_other_files_are_no_parts(folder):
    write_part(folder, "0", [{"id": "a"}], pa.schema([("id", pa.string())]))
    with pytest.raises(UserError, match=r"0\.arrow: not a part"):
        FeatureStore(folder)
    (folder / PARTS / "0.arrow").unlink()
    with pytest.raises(UserError, match=r"parts: no \*\.arrow files"):
        FeatureStore(folder)


def test_parts_of_two_kinds_of_features_are_refused(folder):
    records = [clip_record({"id": i, "backbone": i}, np.ones((3, 4), np.float16)) for i in "ab"]
    write_part(folder, "0", records)
    with pytest.raises(UserError, match=r"a has backbone a.*, b backbone b.* extract all clips alike"):
        FeatureStore(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_parts_with_bad_numbers_are_refused(folder, bad):
    write_part(folder, "0", [clip_record({"id": "a"}, np.array([[1, bad]], np.float16))])
    with pytest.raises(UserError, match=r"parts: a: holds NaN .* pack again"):
        FeatureStore(folder)["a"]


def test_parts_of_an_earlier_extraction_are_refused(folder):
    pack(folder, progress=False)
    with open(folder / "manifest.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"id": "d", "T": 1, "backbone": "x"}) + "\n")
    with pytest.raises(UserError, match="its manifest is not what was packed; run `python -m vcutils pack"):
        FeatureStore(folder)
    np.save(folder / "d.npy", np.ones((1, 4)))
    pack(folder, progress=False)
    assert "d" in FeatureStore(folder).ids


def test_features_that_were_brought_after_packing_are_not_overlooked(folder):
    (folder / "manifest.jsonl").unlink()
    pack(folder, progress=False)
    np.save(folder / "new.npy", np.ones((1, 4)))
    with pytest.raises(UserError, match=r"new\.npy is not what was packed"):
        FeatureStore(folder)


@pytest.fixture
def corpus(tmp_path):
    """A corpus with its own features, split and vocabulary; some captions and features stand alone."""
    root, random = tmp_path / "mine", np.random.default_rng(0)
    (root / "features" / "x").mkdir(parents=True)
    ids = [f"clip{i}" for i in range(20)]
    for i in ids[1:]:
        np.save(root / "features" / "x" / f"{i}.npy", random.random((3, 4)).astype(np.float16))
    lines = [f"{i} a {word} runs {i}" for i in ids[:-1] for word in ("cat", "dog", "кот")]
    (root / "captions.txt").write_text("\n".join(lines), encoding="utf-8")
    (root / "splits.json").write_text(json.dumps({"train": ids[14:3:-1], "val": ids[:4], "test": ids[15:]}))
    assert main(["vocab", str(root), "--data", str(tmp_path / "data")]) == 1  # clip0 has no features
    return Config(corpus=root, data=tmp_path / "data", extract=ExtractConfig("x"))


def batches(opened, config):
    data = load_data(opened, config.artifacts, config.extract)
    dataset = CaptionDataset(data, "train", 2, 24, seed=3, frame_dropout=0.2)
    shown = []
    for dataset.epoch in range(2):
        shown += [(b.ids, b.features.tolist(), b.captions.tolist()) for b in make_loader(dataset, 4)]
    return shown, {name: list(ids) for name, ids in data.splits.items()}, data.suited(config)


def test_training_from_an_index_sees_the_same_batches(corpus, monkeypatch, capsys):
    """And reads neither captions nor clips of the corpus."""
    folder = corpus.corpus / "features" / "x"
    expected, captions = batches(load_corpus(corpus), corpus), load_corpus(corpus).captions["clip5"]
    assert indexed_corpus(corpus.corpus, corpus.artifacts, corpus.extract) is None
    capsys.readouterr()
    assert main(["pack", str(folder), "--corpus", str(corpus.corpus), "--data", str(corpus.data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == 19
    for path in folder.glob("*.npy"):
        path.unlink()
    monkeypatch.setattr("vcutils.corpora.load_corpus", lambda config: pytest.fail("the corpus was read"))
    opened, config = cli._open(corpus.corpus, corpus.data, indexed=True)
    assert batches(opened, config)[:2] == expected[:2] == batches(opened, corpus)[:2]
    assert batches(opened, corpus)[2] == expected[2]
    assert opened.captions["clip5"] == captions and "clip0" not in opened.captions


def test_an_index_of_an_earlier_state_of_the_corpus_is_passed_over(corpus):
    folder = corpus.corpus / "features" / "x"
    assert main(["pack", str(folder), "--corpus", str(corpus.corpus), "--data", str(corpus.data)]) == 0
    where = corpus.corpus, corpus.artifacts, corpus.extract
    assert indexed_corpus(*where)
    for path in (corpus.corpus / "captions.txt", corpus.artifacts / "splits.json", corpus.artifacts / "exclude.txt"):
        before = path.read_bytes() if path.is_file() else None
        path.write_bytes((before or b"") + b" ")
        assert indexed_corpus(*where) is None
        pack(folder, corpus=(load_corpus(corpus).captions, {}, corpus_state(corpus.corpus, corpus.artifacts)))
        assert indexed_corpus(*where)


def test_an_index_needs_a_split(corpus, capsys):
    (corpus.artifacts / "splits.json").unlink()
    args = ["pack", str(corpus.corpus / "features" / "x"), "--corpus", str(corpus.corpus), "--data", str(corpus.data)]
    assert main(args) == 2 and "no split yet; run `python -m vcutils vocab" in capsys.readouterr().err


def test_without_the_extra_only_parts_are_out_of_reach(folder, monkeypatch, capsys):
    pack(folder, progress=False)
    for name in ("pyarrow", "datasets", "datasets.table"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["pack", str(folder)]) == 2 and "pip install 'vcutils[scale]'" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"parts/ need more packages .*pip install 'vcutils\[scale\]'"):
        FeatureStore(folder)
    shutil.rmtree(folder / PARTS)
    assert len(FeatureStore(folder)["a"]) == 3


def test_only_so_much_is_kept_in_memory(folder, monkeypatch):
    monkeypatch.setattr("vcutils.runtime.store.CACHE_BYTES", 50)
    store = FeatureStore(folder)
    first, second = sorted(store.ids)[:2]
    assert store[first] is store[first] and store[second] is not store[second]
