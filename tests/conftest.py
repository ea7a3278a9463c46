"""Fixtures that the tests share: corpora of every size, from hand-made arrays to real clips.

Helpers are fixtures that return functions, so that no test imports from here.
"""

import dataclasses
import os
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from vcutils.config import PROFILES, Config, ModelConfig, TrainConfig
from vcutils.corpora import load_corpus
from vcutils.corpus import make_splits, save_splits
from vcutils.dataset import CaptionData, load_data
from vcutils.features import extract_corpus
from vcutils.model import CaptionModel
from vcutils.runtime.backbones import Backbone
from vcutils.runtime.decoding import Resize
from vcutils.runtime.store import FeatureStore
from vcutils.vocab import SPECIALS, Vocabulary, build_vocabulary

REPO = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("VCUTILS_SHARED") or REPO.parent / "shared") / "corpora"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    """A user's settings must not change what the tests see."""
    for name in ("VCUTILS_PROFILE", "VCUTILS_CORPUS", "VCUTILS_DATA", "VCUTILS_SET"):
        monkeypatch.delenv(name, raising=False)


def _real_corpus(name):
    folder = SHARED / name
    if not (folder / "videos").is_dir():
        pytest.skip(f"no {folder}: set VCUTILS_SHARED to a folder with corpora/{name}")
    return folder


@pytest.fixture(scope="session")
def repo():
    """The project's root."""
    return REPO


@pytest.fixture(scope="session")
def msvd_mini():
    """18 true MSVD clips."""
    return _real_corpus("msvd-mini")


@pytest.fixture(scope="session")
def vtt_mini():
    """580 clips of MSR-VTT."""
    return _real_corpus("vtt-mini")


@pytest.fixture(scope="session")
def snapshot():
    """Function: every file under a folder with its size and time, to see whether anything was touched."""

    def look(folder):
        return {
            p.relative_to(folder).as_posix(): (p.stat().st_size, p.stat().st_mtime_ns)
            for p in sorted(folder.rglob("*"))
        }

    return look


@pytest.fixture(scope="session")
def write_video():
    """Function: encode BGR frames as a real video file; the codec goes by the suffix."""

    def write(path, frames, fps=10):
        path.parent.mkdir(parents=True, exist_ok=True)
        codec = cv2.VideoWriter_fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
        height, width = frames[0].shape[:2]
        writer = cv2.VideoWriter(str(path), codec, fps, (width, height))
        assert writer.isOpened()
        for frame in frames:
            writer.write(frame)
        writer.release()
        return path

    return write


@pytest.fixture(scope="session")
def numbered_video(write_video):
    """Function: a video whose frame n shows n in binary as eight black or white bars, for `read_number`."""

    def write(path, count, fps=10):
        bits = np.array([[(n >> b) & 1 for b in range(8)] for n in range(count)], np.uint8) * 255
        return write_video(
            path, [np.repeat(np.tile(row.repeat(16), (96, 1))[:, :, None], 3, axis=2) for row in bits], fps
        )

    return write


@pytest.fixture(scope="session")
def read_number():
    """Function: the number that a frame of `numbered_video` shows."""
    return lambda frame: sum(int(frame[20:76, 16 * b + 4 : 16 * b + 12].mean() > 127) << b for b in range(8))


@pytest.fixture
def make_corpus(tmp_path, numbered_video):
    """Function: a corpus folder with numbered clips of `frames` frames and the given caption lines."""

    def make(ids=("a", "b", "c"), captions=None, frames=12, name="mine", suffix=".avi"):
        root = tmp_path / name
        (root / "videos").mkdir(parents=True)
        for place, i in enumerate(ids):
            numbered_video(root / "videos" / f"{i}{suffix}", frames + place)
        text = captions if captions is not None else "".join(f"{i} a cat\n{i} a dog runs\n" for i in ids)
        (root / "captions.txt").write_text(text, encoding="utf-8")
        return root

    return make


@pytest.fixture
def fake_backbone(monkeypatch):
    """Replaces the network by twelve mean colours per frame, and counts how often it was loaded."""
    loaded = []

    def load(name, device=None):
        loaded.append(name)
        model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        return Backbone(name, "none", model, Resize((16, 16), (16, 16)), (0.0,) * 3, (255.0,) * 3, torch.device("cpu"))

    for module in ("features", "scores.runs", "corpora.doctor"):
        monkeypatch.setattr(f"vcutils.{module}.load_backbone", load)
    return loaded


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory):
    """The tiny profile with its data in a temporary folder."""
    config = PROFILES["tiny"]
    train = dataclasses.replace(config.train, epochs=3)
    return dataclasses.replace(config, data=tmp_path_factory.mktemp("data"), train=train)


