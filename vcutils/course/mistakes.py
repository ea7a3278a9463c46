"""Typical wrong answers of each exercise, as small changes of its solution; `python -m vcutils.course.mistakes` prints
them as a table, each with what the check tells the student.

Lecturers know them in advance, and the tests hold that each check finds them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vcutils.course.editions import between, sources
from vcutils.course.exercises import EXERCISES, verdict
from vcutils.course.sandbox import definitions


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: what was misunderstood, and the text of the solution that it has in place of `right`."""

    number: str
    about: str
    right: str
    wrong: str


MISTAKES = (
    Mistake("1.1", "the start of each part in place of its middle", "(2 * i + 1)", "(2 * i)"),
    Mistake("1.1", "every n // k-th frame", "(2 * i + 1) * n // (2 * k)", "i * (n // k)"),
    Mistake("1.1", "more frames than the clip has", "k = min(n, k)", "pass"),
    Mistake("1.2", "the dot product, lengths left in", "X / lengths.clamp(min=1e-6)", "X"),
    Mistake("1.2", "a division by 0 for a row of zeros", "lengths.clamp(min=1e-6)", "lengths"),
    Mistake("1.2", "columns of length 1 in place of rows", "dim=1, keepdim", "dim=0, keepdim"),
    Mistake("1.3", "the last frame of a scene, not the first of the next", ".argsort()[:n] + 1", ".argsort()[:n]"),
    Mistake("1.3", "the most similar frames", ".argsort()[:n]", ".argsort(descending=True)[:n]"),
    Mistake("1.3", "in the order of similarity, not of time", "sorted(least.tolist())", "least.tolist()"),
    Mistake("2.1", "words that are rarer than the threshold stay", "count >= min_count", "count >= 1"),
    Mistake("2.1", "more than min_count is asked for", "count >= min_count", "count > min_count"),
    Mistake("2.1", "split at blanks: capitals and full stops stay", "tokenize(caption)", "caption.split()"),
    Mistake("2.1", "equally frequent words in the order of the text", "(-counts[word], word)", "-counts[word]"),
    Mistake("2.2", "a frame of padding is called real", "frame_mask[b, : len(rows)]", "frame_mask[b, : len(rows) + 1]"),
    Mistake("2.2", "captions padded with <end> in place of <pad>", "longest), PAD)", "longest), 2)"),
    Mistake("2.2", "cut to the shortest clip", "max(len(rows) for", "min(len(rows) for"),
    Mistake("2.3", "no shift", "ids[:, :, :-1], ids[:, :, 1:]", "ids, ids"),
    Mistake("2.3", "exchanged", "ids[:, :, :-1], ids[:, :, 1:]", "ids[:, :, 1:], ids[:, :, :-1]"),
    Mistake("3.1", "padding takes part", ".masked_fill(~mask[:, None], float(\"-inf\"))", ""),
    Mistake("3.1", "weights set to 0 after the softmax, so that they do not sum to 1",
            "scores.masked_fill(~mask[:, None], float(\"-inf\")).softmax(dim=-1)",
            "scores.softmax(dim=-1) * mask[:, None]"),
    Mistake("3.1", "softmax over the captions, not the frames", "softmax(dim=-1)", "softmax(dim=1)"),
    Mistake("3.1", "a score of 0 in place of minus infinity", "float(\"-inf\")", "0.0"),
    Mistake("3.2", "tanh on a gate", "torch.sigmoid(i)", "torch.tanh(i)"),
    Mistake("3.2", "input and forget gate exchanged", "i, f, g, o", "f, i, g, o"),
    Mistake("3.2", "context and state exchanged", "torch.cat([z, h]", "torch.cat([h, z]"),
    Mistake("3.2", "the old cell state is lost", "torch.sigmoid(f) * c + ", ""),
    Mistake("3.3", "padding counts", "[target != PAD].sum()\n        real_words = real_words + (target != PAD).sum()",
            ".sum()\n        real_words = real_words + target.numel()"),
    Mistake("3.3", "padding counts in the nats", "[target != PAD].sum()", ".sum()"),
    Mistake("3.3", "padding counts in the number of words", "(target != PAD).sum()", "target.numel()"),
    Mistake("3.3", "no shift: the target is the word just read", "target = batch.targets[:, :, t]",
            "target = batch.inputs[:, :, t]"),
    Mistake("3.3", "the sum, not the mean", "nats / real_words", "nats"),
    Mistake("3.4", "gradients add up over the steps", "optimizer.zero_grad()", "pass"),
    Mistake("3.4", "no clipping", "torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)", "pass"),
    Mistake("3.4", "dropout stays off", "model.train()", "model.eval()"),
    Mistake("3.4", "no step", "optimizer.step()", "pass"),
    Mistake("3.5", "two parts taken away at once", "encoder=\"none\"", "encoder=\"none\", attention=\"uniform\""),
    Mistake("3.5", "a size changed, nothing taken away", "encoder=\"none\"", "embed_dim=64"),
    Mistake("3.5", "other settings lost", "dataclasses.replace(config, model", "type(config)(model"),
    Mistake("4.1", "reads <start> again and again", "state, word)", "state, START)"),
    Mistake("4.1", "<end> becomes a word", "        if word == END:\n            break\n        words.append(word)",
            "        words.append(word)\n        if word == END:\n            break"),
    Mistake("4.1", "one word too many", "len(words) < max_length", "len(words) <= max_length"),
    Mistake("4.2", "the beginning's log-probability is forgotten", "total + p", "p"),
    Mistake("4.2", "ended captions ranked without their length", "(total / length, ", "(total, "),
    Mistake("4.2", "greedy: one hypothesis goes on", "!= END][:k]", "!= END][:1]"),
    Mistake("4.3", "no brevity penalty", "min(1.0, math.exp(1 - r / c))", "1.0"),
    Mistake("4.3", "n-grams not clipped at the references' counts", "(grams(words, n) & known).values()",
            "count for gram, count in grams(words, n).items() if gram in known"),
    Mistake("4.3", "the longer of two equally close references", "len(ref)) for ref in references[i])[1]",
            "-len(ref)) for ref in references[i])[1] * -1"),
    Mistake("4.3", "references' counts added up", "known |= grams(ref, n)", "known += grams(ref, n)"),
    Mistake("4.4", "a change counts wherever it stands", "behind[: min(stop, default=len(behind))]", "words"),
    Mistake("4.4", "share of the things that are named, not of all scenes", "changes / max(1, scenes)",
            "changes / max(1, things)"),
    Mistake("4.4", "only the first word of a change", "change_at.get(thing[\"start\"], ())",
            "change_at.get(thing[\"start\"], ())[:1]"),
    Mistake("5.1", "the end of a time counts as inside", "times < event[\"end\"]", "times <= event[\"end\"]"),
    Mistake("5.1", "one time of several", "inside |=", "inside ="),
    Mistake("5.1", "chance is 1 / T", "float(inside.mean())", "1 / len(times)"),
    Mistake("5.2", "the weakest frames are hidden", "np.argsort(-row)", "np.argsort(row)"),
    Mistake("5.2", "the sign turned around", "full - log_probs(np.delete(features, frames, axis=0))[position]",
            "log_probs(np.delete(features, frames, axis=0))[position] - full"),
    Mistake("5.2", "the caption's words added up", "[position]", ".sum()"),
    Mistake("5.3", "one frame too few is hidden", "share - 1e-9)) + 1", "share - 1e-9))"),
    Mistake("5.3", "no frame is left", "min(enough, len(order) - 1)", "enough"),
    Mistake("5.3", "hidden frames set to 0, so the model still sees them",
            "return np.delete(features, order[: min(enough, len(order) - 1)], axis=0)",
            "features = features.copy()\n    features[order[:enough]] = 0\n    return features"),
    Mistake("5.4", "the word before in place of the word behind", "weights[t + 1]", "weights[t - 1]"),
    Mistake("5.4", "only \"a\"", "(\"a\", \"an\")", "(\"a\",)"),
    Mistake("5.4", "an article at the end has no word behind it", "range(len(words) - 1)", "range(len(words))"),
)  # fmt: skip


