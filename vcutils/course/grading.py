"""Marking: a folder of submissions becomes marks.csv, and a report per student as HTML."""

import csv
import io
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from vcutils.config import UserError
from vcutils.course import sandbox
from vcutils.course.editions import between, sources
from vcutils.course.exercises import EXERCISES
from vcutils.runtime.files import write_text
from vcutils.runtime.machine import cpu_count, is_quiet

NOTEBOOK_BYTES = 20 << 20
QUESTION = re.compile(r"\*\*Your (?:paragraph|sentence)\*\*")
HEADING = re.compile(r"^## Exercise ([\d.]+)", re.M)
NEXT = re.compile(r"^\*\*Next\*\* .*", re.M)  # where the notebook sends its reader
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root {{ color-scheme: light dark; }} body {{ font: 16px/1.5 sans-serif; max-width: 60em; margin: auto; padding: 1em; }}
td, th {{ text-align: left; vertical-align: top; padding: .2em 1em .2em 0; overflow-wrap: anywhere; }}
td:nth-child(3) {{ font-weight: bold; }} .lost td:nth-child(3) {{ color: #d33; }}
pre, blockquote {{ padding: .6em; margin: 1em 0; border: 1px solid #8886; }}
pre, blockquote {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
@media (max-width: 40em) {{ td:nth-child(2), th:nth-child(2) {{ display: none; }} }}</style>
<h1>{name}: {total:g} of {most}</h1>
<p>1: right; 0.5: right by the check of the notebook, but not in all hidden tests; 0: not right.</p>
<table><tr><th>exercise<th>function<th>mark<th>reason</tr>{rows}</table>
{problems}<h2>Written answers, to be marked by a person</h2>{answers}<h2>Functions</h2>{functions}</html>
"""


@dataclass
class Submission:
    """One student's notebooks, as found, and what they got."""

    name: str
    notebooks: dict[str, list[str]] = field(default_factory=dict)  # file → sources of its code cells
    answers: list[tuple[str, str]] = field(default_factory=list)  # written ones: number of the exercise, text
    problems: list[str] = field(default_factory=list)
    marks: dict[str, dict[str, Any]] = field(default_factory=dict)  # number → {"mark", "reason"}

    @property
    def total(self) -> float:
        """Sum of the marks."""
        return sum(row["mark"] for row in self.marks.values())


def read_submissions(folder: Path) -> list[Submission]:
    """A submission per folder in `folder`, by name. Raises UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; put each student's notebooks into a folder of their own there")
    found = [_read(path) for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if not found:
        raise UserError(f"{folder}: no folders in it; it needs one per student, with their notebooks")
    return found


def grade(
    submissions: Path, out: Path, seconds: float = sandbox.SECONDS, megabytes: int = sandbox.MEGABYTES
) -> dict[str, Any]:
    """Mark every submission, write `out` as CSV and reports/<student>.html beside it; a summary.

    Raises UserError for a folder without submissions.
    """
    students, exercises = read_submissions(submissions), _exercises()
    network_cut = sandbox.network_is_cut()
    bar = tqdm(
        total=len(students) * len(exercises), desc="marking", unit="exercise", leave=False, disable=is_quiet(True)
    )

    def mark(student: Submission) -> None:
        for number, about in exercises.items():
            task = about | {"number": number, "cells": _cells_of(student, number)}
            student.marks[number] = sandbox.examine(task, seconds, megabytes)
            bar.update()
        write_text(out.parent / "reports" / f"{student.name}.html", report(student))

    with bar, ThreadPoolExecutor(cpu_count()) as pool:
        list(pool.map(mark, students))
    write_text(out, marks_csv(students))
    return {
        "marks": str(out),
        "reports": str(out.parent / "reports"),
        "students": len(students),
        "exercises": len(exercises),
        "mean total": round(sum(student.total for student in students) / len(students), 2),
        "limits of each exercise": f"{seconds:g} s, {megabytes} MB",
        "network while marking": "cut off" if network_cut else "NOT cut off: this system does not allow it",
        "problems": [f"{student.name}: {problem}" for student in students for problem in student.problems],
    }


def marks_csv(students: list[Submission]) -> str:
    """A row per student: total, a mark per exercise, and the reasons for those that are not 1."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["student", "total", *EXERCISES, "reasons"])
    for student in students:
        lost = [f"{number}: {row['reason']}" for number, row in student.marks.items() if row["mark"] < 1]
        marks = [f"{student.marks[number]['mark']:g}" for number in EXERCISES]
        table.writerow(
            [_plain(student.name), f"{student.total:g}", *marks, _plain(" | ".join([*student.problems, *lost]))]
        )
    return text.getvalue()


def report(student: Submission) -> str:
    """A student's marks with their reasons, the written answers and the functions as one HTML page."""

    def block(text: str) -> str:
        return f"<pre>{escape(text)}</pre>"

    def row(number: str) -> str:
        result = student.marks[number]
        cells = number, EXERCISES[number].function, f"{result['mark']:g}", result["reason"]
        begin = "<tr class=lost>" if result["mark"] < 1 else "<tr>"
        return begin + "".join(f"<td>{escape(cell)}" for cell in cells) + "</tr>"

    def answer(number: str, text: str) -> str:
        written = "" if "YOUR ANSWER HERE" in text else f"<blockquote>{escape(text)}</blockquote>"
        return f"<h3>{escape(number)}</h3>{written or '<p>not written</p>'}"

    functions = []
    for number, exercise in EXERCISES.items():
        cells = [cell for cell in _cells_of(student, number) if re.search(rf"\b{exercise.function}\b\s*[(=]", cell)]
        functions += [f"<h3>{number}</h3>", *map(block, cells[:1])] if cells else []
    return PAGE.format(
        name=escape(student.name),
        total=student.total,
        most=len(EXERCISES),
        rows="".join(map(row, EXERCISES)),
        problems="".join(f"<p>{escape(problem)}</p>" for problem in student.problems),
        answers="".join(answer(*pair) for pair in student.answers) or "<p>none</p>",
        functions="".join(functions),
    )


def _exercises() -> dict[str, dict[str, Any]]:
    """Of each exercise: the code cells in front of it that are no exercises themselves, and its hidden tests."""
    found = {}
    for notebook in sources().values():
        setup: list[str] = []
        for cell in notebook.cells:
            checks = re.search(r'^check\("([\d.]+)"', cell.source, re.M)
            if cell.cell_type == "code" and checks:
                found[checks[1]] = {"setup": list(setup), "tests": "\n".join(between(cell.source, "HIDDEN TESTS"))}
            elif cell.cell_type == "code" and not between(cell.source, "SOLUTION"):
                setup.append(cell.source)
    missing = EXERCISES.keys() ^ found.keys()
    if missing:
        raise UserError(f"exercises {', '.join(sorted(missing))} are not in both the notebooks and the list")
    return {number: found[number] for number in EXERCISES}


def _read(folder: Path) -> Submission:
    """The notebooks of a student; one that cannot be read becomes a problem."""
    student = Submission(folder.name)
    for path in sorted(folder.rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        try:
            if path.stat().st_size > NOTEBOOK_BYTES:
                raise ValueError(f"larger than {NOTEBOOK_BYTES >> 20} MB")
            cells = json.loads(path.read_text("utf-8"))["cells"]
            texts = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            student.problems.append(f"{path.name}: not a notebook that can be read ({type(error).__name__}: {error})")
            continue
        student.notebooks[path.relative_to(folder).as_posix()] = [text for kind, text in texts if kind == "code"]
        number = ""
        for text in (text for kind, text in texts if kind == "markdown"):
            number = next(iter(HEADING.findall(text)), number)
            if QUESTION.search(text):
                student.answers.append((number, NEXT.sub("", text).strip()))
    if not student.notebooks and not student.problems:
        student.problems.append("no notebook in the folder")
    return student


def _cells_of(student: Submission, number: str) -> list[str]:
    """The code cells of the notebook with an exercise's function: of several, the one that is named like its own."""
    exercise = EXERCISES[number]
    defines: Callable = re.compile(rf"(?m)^\s*(?:def\s+{exercise.function}\b|{exercise.function}\s*=\s*lambda)").search
    candidates = {file: cells for file, cells in student.notebooks.items() if any(map(defines, cells))}
    named = [cells for file, cells in candidates.items() if exercise.notebook in file]
    return next(iter([*named, *candidates.values()]), [])


def _plain(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
