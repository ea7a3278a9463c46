"""How far can the attention be believed? Checks that could fail, in one table.

Jain & Wallace (2019) found models whose attention could be changed without changing what they say; Wiegreffe & Pinter
(2019) showed that this does not make attention useless, but that it must be tested. Each check below says what it
can show:

    sums        the weights are what they claim to be: 1 over the frames that exist
    pointing    against the truth, where a corpus knows when each thing is to be seen
    deletion    cause: hiding the frames a word leaned on must hurt that word more than hiding others
    uniform     use: what the captions lose when every frame is made to weigh the same
    shuffled    time: what they lose when the frames come in another order
    seeds       stability: do two trainings look at the same frames for the same words?
    entropy     focus: how spread out the weights are, 1 = over all frames alike
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vcutils.attention.measures import entropy, ground, grounding_table, read_events
from vcutils.config import DecodeConfig, UserError
from vcutils.dataset import pad_frames
from vcutils.decode import Hypothesis, captions_of, predict
from vcutils.model import CaptionModel
from vcutils.scores.coco import References
from vcutils.scores.runs import Run, sister_runs
from vcutils.vocab import START, UNK, Vocabulary, tokenize


@dataclass(frozen=True)
class Deletion:
    """What hiding frames costs one word, in nats of its log-probability (positive: the word became less likely)."""

    video_id: str
    word: str
    attended: float  # its most attended frames hidden
    random: float  # as many frames at random, mean of several draws
    least: float  # its least attended frames


@torch.inference_mode()
def teacher_forced(
    model: CaptionModel, vocabulary: Vocabulary, features: Sequence[np.ndarray], words: Sequence[str]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Log-probabilities (n, L) and attention (L, T_n) of the same words said of n versions of a clip (T_n, D)."""
    device = next(model.parameters()).device
    ids = [vocabulary.index.get(word, UNK) for word in words]
    inputs = torch.tensor([START, *ids[:-1]], device=device).expand(len(features), 1, -1)
    padded, mask = pad_frames(features)
    logits, weights = model(padded.to(device), mask.to(device), inputs)  # (n, 1, L, V), (n, 1, L, T)
    scores = logits[:, 0].float().log_softmax(dim=-1)
    chosen = scores.gather(2, torch.tensor(ids, device=device).expand(len(features), -1)[:, :, None])
    rows = weights[:, 0].float().cpu().numpy()
    return chosen[:, :, 0].cpu().numpy(), [row[:, : len(f)] for row, f in zip(rows, features, strict=True)]


def deletion(
    run: Run, hypotheses: Mapping[str, Hypothesis], share: float = 0.25, draws: int = 5, seed: int = 0
) -> list[Deletion]:
    """Hide `share` of the frames (at least one, never all) and measure every word of every hypothesis again.

    A hidden frame is taken out before the encoder, so nothing of it can leak through its neighbours. Clips of one
    frame are left out.
    """
    generator = np.random.default_rng(seed)
    found = []
    for video_id, hypothesis in hypotheses.items():
        features = run.data.store[video_id]
        count = len(features)
        hidden = min(count - 1, max(1, round(share * count)))
        if count < 2:
            continue
        for place, row in enumerate(hypothesis.attention):
            order = np.argsort(-row, kind="stable")
            hide = [order[:hidden], order[-hidden:]]
            hide += [generator.choice(count, hidden, replace=False) for _ in range(draws)]
            versions = [features, *(np.delete(features, h, axis=0) for h in hide)]
            log_probs, _ = teacher_forced(run.model, run.vocabulary, versions, hypothesis.words[: place + 1])
            full, attended, least, *random = log_probs[:, place].tolist()
            found.append(
                Deletion(
                    video_id, hypothesis.words[place], full - attended, full - float(np.mean(random)), full - least
                )
            )
    return found


def mean_with_interval(
    values: Sequence[float], clips: Sequence[str], seed: int = 0, resamples: int = 2000
) -> tuple[float, float, float]:
    """Mean over words and its 95 % bootstrap interval, (mean, low, high).

    Whole clips are drawn, since the words of one caption lean on each other: words drawn one by one would give an
    interval that is too narrow (Cameron, Gelbach & Miller 2008).
    """
    names, groups = np.unique(np.asarray(clips), return_inverse=True)
    sums, counts = np.bincount(groups, weights=values), np.bincount(groups)
    picks = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    low, high = np.percentile(sums[picks].sum(axis=1) / counts[picks].sum(axis=1), [2.5, 97.5])
    return float(np.mean(values)), float(low), float(high)


def agreement(run: Run, other: Run, hypotheses: Mapping[str, Hypothesis]) -> list[tuple[str, float]]:
    """Correlation of two models' attention rows for the same words of the same clips, as (video id, correlation)."""
    found = []
    for video_id, hypothesis in hypotheses.items():
        if len(run.data.store[video_id]) < 3 or any(w not in other.vocabulary.index for w in hypothesis.words):
            continue
        _, rows = teacher_forced(other.model, other.vocabulary, [other.data.store[video_id]], hypothesis.words)
        for mine, theirs in zip(hypothesis.attention, rows[0], strict=True):
            if mine.std() > 1e-6 and theirs.std() > 1e-6:
                found.append((video_id, float(np.corrcoef(mine, theirs)[0, 1])))
    return found


