"""`make matrix`: the five notebooks as users run them, with every profile on every kind of corpus.

    python tests/matrix/run.py            every row
    python tests/matrix/run.py --short    the rows that `make test` runs
    python tests/matrix/run.py --keep X   leave the data folders and the executed notebooks in folder X, to look into

A row executes 01 to 05 in a data folder of its own, stops at the first error, and then checks what the notebooks wrote.
The .py twins are what runs. Trainings are cut to two epochs: a row tells that the notebooks hold, not how well a model
captions. Nothing is downloaded: random weights, made for this run alone, stand in for ResNet-152's.
Only rows on the fourteen clips see Java, if there is one: METEOR takes ten seconds of every row that has it.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from torchvision.models import ResNet152_Weights, resnet152

from vcutils.corpora import sample

REPO = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.py"))
MSVD_MINI = Path(os.environ.get("VCUTILS_SHARED") or REPO.parent / "shared") / "corpora" / "msvd-mini"

SMALL = "extract.num_frames=4 train.epochs=2"
SETTINGS = {  # name: profile, VCUTILS_SET, backbone that the profile stands for
    "tiny": ("tiny", SMALL, "efficientnet_lite0"),
    "sample": ("sample", f"{SMALL} train.captions_per_clip=2", "efficientnet_lite0"),
    "msvd": ("msvd", f"{SMALL} train.captions_per_clip=2", "resnet152"),
    "msvd, original": ("msvd", f"train=original {SMALL}", "resnet152"),
}
CORPORA = ("embedded", "msvd-mini", "features", "fourteen", "broken")
SHORT = (
    ("msvd", "fourteen"),
    ("msvd, original", "features"),
    ("tiny", "features"),
    ("tiny", "fourteen"),
    ("tiny", "broken"),
)
DIM = {"efficientnet_lite0": 1280, "resnet152": 2048}


class Failed(Exception):
    """A row that did not hold; the message says where."""


@dataclass
class Row:
    """One line of the table."""

    settings: str
    corpus: str
    seconds: float = 0.0
    result: str = "ok"


def made_frames(n: int) -> int:
    """Frames of the n-th clip of made features."""
    return 3 + n % 8


def make_features(root: Path) -> None:
    """Features without videos: ragged lengths, made numbers that differ by topic, one to four captions per clip."""
    rng = np.random.default_rng(0)
    folder, lines = root / "features" / "made", []
    folder.mkdir(parents=True)
    for n in range(20):
        features = rng.normal(0, 0.3, (made_frames(n), 24)).astype(np.float32)
        features[:, n % 4] += 2
        np.save(folder / f"clip{n:02d}.npy", features)
        noun, verb = (("cat", "sits"), ("dog", "runs"), ("man", "sings"), ("woman", "cooks"))[n % 4]
        texts = (f"a {noun} {verb}", f"the {noun} {verb} now", f"there is a {noun}", f"a {noun} in a room {verb}")
        lines += [f"clip{n:02d} {text}" for text in texts[: 1 + n % 3]]
    (root / "captions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_fourteen(root: Path, rendered: Path) -> None:
    """Fourteen clips with one caption each, and no split of their own."""
    shutil.copytree(rendered / "videos", root / "videos")
    lines = [line for line in (rendered / "captions.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    first = {line.split()[0]: line for line in reversed(lines)}
    (root / "captions.txt").write_text("\n".join(sorted(first.values())) + "\n", encoding="utf-8")


def make_broken(root: Path, rendered: Path) -> None:
    """Good clips among which some are no video, cut or empty; the alphabetically first three are broken."""
    shutil.copytree(rendered, root)
    (root / "splits.json").unlink()
    clips = sorted((root / "videos").iterdir())
    clips[0].write_text("this is no video", encoding="utf-8")
    clips[1].write_bytes(b"")
    clips[2].write_bytes(clips[2].read_bytes()[:3000])
    clips[7].write_bytes(np.random.default_rng(0).bytes(5000))


def make_corpora(root: Path) -> dict[str, Path | None]:
    """A folder for each name in CORPORA; None = VCUTILS_CORPUS stays unset."""
    rendered = sample.build(root / "rendered", clips=14, progress=False)
    make_features(root / "features")
    make_fourteen(root / "fourteen", rendered)
    make_broken(root / "broken", rendered)
    return {"embedded": None, "msvd-mini": MSVD_MINI, **{name: root / name for name in CORPORA[2:]}}


def make_weights(torch_home: Path) -> None:
    """Random weights under the file name of ResNet-152's; each block adds little, so features fit into float16."""
    torch.manual_seed(0)
    model = resnet152()
    for name, parameter in model.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.constant_(parameter, 0.1)
    folder = torch_home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(model.state_dict(), folder / Path(next(iter(ResNet152_Weights)).url).name)


