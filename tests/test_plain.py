"""What the benchmarks measure against does the same work: equal features, equal losses, equal captions."""

import numpy as np
import plain
import pytest
import torch

from vcutils.config import DecodeConfig
from vcutils.dataset import Batch
from vcutils.decode import generate
from vcutils.runtime import backbones
from vcutils.runtime.backbones import load_backbone
from vcutils.runtime.fast import TrainingModel, fast_loss
from vcutils.vocab import END, PAD, START


def test_features(monkeypatch, tiny_corpus, tiny_report):
    """Seek, one frame at a time, the network as it is published; against workers, batches, folded norms, float16."""
    monkeypatch.setattr(backbones, "_fold_norms", lambda model, _: model)
    backbone = load_backbone("efficientnet_lite0", torch.device("cpu"))
    for video_id, path in list(tiny_corpus.clips.items())[:4]:
        expected = plain.extract_clip(backbone, path, 6)
        stored = np.load(tiny_report.folder / f"{video_id}.npy").astype(np.float32)
        distance = np.linalg.norm(stored - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert stored.shape == (6, 1280) and (distance < 1e-3).all()


def test_training_loss(small_model, random_clips):
    model, (features, mask) = small_model(), random_clips([5, 5, 5])
    captions = torch.tensor([[START, 5, 6, END, PAD], [START, 7, END, PAD, PAD], [START, 4, 5, 6, END]])
    ours = fast_loss(TrainingModel(model), Batch(["a", "b", "c"], features, mask, captions[:, None]), PAD)
    assert ours.item() == pytest.approx(plain.training_loss(model, features, captions).item(), rel=1e-5)


@pytest.mark.parametrize("beam_size", [1, 5])
@pytest.mark.parametrize("seed", range(3))
def test_captions(small_model, vocabulary, random_clips, seed, beam_size):
    model, (features, mask) = small_model(seed=seed, sharpness=4.0), random_clips([7, 1, 4, 6])
    beams = generate(model, vocabulary, features, mask, DecodeConfig(beam_size=beam_size, max_length=8))
    for clip, real, hypotheses in zip(features, mask, beams, strict=True):
        words = plain.beam_search(model, clip[real], beam_size, 8)
        assert hypotheses[0].words == [vocabulary.words[w] for w in words]
