"""Coursework: every exercise's check, the student edition without answers, and marking that survives any submission."""

import csv
import functools
import json
import re
import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest

from vcutils.cli import main
from vcutils.course import editions, grading, sandbox
from vcutils.course.exercises import EXERCISES, check, is_right, verdict
from vcutils.course.mistakes import MISTAKES, message, solution_cells, table

REPO = Path(__file__).resolve().parents[1]
SOURCES = sorted((REPO / "notebooks" / "exercises").glob("*.py"))
ANSWERS = solution_cells()
TASKS = grading._exercises()


@pytest.fixture(scope="session")
def student(tmp_path_factory):
    """The student edition."""
    out = tmp_path_factory.mktemp("student")
    editions.student_edition(out)
    return out


def code_of(path):
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


@functools.cache
def said_to(mistake):
    """State and message of the check, asked once for all tests."""
    return message(mistake, ANSWERS[mistake.number])


def task(number, cells):
    return TASKS[number] | {"number": number, "cells": cells}


# Exercises and their checks


@pytest.mark.parametrize("number", EXERCISES)
def test_solution_is_right_by_check_and_hidden_tests(number):
    setup, solution = ANSWERS[number]
    assert sandbox.mark(task(number, [*setup, solution])) == {"mark": 1.0, "reason": "right"}


@pytest.mark.parametrize("number", EXERCISES)
def test_stub_fails_its_check_and_says_that_nothing_is_written(number, student, capsys):
    name = EXERCISES[number].function
    _, stub, _ = sandbox.definitions(code_of(student / f"{EXERCISES[number].notebook}.ipynb"), name)
    check(number, stub)
    said = capsys.readouterr().out
    assert said.startswith(f"{number} {name}: nothing is written yet.") and said.count("\n") == 1
    assert not is_right(number)


@pytest.mark.parametrize("number", EXERCISES)
def test_typical_mistakes_are_found(number):
    """Each in one sentence that names what differs, and no two exercises are without one."""
    mistakes = [mistake for mistake in MISTAKES if mistake.number == number]
    assert mistakes
    for mistake in mistakes:
        state, said = said_to(mistake)
        assert state == "wrong", f"the check of {number} does not find: {mistake.about}"
        assert 20 < len(said) < 400 and "\n" not in said and "Traceback" not in said


def test_usual_mistakes_are_told_apart_by_name():
    said = {mistake.about: said_to(mistake)[1] for mistake in MISTAKES}
    assert "when padding counts" in said["padding counts"]
    assert "Shift by one" in said["no shift: the target is the word just read"]
    assert "the sum over all words" in said["the sum, not the mean"]
    assert "ends at 39" in said["every n // k-th frame"]
    assert "exactly 0" in said["padding takes part"]
    assert "sum to 1" in said["weights set to 0 after the softmax, so that they do not sum to 1"]
    assert "above clip_norm" in said["no clipping"] and "eval mode" in said["dropout stays off"]


def test_guide_lists_the_mistakes_as_they_are(monkeypatch):
    guide = REPO / "docs" / "lecturers.md"
    text = guide.read_text("utf-8") if guide.is_file() else ""
    block = re.search(r"<!-- mistakes -->\n(.*?)\n<!-- /mistakes -->", text, re.S)
    if not block:
        pytest.skip("docs/lecturers.md has no table of mistakes")
    monkeypatch.setattr("vcutils.course.mistakes.message", lambda mistake, cells: said_to(mistake))
    assert block[1].strip() == table(), "run `python -m vcutils.course.mistakes` and paste its table"


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda X: X[0], r"must have the shape \(5, 5\), yours is Tensor of shape \(8,\)"),
        (lambda X: None, "returns nothing. Is `return` missing?"),
        (lambda X: X @ X, r"stopped with RuntimeError: mat1 and mat2 .* in line \d+ of your cell"),
        (lambda X: exit(), "stopped with SystemExit"),
        (lambda X: "similar", "must have the shape"),
        (lambda: 0, "stopped with TypeError"),
        ("cosine", "is not a function but str"),
    ],
)
def test_message_names_the_first_place_and_shows_no_traceback(function, said, capsys):
    check("1.2", function)
    out = capsys.readouterr()
    assert re.search(said, out.out) and out.out.startswith("1.2 cosine: not yet.")
    assert "Traceback" not in out.out + out.err and out.out.count("\n") == 1


