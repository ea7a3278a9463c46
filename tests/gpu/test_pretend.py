"""What would end a run on a card, found without one: see pretend.py."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from pretend import CARD, OnCard, half, pretended
from torch import nn

from vcutils.attention.measures import need, teacher_forced
from vcutils.config import DecodeConfig
from vcutils.dataset import CaptionDataset, collate
from vcutils.decode import beam_search, generate, greedy_search
from vcutils.runtime.backbones import Backbone
from vcutils.runtime.decoding import Resize
from vcutils.runtime.fast import TrainingModel, mean_loss
from vcutils.runtime.objective import Objective
from vcutils.scores.coco import References

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or not hasattr(torch._C, "_ensureCUDADeviceGuardSet"),
    reason="a real card is here (test_gpu.py), or torch is too old to do without one",
)
SWITCHES = ({}, {"attention": "matched"}, {"attention": "uniform"}, {"encoder": "none"}, {"max_frames": 3})
SWITCHES += ({"frame_order": "shuffled"},)


@pytest.fixture
def batch(toy_data):
    dataset = CaptionDataset(toy_data, "train", 2, 12)
    return collate([dataset[i] for i in range(3)])


@pytest.fixture
def build(toy_data, small_model):
    return partial(small_model, feature_dim=8, vocab_size=len(toy_data.vocabulary))


def to_card(batch):
    return batch._replace(**{n: x.to(CARD) for n, x in batch._asdict().items() if isinstance(x, torch.Tensor)})


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_loss_on_a_card_is_that_of_the_processor(build, batch, toy_data, toy_config, switches):
    dtype = torch.bfloat16 if switches else None  # what "auto" takes on most cards
    config = toy_config(scheduled_sampling=1.0, epochs=2, caption_weights=not switches)
    model = build(**switches)
    place = SimpleNamespace(device=torch.device("cpu"), autocast=partial(half, dtype) if dtype else nullcontext)
    objective = Objective(config, toy_data, References, place)
    objective.matching = 0.5 if switches.get("attention") == "matched" else 0.0
    torch.manual_seed(0)
    expected = [float(objective(TrainingModel(model), batch, epoch)[0].detach()) for epoch in (0, 1)]
    with pretended() as card:
        model.to(card)
        objective.device = card
        torch.manual_seed(0)
        losses = [objective(TrainingModel(model), batch, epoch)[0] for epoch in (0, 1)]
        assert all(isinstance(loss, OnCard) for loss in losses)
        assert [float(loss.detach().cpu()) for loss in losses] == pytest.approx(expected, rel=2e-2 if dtype else 1e-5)


def test_self_critical_phase_on_a_card(build, batch, toy_data, toy_config):
    model = build()
    place = SimpleNamespace(device=CARD, autocast=partial(half, torch.bfloat16))
    objective = Objective(toy_config(scst_epochs=1), toy_data, References, place)
    with pretended() as card:
        model.to(card)
        loss, words = objective(TrainingModel(model), batch, 5, rewarded=True)
        assert isinstance(loss, OnCard) and words and np.isfinite(float(loss.detach().cpu()))


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_captions_on_a_card_are_those_of_the_processor(build, batch, toy_data, switches):
    model, words = build(sharpness=4.0, **switches), toy_data.vocabulary
    clip = batch.features[0][batch.frame_mask[0]]
    config = DecodeConfig(beam_size=3, max_length=6, no_repeat_ngram=2)

    def captions(move):
        beams = generate(model, words, batch.features, batch.frame_mask, config)
        plain = greedy_search(model, move(clip), 6), beam_search(model, move(clip), 2, 6)
        return [[beam.caption for beam in beams_of_clip] for beams_of_clip in beams], plain

    expected = captions(lambda x: x)
    loss = mean_loss(TrainingModel(model).eval(), [batch], torch.device("cpu"))
    with pretended() as card:
        model.to(card)
        assert captions(lambda x: x.to(card)) == expected
        assert mean_loss(TrainingModel(model).eval(), [batch], card) == pytest.approx(loss, rel=1e-5)


def test_measures_of_attention_on_a_card(build, batch, toy_data):
    model, words = build(), ["a", "cat", "sits"]
    clip = batch.features[0][batch.frame_mask[0]].numpy()
    expected = need(model, toy_data.vocabulary, clip, [words])[0].need
    with pretended() as card:
        model.to(card)
        assert need(model, toy_data.vocabulary, clip, [words])[0].need == pytest.approx(expected, abs=1e-5)
        assert len(teacher_forced(model, toy_data.vocabulary, [clip], words)[1][0]) == 3


def test_features_on_a_card():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    frames = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), np.uint8)
    about = Resize((16, 16), (16, 16)), (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
    expected = Backbone("means", "none", network, *about, torch.device("cpu"))(frames)
    pinned = mock.patch.object(torch.Tensor, "pin_memory", lambda self: self)
    with pretended() as card, pinned, pytest.warns(UserWarning, match="CUDA is not available"):
        features = Backbone("means", "none", network, *about, card)(frames)
    assert not isinstance(features, OnCard) and torch.allclose(features, expected, atol=1e-5)


def test_a_tensor_on_the_wrong_device_is_seen():
    with pretended() as card:
        there = torch.ones(3, device=card)
        assert float((there * torch.tensor(2.0)).sum()) == 6, "a single number may come from the processor"
        with pytest.raises(RuntimeError, match="expected all tensors on cuda:0"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match=r"use Tensor\.cpu|Use Tensor\.cpu"):
            there.numpy()
