"""Features and captions become padded, masked batches that are the same on every machine."""

import dataclasses

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device

from vcutils.config import ExtractConfig, UserError
from vcutils.corpora import open_corpus
from vcutils.corpus import save_splits
from vcutils.dataset import CaptionDataset, collate, derange, load_data, make_loader
from vcutils.runtime.store import FeatureStore
from vcutils.vocab import END, PAD, START


@pytest.fixture
def dataset(toy_data):
    def make(split="train", captions_per_clip=2, max_length=24, **kwargs):
        return CaptionDataset(toy_data, split, captions_per_clip, max_length, **kwargs)

    return make


def same(one, other):
    fields = ("features", "frame_mask", "captions")
    return one.ids == other.ids and all(torch.equal(getattr(one, f), getattr(other, f)) for f in fields)


def test_batch_shapes_masks_and_zero_padding(dataset, toy_data):
    data = dataset()
    batch = collate([data[i] for i in range(4)])  # clips of 3, 4, 5 and 6 frames
    assert batch.features.shape == (4, 6, 8) and batch.features.dtype == torch.float32
    assert batch.frame_mask.dtype == torch.bool and batch.frame_mask.sum(1).tolist() == [3, 4, 5, 6]
    assert (batch.features[~batch.frame_mask] == 0).all()
    for row, (video_id, mask) in enumerate(zip(batch.ids, batch.frame_mask, strict=True)):
        assert np.array_equal(batch.features[row][mask].numpy(), toy_data.store[video_id].astype(np.float32))
        assert mask.tolist() == sorted(mask.tolist(), reverse=True), "real frames come first"


def test_captions_are_start_words_end_padding(dataset, toy_data):
    batch = collate([dataset()[i] for i in range(4)])
    assert batch.captions.shape[:2] == (4, 2) and batch.captions.dtype == torch.int64
    for video_id, rows in zip(batch.ids, batch.captions.tolist(), strict=True):
        for row in rows:
            length = row.index(END) + 1
            assert row[0] == START and set(row[length:]) <= {PAD}
            assert " ".join(toy_data.vocabulary.decode(row)) in toy_data.captions[video_id]


def test_targets_are_the_inputs_shifted_by_one(dataset):
    batch = collate([dataset()[i] for i in range(4)])
    assert torch.equal(batch.inputs[:, :, 1:], batch.targets[:, :, :-1])
    assert (batch.inputs[:, :, 0] == START).all()
    assert torch.equal(batch.inputs, batch.captions[:, :, :-1]) and torch.equal(batch.targets, batch.captions[:, :, 1:])


def test_every_caption_of_a_clip_comes_when_as_many_are_drawn(dataset, toy_data):
    video_id, _, captions = dataset(captions_per_clip=3)[0]
    said = {" ".join(toy_data.vocabulary.decode(c)) for c in captions}
    assert said == set(toy_data.captions[video_id])


def test_more_captions_than_a_clip_has_are_repeated(dataset):
    assert len(dataset(captions_per_clip=7)[0][2]) == 7


def test_measuring_shows_every_caption_in_order(dataset, toy_data):
    data = dataset(captions_per_clip=None)
    for video_id, _, captions in (data[i] for i in range(len(data))):
        assert [" ".join(toy_data.vocabulary.decode(c)) for c in captions] == toy_data.captions[video_id]


def test_clips_with_fewer_captions_get_rows_of_padding(toy_data):
    captions = dict(toy_data.captions) | {"c00": ["a cat sits"]}
    data = CaptionDataset(dataclasses.replace(toy_data, captions=captions), "train", None, 24)
    batch = collate([data[0], data[1]])
    assert batch.captions.shape[1] == 3
    assert (batch.captions[0, 1:] == PAD).all() and (batch.captions[1, :, 0] == START).all()


def test_long_captions_are_cut(dataset):
    assert all(len(c) <= 4 for c in dataset(max_length=2)[0][2])


def test_draws_depend_on_seed_and_epoch_alone(dataset):
    def draws(epoch, seed=0):
        data = dataset(captions_per_clip=1, seed=seed)
        data.epoch = epoch
        return [data[i][2] for i in range(len(data))]

    assert draws(3) == draws(3)
    torch.manual_seed(5)  # no global generator has a say
    assert draws(3) == draws(3, seed=0)
    assert len({str(draws(e)) for e in range(4)}) > 1, "the same captions every epoch"
    assert any(draws(e) != draws(e, seed=1) for e in range(3))


def test_order_of_clips_depends_on_seed_and_epoch_alone(dataset):
    def order(epoch, seed=0):
        data = dataset(seed=seed)
        data.epoch = epoch
        return [i for batch in make_loader(data, 3) for i in batch.ids]

    ids = dataset().ids
    assert order(0) == order(0) and order(0) != order(1) and order(0) != order(0, seed=1)
    assert sorted(order(0)) == sorted(order(1)) == ids


def test_last_batch_may_be_smaller_and_nothing_is_dropped(dataset):
    loader = make_loader(dataset(), 3)
    assert [len(b.ids) for b in loader] == [3, 3, 2] and len(loader) == 3


@pytest.mark.parametrize("epoch", [0, 1])
def test_worker_processes_give_the_same_batches(dataset, epoch):
    data = dataset()
    data.epoch = epoch
    alone, helped = (list(make_loader(data, 3, num_workers=n)) for n in (0, 1))
    assert len(alone) == len(helped) == 3
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize("count", [2, 3, 4, 17, 100])
def test_derangement_moves_everyone(count):
    ids = [f"v{i}" for i in range(count)]
    for seed in range(20):
        moved = derange(ids, seed)
        assert sorted(moved) == sorted(ids) and all(a != b for a, b in zip(ids, moved, strict=True))
    assert derange(ids, 1) == derange(ids, 1)