def test_check_of_another_number_and_a_check_after_mending(capsys):
    check("9.9", len)
    assert "There is no exercise '9.9'" in capsys.readouterr().out
    check("2.3", lambda ids: (ids, ids))
    assert not is_right("2.3")
    check("2.3", lambda ids: (ids[..., :-1], ids[..., 1:]))
    assert is_right("2.3") and "right" in capsys.readouterr().out


def test_check_leaves_the_random_numbers_of_the_notebook_as_they_were():
    import torch

    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    verdict("1.2", lambda X: X)
    assert torch.equal(torch.rand(1), expected)


# The student edition


def test_student_edition_is_five_notebooks_and_the_same_bytes_each_time(student, tmp_path):
    assert main(["course", "student", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{path.stem}.ipynb" for path in SOURCES]
    for path in student.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_student_edition_holds_no_answer(student):
    text = {path.stem: path.read_text("utf-8") for path in student.iterdir()}
    plain = {stem: "\n".join(cell.source for cell in nbformat.reads(t, 4).cells) for stem, t in text.items()}
    hidden = 0
    for path in SOURCES:
        for cell in jupytext.read(path).cells:
            tests = [line for line in editions.between(cell.source, "HIDDEN TESTS") if "assert" in line]
            for line in map(str.strip, editions.between(cell.source, "SOLUTION") + tests):
                if len(line) > 3 and line not in ("break", "else:", "return"):
                    hidden += 1
                    for stem in text:
                        assert line not in plain[stem], f"{stem} holds {line!r} of {path.stem}"
                        assert json.dumps(line)[1:-1] not in text[stem]
    assert hidden > 150
    for stem, content in text.items():
        assert not re.search("BEGIN|END SOL|HIDDEN", content), f"a marker in {stem}"


def test_student_edition_has_stubs_and_neither_outputs_nor_metadata(student):
    for path in student.iterdir():
        notebook = nbformat.read(path, 4)
        nbformat.validate(notebook)
        assert set(notebook.metadata) == {"kernelspec"} and not any(cell.metadata for cell in notebook.cells)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert not any(cell.outputs or cell.execution_count for cell in code)
        stubs = [cell for cell in code if "    # YOUR CODE HERE\n    raise NotImplementedError" in cell.source]
        assert len(stubs) == sum(exercise.notebook == path.stem for exercise in EXERCISES.values())
        questions = [cell for cell in notebook.cells if grading.QUESTION.search(cell.source)]
        assert all("*YOUR ANSWER HERE*" in cell.source for cell in questions)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_statement_has_time_hint_and_a_number_to_expect(path):
    cells = [cell.source for cell in jupytext.read(path).cells]
    for number, exercise in EXERCISES.items():
        if exercise.notebook == path.stem:
            (statement,) = [cell for cell in cells if f"## Exercise {number} · " in cell]
            for part in (f"- **Time** about {exercise.minutes} minutes", "- **Hint**", "- **Expect**"):
                assert part in statement, f"{number} has no {part}"
            assert f"| {number} | `{exercise.function}(" in cells[0]
            assert any(cell.startswith(f'check("{number}", {exercise.function})') for cell in cells)


@pytest.mark.parametrize("source", ["### BEGIN SOLUTION", "### END SOLUTION", "### BEGIN SOLUTION\n### BEGIN SOLUTION"])
def test_marker_without_its_partner_stops_the_edition(source):
    with pytest.raises(editions.UserError, match="cell x"):
        editions._replaced(source, "SOLUTION", (), "x")


# Marking


def write(folder, cells_of):
    """A student's five notebooks, with other cells in place of those with stubs: {number: source}."""
    folder.mkdir(parents=True)
    for stem, notebook in editions.sources().items():
        for cell in notebook.cells:
            for number, source in cells_of.items():
                if cell.source == ANSWERS[number][1]:
                    cell.source = source
        nbformat.write(notebook, folder / f"{stem}.ipynb")


@pytest.fixture(scope="module")
def marked(tmp_path_factory, student):
    """marks.csv of six submissions as {student: row}, and the folder that it lies in."""
    root = tmp_path_factory.mktemp("marking")
    wrong = {}
    for mistake in MISTAKES:
        wrong.setdefault(mistake.number, ANSWERS[mistake.number][1].replace(mistake.right, mistake.wrong))
    write(root / "all" / "right", {})
    shutil.copytree(student, root / "all" / "blank")
    write(root / "all" / "wrong", wrong)
    write(root / "all" / "loop", {"1.1": "def frame_indices(n, k):\n    while True:\n        pass"})
    write(
        root / "all" / "bomb",
        {"1.2": "def cosine(X):\n    rows = []\n    while True:\n        rows.append(bytes(10**8))"},
    )
    write(root / "all" / "syntax", {"2.2": "def collate(clips)\n    return clips", "2.3": "x = (\n"})
    (root / "all" / "syntax" / "03_train.ipynb").write_text("{ not a notebook")
    summary = grading.grade(root / "all", root / "out" / "marks.csv", seconds=3, megabytes=800)
    rows = {row["student"]: row for row in csv.DictReader((root / "out" / "marks.csv").open(encoding="utf-8"))}
    return rows, root / "out", summary


def test_six_submissions_get_the_expected_table(marked):
    rows, _, summary = marked
    lost = {name: {n for n in EXERCISES if row[n] != "1"} for name, row in rows.items()}
    every, third = set(EXERCISES), {n for n in EXERCISES if n.startswith("3")}
    assert lost == {
        "right": set(),
        "blank": every,
        "wrong": every,
        "loop": {"1.1"},
        "bomb": {"1.2"},
        "syntax": {"2.2", "2.3", *third},
    }
    totals = {name: float(row["total"]) for name, row in rows.items()}
    assert totals == {"right": 19, "blank": 0, "wrong": 0, "loop": 18, "bomb": 18, "syntax": 12}
    assert summary["students"] == 6 and "network while marking" in summary


def test_every_lost_mark_has_its_reason(marked):
    rows, _, _ = marked
    assert rows["right"]["reasons"] == ""
    assert rows["blank"]["reasons"].count("not written") == len(EXERCISES)
    assert "1.1: stopped after 3 seconds of computing: an endless loop?" in rows["loop"]["reasons"]
    assert "1.2: It stopped with MemoryError" in rows["bomb"]["reasons"]
    reasons = rows["syntax"]["reasons"]
    assert "03_train.ipynb: not a notebook that can be read" in reasons
    assert "2.2: the cell with `collate` cannot be read: SyntaxError in line 1" in reasons
    assert "2.3: no function `inputs_targets`" in reasons


def test_report_shows_marks_answers_and_functions_and_escapes_them(marked):
    _, out, _ = marked
    assert sorted(path.stem for path in (out / "reports").iterdir()) == sorted(
        ["right", "blank", "wrong", "loop", "bomb", "syntax"]
    )
    page = (out / "reports" / "right.html").read_text("utf-8")
    assert "19 of 19" in page and "Without the BiLSTM each frame is encoded alone" in page
    assert "times &lt; event[&quot;end&quot;]" in page and "<script" not in page
    assert "<h3>3.5</h3><blockquote>**Your paragraph** Which row" in page and "**Next**" not in page
    blank = (out / "reports" / "blank.html").read_text("utf-8")
    assert blank.count("<p>not written</p>") == 5 and "<tr class=lost>" in blank and "class=lost" not in page
    assert "an endless loop?" in (out / "reports" / "loop.html").read_text("utf-8")


HELPERS = [
    "%matplotlib inline\nimport math, no_such_module",
    "import torch\nfrom math import sqrt\nsmallest = float('1e-6')\nraise ValueError('a cell that fails')",
    "def length(row):\n    return max(sqrt(float((row ** 2).sum())), smallest)",
    "def cosine(X):\n    rows = torch.stack([row / length(row) for row in X])\n    return rows @ rows.T",
    "print(cosine(run.data))",
]


def test_helper_cells_are_there_and_failing_ones_are_not_in_the_way():
    assert sandbox.mark(task("1.2", HELPERS))["mark"] == 1.0


def test_right_by_the_check_alone_is_half():
    cell = ANSWERS["1.1"][1].replace("k = min(n, k)", "k = min(n, k)\n    if n == 200: return [0]")
    result = sandbox.mark(task("1.1", [cell]))
    assert result["mark"] == 0.5 and "a hidden test fails: n = 200, k = 49" in result["reason"]


def test_imported_function_is_not_written():
    result = sandbox.mark(task("1.1", ["from vcutils.video import frame_indices"]))
    assert result == {"mark": 0.0, "reason": "no function `frame_indices` in any notebook"}


TRICKS = {
    "writes a mark of its own, out of range": (
        "import json, os, pathlib\ndef cosine(X):\n    pathlib.Path('result.json').write_text(json.dumps({'mark': 99, "
        "'reason': 'x'}))\n    os._exit(0)",
        "ended early",
    ),
    "writes a result that is no JSON": (
        "import os\ndef cosine(X):\n    open('result.json', 'wb').write(b'\\x80\\x04cos')\n    os._exit(0)",
        "ended early",
    ),
    "kills itself": ("import os\ndef cosine(X):\n    os.kill(os.getpid(), 9)", "ended by signal 9"),
    "prints a lot": ("def cosine(X):\n    print('x' * 10**7)\n    return X", "shape"),
    "opens a connection": (
        "import socket\ndef cosine(X):\n    socket.create_connection(('127.0.0.1', PORT), timeout=5)\n    return X",
        "It stopped with",
    ),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_marking_survives(trick):
    import socket

    source, reason = TRICKS[trick]
    with socket.create_server(("127.0.0.1", 0)) as server:
        if "PORT" in source and not sandbox.network_is_cut():
            pytest.skip("this system does not let a process give up its network")
        cells = [source.replace("PORT", str(server.getsockname()[1]))]
        result = sandbox.examine(task("1.2", cells), seconds=5)
    assert result["mark"] == 0.0 and reason in result["reason"]


def test_code_that_only_waits_is_stopped_and_not_called_a_loop(monkeypatch):
    monkeypatch.setattr(sandbox, "WAITING", 3)
    cells = ["import time\ndef cosine(X):\n    time.sleep(10**6)"]
    reason = sandbox.examine(task("1.2", cells), seconds=0.5)["reason"]
    assert reason == "stopped after 3 seconds: does it wait for something?"


def test_table_is_safe_to_open_in_a_spreadsheet(tmp_path):
    student = grading.Submission("=HYPERLINK(1)", problems=["=2+2"])
    student.marks = {number: {"mark": 1.0, "reason": "right"} for number in EXERCISES}
    (row,) = csv.DictReader(grading.marks_csv([student]).splitlines())
    assert row["student"] == "'=HYPERLINK(1)" and row["reasons"] == "'=2+2"


@pytest.mark.parametrize("args", [["grade"], ["grade", "nowhere"], ["everything"]])
def test_wrong_use_of_the_command_is_2(args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        assert main(["course", *args]) == 2
    except SystemExit as stop:
        assert stop.code == 2
