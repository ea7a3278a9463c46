"""How far can the attention be believed? Checks that could fail, in one table.

Jain & Wallace (2019) found models whose attention could be changed without changing what they say; Wiegreffe & Pinter
(2019) showed that this does not make attention useless, but that it must be tested. Pointing tests it against the
truth, deletion asks for the cause, the ablations for its use, two seeds for stability; notebook 05 says what each of
them can show, and what it cannot.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import log
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device

from vcutils.attention.measures import (
    Grounding,
    entropy,
    ground,
    grounding_table,
    need,
    rank_correlation,
    read_events,
    teacher_forced,
)
from vcutils.config import DecodeConfig, UserError
from vcutils.dataset import CaptionDataset, make_loader
from vcutils.decode import Hypothesis, captions_of
from vcutils.model import CaptionModel
from vcutils.runtime.splices import splice
from vcutils.scores.baselines import training_captions
from vcutils.scores.coco import References
from vcutils.scores.compare import mean_with_interval
from vcutils.scores.diagnostics import common_words
from vcutils.scores.runs import Run, sister_runs
from vcutils.vocab import END, PAD, SPECIALS, UNK, tokenize

Hypotheses = Mapping[str, Hypothesis]  # by video id
Row = tuple[str, str, str, str]  # check, result, chance or reference, how to read it


def check(run: Run, split: str = "test", decode: DecodeConfig | None = None) -> list[dict[str, str]]:
    """All checks on a split as rows {check, result, chance, reads}. Raises UserError when weights do not sum to 1."""
    decode = decode or run.decode
    hypotheses = run.predict(list(run.data.splits[split]), decode)
    worst = max(float(np.abs(h.attention.sum(axis=1) - 1).max()) for h in hypotheses.values())
    if worst > 1e-3:
        raise UserError(f"attention rows do not sum to 1 (off by {worst:.3g}): the checkpoint is not of this model")
    spread = float(np.mean(np.concatenate([entropy(h.attention) for h in hypotheses.values()])))
    rows = [
        ("sums", f"off by {worst:.0e}", "0", "weights sum to 1 over the frames that exist, none lies elsewhere"),
        *_pointing(run, hypotheses),
        *_splices(run, split),
        *_deletion(run, hypotheses),
        _looked_and_needed(run, hypotheses),
        *_ablations(run, hypotheses, decode),
        _seed_agreement(run, hypotheses),
        ("entropy", f"{spread:.2f}", "1", "share of the maximum: 1 would be all frames alike"),
    ]
    return [dict(zip(("check", "result", "chance", "reads"), row, strict=True)) for row in rows]


def _pointing(run: Run, hypotheses: Hypotheses) -> list[Row]:
    """Words that the model generated; for kinds of words that it never said, those of human captions."""
    path = run.data.root / "events.json"
    if not path.is_file() or not run.manifest:
        return [("pointing", "–", "", "not available: this corpus has no events.json, or no times of its frames")]
    times, events = {i: run.timestamps(i) for i in hypotheses}, read_events(path)
    groundings = ground(hypotheses, times, events)
    generated = {g.kind for g in groundings}
    for video_id in hypotheses:
        for words in filter(None, map(tokenize, run.data.captions[video_id])):
            log_probs, attention = teacher_forced(run.model, run.vocabulary, [run.data.store[video_id]], words)
            human = Hypothesis(words, 0.0, 0.0, log_probs[0], attention[0], None)
            groundings += [g for g in ground({video_id: human}, times, events) if g.kind not in generated]
    rows = []
    for row in grounding_table(groundings):
        result = f"{row['pointing']:.1%}, mass {row['mass']:.2f}"
        whose = "" if row["kind"] in generated else " of human captions, fed to the decoder"
        reads = f"strongest frame, and attention, inside the true time ({row['words']} words{whose})"
        rows.append((f"pointing, {row['kind']} words", result, f"{row['chance']:.2f}", reads))
    return rows


@torch.inference_mode()
def spliced(run: Run, split: str, captions: int = 600, seed: int = 0) -> list[Grounding]:
    """The words of `captions` captions (or somewhat more) of a split, teacher forced on two clips (or three) joined.

    Every clip comes equally often, with another caption and other partners. A word's true interval is its own clip, its
    kind "content" (idf > 2: `scores.diagnostics`) or "other". Empty for a split of one clip.
    """
    data, common, groundings = run.data, common_words(training_captions(run.data).texts) | {SPECIALS[UNK]}, []
    dataset, device = CaptionDataset(data, split, 1, run.decode.max_length, seed), next(run.model.parameters()).device
    for epoch in range(-(-captions // len(dataset)) if len(dataset) > 1 else 0):
        dataset.epoch = epoch
        for batch in make_loader(dataset, 64):
            joined, clips, own = splice(send_to_device(batch, device), PAD)
            _, weights = run.model(joined.features, joined.frame_mask, joined.inputs)  # (S, K, L, T)
            hit = own.take_along_dim(weights.argmax(dim=-1), dim=2)  # (S, K, L)
            mass = (weights * own[:, :, None]).sum(dim=-1)  # (S, K, L)
            chance = own.sum(dim=-1) / joined.frame_mask.sum(dim=-1, keepdim=True)  # (S, K)
            real = (joined.targets != PAD) & (joined.targets != END) & (chance < 1)[:, :, None]
            for s, k, t in real.nonzero().tolist():
                word = data.vocabulary.words[joined.targets[s, k, t]]
                values = bool(hit[s, k, t]), float(mass[s, k, t]), float(chance[s, k])
                kind = "other" if word in common else "content"
                groundings.append(Grounding(batch.ids[clips[s, k]], word, kind, *values))
    return groundings


def _splices(run: Run, split: str) -> list[Row]:
    groundings, rows = spliced(run, split), []
    for kind, group in (("all", groundings), ("content", [g for g in groundings if g.kind == "content"])):
        result, chance, reads = "–", "", "needs two clips, and words that few training clips share"
        if group:
            clips, _, _, *columns = zip(*group, strict=True)
            hits, masses, (share, *_) = (mean_with_interval(column, clips) for column in columns)
            result = "{:.1%} [{:.0%}, {:.0%}], mass ".format(*hits) + "{:.2f} [{:.2f}, {:.2f}]".format(*masses)
            reads = f"strongest frame, and attention, in a word's own clip where two are joined ({len(clips)} words)"
            chance = f"{share:.2f}"
        rows.append((f"splices, {kind} words", result, chance, reads))
    return rows


class Deletion(NamedTuple):
    """What hiding frames costs one word, in nats of its log-probability (positive: the word became less likely)."""

    video_id: str
    word: str
    attended: float  # its most attended frames hidden
    random: float  # as many frames at random, mean of several draws
    least: float  # its least attended frames


def deletion(run: Run, hypotheses: Hypotheses, share: float = 0.25, draws: int = 5, seed: int = 0) -> list[Deletion]:
    """Hide `share` of the frames (at least one, never all) and measure every word of every hypothesis again.

    A hidden frame is taken out before the encoder, so nothing of it can leak through its neighbours. Clips of one
    frame are left out.
    """
    generator = np.random.default_rng(seed)
    drops = []
    for video_id, hypothesis in hypotheses.items():
        features = run.data.store[video_id]
        count = len(features)
        if count < 2:
            continue
        hidden = min(count - 1, max(1, round(share * count)))
        versions = [features]  # one pass for all words of a clip is faster than one for each
        for row in hypothesis.attention:
            order = np.argsort(-row, kind="stable")
            hide = [order[:hidden], order[-hidden:]]
            hide += [generator.choice(count, hidden, replace=False) for _ in range(draws)]
            versions += [np.delete(features, frames, axis=0) for frames in hide]
        log_probs, _ = teacher_forced(run.model, run.vocabulary, versions, hypothesis.words)
        for position, word in enumerate(hypothesis.words):
            of_word = log_probs[1:, position].reshape(-1, draws + 2)[position]
            attended, least, *random = (log_probs[0, position] - of_word).tolist()
            drops.append(Deletion(video_id, word, attended, float(np.mean(random)), least))
    return drops


def _deletion(run: Run, hypotheses: Hypotheses) -> list[Row]:
    drops = deletion(run, hypotheses)
    if not drops:
        return [("deletion", "–", "", "needs clips of two frames or more")]
    rows = []
    for name, others in (("random", [d.random for d in drops]), ("least attended", [d.least for d in drops])):
        gaps = [d.attended - other for d, other in zip(drops, others, strict=True)]
        mean, low, high = mean_with_interval(gaps, [d.video_id for d in drops])
        reads = f"hiding a word's frames costs it this much more than hiding {name} ones ({len(drops)} words)"
        rows.append((f"deletion against {name}", f"{mean:+.2f} nats [{low:+.2f}, {high:+.2f}]", "0", reads))
    return rows


def looked_and_needed(run: Run, hypotheses: Hypotheses) -> list[tuple[str, float, float]]:
    """For every word (video id, rank correlation of its attention with its need over the frames, largest need in nats).

    Left out are rows without contrast (uniform attention) and clips of fewer than three frames.
    """
    rows = []
    for video_id, hypothesis in hypotheses.items():
        features = run.data.store[video_id]
        if len(features) < 3:
            continue
        (needed,) = need(run.model, run.vocabulary, features, [hypothesis.words])
        for looked, of_word in zip(hypothesis.attention, needed.need, strict=True):
            if looked.std() > 1e-6 and of_word.std() > 1e-6:
                rows.append((video_id, rank_correlation(looked, of_word), float(of_word.max())))
    return rows


def _looked_and_needed(run: Run, hypotheses: Hypotheses) -> Row:
    rows = looked_and_needed(run, hypotheses)
    if not rows:
        return "looked at and needed", "–", "", "needs attention that chooses among three frames or more"
    clips, correlations, largest = zip(*rows, strict=True)
    mean, low, high = mean_with_interval(correlations, clips)
    half = sum(value > log(2) for value in largest) / len(largest)
    reads = (
        f"rank correlation of attention and need ({len(rows)} words; {half:.0%} are half as likely without some frame)"
    )
    return "looked at and needed", f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]", "0", reads


def _ablations(run: Run, hypotheses: Hypotheses, decode: DecodeConfig) -> list[Row]:
    """CIDEr × 100 of the same weights in a model with one switch changed."""
    scorer = References({i: list(run.data.captions[i]) for i in hypotheses})

    def cider(captions: Hypotheses) -> str:
        return f"{100 * (scorer.score(captions_of(captions), ('CIDEr',))['CIDEr'] or 0.0):.1f}"

    def changed(is_uniform: bool = False, **switch: Any) -> str:
        model = CaptionModel(replace(run.model.config, **switch), run.model.vocab_size, run.model.feature_dim)
        model.load_state_dict(run.model.state_dict())
        model.to(next(run.model.parameters()).device)
        model.decoder.attention.is_uniform |= is_uniform
        return cider(replace(run, model=model).predict(list(hypotheses), decode))

    uniform, shuffled, whole = changed(is_uniform=True), changed(frame_order="shuffled"), cider(hypotheses)
    return [
        ("uniform attention", uniform, whole, "CIDEr × 100 when this model must look at all frames alike"),
        ("frames shuffled", shuffled, whole, "CIDEr × 100 when the frames come in another order"),
    ]


def _seed_agreement(run: Run, hypotheses: Hypotheses) -> Row:
    others = sister_runs(run)
    if not others:
        return "seed agreement", "–", "", "no second training to compare with: train with --seeds 2"
    names = f"({run.folder.name}, {others[0].folder.name})"
    correlations = agreement(run, others[0], hypotheses)
    if not correlations:
        why = "both weigh all frames alike, no clip has three frames, or they know different words"
        return "seed agreement", "–", "", f"nothing to compare: {why} {names}"
    clips, values = zip(*correlations, strict=True)
    mean, low, high = mean_with_interval(values, clips)
    reads = f"two trainings look at the same frames when near 1 {names}"
    return "seed agreement", f"{mean:.2f} [{low:.2f}, {high:.2f}]", "0", reads


def agreement(run: Run, other: Run, hypotheses: Hypotheses) -> list[tuple[str, float]]:
    """Correlation of two models' attention rows for the same words of the same clips, as (video id, correlation).

    Left out are rows without contrast (uniform attention), clips of fewer than three frames, and captions with a word
    that the other model does not know.
    """
    correlations = []
    for video_id, hypothesis in hypotheses.items():
        if len(run.data.store[video_id]) < 3 or any(w not in other.vocabulary.index for w in hypothesis.words):
            continue
        _, rows = teacher_forced(other.model, other.vocabulary, [other.data.store[video_id]], hypothesis.words)
        for row, other_row in zip(hypothesis.attention, rows[0], strict=True):
            if row.std() > 1e-6 and other_row.std() > 1e-6:
                correlations.append((video_id, float(np.corrcoef(row, other_row)[0, 1])))
    return correlations
