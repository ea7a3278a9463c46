"""A pack gives the same features as the files that it was made of, or says why not."""

import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file

from vcutils.config import UserError
from vcutils.runtime.store import PACK, FeatureStore, pack


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


def test_a_pack_gives_the_same_arrays(folder):
    before = FeatureStore(folder)
    arrays = {i: before[i] for i in before.ids}
    pack(folder, progress=False)
    for path in folder.glob("*.npy"):
        path.unlink()
    store = FeatureStore(folder)
    assert store.ids == {"a", "b", "кот 1"} and store.dim == 4
    assert store.extracted == before.extracted and store.manifest == before.manifest
    for one in (store, pickle.loads(pickle.dumps(store))):  # as worker processes get it
        for i, array in arrays.items():
            assert one[i].dtype == array.dtype and np.array_equal(one[i], array)
    with pytest.raises(UserError, match="no features of ghost"):
        store["ghost"]


def test_a_pack_is_a_safetensors_file(folder):
    arrays = load_file(pack(folder, progress=False))
    assert set(arrays) == {"a", "b", "кот 1"} and np.array_equal(arrays["кот 1"], FeatureStore(folder)["кот 1"])


def test_a_pack_that_fails_leaves_nothing(folder):
    np.save(folder / "a.npy", np.full((3, 4), np.nan))
    with pytest.raises(UserError, match=r"a\.npy: holds NaN"):
        pack(folder, progress=False)
    assert not list(folder.glob("*.safetensors")) and not list(folder.glob(".tmp*"))


def damage(path, kind):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if kind == "shape":
        header["a"]["shape"][0] += 1
    elif kind == "type":
        header["a"]["dtype"] = "I64"
    elif kind == "no metadata":
        del header["__metadata__"]
    text = json.dumps(header).encode().ljust(length)[:length]
    whole = data[:8] + text + data[8 + length :]
    path.write_bytes({"cut": data[:-1], "longer": data + b"0", "header cut": data[:50], "empty": b""}.get(kind, whole))


@pytest.mark.parametrize("kind", ["cut", "longer", "header cut", "empty", "shape", "type", "no metadata"])
def test_a_damaged_pack_is_refused(folder, kind):
    damage(pack(folder, progress=False), kind)
    with pytest.raises(UserError, match=rf"{PACK}: not a whole pack .* delete it, or pack .* again"):
        FeatureStore(folder)


def test_a_pack_with_bad_numbers_is_refused(folder):
    path = pack(folder, progress=False)
    path.write_bytes(path.read_bytes()[:-2] + np.array([np.nan], "<f2").tobytes())  # the last clip's last number
    with pytest.raises(UserError, match=rf"{PACK}: кот 1: holds NaN .* pack again"):
        FeatureStore(folder)["кот 1"]


def test_a_pack_of_an_earlier_extraction_is_refused(folder):
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


def test_only_so_much_is_kept_in_memory(folder, monkeypatch):
    monkeypatch.setattr("vcutils.runtime.store.CACHE_BYTES", 50)
    store = FeatureStore(folder)
    first, second = sorted(store.ids)[:2]
    assert store[first] is store[first] and store[second] is not store[second]