def check(run: Run, split: str = "test", decode: DecodeConfig | None = None) -> list[dict[str, str]]:
    """All checks on a split as rows {check, result, chance or reference, reads}: see the module's head."""
    decode = decode or run.decode
    ids = list(run.data.splits[split])
    found = run.predict(ids, decode)
    rows = [_sums(found)]
    rows += _pointing(run, found)
    rows += _deletion(run, found)
    rows += _ablations(run, ids, found, decode)
    sisters = sister_runs(run)
    if not sisters:
        rows.append(_row("seed agreement", "–", "", "no second training to compare with: train with --seeds 2"))
    else:
        other = sisters[0]
        clips, values = zip(*agreement(run, other, found), strict=True)
        mean, low, high = mean_with_interval(values, clips)
        text = f"two trainings look at the same frames when near 1 ({run.folder.name}, {other.folder.name})"
        rows.append(_row("seed agreement", f"{mean:.2f} [{low:.2f}, {high:.2f}]", "0", text))
    spread = float(np.mean(np.concatenate([entropy(h.attention) for h in found.values()])))
    rows.append(_row("entropy", f"{spread:.2f}", "1", "share of the maximum: 1 would be all frames alike"))
    return rows


def _row(name: str, result: str, reference: str, reads: str) -> dict[str, str]:
    return {"check": name, "result": result, "chance": reference, "reads": reads}


def _sums(found: Mapping[str, Hypothesis]) -> dict[str, str]:
    worst = max(float(np.abs(h.attention.sum(axis=1) - 1).max()) for h in found.values())
    if worst > 1e-3:
        raise UserError(f"attention rows do not sum to 1 (off by {worst:.3g}): the checkpoint is not of this model")
    return _row("sums", f"off by {worst:.0e}", "0", "weights sum to 1 over the frames that exist, none lies elsewhere")


def _pointing(run: Run, found: Mapping[str, Hypothesis]) -> list[dict[str, str]]:
    path = run.data.root / "events.json"
    if not path.is_file():
        return [_row("pointing", "–", "", "this corpus has no events.json: nobody wrote down when things are seen")]
    times, events = {i: run.timestamps(i) for i in found}, read_events(path)
    table = grounding_table(ground(found, times, events))
    said = {row["kind"] for row in table}
    read = [g for captions in _read_aloud(run, list(found)) for g in ground(captions, times, events)]
    table += [row | {"read": True} for row in grounding_table(read) if row["kind"] not in said]
    return [
        _row(
            f"pointing, {row['kind']} words",
            f"{row['pointing']:.1%}, mass {row['mass']:.2f}",
            f"{row['chance']:.2f}",
            f"strongest frame, and attention, inside the true time ({row['words']} words"
            f"{' of people, which the model was made to say' if 'read' in row else ''})",
        )
        for row in table
    ]


def _read_aloud(run: Run, ids: Sequence[str]) -> Iterator[dict[str, Hypothesis]]:
    """What the model looks at while it is made to say people's captions: the first of every clip, the second, …"""
    for captions in itertools.zip_longest(*(run.data.captions[i] for i in ids)):
        said = {}
        for video_id, caption in zip(ids, captions, strict=True):
            if words := tokenize(caption or ""):
                log_probs, rows = teacher_forced(run.model, run.vocabulary, [run.data.store[video_id]], words)
                total = float(log_probs.sum())
                said[video_id] = Hypothesis(words, total, total, log_probs[0], rows[0], None)
        yield said


def _deletion(run: Run, found: Mapping[str, Hypothesis]) -> list[dict[str, str]]:
    drops = deletion(run, found)
    if not drops:
        return [_row("deletion", "–", "", "needs clips of two frames or more")]
    rows = []
    for name, other in (("random", [d.random for d in drops]), ("least attended", [d.least for d in drops])):
        gaps = [d.attended - o for d, o in zip(drops, other, strict=True)]
        mean, low, high = mean_with_interval(gaps, [d.video_id for d in drops])
        rows.append(
            _row(
                f"deletion against {name}",
                f"{mean:+.2f} nats [{low:+.2f}, {high:+.2f}]",
                "0",
                f"hiding a word's frames costs it this much more than hiding {name} ones ({len(drops)} words)",
            )
        )
    return rows


def _ablations(
    run: Run, ids: Sequence[str], found: Mapping[str, Hypothesis], decode: DecodeConfig
) -> list[dict[str, str]]:
    scorer = References({i: list(run.data.captions[i]) for i in ids})

    def cider(captions: Mapping[str, Hypothesis]) -> float:
        return 100 * (scorer.score(captions_of(captions), ("CIDEr",))["CIDEr"] or 0.0)

    full = cider(found)
    rows = []
    experiments: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("uniform attention", {"attention": "uniform"}, "CIDEr × 100 when this model must look at all frames alike"),
        ("frames shuffled", {"frame_order": "shuffled"}, "CIDEr × 100 when the frames come in another order"),
    )
    for name, changes, reads in experiments:
        torch.manual_seed(0)
        model = CaptionModel(
            dataclasses.replace(run.model.config, **changes), run.model.vocab_size, run.model.feature_dim
        )
        model.load_state_dict(run.model.state_dict())
        model.to(next(run.model.parameters()).device)
        changed = cider(predict(model, run.vocabulary, run.data.store, ids, decode))
        rows.append(_row(name, f"{changed:.1f}", f"{full:.1f}", reads))
    return rows