@pytest.fixture(scope="session")
def tiny_corpus(tiny_config):
    """The embedded corpus, 12 rendered clips."""
    return load_corpus(tiny_config, progress=False)


@pytest.fixture(scope="session")
def tiny_report(tiny_config, tiny_corpus):
    """Report of the extraction of the tiny corpus with efficientnet_lite0."""
    return extract_corpus(tiny_corpus, tiny_config.artifacts, tiny_config.extract, progress=False)


@pytest.fixture(scope="session")
def tiny_data(tiny_config, tiny_corpus, tiny_report):
    """Features, split and vocabulary of the tiny corpus."""
    splits, _ = make_splits(tiny_corpus)
    save_splits(splits, tiny_config.artifacts / "splits.json")
    vocabulary = build_vocabulary(tiny_corpus.captions, splits["train"], tiny_config.vocab.min_count)
    vocabulary.save(tiny_config.artifacts / "vocab.json")
    return load_data(tiny_corpus, tiny_config.artifacts, tiny_config.extract)


@pytest.fixture(scope="session")
def tiny_run(tiny_config, tiny_data):
    """The folder of a run of three epochs on the tiny corpus."""
    from vcutils.scores.coco import References
    from vcutils.train import Trainer

    folder = tiny_config.artifacts / "runs" / "tiny"
    Trainer(folder, tiny_config, tiny_data, References, progress=False).fit()
    return folder


@pytest.fixture(scope="session")
def vocabulary():
    """Eight words after the four special ones."""
    words = ("a", "cat", "dog", "man", "runs", "sits", "and", "slowly")
    return Vocabulary((*SPECIALS, *words), (0, 0, 0, 0, *range(9, 1, -1)))


@pytest.fixture(scope="session")
def small_model(vocabulary):
    """Function: a model of D = 5 without dropout; `sharpness` > 1 makes it decided, not near uniform."""

    def build(seed=0, sharpness=1.0, feature_dim=5, vocab_size=None, **switches):
        torch.manual_seed(seed)
        sizes = {"embed_dim": 8, "encoder_dim": 6, "decoder_dim": 10, "attention_dim": 7, "dropout": 0.0}
        model = CaptionModel(ModelConfig(**{**sizes, **switches}), vocab_size or len(vocabulary), feature_dim).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(sharpness)
        return model

    return build


@pytest.fixture(scope="session")
def random_clips():
    """Function: padded features (B, T, D) and mask of clips of given lengths; padding is zero."""

    def make(lengths, feature_dim=5, seed=0):
        torch.manual_seed(seed)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return torch.randn(*mask.shape, feature_dim) * mask[:, :, None], mask

    return make


TOPICS = (("cat", "sits"), ("dog", "runs"), ("man", "sings"), ("woman", "cooks"))


@pytest.fixture
def toy_data(tmp_path):
    """16 clips of hand-made features of four topics, 3 to 6 frames each, with three captions per clip."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "toy" / "features" / "hand"
    folder.mkdir(parents=True)
    captions = {}
    for n in range(16):
        noun, verb = TOPICS[n % 4]
        features = rng.normal(0, 0.3, (3 + n % 4, 8)).astype(np.float16)
        features[:, n % 4] += 2
        np.save(folder / f"c{n:02d}.npy", features)
        captions[f"c{n:02d}"] = [
            f"a {noun} {verb}",
            f"the {noun} is there and {verb}",
            f"a {noun} {verb} now",
        ]
    ids = sorted(captions)
    splits = {"train": ids[:8], "val": ids[8:12], "test": ids[12:]}
    return CaptionData(tmp_path / "toy", FeatureStore(folder), captions, splits, build_vocabulary(captions, ids[:8], 1))


@pytest.fixture(scope="session")
def toy_config():
    """Function: settings for a run on `toy_data` in about a second, with dropout: random numbers matter."""

    def make(**training):
        model = ModelConfig(
            embed_dim=12, encoder_dim=8, decoder_dim=16, attention_dim=8, dropout=0.2, attention="additive"
        )
        settings = {"epochs": 4, "batch_size": 4, "captions_per_clip": 2, "lr": 1e-2, "warmup_epochs": 1.0}
        settings |= {"label_smoothing": 0.0, "frame_dropout": 0.0, "val_beam_size": 1, "scst_epochs": 0}
        settings |= {"caption_weights": False}
        return Config(model=model, train=TrainConfig(**{**settings, "checkpoint_every": 2, **training}))

    return make
