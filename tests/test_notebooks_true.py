"""Every number in the notebooks' prose is printed by a cell: a sentence and the output beside it cannot disagree.

The rule: a number in a sentence must also be in the output or in the source of a code cell of the same section (from
one `##` heading to the next), or of the setup (before the first `##`). The header, the recap and the exercises may use
the numbers of every cell. Numbers of one digit are not looked at, unless they have a decimal point or a % sign; values
to set stand in `code`, which is not prose.
"""

import json
import re
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"(?<![\w.,])(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?(?:e[-−+]?\d+)?)(\s?%)?(?![\d_]|[.,]\d)")
NOT_PROSE = (
    (r"```.*?```|``.*?``|`[^`\n]*`", "code"),
    (r"\$\$.*?\$\$|(?<![\\$])\$[^$]+\$|\\begin\{(\w+\*?)\}.*?\\end\{\1\}", "formulas"),
    (r"<!--.*?-->|</?[a-zA-Z][^<>\n]*>", "HTML tags"),
    (r"!?\[[^\]]*\]\([^)]*\)|https?://\S+", "links"),
    (r"^\s*(?:[-*]\s+)?\d+[.)]\s", "the numbers of a list"),
    (r"\((?:19|20)\d\d[a-z]?\)|(?:\bet al\.|& [A-Z]\w+),? \(?(?:19|20)\d\d", "the years of citations"),
    (r"(?i:\b(?:notebook|section|equation|exercise|figure|table)s?) [\d.]+(?:(?:,| and| to) [\d.]+)*", "places"),
    (r"\b[A-Za-z_]\w*-?\d[\w.-]*", "names such as BLEU-4 and ResNet-152"),
)
ALLOWED = (
    (r"× 100\b", "the scale on which the notebooks show scores"),
    (r"\b95 %(?= interval)", "the level of an interval, as the package's functions have it"),
)
EVERYWHERE = ("Recap", "Exercises")


class _Text(HTMLParser):
    """What a reader sees of HTML: no tags, no attributes, no scripts."""

    def __init__(self):
        super().__init__()
        self.parts, self.hidden = [], 0

    def handle_starttag(self, tag, attrs):
        self.hidden += tag in ("script", "style")
        self.parts.append(" ")

    def handle_endtag(self, tag):
        self.hidden -= tag in ("script", "style")
        self.parts.append(" ")

    def handle_data(self, data):
        if not self.hidden:
            self.parts.append(data)


def text_of_html(html):
    reader = _Text()
    reader.feed(html)
    reader.close()
    return "".join(reader.parts)


def numbers(text):
    """{(value, has a % sign)} and how each was written, of all numbers in a text."""
    return {
        (Decimal(digits.replace(",", "").replace("−", "-")), bool(percent)): f"{digits}{percent}"
        for digits, percent in NUMBER.findall(text)
    }


def printed(cell):
    """The text that a code cell shows, and its source."""
    texts = ["".join(cell["source"])]
    for output in cell["outputs"]:
        texts.append("".join(output.get("text", ())))
        for kind, content in output.get("data", {}).items():
            if kind in ("text/plain", "text/markdown"):
                texts.append("".join(content))
            elif kind in ("text/html", "image/svg+xml"):
                texts.append(text_of_html("".join(content)))
    return "\n".join(texts)


def sentences(markdown):
    """The sentences of a Markdown text, with everything taken out that is not prose."""
    for pattern, _ in NOT_PROSE:
        markdown = re.sub(pattern, " ", markdown, flags=re.S | re.M)
    blocks = re.split(r"\n\s*\n|\n\s*[-*|]\s|\n\s*\|", markdown)
    for block in blocks:
        yield from filter(None, (" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s+(?=[A-Z*“(])", block)))


def sections(notebook):
    """(heading, prose, texts of its code cells), the setup first, under the heading ""."""
    parts = [["", "", []]]
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            parts[-1][2].append(printed(cell))
        elif cell["cell_type"] == "markdown":
            fenced = False
            for line in [*source.splitlines(), ""]:
                fenced ^= line.lstrip().startswith("```")
                if re.match(r"#{1,6} ", line) and not fenced:
                    if line.startswith("## "):
                        parts.append([line[3:].strip(), "", []])
                else:
                    parts[-1][1] += line + "\n"
    return parts


