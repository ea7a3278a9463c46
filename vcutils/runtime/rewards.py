"""What captions are worth: how much each reference counts in training, and the rewards of the model's own captions.

References count as their CIDEr against the clip's other references (Phan et al. 2017): odd ones say less of the clip.

Self-critical sequence training (Rennie et al. 2017): the model writes K captions per clip by chance, and each is made
more or less probable as its CIDEr against the training references is above or below that of the clip's other samples
(the baseline of Luo 2020). The end of a caption is a word of the reward too: without it, a caption that breaks off in
mid-sentence would earn the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Captions are drawn from probabilities ** (1 / TEMPERATURE). Label smoothing leaves a tenth of them to words chosen at
# random: drawn as they are, captions are nonsense, and the phase only learns to avoid words that no search would take.
TEMPERATURE = 0.5


class CaptionWeights:
    """How much each training caption counts: its CIDEr against the clip's other captions, by a clip's mean.

    `references` are `scores.coco.References` of the `captions`, and `encode` makes word ids of a caption.
    """

    def __init__(self, references: Any, captions: Mapping[str, Sequence[str]], encode: Any) -> None:
        pairs = [(video_id, caption) for video_id, texts in captions.items() for caption in texts]
        ciders = torch.tensor(references.cider(pairs)).split([len(texts) for texts in captions.values()])
        self.weights: dict[tuple, float] = {}
        for (video_id, texts), cider in zip(captions.items(), ciders, strict=True):
            # Without the caption itself, which is like itself in n-grams of every n that it has.
            itself = torch.tensor([min(len(caption.split()), 4) / 4 for caption in texts]) * 10 / len(texts)
            others = (cider - itself).clamp(min=0) + 0.01
            for caption, weight in zip(texts, (others / others.mean()).tolist(), strict=True):
                self.weights[(video_id, *encode(caption))] = weight

    def __call__(self, batch: Any, pad: int) -> Tensor:
        """Weights (B, K) of a batch's captions; they are 1 on average over a clip's captions."""
        rows = [
            [self.weights[(video_id, *(word for word in words if word != pad))] for words in captions]
            for video_id, captions in zip(batch.ids, batch.captions.tolist(), strict=True)
        ]
        return torch.tensor(rows, device=batch.captions.device)


def without_chance(network: nn.Module) -> None:
    """No dropout from here on: a caption is rewarded for what the model said, and not for what a part of it would."""
    for part in network.modules():
        if isinstance(part, nn.Dropout):
            part.eval()


def sampled_batch(
    model: Any, batch: Any, vocabulary: Any, rewards: Any, max_length: int, chance: Tensor | None = None
) -> tuple[Any, Tensor]:
    """The batch with K ≥ 2 sampled captions per clip in place of its own, and their advantages (B, K).

    `rewards` are `scores.coco.References` of the training captions; `chance` as in `sample_captions`.
    """
    captions = sample_captions(model, batch, vocabulary, max_length, chance)
    clips, count, _ = captions.shape
    pad, end, words = vocabulary.index["<pad>"], vocabulary.index["<end>"], captions.cpu()
    lengths = batch.lengths._replace(words=np.asarray((words[:, :, 1:] != pad).sum(dim=2)))
    rows = [(video_id, row) for video_id, rows in zip(batch.ids, words.tolist(), strict=True) for row in rows]
    texts = [(video_id, " ".join(vocabulary.decode(row))) for video_id, row in rows]
    reward = torch.tensor(rewards.cider(texts, [end in row for _, row in rows])).view(clips, count)
    others = (reward.sum(dim=1, keepdim=True) - reward) / (count - 1)
    return batch._replace(captions=captions, lengths=lengths), (reward - others).to(captions.device)


@torch.no_grad()
def sample_captions(model: Any, batch: Any, vocabulary: Any, max_length: int, chance: Tensor | None = None) -> Tensor:
    """The batch's K captions (B, K, L+1) per clip anew, drawn word by word; one of max_length words has no <end>.

    `chance` (B, K, max_length + 1), random from 0 to 1, picks the words.
    """
    pad, start, end, unk = (vocabulary.index[name] for name in ("<pad>", "<start>", "<end>", "<unk>"))
    clips, count = batch.captions.shape[:2]
    memory = model.encode(batch.features, batch.frame_mask)
    state = model.decoder.start(memory, count)
    word = torch.full((clips, count), start, device=memory.mask.device)
    chance = torch.rand(clips, count, max_length + 1, device=word.device) if chance is None else chance
    words, ended = [word], torch.zeros_like(word, dtype=torch.bool)
    for length in range(max_length + 1):
        state, logits, _ = model.decoder.step(word, state, memory)
        logits = logits.float()
        logits[:, :, [pad, start, unk] if length else [pad, start, unk, end]] = float("-inf")
        # One random number per caption; torch.multinomial, which draws one per word, is ten times slower.
        reached = (logits / TEMPERATURE).softmax(dim=-1).cumsum(dim=-1)  # (B, K, V)
        drawn = chance[:, :, length, None] * reached[:, :, -1:]
        word = torch.searchsorted(reached, drawn, right=True).squeeze(-1).clamp(max=reached.shape[2] - 1)
        if length == max_length:
            word = word.masked_fill(word != end, pad)
        word = word.masked_fill(ended, pad)
        words.append(word)
        ended |= word == end
        if ended.all():
            break
    return torch.stack(words, dim=2)
