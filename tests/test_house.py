"""The promises that the repository makes about itself: notebooks, README, Makefile, who may import whom."""

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
LESSON = ("config", "corpus", "video", "features", "vocab", "dataset", "model", "decode", "train")
FOLDERS = ("runtime", "scores", "attention", "corpora", "course")
MODULES = sorted((ROOT / "vcutils").rglob("*.py"))


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
    assert path.stat().st_size < 1_500_000
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


def allowed(path: Path) -> set[str]:
    """What a module of the package may import of it: names of lesson modules, folders and cli."""
    part = path.relative_to(ROOT / "vcutils").parts[0].removesuffix(".py")
    if part in LESSON:
        return {*LESSON[: LESSON.index(part)], "runtime"}
    if part == "runtime":
        return {"config", "video", "runtime"}
    if part in FOLDERS:
        return {*LESSON, *FOLDERS[: FOLDERS.index(part) + 1]}
    return {"cli": {*LESSON, *FOLDERS}, "__main__": {"cli"}, "__init__": set()}[part]


def imported(path: Path) -> set[str]:
    """What a module imports of the package, inside functions and under TYPE_CHECKING too."""
    modules, folder = set(), ["vcutils", *path.relative_to(ROOT / "vcutils").parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*folder[: len(folder) + 1 - node.level], *filter(None, [node.module])])
            base = base if node.level else str(node.module)
            modules |= {f"{base}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in modules if name.startswith("vcutils.")} - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT / "vcutils").as_posix())
def test_modules_import_what_stands_above_them(path):
    """The lesson reads top to bottom; what makes it fast and safe stands behind it, not in its way."""
    assert imported(path) <= allowed(path)


def test_every_module_has_a_place_in_the_house():
    names = {path.relative_to(ROOT / "vcutils").parts[0].removesuffix(".py") for path in MODULES}
    assert {*LESSON, "runtime", "scores", "attention", "corpora", "cli", "__main__", "__init__"} <= names
    assert names <= {*LESSON, *FOLDERS, "cli", "__main__", "__init__"}


def lines_of(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


def test_lesson_is_read_in_an_evening():
    sizes = {name: len(lines_of(ROOT / "vcutils" / f"{name}.py")) for name in LESSON}
    assert max(sizes.values()) <= 220 and sum(sizes.values()) <= 1300, sizes


@pytest.mark.parametrize("name", LESSON)
def test_lesson_fits_a_page_in_width(name):
    long = [n for n, line in enumerate(lines_of(ROOT / "vcutils" / f"{name}.py"), 1) if len(line) > 100]
    assert not long, f"{name}.py: longer than 100 columns: lines {long}"


def test_package_stays_small():
    """With coursework left out: it is counted by itself."""
    counted = [path for path in MODULES if "course" not in path.relative_to(ROOT / "vcutils").parts]
    assert sum(len(lines_of(path)) for path in counted) <= 8126  # to become 5,800: it must not grow


@pytest.mark.parametrize("folder", [f for f in FOLDERS if (ROOT / "vcutils" / f).is_dir()])
def test_every_folder_says_what_it_is_for(folder):
    path = ROOT / "vcutils" / folder / "__init__.py"
    text = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    assert text and len(text.split()) >= 5, f"{path} does not say what the folder is for"


def test_neither_the_package_nor_its_help_waits_for_torch_or_for_arrow():
    for start in ("import vcutils", "from vcutils.cli import main; main(['--help'])"):
        slow = "any(name in sys.modules for name in ('torch', 'pyarrow', 'datasets'))"
        code = f"import sys, atexit; atexit.register(lambda: print({slow})); {start}"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False", f"{start} imports what is slow"


@pytest.mark.parametrize("path", ["requirements.txt", "docs/site/requirements.txt"])
def test_every_requirement_has_bounds_and_a_reason(path):
    for line in (ROOT / path).read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            assert re.match(r"^[\w-]+>=[\d.]+,<\d+\s+# \S", line), line


def test_pyproject_names_the_same_requirements():
    def requirements(text, pattern):
        return re.findall(pattern + r"([\w-]+>=[\d.]+,<\d+)", text, re.M)

    listed = requirements((ROOT / "requirements.txt").read_text("utf-8"), "^")
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert requirements(project, r'^    "') == listed
    packages = {".".join(path.relative_to(ROOT).parts[:-1]) for path in MODULES}
    installed = re.search(r'^packages = (\["vcutils", .*\])$', project, re.M)
    assert installed and set(json.loads(installed[1])) == packages
