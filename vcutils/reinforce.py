"""Self-critical sequence training: the model's own captions, rewarded with their CIDEr (Rennie et al. 2017).

The teacher-forced loss asks for the references' words one by one; readers judge whole captions. Here the model writes
K captions per clip by chance, and each is made more or less probable as its CIDEr against the training references is
above or below that of the clip's other samples (the baseline of Luo 2020, which needs no greedy caption).
"""

import dataclasses

import torch
from torch import Tensor

from vcutils.dataset import Batch
from vcutils.decode import NEVER
from vcutils.metrics import References
from vcutils.model import CaptionModel
from vcutils.vocab import END, PAD, START, Vocabulary


def sampled_batch(
    model: CaptionModel, batch: Batch, vocabulary: Vocabulary, rewards: References, max_length: int
) -> Batch:
    """The batch with K sampled captions per clip in place of its own, and their advantages (B, K) as weights."""
    captions = sample_captions(model, batch, max_length)
    clips, count, _ = captions.shape
    texts = [
        (video_id, " ".join(vocabulary.words[i] for i in row if i not in (PAD, START, END)))
        for video_id, rows in zip(batch.ids, captions.tolist(), strict=True)
        for row in rows
    ]
    reward = torch.tensor(rewards.cider(texts)).view(clips, count)
    others = (reward.sum(dim=1, keepdim=True) - reward) / max(1, count - 1)
    advantage = (reward - others).to(captions.device)
    return dataclasses.replace(batch, captions=captions, weights=advantage)


@torch.no_grad()
def sample_captions(model: CaptionModel, batch: Batch, max_length: int) -> Tensor:
    """K captions (B, K, L+1) per clip, <start> words <end>, drawn word by word from the model's distribution.

    K is that of the batch. Captions that reach max_length words end there.
    """
    training = model.training
    model.eval()
    clips, count = batch.captions.shape[:2]
    memory = model.encode(batch.features, batch.frame_mask)
    state = model.decoder.start(memory, count)
    word = torch.full((clips, count), START, device=memory.mask.device)
    said, ended = [word], torch.zeros_like(word, dtype=torch.bool)
    for place in range(max_length + 1):
        state, context, _ = model.decoder.step(model.decoder.read(word), state, memory)
        logits = model.decoder.logits(state[0], context).float()
        logits[:, :, NEVER if place else (*NEVER, END)] = float("-inf")
        word = torch.multinomial(logits.softmax(dim=-1).flatten(0, 1), 1).view(clips, count)
        if place == max_length:
            word = torch.full_like(word, END)
        word = word.masked_fill(ended, PAD)
        said.append(word)
        ended |= word == END
        if ended.all():
            break
    model.train(training)
    return torch.stack(said, dim=2)