def unprinted(notebook):
    """A line for every number in prose that no code cell which counts for it shows."""
    parts = sections(notebook)
    setup = set(numbers("\n".join(parts[0][2])))
    everything = setup.union(*(numbers("\n".join(texts)) for _, _, texts in parts))
    problems = []
    for i, (heading, prose, texts) in enumerate(parts):
        if i == 0:  # the header's table tells minutes, which no cell can print
            prose = re.sub(r"^\|.*$", "", prose, flags=re.M)
        everywhere = i == 0 or heading.startswith(EVERYWHERE)
        shown = everything if everywhere else setup | set(numbers("\n".join(texts)))
        values = {value for value, _ in shown}
        for sentence in sentences(prose):
            rest = sentence
            for pattern, _ in ALLOWED:
                rest = re.sub(pattern, " ", rest)
            for (value, percent), written in numbers(rest).items():
                if len(written.strip()) > 1 and not ((value, percent) in shown or (not percent and value in values)):
                    place = "any cell" if everywhere else f"a cell of “{heading}” or of the setup"
                    problems.append(f"“{sentence}”: {written} is not printed by {place}")
    return problems


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_number_in_prose_is_printed_by_a_cell(path):
    problems = unprinted(json.loads(path.read_text("utf-8")))
    advice = "print it in a cell of the same section, or take it out of the sentence; a value to set belongs in `code`"
    assert not problems, f"{path.name}: {advice}:\n" + "\n".join(problems)


def made_up(*cells):
    """A notebook of Markdown texts, and of code cells as (source, output)."""
    return {
        "cells": [
            {"cell_type": "markdown", "source": cell}
            if isinstance(cell, str)
            else {"cell_type": "code", "source": cell[0], "outputs": [{"output_type": "stream", "text": cell[1]}]}
            for cell in cells
        ]
    }


@pytest.mark.parametrize(
    "prose, output, problem",
    [
        ("It reaches 85.0 in all.", "BLEU-4 85.0", None),
        ("It reaches 87.7 in all.", "BLEU-4 85.0", "87.7"),
        ("It reaches 0.7 in all.", "0.70", None),
        ("In 62 % of the clips.", "right: 62%", None),
        ("In 62 % of the clips.", "right: 0.62 of 62 clips", "62 %"),
        ("In 52 to 57 % of the clips.", "52 % 57 %", None),
        ("All 1,280 numbers.", "D = 1280", None),
        ("All 1,281 numbers.", "D = 1280", "1,281"),
        ("Over 40 frames.", "frame140 402 4.40", "40"),
        ("A rate of 1e-4.", "lr=0.0001", None),
        ("A loss of 4.39.", "", "4.39"),
        ("It took 3.2 s.", "3.2s", None),
        ("After 7 epochs, ± 3.", "", None),
        ("Zero, so 5 % less.", "", "5 %"),
    ],
)
def test_check_compares_prose_with_output(prose, output, problem):
    problems = unprinted(made_up("# Title", "## Part\n" + prose, ("print(x)", output)))
    assert [p.split(": ")[1].split(" is not")[0] for p in problems] == ([problem] if problem else [])


def test_check_looks_at_prose_alone():
    prose = (
        "Code `x = 99` and $n = 99$, $$\\frac{99}{98}$$ [a link to 97](96.html), Bahdanau et al. (2015), Zhang et al. "
        "2018, Jain & Wallace (2019), section 3.1.2, notebooks 14 and 15, BLEU-44 and ResNet-152, a 95 % interval, "
        "CIDEr × 100.\n\n```\n77\n```\n\n## A heading of 55\n\n12. The twelfth"
    )
    assert unprinted(made_up("# Title\n\n| minutes |\n|---|\n| 33 |", "## Part\n" + prose)) == []


def test_check_asks_for_the_number_where_the_sentence_is():
    cells = [
        "# Title",
        ("", "seed 42"),
        "## One\nIt is 0.5.",
        ("", "0.25"),
        "Not 42.\n\n## Two\nIt is 0.25.",
        ("", "0.5"),
    ]
    first, second = unprinted(made_up(*cells, "## Recap\nIt was 0.25, then 0.5."))
    assert "“It is 0.5.”: 0.5 is not printed by a cell of “One” or of the setup" in first
    assert "“It is 0.25.”: 0.25 is not printed by a cell of “Two”" in second


def test_check_reads_tables_and_figures_but_no_page_inside_an_output():
    outputs = [
        {
            "output_type": "display_data",
            "data": {"text/html": ["<b>0.11</b><iframe srcdoc='&lt;p&gt;0.22&lt;/p&gt;'></iframe>"]},
        },
        {"output_type": "display_data", "data": {"image/svg+xml": '<svg><text x="0.33">0.44</text></svg>'}},
        {"output_type": "display_data", "data": {"image/png": "0.55", "text/markdown": "| 0.66 |"}},
    ]
    cell = {"cell_type": "code", "source": [], "outputs": outputs}
    notebook = made_up("# Title", "## Part\nNumbers: 0.11 0.22 0.33 0.44 0.55 0.66")
    notebook["cells"].append(cell)
    assert [p.split(": ")[2].split()[0] for p in unprinted(notebook)] == ["0.22", "0.33", "0.55"]
