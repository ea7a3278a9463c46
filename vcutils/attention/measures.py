"""Which frames the model looked at for each word, and which it needed (`checks` tells how far to trust them)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vcutils.config import UserError
from vcutils.dataset import pad_frames
from vcutils.decode import NEVER, Hypothesis
from vcutils.model import CaptionModel
from vcutils.runtime.files import read_json, reading
from vcutils.vocab import END, SPECIALS, START, UNK, Vocabulary

WORD_END = SPECIALS[END]  # the word at which a caption ends
ALTERNATIVES = 5


class WordView(NamedTuple):
    """One word and its strongest frame."""

    word: str
    frame: int  # index among the sampled frames
    seconds: float  # that frame's time in the clip
    weight: float  # its share of the attention, 0 to 1
    entropy: float  # of the whole row, as a share of the maximum: 0 = one frame, 1 = all frames alike


def word_views(hypothesis: Hypothesis, timestamps: Sequence[float]) -> list[WordView]:
    """The strongest frame of every word; `timestamps` (T,) in seconds. Raises ValueError where they do not fit."""
    check_alignment(hypothesis.words, hypothesis.attention, timestamps)
    strongest = hypothesis.attention.argmax(axis=1).tolist()
    return [
        WordView(word, frame, timestamps[frame], float(row[frame]), float(entropy(row)))
        for word, row, frame in zip(hypothesis.words, hypothesis.attention, strongest, strict=True)
    ]


def check_alignment(words: Sequence[str], weights: np.ndarray, timestamps: Sequence[float]) -> None:
    """Raise ValueError unless weights are (L, T) for L words and T timestamps and each row sums to 1."""
    if weights.shape != (len(words), len(timestamps)):
        raise ValueError(f"attention {weights.shape} does not fit {len(words)} words and {len(timestamps)} frames")
    if not np.allclose(weights.sum(axis=1), 1, atol=1e-3):
        raise ValueError("attention rows must sum to 1")


def entropy(weights: np.ndarray) -> np.ndarray:
    """Entropy of attention rows (..., T) as a share of its maximum log T; 0 for a clip of one frame."""
    safe = np.where(weights > 0, weights, 1.0)
    return np.abs((weights * np.log(safe)).sum(axis=-1)) / np.log(max(2, weights.shape[-1]))


@torch.inference_mode()
def _forced(
    model: CaptionModel, vocabulary: Vocabulary, features: Sequence[np.ndarray], captions: Sequence[Sequence[str]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Word ids (K, L), log-probabilities (n, K, L, V), attention (n, K, L, T): K captions, n versions of a clip."""
    device, longest = next(model.parameters()).device, max(map(len, captions))
    ids = torch.full((len(captions), longest), END, device=device)
    for row, words in zip(ids, captions, strict=True):
        row[: len(words)] = torch.tensor([vocabulary.index.get(word, UNK) for word in words], device=device)
    inputs = torch.cat([torch.full_like(ids[:, :1], START), ids[:, :-1]], dim=1)  # (K, L)
    padded, mask = pad_frames(features)
    logits, weights = model(padded.to(device), mask.to(device), inputs.expand(len(features), -1, -1))
    return ids, logits.float().log_softmax(dim=-1), weights.float()


