"""The lines that a score must be read against: a floor, retrieval, a human line."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files

import numpy as np

from vcutils.dataset import CaptionData
from vcutils.scores.coco import References
from vcutils.scores.ptb import ptb_words

# BLEU-4, METEOR, ROUGE-L, CIDEr × 100 on MSVD's official test split as published: to see where one stands, not a
# contest, since features and tokenization differ from row to row.
PUBLISHED_MSVD = json.loads(files("vcutils.scores").joinpath("published_msvd.json").read_text(encoding="utf-8"))


def training_captions(data: CaptionData) -> References:
    """The training clips' captions, cut into words; nothing of the other splits is read."""
    return References({i: list(data.captions[i]) for i in data.splits["train"]})


def constant_caption(training: References, candidates: int = 100) -> str:
    """The floor: the one caption with the highest BLEU-4 when every training clip gets it.

    The candidates are the most frequent captions of the training clips.
    """
    counts = Counter(text for texts in training.texts.values() for text in texts)
    sample = list(training.texts)[:: max(1, len(training.texts) // 200)]
    scorer = References({i: training.texts[i] for i in sample})
    frequent = [caption for caption, _ in counts.most_common(candidates)]
    return max(frequent, key=lambda c: scorer.score({i: c for i in sample}, ("Bleu",))["Bleu_4"] or 0.0)


def nearest_captions(data: CaptionData, ids: Sequence[str]) -> dict[str, str]:
    """For each clip a caption of the training clip whose mean feature is most similar (cosine)."""

    def means(names: Sequence[str]) -> np.ndarray:
        rows = np.stack([data.store[i].astype(np.float32).mean(axis=0) for i in names])
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)

    train = list(data.splits["train"])
    nearest = (means(ids) @ means(train).T).argmax(axis=1)
    return {i: typical_caption(data.captions[train[j]]) for i, j in zip(ids, nearest, strict=True)}


def typical_caption(captions: Sequence[str]) -> str:
    """The caption that shares the most words with the clip's other captions (Jaccard, first of equals)."""
    words = [set(ptb_words(c)) for c in captions]
    overlap = [sum(len(a & b) / max(1, len(a | b)) for b in words) for a in words]
    return captions[int(np.argmax(overlap))]


def human_line(references: Mapping[str, Sequence[str]], seed: int = 0) -> tuple[dict[str, str], References] | None:
    """One reference per clip, drawn by `seed`, and the clip's others to judge it by; None when clips have only one."""
    several = {i: list(refs) for i, refs in references.items() if len(refs) > 1}
    if not several:
        return None
    generator = np.random.default_rng(seed)
    drawn = {i: refs.pop(int(generator.integers(len(refs)))) for i, refs in several.items()}
    return drawn, References(several)