def execute(path: Path, env: dict[str, str], out: Path) -> None:
    """Run one notebook in a kernel of its own and write it to `out`.

    Raises Failed at the first error, and for a traceback or a nan in what it shows.
    """
    notebook = jupytext.read(path)
    where = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook, timeout=600, startup_timeout=600, resources=where, extra_arguments=["--log-level=ERROR"]
    )
    error = ""
    try:
        client.execute(env=env)
    except CellExecutionError as stopped:
        error = f"{stopped.ename}: {stopped.evalue}"
    except (CellTimeoutError, DeadKernelError) as stopped:
        error = f"{type(stopped).__name__}: {stopped}"
    out.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, out / f"{path.stem}.ipynb")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    reached = max((n for n, cell in enumerate(code) if cell.get("execution_count") or cell.outputs), default=0)
    if error:
        raise Failed(f"{path.stem}, code cell {reached + 1} ({code[reached].source.splitlines()[0][:50]}): {error}")
    for number, cell in enumerate(code, 1):
        for output in cell.outputs:
            data = output.get("data", {})
            text = "\n".join([output.get("text", ""), data.get("text/plain", ""), data.get("text/markdown", "")])
            if problem := re.search(r"Traceback \(most recent|^.*\bnan\b.*$", text, re.MULTILINE):
                raise Failed(f"{path.stem}, code cell {number} shows {problem.group()!r}")


def check(data: Path, row: Row, backbone: str) -> None:
    """What must be true of a data folder after notebook 05. Raises Failed."""
    metrics = sorted(data.glob("*/runs/default/metrics_test.json"))
    if len(metrics) != 1:
        raise Failed(f"{len(metrics)} metrics_test.json were written")
    measured = json.loads(metrics[0].read_text("utf-8"))
    expected = "made" if row.corpus == "features" else backbone
    if (used := measured["protocol"]["features"]) != expected:
        raise Failed(f"metrics_test.json was measured with features {used}, not {expected}")
    clips = json.loads(metrics[0].with_name("predictions_test.json").read_text("utf-8"))
    longest = max(made_frames(int(i[4:])) for i in clips) if row.corpus == "features" else 4
    if (told := measured["protocol"]["frames per clip"]["max"]) != longest:
        raise Failed(f"metrics_test.json tells {told} frames per clip, not {longest}")
    stores = {path.name: path for path in data.glob("*/features/*")}
    if set(stores) != (set() if row.corpus == "features" else {backbone}):
        raise Failed(f"features were written for {sorted(stores) or 'no backbone'}")
    for path in (p for store in stores.values() for p in store.glob("*.npy")):
        features = np.load(path)
        if features.shape[1] != DIM[backbone] or not np.isfinite(features).all():
            raise Failed(f"{path.name}: features of shape {features.shape}, or not finite")


def run(row: Row, root: Path, corpora: dict[str, Path | None], keep: bool) -> Row:
    """Execute one row and fill in its time and result."""
    profile, changes, backbone = SETTINGS[row.settings]
    corpus, data = corpora[row.corpus], root / f"{row.settings}-{row.corpus}".replace(", ", "-")
    if corpus is not None and not (corpus / "captions.txt").is_file():
        row.result = f"skipped: no {corpus}; set VCUTILS_SHARED to a folder with corpora/{row.corpus}"
        return row
    env = os.environ | {"VCUTILS_PROFILE": profile, "VCUTILS_SET": changes, "VCUTILS_DATA": str(data)}
    env |= {"VCUTILS_CORPUS": str(corpus or ""), "TORCH_HOME": str(root / "torch"), "PYTHONPATH": str(REPO)}
    env |= {"TQDM_DISABLE": "1", "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if row.corpus != "fourteen":
        env |= {"PATH": "", "JAVA_HOME": ""}
    start = time.monotonic()
    try:
        for path in NOTEBOOKS:
            execute(path, env, data / "notebooks")
        check(data, row, backbone)
    except Failed as failed:
        row.result = f"failed: {failed}"
    row.seconds = time.monotonic() - start
    print(f"{row.settings} × {row.corpus}: {row.result} ({row.seconds:.0f} s)", file=sys.stderr, flush=True)
    if not keep:  # models of ten rows would fill a small disk
        shutil.rmtree(data, ignore_errors=True)
    return row


def main(arguments: list[str]) -> int:
    """Run the rows, two at a time; 1 if any failed."""
    parser = argparse.ArgumentParser(description="The notebooks with every profile on every kind of corpus.")
    parser.add_argument("--short", action="store_true", help="the rows that `make test` runs")
    parser.add_argument("--keep", type=Path, help="a new folder for the data folders and the executed notebooks")
    options = parser.parse_args(arguments)
    pairs = SHORT if options.short else [(settings, corpus) for settings in SETTINGS for corpus in CORPORA]
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vcutils-matrix-") as scratch:
        root = (options.keep or Path(scratch)).resolve()
        corpora = make_corpora(root / "corpora")
        make_weights(root / "torch")
        with ThreadPoolExecutor(2) as pool:  # one thread each: two kernels on two cores
            rows = list(pool.map(lambda pair: run(Row(*pair), root, corpora, options.keep is not None), pairs))
    print(f"{'settings':<16}{'corpus':<12}{'seconds':>8}  result")
    for row in rows:
        print(f"{row.settings:<16}{row.corpus:<12}{row.seconds:>8.0f}  {row.result}")
    failures = sum(row.result.startswith("failed") for row in rows)
    print(f"{len(rows)} rows in {time.monotonic() - start:.0f} s, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