def teacher_forced(
    model: CaptionModel, vocabulary: Vocabulary, features: Sequence[np.ndarray], words: Sequence[str]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Log-probabilities (n, L) and attention (L, T_n) of the same words for n versions of a clip (T_n, D)."""
    ids, log_probs, weights = _forced(model, vocabulary, features, [words])
    of_words = log_probs[:, 0].gather(2, ids[0, :, None].expand(len(features), -1, -1))[:, :, 0]
    rows = weights[:, 0].cpu().numpy()
    return of_words.cpu().numpy(), [row[:, : len(f)] for row, f in zip(rows, features, strict=True)]


class Need(NamedTuple):
    """What single frames are worth to the L words of a caption, and what else might have been said at each place."""

    need: np.ndarray  # (L, T) nats: how much less likely each word is without the frame; negative: more likely
    others: list[list[str]]  # (L, 5) the likeliest words at each place, best first, after the words before it
    probabilities: np.ndarray  # (L, 5)
    needs: np.ndarray  # (L, 5, T) what the frames are worth to these


@torch.inference_mode()
def need(
    model: CaptionModel,
    vocabulary: Vocabulary,
    features: np.ndarray,
    captions: Sequence[Sequence[str]],
    window: int = 1,
) -> list[Need]:
    """The need of each caption's words for the frames of a clip (T, D), from T + 1 teacher-forced passes in one batch.

    A frame is taken out before the encoder, and with it its neighbours: `window` frames in all, fewer at the clip's
    ends. `<end>` may be a caption's last word. Raises ValueError when no frame would be left.
    """
    count, back = len(features), (window - 1) // 2
    if not 1 <= window < count:
        raise ValueError(f"a clip of {count} frames cannot do without {window} of them")
    gaps = [range(max(0, t - back), min(count, t - back + window)) for t in range(count)]
    versions = [features, *(np.delete(features, list(gap), axis=0) for gap in gaps)]
    ids, log_probs, _ = _forced(model, vocabulary, versions, captions)
    never = torch.zeros_like(log_probs[0])
    never[:, :, NEVER] = never[:, 0, END] = float("-inf")
    top = (log_probs[0] + never).topk(min(ALTERNATIVES, log_probs.shape[-1] - len(NEVER) - 1), dim=-1)  # (K, L, 5)
    wanted = torch.cat([ids[:, :, None], top.indices], dim=-1)  # (K, L, 1 + 5)
    of_wanted = log_probs.gather(3, wanted.expand(len(versions), -1, -1, -1))
    needs = (of_wanted[0] - of_wanted[1:]).permute(1, 2, 3, 0).cpu().numpy()  # (K, L, 1 + 5, T)
    result = []
    for k, words in enumerate(captions):
        rows = slice(len(words))
        others = [[vocabulary.words[i] for i in place] for place in top.indices[k, rows].tolist()]
        result.append(Need(needs[k, rows, 0], others, top.values[k, rows].exp().cpu().numpy(), needs[k, rows, 1:]))
    return result


def rank_correlation(row: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation of two rows (T,); equal values share the mean of their ranks."""
    ranks = [(r[:, None] > r).sum(axis=1) + (r[:, None] == r).sum(axis=1) / 2 for r in (row, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def attention_dict(hypothesis: Hypothesis, timestamps: Sequence[float]) -> dict[str, Any]:
    """One caption with its attention, JSON-ready: weights (L, T) over the frames at `timestamps`, <end>'s row apart."""
    return {
        "caption": hypothesis.caption,
        "words": hypothesis.words,
        "log_prob": hypothesis.log_prob,
        "word_log_probs": hypothesis.word_log_probs.tolist(),
        "timestamps": list(timestamps),
        "weights": hypothesis.attention.tolist(),
        "end_weights": None if hypothesis.end_attention is None else hypothesis.end_attention.tolist(),
    }


def read_events(path: Path) -> dict[str, dict[str, Any]]:
    """events.json of a corpus with ground truth: {id: {"duration": s, "events": [{kind, words, start, end}]}}.

    Raises UserError, naming the clip, for anything else.
    """
    events = read_json(path)
    if not isinstance(events, dict):
        raise UserError(f"{path}: must map ids to their events, holds {type(events).__name__}")
    for video_id, clip in events.items():
        with reading(path, f"not the events of {video_id}", "see sample.events"):
            for event in clip["events"]:
                if not float(event["start"]) < float(event["end"]):
                    raise ValueError("an event ends before it starts")
                "".join([event["kind"], *event["words"]])  # nothing but text
    return events


class Grounding(NamedTuple):
    """One word of a caption whose true time is known."""

    video_id: str
    word: str
    kind: str  # as in events.json: thing, change or order in the sample
    hit: bool  # the strongest frame lies inside a true interval
    mass: float  # attention inside
    chance: float  # share of the clip's frames inside: what blind attention would hit


def ground(
    hypotheses: Mapping[str, Hypothesis], timestamps: Mapping[str, Sequence[float]], events: Mapping[str, dict]
) -> list[Grounding]:
    """Pointing game (Zhang et al. 2018) in time: every word that `events` knows, against its intervals [start, end).

    Left out are clips of one scene (the first event's kind has one interval) and those that `events` does not know.
    """
    groundings = []
    for video_id, hypothesis in hypotheses.items():
        known = events[video_id]["events"] if video_id in events else []
        if len({(event["start"], event["end"]) for event in known if event["kind"] == known[0]["kind"]}) < 2:
            continue
        times = np.asarray(timestamps[video_id])
        for word, row in zip(hypothesis.words, hypothesis.attention, strict=True):
            true = [event for event in known if word in event["words"]]
            inside = np.any([(times >= event["start"]) & (times < event["end"]) for event in true], axis=0)
            if true and not inside.all():
                hit, mass = bool(inside[row.argmax()]), float(row[inside].sum())
                groundings.append(Grounding(video_id, word, true[-1]["kind"], hit, mass, float(inside.mean())))
    return groundings


def grounding_table(groundings: Sequence[Grounding]) -> list[dict[str, Any]]:
    """Per kind of word: how many, share of hits, mean attention inside the true interval, chance level."""
    rows = []
    for kind in dict.fromkeys(g.kind for g in groundings):
        group = [g[-3:] for g in groundings if g.kind == kind]  # hit, mass, chance
        pointing, mass, chance = np.mean(group, axis=0).tolist()
        rows.append({"kind": kind, "words": len(group), "pointing": pointing, "mass": mass, "chance": chance})
    return rows
