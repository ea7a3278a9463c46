"""The lecturer's guide: its numbers stand in the committed notebooks, its sessions have 90 minutes, its files exist."""

import json
import re
from pathlib import Path

import pytest

from vcutils.course.exercises import EXERCISES
from vcutils.course.slides import SESSIONS

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "lecturers.md").read_text("utf-8")
PARTS = dict(re.findall(r"^## Session (\d).*?\n(.*?)(?=^## )", GUIDE, re.M | re.S))


def plain(text: str) -> str:
    """Text with its blanks made one, and table cells parted by commas."""
    return " ".join(re.sub(r" *\| *", ", ", text).split())


def outputs(notebook: str) -> str:
    """All that a notebook's outputs say."""
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text("utf-8"))["cells"]
    shown = [output for cell in cells for output in cell.get("outputs", ())]
    texts = [output.get("text", output.get("data", {}).get("text/markdown", "")) for output in shown]
    return plain("\n".join("".join(text) for text in texts))


def rows(part: str, column: str) -> list[list[str]]:
    """The cells of the table whose last column has this title."""
    table = re.search(rf"^\|[^\n]*\| {column} \|\n\|[-|]+\|\n((?:\|.*\n)+)", part, re.M)
    return [line.strip("| ").split(" | ") for line in table[1].splitlines()] if table else []


@pytest.mark.parametrize("session", SESSIONS, ids=lambda session: f"session{session.number}")
def test_expected_predictions_quote_the_committed_outputs(session):
    part, shown = PARTS[str(session.number)], outputs(session.notebook)
    answers = rows(part, "what the notebook shows")
    quotes = {quote for answer in answers for quote in re.findall(r"`([^`]+)`", answer[-1])}
    assert len(quotes) >= len(answers)
    for quote in quotes | {quote for quote in re.findall(r"`([^`]+)`", part) if re.search(r"\d", quote)}:
        assert plain(quote) in shown, f"session {session.number} quotes {quote!r}: renew it from {session.notebook}"


@pytest.mark.parametrize("session", SESSIONS, ids=lambda session: f"session{session.number}")
def test_each_prediction_of_a_session_is_answered(session):
    text = (ROOT / "notebooks" / f"{session.notebook}.py").read_text("utf-8")
    begin = text.index(f"# ## {session.begin}") if session.begin else text.index("# ## ")  # behind the opening cell
    asked = len(re.findall(r"^# \*\*Predict\*\*", text[begin : text.index(f"# ## {session.end}")], re.M))
    assert len(rows(PARTS[str(session.number)], "what the notebook shows")) == asked


@pytest.mark.parametrize("number", sorted(PARTS))
def test_a_session_has_90_minutes(number):
    minutes = [int(n) for n in re.findall(r"^\| (\d+) \|", PARTS[number], re.M)]
    assert sum(minutes) == 90


@pytest.mark.parametrize("number", sorted(PARTS))
def test_the_exercises_of_a_session_fit_into_their_minutes(number):
    (minutes, named) = re.search(r"^\| (\d+) \| Exercises? ((?:\d\.\d(?:, )?)+) \|", PARTS[number], re.M).groups()
    assert sum(EXERCISES[exercise].minutes for exercise in named.split(", ")) <= int(minutes)


def test_every_exercise_has_its_session():
    named = re.findall(r"exercises? (\d)\.1 to \d\.(\d)|Exercises (\d)\.(\d) (?:and|to)\s+\d\.(\d)", GUIDE)
    first_and_last = [(row[0] or row[2], row[3] or "1", row[1] or row[4]) for row in named]
    assert first_and_last == [
        ("1", "1", "3"), ("2", "1", "3"), ("3", "1", "2"), ("3", "3", "5"), ("4", "1", "4"), ("5", "1", "4"),
    ]  # fmt: skip


def test_containers_and_hosts_find_what_they_name():
    devcontainer = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text("utf-8"))
    assert (ROOT / ".devcontainer" / devcontainer["build"]["dockerfile"]).is_file()
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    commands = "\n".join([devcontainer["postCreateCommand"], (ROOT / "docs" / "running.md").read_text("utf-8"), GUIDE])
    assert set(re.findall(r"(?:^|`|&& |vcutils )make ([a-z]+)", commands, re.M)) <= {*targets}
    assert (ROOT / ".binder" / "postBuild").stat().st_mode & 0o100, "Binder runs postBuild only if it may be executed"
