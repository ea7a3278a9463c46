"""Self-critical sequence training: the model's own captions, rewarded with their CIDEr (Rennie et al. 2017).

The model writes K captions per clip by chance, and each is made more or less probable as its CIDEr against the training
references is above or below that of the clip's other samples (the baseline of Luo 2020). The end of a caption is a word
of the reward too: without it, a caption that breaks off in mid-sentence would earn the same.
"""

from typing import Any

import torch
from torch import Tensor

from vcutils.runtime.settings import UserError


def check_samples(settings: Any) -> None:
    """Raise UserError where a clip's samples would have no other to be compared with."""
    if settings.scst_epochs and settings.captions_per_clip < 2:
        raise UserError("scst_epochs: needs captions_per_clip of 2 or more, which are each other's baseline")


def sampled_batch(model: Any, batch: Any, vocabulary: Any, rewards: Any, max_length: int) -> tuple[Any, Tensor]:
    """The batch with K ≥ 2 sampled captions per clip in place of its own, and their advantages (B, K).

    `rewards` are `scores.coco.References` of the training captions.
    """
    captions = sample_captions(model, batch, vocabulary, max_length)
    clips, count, _ = captions.shape
    end = vocabulary.index["<end>"]
    rows = [(video_id, row) for video_id, rows in zip(batch.ids, captions.tolist(), strict=True) for row in rows]
    texts = [(video_id, " ".join(vocabulary.decode(row))) for video_id, row in rows]
    reward = torch.tensor(rewards.cider(texts, [end in row for _, row in rows])).view(clips, count)
    others = (reward.sum(dim=1, keepdim=True) - reward) / (count - 1)
    return batch._replace(captions=captions), (reward - others).to(captions.device)


@torch.no_grad()
def sample_captions(model: Any, batch: Any, vocabulary: Any, max_length: int) -> Tensor:
    """The batch's K captions (B, K, L+1) per clip anew, drawn word by word; one of max_length words has no <end>."""
    pad, start, end, unk = (vocabulary.index[name] for name in ("<pad>", "<start>", "<end>", "<unk>"))
    was_training = model.training
    model.eval()
    clips, count = batch.captions.shape[:2]
    memory = model.encode(batch.features, batch.frame_mask)
    state = model.decoder.start(memory, count)
    word = torch.full((clips, count), start, device=memory.mask.device)
    words, ended = [word], torch.zeros_like(word, dtype=torch.bool)
    for length in range(max_length + 1):
        state, logits, _ = model.decoder.step(word, state, memory)
        logits = logits.float()
        logits[:, :, [pad, start, unk] if length else [pad, start, unk, end]] = float("-inf")
        word = torch.multinomial(logits.softmax(dim=-1).flatten(0, 1), 1).view(clips, count)
        if length == max_length:
            word = word.masked_fill(word != end, pad)
        word = word.masked_fill(ended, pad)
        words.append(word)
        ended |= word == end
        if ended.all():
            break
    model.train(was_training)
    return torch.stack(words, dim=2)
