"""Splices: clips joined end to end, each caption with its own frames; the loss that looks for them."""

import math

import pytest
import torch

from vcutils.dataset import Batch
from vcutils.runtime.fast import TrainingModel
from vcutils.runtime.splices import splice, splice_loss
from vcutils.vocab import PAD, START


@pytest.fixture
def make_batch(random_clips):
    """Function: clips of these lengths with two captions each; the words of clip b are all 4 + b."""

    def make(lengths):
        features, mask = random_clips(lengths)
        captions = torch.full((len(lengths), 2, 6), PAD)
        for b in range(len(lengths)):
            for k in range(2):
                captions[b, k, : 3 + k] = torch.tensor([START, *[4 + b] * (2 + k)])
        return Batch([f"c{b}" for b in range(len(lengths))], features, mask, captions)

    return make


@pytest.mark.parametrize("lengths", [[3, 1], [4, 2, 1], [6, 2, 4, 1], [1, 1, 1, 1, 1], [2, 3, 1, 5, 4, 2, 7]], ids=str)
def test_two_clips_stand_one_behind_the_other_and_three_where_one_is_left_over(make_batch, lengths):
    batch = make_batch(lengths)
    joined, clips, own = splice(batch, PAD)
    seen = []
    for s in range(len(joined.features)):
        parts = list(dict.fromkeys(c for c in clips[s].tolist() if c >= 0))
        whole = torch.cat([batch.features[b, : lengths[b]] for b in parts])
        assert torch.equal(joined.features[s, joined.frame_mask[s]], whole) and joined.frame_mask[s].sum() == len(whole)
        starts = torch.tensor([0, *[lengths[b] for b in parts]]).cumsum(0).tolist()
        for k, clip in enumerate(clips[s].tolist()):
            if clip < 0:
                assert (joined.captions[s, k] == PAD).all() and not own[s, k].any()
                continue
            begin = starts[parts.index(clip)]
            assert own[s, k].nonzero().flatten().tolist() == list(range(begin, begin + lengths[clip]))
            words = joined.captions[s, k]
            assert (words[words > START] == 4 + clip).all() and (words == PAD).sum() in (2, 3)
        seen.append(parts)
    assert sorted(clip for parts in seen for clip in parts) == list(range(len(lengths))), "every clip once"
    assert sorted(map(len, seen)) == [2] * (len(lengths) // 2 - len(lengths) % 2) + [3] * (len(lengths) % 2)


def test_a_clip_alone_stays_as_it_is(make_batch):
    batch = make_batch([3])
    joined, _, own = splice(batch, PAD)
    assert torch.equal(joined.features, batch.features) and torch.equal(joined.captions, batch.captions) and own.all()


class Looks(torch.nn.Module):
    """Attention with `share` inside the own clip of every caption, the rest outside: words of clip b are all 4 + b."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, features, mask, inputs):
        clip = inputs.max(dim=2).values - 4  # (S, K)
        inside = (torch.arange(2) == clip[:, :, None]).repeat_interleave(torch.tensor([3, 2]), dim=2)  # 3 and 2 frames
        weights = torch.where(inside, self.share / inside.sum(2, True), (1 - self.share) / (~inside).sum(2, True))
        return None, weights[:, :, None].expand(-1, -1, inputs.shape[2], -1)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_loss_is_the_log_of_what_lies_inside(make_batch, share):
    assert float(splice_loss(Looks(share), make_batch([3, 2]), PAD)) == pytest.approx(-math.log(share), abs=1e-5)


@pytest.mark.parametrize("attention", ["additive", "dot"])
def test_attention_learns_to_find_the_clip_of_a_caption(small_model, make_batch, attention):
    """The query of step 2 is the first that has read a word: from there on the clip can be known, and not before."""
    model, batch = small_model(attention=attention).train(), make_batch([3, 2, 4, 1])
    network, optimizer = TrainingModel(model), torch.optim.Adam(model.parameters(), lr=1e-2)
    joined, _, own = splice(batch, PAD)
    for _ in range(150):
        optimizer.zero_grad()
        splice_loss(network, batch, PAD).backward()
        optimizer.step()
    _, weights = model(joined.features, joined.frame_mask, joined.inputs)
    mass = (weights.detach() * own[:, :, None]).sum(dim=-1)  # (S, K, L)
    assert mass[:, :, 2].mean() > 0.8 and mass[:, :, 0].mean() < 0.51
