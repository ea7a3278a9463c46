"""Pictures of the lessons, drawn by code: the model, one attention step, a beam search, the compositional split.

One hand: blue is what comes from frames, amber is attention, green is words. Every picture stands on a white card, so
that it reads the same on a light and on a dark page.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vcutils.course.canvas import (
    AMBER,
    BLUE,
    CARD,
    GLOW,
    GREEN,
    GREY,
    INK,
    LINE,
    QUIET,
    RED,
    VIOLET,
    Canvas,
    Picture,
    width_of,
)

Candidate = tuple[int, str, float, bool, bool]  # parent, word, total log-probability, kept, ended


def model_picture(*, B: int, K: int, T: int, L: int, D: int, E: int, H: int, A: int, C: int, V: int) -> Picture:
    """The whole captioning model, with the shape on every arrow in DESIGN's letters and in the numbers given."""
    sizes = dict(B=B, K=K, T=T, L=L, D=D, E=E, H=H, A=A, C=C, V=V)
    canvas = Canvas()

    def shape(x: float, y: float, letters: str, anchor: str = "middle", apart: float = 16) -> None:
        canvas.text(x, y, " × ".join(letters), 13, anchor, bold=True, mono=True)
        canvas.text(x, y + apart, "×".join(f"{sizes[letter]:,}" for letter in letters), 12, anchor, QUIET)

    def flow(start: float, end: float, y: float, letters: str) -> None:
        canvas.line([(start, y), (end, y)])
        shape((start + end) / 2 - 4, y - 14, letters, apart=29)

    canvas.panel(16, 16, 1124, 206, "once per clip", "the encoder")
    canvas.node(36, 92, 96, 60, BLUE, "features", f"{T:,} frames")
    canvas.node(242, 92, 108, 60, BLUE, "projection", "linear, ReLU")
    canvas.node(458, 92, 92, 60, BLUE, "BiLSTM", "both ways")
    canvas.node(690, 92, 116, 60, BLUE, "memory", "encoded frames")
    flow(132, 242, 122, "BTD")
    flow(350, 458, 122, "BTC")
    canvas.line([(550, 122), (565, 122)], arrow=False)
    flow(584, 690, 122, "BTC")
    canvas.line([(296, 92), (296, 64), (574, 64), (574, 112)])
    canvas.text(435, 52, "each frame's own projection is added", 12, colour=QUIET)
    canvas.circle(574, 122, 10, BLUE)
    canvas.text(574, 122, "+", 15, bold=True)
    for y, name, letters in ((174, "values", "BTC"), (198, "keys", "BTA")):
        canvas.text(762, y, name, 13, "start", QUIET)
        canvas.text(812, y, " × ".join(letters), 13, "start", bold=True, mono=True)
        canvas.text(894, y, "×".join(f"{sizes[letter]:,}" for letter in letters), 12, "start", QUIET)

    canvas.panel(16, 238, 1124, 420, f"once per word, L = {L:,} times", "the decoder")
    canvas.line([(748, 152), (748, 290)], AMBER[1], 2)
    canvas.node(644, 290, 208, 62, AMBER, "attention", f"a weight for each of {T:,} frames")
    canvas.line([(544, 450), (544, 321), (644, 321)])
    canvas.text(534, 368, "query: h of the word before", 12, "end", QUIET)
    shape(534, 388, "BKH", "end")
    for x in (668, 836):
        canvas.line([(x, 352), (x, 450)], AMBER[1], 2)
    canvas.text(678, 378, "context: weighted sum", 12, "start", QUIET)
    shape(678, 398, "BKC", "start")
    canvas.text(872, 298, "weights of all words", 12, "start", QUIET)
    shape(872, 317, "BKLT", "start")
    canvas.text(1124, 380, "logits of all words", 12, "end", QUIET)
    shape(1124, 399, "BKLV", "end")

    canvas.node(36, 450, 104, 60, GREEN, "word", "the one before")
    canvas.node(224, 450, 116, 60, GREEN, "embedding", "a row per word")
    canvas.node(514, 450, 176, 60, GREY, "LSTM cell", "[embedding; context]")
    canvas.node(806, 450, 110, 60, GREEN, "logits", "[h; context]")
    canvas.node(1026, 450, 98, 60, GREEN, "next word", "softmax")
    flow(140, 224, 480, "BK")
    flow(340, 514, 480, "BKE")
    flow(690, 806, 480, "BKH")
    flow(916, 1026, 480, "BKV")
    canvas.text(861, 526, f"through E = {E:,} to V", 12, colour=QUIET)
    canvas.line([(652, 510), (652, 540), (552, 540), (552, 510)])
    canvas.text(602, 556, "the state h, c goes on to the next word;", 12, colour=QUIET)
    canvas.text(602, 573, "the first one is made from the mean of the memory", 12, colour=QUIET)
    canvas.line([(1075, 510), (1075, 604), (88, 604), (88, 510)], GREEN[1], dash=True)
    canvas.text(582, 622, "in training: the true next word (teacher forcing)", 13, colour=GREEN[1])
    canvas.text(582, 640, "when it writes: the word that it chose", 13, colour=GREEN[1])

    names = (
        "clips in a batch, captions per clip, frames, words, feature size, embedding, hidden state, attention, context"
    )
    for i, ((letter, size), name) in enumerate(zip(sizes.items(), [*names.split(", "), "vocabulary"], strict=True)):
        x, y = 32 + 228 * (i % 5), 684 + 24 * (i // 5)
        canvas.text(x, y, letter, 13, "start", bold=True, mono=True)
        canvas.text(x + 16, y, f"= {size:,} {name}", 13, "start", QUIET)
    return canvas.picture(
        1156, 732,
        f"The captioning model: features of {T} frames go through a projection and a BiLSTM into the memory; for every "
        "word, attention weighs the memory by the LSTM cell's state, and the cell reads the last word and the context.",
    )  # fmt: skip


def attention_picture(
    labels: Sequence[str],
    scores: Sequence[float],
    weights: Sequence[float],
    images: Sequence[np.ndarray] | None = None,
    query: str = "decoder state h",
) -> Picture:
    """One attention step over T frames: query, keys, scores, weights as bars, and the context as their weighted sum.

    `scores` and `weights` are (T,), a score of -inf is padding; `images` are T RGB pictures (uint8), any size. `query`
    says what the decoder is about to do. Best for 3 to 8 frames. Raises ValueError where the lengths differ.
    """
    count = len(labels)
    if not count or len({count, len(scores), len(weights), len(images) if images is not None else count}) > 1:
        raise ValueError(f"{count} labels need as many scores, weights and pictures, and at least one")
    scores, weights = [float(score) for score in scores], [float(weight) for weight in weights]
    step = max(112.0, *(width_of(label, 13) + 20 for label in labels))
    left, top, width = 196.0, 24.0, 196 + step * count + 24
    picture = 72.0 if images is not None else 0
    keys = top + picture + 70
    pill, line, sums, bars, full = keys + 14, keys + 44, keys + 92, keys + 130, 96.0  # y; full: a bar of weight 1
    floor = bars + 22 + full
    canvas = Canvas()
    rows = [
        ("frames", "each has a key", keys - 32),
        ("scores", "how well they fit", sums),
        ("weights", "softmax: they sum to 1", floor - 50),
    ]
    for name, reads, y in rows:
        canvas.text(28, y - 9, name, 14, "start", bold=True)
        canvas.text(28, y + 9, reads, 12, "start", QUIET)
    middle = left + step * count / 2
    canvas.line([(left, line), (left + step * count, line)], AMBER[1], 1.2, arrow=False)
    for i, (label, score, weight) in enumerate(zip(labels, scores, weights, strict=True)):
        x, padding = left + step * (i + 0.5), score == -math.inf
        colours = GREY if padding else BLUE
        if images is not None:
            canvas.image(x - step / 2 + 8, top, step - 16, picture - 6, images[i])
        canvas.text(x, top + picture + 10, label, 13, colour=QUIET if padding else INK)
        canvas.box(x - 34, keys - 46, 68, 28, colours)
        canvas.text(x, keys - 32, "padding" if padding else f"m{_small(i + 1)}", 13, colour=colours[1])
        canvas.line([(x, keys - 17), (x, sums - 15)], LINE)
        if not padding:
            canvas.circle(x, line, 5, (GLOW, AMBER[1]))
        canvas.text(x, sums, "−∞" if padding else f"{score:.2f}".replace("-", "−"), 15, mono=True, bold=True)
        canvas.line([(x, sums + 14), (x, bars)], LINE)
        canvas.box(x - 26, floor - full, 52, full, ("#faf6ec", "none"), radius=3)
        canvas.box(x - 26, floor - full * weight, 52, full * weight, (GLOW, "none"), radius=min(3, full * weight / 2))
        canvas.text(x, floor - full * weight - 11, f"{weight:.2f}", 13, mono=True)
        canvas.curve((x, floor + 2), (middle, floor + 66), GLOW if weight > 0.005 else LINE, 0.8 + 8 * weight)
    canvas.line([(left, floor), (left + step * count, floor)], LINE, arrow=False)
    span = max(width_of(query, 13), 90) + 28
    canvas.line([(middle, pill), (middle, line)], AMBER[1], 1.2, arrow=False)
    canvas.box(middle - span / 2, pill - 13, span, 26, AMBER, radius=13)
    canvas.text(middle, pill, query, 13, colour=AMBER[1])
    canvas.text(28, pill, "query", 14, "start", bold=True)
    shares = sorted(range(count), key=lambda i: -weights[i])[:3]
    total = " + ".join(f"{weights[i]:.2f} m{_small(i + 1)}" for i in sorted(shares))
    context = f"context = {total}" + (" + …" if count > 3 else "")
    span = width_of(context, 14) + 36
    canvas.box(middle - span / 2, floor + 68, span, 34, AMBER)
    canvas.text(middle, floor + 85, context, 14)
    width = max(width, middle + max(span, width_of(query, 13) + 28) / 2 + 24)
    best = labels[max(range(count), key=lambda i: weights[i])]
    return canvas.picture(
        width, floor + 124, f"One attention step over {count} frames; the largest weight is on {best}."
    )


def beam_tree(steps: Sequence[Sequence[Candidate]], length_penalty: float = 1.0, start: str = "<start>") -> Picture:
    """The tree of a beam search: pruned candidates grey, ended captions marked, the path to the best one thick.

    `steps` holds for every step the candidates worth showing (say, the best 6), each as a tuple

        (parent, word, total log-probability in nats, kept, ended)

    `parent` counts the candidates of the step before that were kept and did not end, in their order in the list; in the
    first step it is 0, the start. That is the position of the beam in a search's own list of beams, so a search records

        steps.append([(beam, word, total, rank < beam_size, word == "<end>")
                      for rank, (total, beam, word) in enumerate(candidates[:6])])

    The best path is the ended caption with the largest total / words ** length_penalty; `<end>` counts as a word, as in
    `vcutils.decode`. Raises ValueError for a parent that does not exist.
    """
    nodes = _tree(steps)
    best = _best(nodes, length_penalty)
    path: list[int] = []  # from the best end back to the start
    node: int | None = best
    while node is not None:
        path.append(node)
        node = nodes[node].parent
    words = " ".join(nodes[i].word for i in path[-2::-1])
    column = [0.0] * (len(steps) + 1)  # the width of every step's widest word
    for item in nodes:
        column[item.depth] = max(column[item.depth], width_of(item.word or start, 14, bold=True) + 26, 78)
    left = [24 + sum(column[:depth]) + 46 * depth for depth in range(len(column))]
    row, canvas = 46, Canvas()
    heights = _heights(nodes)
    middle = [72 + row * height for height in heights]
    for depth in range(1, len(column)):
        canvas.text(left[depth] + column[depth] / 2, 28, f"word {depth}", 12, colour=QUIET)
    for i in sorted(range(1, len(nodes)), key=lambda i: (i in path, nodes[i].kept)):  # the best path is drawn last
        item, parent = nodes[i], nodes[i].parent
        if parent is not None:
            begin, end = left[nodes[parent].depth] + column[nodes[parent].depth], left[item.depth]
            look = (GLOW, 5.0) if i in path else (GREY[1], 1.6) if item.kept else (LINE, 1.2)
            canvas.curve((begin, middle[parent]), (end, middle[i]), *look, dash=not item.kept, level=True)
    for i, item in enumerate(nodes):
        x, y, wide = left[item.depth], middle[i], column[item.depth]
        colours = (CARD, LINE) if not item.kept else GREEN if item.ended else GREY if i == 0 else BLUE
        ink = INK if item.kept else "#777168"
        canvas.box(x, y - 18, wide, 36, colours, radius=18 if item.ended else 7, weight=3 if i in path else 1.4)
        word = start if i == 0 else item.word
        canvas.text(x + wide / 2, y - (0 if i == 0 else 7), word, 14, colour=ink, bold=i in path)
        if i:
            canvas.text(x + wide / 2, y + 9, f"{item.total:.2f}".replace("-", "−"), 12, colour=ink, mono=True)
    bottom = max(middle) + 50
    width = left[-1] + column[-1] + 24
    ranked = f"best: total / words{'' if length_penalty == 1 else f' to the power {length_penalty:g}'}"
    score = f"{ranked} = {_score(nodes[best], length_penalty):.2f}".replace("-", "−") if len(nodes) > 1 else "best"
    keys = (("kept", BLUE, 7), ("ended", GREEN, 14), ("pruned", (CARD, LINE), 7))
    x = 24.0
    for name, colours, radius in keys:
        canvas.box(x, bottom - 9, 28, 18, colours, radius=min(radius, 9))
        canvas.text(x + 36, bottom, name, 13, "start", QUIET)
        x += 36 + width_of(name, 13) + 22
    canvas.line([(x, bottom), (x + 28, bottom)], GLOW, 5, arrow=False)
    canvas.text(x + 36, bottom, score, 13, "start", QUIET)
    width = max(width, x + 36 + width_of(score, 13) + 24)
    reads = "under each word: log-probability of all words up to here, nats"
    canvas.text(24, bottom + 26, reads, 12, "start", QUIET)
    width = max(width, 48 + width_of(reads, 12))
    return canvas.picture(width, bottom + 52, f"A beam search of {len(steps)} steps; its best path: {words}.")


def split_picture(
    pairs_by_split: Mapping[str, Collection[tuple[str, str]]], row_names: Sequence[str], column_names: Sequence[str]
) -> Picture:
    """A compositional split as a matrix: each pair (row, column) in the colour of the only split that shows it.

    A pair that several splits show is red: there nothing new is tested. White pairs are shown by none. Raises
    ValueError for a name that has no row or column.
    """
    shown: dict[tuple[str, str], list[str]] = {}
    for split, pairs in pairs_by_split.items():
        for pair in dict.fromkeys(map(tuple, pairs)):
            if pair[0] not in row_names or pair[1] not in column_names:
                raise ValueError(f"{pair}, shown by {split}, has no row or no column")
            shown.setdefault((pair[0], pair[1]), []).append(split)
    palette = dict(zip(pairs_by_split, (BLUE, AMBER, GREEN, GREY, VIOLET), strict=False))
    side, canvas = 34, Canvas()
    left = 24 + max(width_of(name, 13) for name in row_names) + 12
    slants = [0.71 * width_of(name, 13) for name in column_names]  # the names lean by 45 degrees
    top = 24 + max(slants) + 20
    for j, name in enumerate(column_names):
        canvas.text(left + side * (j + 0.5), top - 12, name, 13, "start", turn=-45)
    for i, row in enumerate(row_names):
        canvas.text(left - 12, top + side * (i + 0.5), row, 13, "end")
        for j, column in enumerate(column_names):
            splits = shown.get((row, column), [])
            colours = (CARD, "#e9e5dd") if not splits else RED if len(splits) > 1 else palette[splits[0]]
            x, y = left + side * j + 1.5, top + side * i + 1.5
            canvas.box(x, y, side - 3, side - 3, colours, radius=5, weight=1.2)
            if splits:
                mark = "!" if len(splits) > 1 else splits[0][:2]
                canvas.text(x + side / 2 - 1.5, y + side / 2 - 1.5, mark, 12, colour=colours[1])
    bottom = top + side * len(row_names) + 30
    entries = [(name, palette[name]) for name in pairs_by_split]
    counts = {name: sum(splits == [name] for splits in shown.values()) for name in pairs_by_split}
    texts = [
        (f"{counts[name]} pair{'s' * (counts[name] != 1)} only in {name}", colours, name[:2])
        for name, colours in entries
    ]
    if common := sum(len(splits) > 1 for splits in shown.values()):
        texts.append((f"{common} in several splits", RED, "!"))
    if empty := len(row_names) * len(column_names) - len(shown):
        texts.append((f"{empty} in none", (CARD, "#e9e5dd"), ""))
    width = 24 + left + max(side * (j + 1) + slant for j, slant in enumerate(slants))
    for text, colours, mark in texts:
        canvas.box(24, bottom - 11, 22, 22, colours, radius=5, weight=1.2)
        canvas.text(35, bottom, mark, 11, colour=colours[1])
        canvas.text(56, bottom, text, 13, "start", QUIET)
        width, bottom = max(width, 56 + width_of(text, 13) + 24), bottom + 28
    said = ", ".join(f"{counts[name]} in {name}" for name in pairs_by_split)
    return canvas.picture(width, bottom + 6, f"Pairs that only one split shows: {said}.")


@dataclass
class _Node:
    """A candidate of a beam search as a node of its tree."""

    depth: int
    word: str
    total: float
    kept: bool
    ended: bool
    parent: int | None


def _tree(steps: Sequence[Sequence[Candidate]]) -> list[_Node]:
    """All nodes, the start first, parents as positions in the list."""
    nodes, alive = [_Node(0, "", 0.0, True, False, None)], [0]
    for depth, step in enumerate(steps, 1):
        following = []
        for parent, word, total, kept, ended in step:
            if not 0 <= parent < len(alive):
                raise ValueError(f"step {depth}, {word!r}: parent {parent} of {len(alive)} beams that went on")
            if kept and not ended:
                following.append(len(nodes))
            nodes.append(_Node(depth, str(word), float(total), bool(kept), bool(ended), alive[parent]))
        alive = following
    return nodes


def _score(node: _Node, length_penalty: float) -> float:
    return node.total / max(node.depth, 1) ** length_penalty


def _best(nodes: list[_Node], length_penalty: float) -> int:
    """The ended caption that ranks first; where none has ended, the last step's best."""
    ended = [i for i, node in enumerate(nodes) if node.kept and node.ended]
    last = max(node.depth for node in nodes if node.kept)
    going = [i for i, node in enumerate(nodes) if node.kept and node.depth == last]
    return max(ended or going, key=lambda i: _score(nodes[i], length_penalty))


def _heights(nodes: list[_Node]) -> list[float]:
    """A row for every leaf, likelier children above; a parent stands in the middle of its children."""
    children: list[list[int]] = [[] for _ in nodes]
    for i, node in enumerate(nodes):
        if node.parent is not None:
            children[node.parent].append(i)
    heights, rows = [0.0] * len(nodes), 0

    def place(i: int) -> None:
        nonlocal rows
        below = sorted(children[i], key=lambda child: -nodes[child].total)
        for child in below:
            place(child)
        if below:
            heights[i] = (heights[below[0]] + heights[below[-1]]) / 2
        else:
            heights[i], rows = float(rows), rows + 1

    place(0)
    return heights


def _small(number: int) -> str:
    """A number as subscript digits."""
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
