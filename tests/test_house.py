"""The promises that the repository makes about itself: notebooks, README, Makefile, module order."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ORDER = (
    "config sample corpus video workers extract store vocab dataset model decode ptb metrics doctor reinforce "
    "checkpoint train evaluate ablate attention trust page explorer cli"
).split()


def code_cells(path: Path) -> list[dict]:
    return [c for c in json.loads(path.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]


def test_there_are_five_notebooks():
    assert [p.stem for p in NOTEBOOKS] == ["01_extract", "02_vocab", "03_train", "04_evaluate", "05_attention"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_equals_its_py_twin(path):
    def cells(notebook):
        return [(c["cell_type"], c["source"].strip()) for c in notebook["cells"]]

    assert cells(jupytext.read(path)) == cells(jupytext.read(path.with_suffix(".py"))), "run `make outputs`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_clean(path):
    notebook = json.loads(path.read_text("utf-8"))
    assert "widgets" not in notebook["metadata"], "saved widget state breaks the rendering on the web"
    assert path.stat().st_size < 1_000_000
    for cell in code_cells(path):
        source = "".join(cell["source"])
        assert not re.search(r"^\s*[%!](?!matplotlib inline$)", source, re.M), f"magic in {source!r}"
        assert not [o for o in cell["outputs"] if o["output_type"] == "error"]
        assert cell["execution_count"] is not None, f"not executed: {source!r}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_opens_with_goal_files_and_time(path):
    first = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])
    for part in ("**Goal**", "| reads | writes |", "CPU, sample corpus", "**You will**"):
        assert part in first
    last = "".join(json.loads(path.read_text("utf-8"))["cells"][-1]["source"])
    assert "## Recap" in last and "## Exercises" in last


def test_readme_names_commands_that_exist():
    readme, makefile = (ROOT / "README.md").read_text("utf-8"), (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    assert set(re.findall(r"\bmake ([a-z]+)\b", readme)) - {"the"} <= targets
    from vcutils.cli import VERBS

    assert set(re.findall(r"python -m vcutils ([a-z]+)", readme)) <= {verb.__name__ for verb in VERBS}
    for link in re.findall(r"\]\(([^)#]+)\)", readme):
        assert (ROOT / link).exists(), f"README links to {link}"


def test_ci_runs_the_readme_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-1]


def test_modules_import_only_from_their_left():
    modules = sorted(p.stem for p in (ROOT / "vcutils").glob("[a-z]*.py"))
    assert set(modules) <= set(ORDER), "a module without a place in the house"
    for name in modules:
        tree = ast.parse((ROOT / "vcutils" / f"{name}.py").read_text("utf-8"))
        used = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "vcutils":
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vcutils."):
                used.add(node.module.split(".")[1])
        right = {u for u in used if u in ORDER and ORDER.index(u) >= ORDER.index(name)}
        assert not right, f"{name} imports {right}, which stand right of it"


def test_neither_the_package_nor_its_help_waits_for_torch():
    for start in ("import vcutils", "from vcutils.cli import main; main(['--help'])"):
        code = f"import sys, atexit; atexit.register(lambda: print('torch' in sys.modules)); {start}"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False", f"{start} imports torch"


def test_every_requirement_has_bounds_and_a_reason():
    for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            assert re.match(r"^[\w-]+>=[\d.]+,<\d+\s+# \S", line), line