def solution_cells() -> dict[str, tuple[list[str], str]]:
    """Of each exercise: all code cells of its notebook but the solution's, and the cell with the solution."""
    found, notebooks = {}, sources()
    for number, exercise in EXERCISES.items():
        cells = [cell.source for cell in notebooks[exercise.notebook].cells if cell.cell_type == "code"]
        own = next(cell for cell in cells if f"def {exercise.function}(" in cell and between(cell, "SOLUTION"))
        found[number] = [cell for cell in cells if not between(cell, "SOLUTION")], own
    return found


def message(mistake: Mistake, cells: tuple[Sequence[str], str]) -> tuple[str, str]:
    """State and message of the check for a mistake. Raises ValueError where the solution has no such text."""
    setup, solution = cells
    if mistake.right not in solution:
        raise ValueError(f"{mistake.number}, {mistake.about}: the solution has no {mistake.right!r}")
    wrong = solution.replace(mistake.right, mistake.wrong)
    _, function, why = definitions([*setup, wrong], EXERCISES[mistake.number].function)
    return verdict(mistake.number, function) if function else ("wrong", why)


def table() -> str:
    """The mistakes as a table in Markdown."""
    cells, lines = solution_cells(), ["| exercise | mistake | what the check says |", "|---|---|---|"]
    for mistake in MISTAKES:
        said = message(mistake, cells[mistake.number])[1].replace("|", "\\|")
        name = EXERCISES[mistake.number].function
        lines.append(
            f"| {mistake.number} `{name}` | {mistake.about.replace('<', '&lt;')} | {said.replace('<', '&lt;')} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