def test_shuffled_features_come_from_another_clip(dataset, toy_data):
    data = dataset(shuffle_features=True)
    for position in range(len(data)):
        video_id, features, captions = data[position]
        assert not np.array_equal(features, toy_data.store[video_id])
        assert np.array_equal(features, toy_data.store[data.sources[position]])
        assert all(" ".join(toy_data.vocabulary.decode(c)) in toy_data.captions[video_id] for c in captions)


def test_store_gives_what_was_written(toy_data):
    store = FeatureStore(toy_data.store.folder)
    assert len(store.ids) == 16 and store.dim == 8
    assert np.array_equal(store["c03"], np.load(store.folder / "c03.npy"))
    assert np.array_equal(store["c03"], store["c03"])


def bad_arrays():
    ones = np.ones((3, 4), np.float32)
    nan, inf = ones.copy(), ones.copy()
    nan[1, 2], inf[2, 0] = np.nan, np.inf
    return {
        "NaN": nan,
        "inf": inf,
        "another D": np.ones((3, 5), np.float32),
        "one axis": np.ones(4, np.float32),
        "scalar": np.float32(1),
        "no frames": np.ones((0, 4), np.float32),
        "no frames, pooled axes": np.ones((0, 4, 1, 1), np.float32),
        "integers": np.ones((3, 4), int),
        "objects": np.array([{"a": 1}], object),
    }


@pytest.mark.parametrize("kind", [*bad_arrays(), "truncated", "empty file", "text"])
def test_unusable_features_are_named(tmp_path, kind):
    np.save(tmp_path / "a.npy", np.ones((3, 4), np.float32))
    path = tmp_path / "b.npy"
    if kind in bad_arrays():
        np.save(path, bad_arrays()[kind], allow_pickle=True)
    elif kind == "truncated":
        np.save(path, np.ones((30, 4), np.float32))
        path.write_bytes(path.read_bytes()[:200])
    else:
        path.write_text("" if kind == "empty file" else "hello")
    store = FeatureStore(tmp_path)
    with pytest.raises(UserError, match=r"b\.npy"):
        store["b"]


def test_pooled_axes_are_dropped(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((3, 4, 1, 1), np.float16))
    assert FeatureStore(tmp_path)["a"].shape == (3, 4)


def test_missing_features_say_what_to_run(tmp_path, toy_data):
    with pytest.raises(UserError, match="run notebook 01"):
        FeatureStore(tmp_path / "nothing")
    with pytest.raises(UserError, match="no features of ghost"):
        toy_data.store["ghost"]


def test_batch_moves_as_a_whole(dataset):
    batch = collate([dataset()[0]])
    assert same(send_to_device(batch, "cpu"), batch)
    moved = send_to_device(batch, "meta")
    assert type(moved) is type(batch) and moved.ids == batch.ids
    assert {tensor.device.type for tensor in moved[1:4]} == {"meta"}
    assert moved.targets.device.type == "meta"


def test_load_data_asks_for_the_stage_that_is_missing(make_corpus, tmp_path, vocabulary):
    corpus, out = open_corpus(make_corpus()), tmp_path / "out"
    with pytest.raises(UserError, match=r"splits\.json.*run notebook 02"):
        load_data(corpus, out, ExtractConfig())
    save_splits({"train": ["a"], "val": ["b"], "test": ["c"]}, out / "splits.json")
    with pytest.raises(UserError, match="run notebook 01"):
        load_data(corpus, out, ExtractConfig())
    (out / "features" / "efficientnet_lite0").mkdir(parents=True)
    for i in "ab":
        np.save(out / "features" / "efficientnet_lite0" / f"{i}.npy", np.ones((2, 3), np.float16))
    with pytest.raises(UserError, match="no features for any test clip"):
        load_data(corpus, out, ExtractConfig())
    np.save(out / "features" / "efficientnet_lite0" / "c.npy", np.ones((2, 3), np.float16))
    with pytest.raises(UserError, match=r"vocab\.json"):
        load_data(corpus, out, ExtractConfig())
    vocabulary.save(out / "vocab.json")
    assert load_data(corpus, out, ExtractConfig()).splits == {"train": ["a"], "val": ["b"], "test": ["c"]}


def test_load_data_leaves_out_clips_whose_extraction_failed(make_corpus, tmp_path, vocabulary):
    corpus, out = open_corpus(make_corpus(ids=("a", "b", "c", "d"))), tmp_path / "out"
    save_splits({"train": ["a", "d"], "val": ["b"], "test": ["c"]}, out / "splits.json")
    vocabulary.save(out / "vocab.json")
    (out / "features" / "efficientnet_lite0").mkdir(parents=True)
    for i in "abc":
        np.save(out / "features" / "efficientnet_lite0" / f"{i}.npy", np.ones((2, 3), np.float16))
    assert load_data(corpus, out, ExtractConfig()).splits["train"] == ["a"]


def test_features_of_the_settings_backbone_are_used_whatever_the_default_is(make_corpus, tmp_path, vocabulary):
    corpus, out = open_corpus(make_corpus()), tmp_path / "out"
    save_splits({"train": ["a"], "val": ["b"], "test": ["c"]}, out / "splits.json")
    vocabulary.save(out / "vocab.json")
    (out / "features" / "resnet18").mkdir(parents=True)
    for i in "abc":
        np.save(out / "features" / "resnet18" / f"{i}.npy", np.ones((2, 3), np.float16))
    assert load_data(corpus, out, ExtractConfig("resnet18")).store.folder.name == "resnet18"
    with pytest.raises(UserError, match="efficientnet_lite0: no features"):
        load_data(corpus, out, ExtractConfig())
