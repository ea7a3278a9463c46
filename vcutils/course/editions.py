"""The exercise notebooks as editions: for students, without answers; for lecturers, executed.

Both come from notebooks/exercises/*.py. Answers stand there between BEGIN SOLUTION and END SOLUTION, lecturers' tests
between BEGIN HIDDEN TESTS and END HIDDEN TESTS (nbgrader's text conventions; no tags, no metadata).
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from vcutils.config import PROJECT_ROOT, UserError
from vcutils.runtime.files import write_text

SOURCES = PROJECT_ROOT / "notebooks" / "exercises"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
CODE_STUB = ("# YOUR CODE HERE", "raise NotImplementedError")
PATIENCE = 600  # seconds for a kernel to start: on a machine that a class shares, a minute is not enough
TEXT_STUB = ("*YOUR ANSWER HERE*",)


def sources() -> dict[str, Any]:
    """The exercise notebooks by stem, with cell ids that never change. Raises UserError outside of a checkout."""
    notebooks = {}
    for path in sorted(SOURCES.glob("*.py")):
        notebook = jupytext.read(path, fmt="py:percent")
        notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL})
        notebook.nbformat, notebook.nbformat_minor = 4, 5
        for number, cell in enumerate(notebook.cells):
            cell.metadata = nbformat.from_dict({})
            cell["id"] = f"{path.stem}-{number:02d}"
        notebooks[path.stem] = notebook
    if not notebooks:
        raise UserError(f"{SOURCES}: no exercises; editions are made in a checkout of the project")
    return notebooks


def student_edition(out: Path) -> list[Path]:
    """Write the five notebooks without solutions, hidden tests and outputs into the folder `out`.

    The same sources give the same bytes. Returns the files. Raises UserError for a marker without its partner, and for
    the folder of the sources.
    """
    paths = []
    if out.resolve() == SOURCES:
        raise UserError(f"{out}: holds the solutions; name another folder for the students' notebooks")
    for stem, notebook in sources().items():
        for cell in notebook.cells:
            stub = CODE_STUB if cell.cell_type == "code" else TEXT_STUB
            source = _replaced(cell.source, "SOLUTION", stub, cell["id"])
            source = _replaced(source, "HIDDEN TESTS", (), cell["id"])
            cell.source = re.sub(r"\[([^]]+)\]\(\.\./[^)]+\)", r"\1", source).strip()  # links to what lies elsewhere
        paths.append(out / f"{stem}.ipynb")
        write_text(paths[-1], nbformat.writes(notebook) + "\n")
    return paths


def solutions(out: Path) -> list[Path]:
    """Execute the five notebooks with their solutions and write them, with outputs, into the folder `out`.

    Returns the files. Raises UserError that names the notebook in which a cell fails.
    """
    paths, quiet = [], {**os.environ, "TQDM_DISABLE": "1"}
    for stem, notebook in sources().items():
        options: dict[str, Any] = {"timeout": None, "startup_timeout": PATIENCE, "record_timing": False}
        folder = {"metadata": {"path": str(SOURCES)}}
        client = NotebookClient(notebook, resources=folder, store_widget_state=False, **options)
        try:
            client.execute(env=quiet)
        except CellExecutionError as error:
            raise UserError(f"{stem}: a cell fails\n{error}") from error
        notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL})
        paths.append(out / f"{stem}.ipynb")
        write_text(paths[-1], nbformat.writes(notebook) + "\n")
    return paths


def between(source: str, what: str) -> list[str]:
    """The lines of a cell between BEGIN `what` and END `what`, without the markers."""
    lines, inside = [], False
    for line in source.split("\n"):
        if f"BEGIN {what}" in line or f"END {what}" in line:
            inside = f"BEGIN {what}" in line
        elif inside:
            lines.append(line)
    return lines


def _replaced(source: str, what: str, stub: Sequence[str], cell: str) -> str:
    """A cell's source with `stub`, indented as its marker, in place of all between BEGIN and END of `what`."""
    lines, inside = [], False
    for line in source.split("\n"):
        begins, ends = f"BEGIN {what}" in line, f"END {what}" in line
        if (begins and inside) or (ends and not inside):
            raise UserError(f"cell {cell}: BEGIN {what} and END {what} do not come in pairs")
        if begins:
            indent = line[: len(line) - len(line.lstrip())]
            lines += [indent + text for text in stub]
        elif not inside and not ends:
            lines.append(line)
        inside = begins or (inside and not ends)
    if inside:
        raise UserError(f"cell {cell}: BEGIN {what} without END {what}")
    return "\n".join(lines)
