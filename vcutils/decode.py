"""Generating captions: greedy search and beam search.

`beam_search` is the plain form, one clip and one hypothesis after the other. `generate` runs the
same search for all clips and beams at once (`runtime.beams`); tests hold both equal. A hypothesis
carries the attention row of every word: the weights over frames that the word was said with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vcutils.config import DecodeConfig, UserError
from vcutils.dataset import pad_frames
from vcutils.model import CaptionModel, Decoder, Memory, State
from vcutils.runtime.beams import search
from vcutils.runtime.store import FeatureStore
from vcutils.vocab import END, PAD, START, UNK, Vocabulary

NEVER = [PAD, START, UNK]  # words that no caption may hold
CLIPS_AT_ONCE = 64


@dataclass
class Hypothesis:
    """One caption with what the model looked at."""

    words: list[str]  # L
    log_prob: float  # natural log of its probability, <end> included when it was reached
    score: float  # log_prob / length ** length_penalty, what beams are ranked by
    word_log_probs: np.ndarray  # (L,)
    attention: np.ndarray  # (L, T): row t holds the weights over frames that word t was said with
    end_attention: np.ndarray | None  # (T,) for <end>; None when the caption was cut at max_length
    others: list["Hypothesis"] = field(default_factory=list)  # the clip's other beams, best first

    @property
    def caption(self) -> str:
        """The words joined by blanks."""
        return " ".join(self.words)


@torch.no_grad()
def greedy_search(model: CaptionModel, features: Tensor, max_length: int) -> list[int]:
    """The word ids of a clip (T, D), the likeliest word each time, until <end>."""
    memory = model.encode(features[None], features.new_ones(1, len(features), dtype=torch.bool))
    words: list[int] = []
    state, word = model.decoder.start(memory, 1), START
    while len(words) < max_length:
        log_probs, state = _next_word(model.decoder, memory, state, word)
        word = int(log_probs.argmax())
        if word == END:
            break
        words.append(word)
    return words


@torch.no_grad()
def beam_search(
    model: CaptionModel, features: Tensor, beam_size: int, max_length: int, penalty: float = 1.0
) -> list[int]:
    """The word ids of a clip (T, D): the best of the hypotheses that were kept alive.

    After each word only the `beam_size` likeliest beginnings go on. Ended captions are ranked by
    log-probability / length ** penalty, since every further word makes a caption less likely.
    """
    memory = model.encode(features[None], features.new_ones(1, len(features), dtype=torch.bool))
    # Beginnings of captions: (log-probability, words so far, state of the decoder).
    alive: list[tuple] = [(0.0, [START], model.decoder.start(memory, 1))]
    ended: list[tuple] = []  # (score, words)
    for length in range(1, max_length + 1):
        candidates = []
        for total, words, state in alive:
            log_probs, state = _next_word(model.decoder, memory, state, words[-1])
            best = log_probs.topk(beam_size + 1)  # one of them may be <end>
            for log_prob, word in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                candidates.append((total + log_prob, [*words, word], state))
        candidates.sort(key=lambda candidate: -candidate[0])
        for total, words, _ in candidates[:beam_size]:  # an <end> counts only among the best
            if words[-1] == END:
                ended.append((total / length**penalty, words[1:-1]))
        alive = [candidate for candidate in candidates if candidate[1][-1] != END][:beam_size]
        ended.sort(key=lambda hypothesis: -hypothesis[0])
        if len(ended) >= beam_size and ended[beam_size - 1][0] >= alive[0][0] / length**penalty:
            break  # what is still being written is likely no better than what has ended
    return ended[0][1] if ended else alive[0][1][1:]


def _next_word(decoder: Decoder, memory: Memory, state: State, word: int) -> tuple[Tensor, State]:
    """Log-probabilities (V,) of the word after `word`, and the decoder's new state."""
    words = torch.tensor([[word]], device=memory.mask.device)  # (1, 1)
    state, logits, _ = decoder.step(words, state, memory)
    log_probs = logits[0, 0].log_softmax(dim=-1)  # (V,)
    # A caption has at least one word: <end> cannot follow <start>.
    log_probs[[*NEVER, END] if word == START else NEVER] = float("-inf")
    return log_probs, state


@torch.inference_mode()
def generate(
    model: CaptionModel,
    vocabulary: Vocabulary,
    features: Tensor,
    frame_mask: Tensor,
    config: DecodeConfig,
) -> list[list[Hypothesis]]:
    """Up to `beam_size` hypotheses per clip, best first, for features (B, T, D), mask (B, T).

    Ended captions come before unfinished ones. Attention rows cover the clip's real frames only.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    memory = model.encode(features.to(device), frame_mask.to(device))
    lengths = frame_mask.sum(dim=1).tolist()
    beams = search(model.decoder, memory, lengths, START, END, NEVER, config)
    if not all(beams):
        raise UserError("the model's numbers are not finite; train again with a lower lr")
    model.train(was_training)
    return [[_hypothesis(vocabulary, *beam) for beam in clip] for clip in beams]


def _hypothesis(
    vocabulary: Vocabulary, ids: list, log_probs: np.ndarray, score: float, attention: np.ndarray
) -> Hypothesis:
    """A beam as text: its word ids, <end> included, with their log-probabilities and attention."""
    end_attention = attention[-1] if ids[-1] == END else None
    words = [vocabulary.words[i] for i in ids if i != END]
    L, log_prob = len(words), float(log_probs.sum())
    return Hypothesis(words, log_prob, score, log_probs[:L], attention[:L], end_attention)


def predict(
    model: CaptionModel,
    vocabulary: Vocabulary,
    store: FeatureStore,
    ids: Sequence[str],
    config: DecodeConfig,
    sources: Sequence[str] | None = None,
) -> dict[str, Hypothesis]:
    """The best hypothesis per clip; `sources` are the clips whose features are shown instead."""
    sources, hypotheses = ids if sources is None else sources, []
    for start in range(0, len(sources), CLIPS_AT_ONCE):
        arrays = [store[i] for i in sources[start : start + CLIPS_AT_ONCE]]
        for best, *others in generate(model, vocabulary, *pad_frames(arrays), config):
            best.others = others
            hypotheses.append(best)
    return dict(zip(ids, hypotheses, strict=True))


def captions_of(hypotheses: Mapping[str, Hypothesis]) -> dict[str, str]:
    """{id: caption}, as scores want them."""
    return {i: hypothesis.caption for i, hypothesis in hypotheses.items()}
