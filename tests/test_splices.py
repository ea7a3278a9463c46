"""Splices: clips joined end to end, each caption with its own frames."""

import pytest
import torch

from vcutils.dataset import Batch
from vcutils.runtime.splices import splice
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
