"""`make test`: pytest, the notebooks, the exercises' solutions and the short matrix, two jobs at a time.

    python tests/run_all.py

One process with two threads leaves a core idle for much of pytest; two processes with a thread each do not. What a job
prints is shown when it ends, and a table of all jobs at the end. Plain `python -m pytest` runs the same tests in one.
"""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
FIRST = "abce"  # letters behind test_: files that share the trained run of conftest.py, and half of the time


def parts() -> dict[str, list[str]]:
    """The test files in three parts, each file in one: what a part is called, and its paths."""
    names = sorted(path.relative_to(REPO).as_posix() for path in REPO.glob("tests/**/test_*.py"))
    names = [name for name in names if not name.startswith("tests/browser/")]
    first = [name for name in names if name.removeprefix("tests/test_")[0] in FIRST]
    others = [name for name in names if name not in first]
    return {f"pytest {FIRST}": first, "pytest others": others, "pytest browser": ["tests/browser"]}


def commands() -> dict[str, list[list[str]]]:
    """What each job runs, one command after the other, in the order in which jobs begin."""
    pytest = [sys.executable, "-m", "pytest"]
    patience = ["--nbval-cell-timeout=300", "--nbval-kernel-startup-timeout=300"]
    nbval = ["--nbval-lax", "--nbval-current-env", *patience, "-p", "no:cacheprovider", "notebooks"]
    solutions = [sys.executable, "-m", "vcutils", "course", "solutions", "--out", "{scratch}/solutions"]
    return {
        **{name: [[*pytest, *paths]] for name, paths in parts().items()},
        "notebooks": [[*pytest, *nbval], solutions],
        "matrix": [[sys.executable, "tests/matrix/run.py", "--short"]],  # last, since it runs two rows at a time
    }


def run(name: str, job: list[list[str]]) -> tuple[str, float, int]:
    """Run a job's commands until one fails, and print what they print; its name, seconds and status."""
    threads = max(1, (os.cpu_count() or 1) // 2)
    print(f"begins: {name}\n", end="", flush=True)
    start, output, status = time.monotonic(), [], 0
    with tempfile.TemporaryDirectory(prefix="vcutils-test-") as scratch:
        env = {"OMP_NUM_THREADS": str(threads), **os.environ}
        if name == "notebooks":
            env |= {"VCUTILS_PROFILE": "tiny", "VCUTILS_CORPUS": "", "VCUTILS_DATA": scratch, "TQDM_DISABLE": "1"}
        for command in job:
            command = [part.format(scratch=scratch) for part in command]
            done = subprocess.run(command, cwd=REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            output += ["$ " + " ".join(command), done.stdout.decode("utf-8", "replace")]
            if status := done.returncode:
                break
    print("\n".join([f"{'failed' if status else 'done'}: {name}", *output]), flush=True)
    return name, time.monotonic() - start, status


def main() -> int:
    """Run all jobs; 1 if any failed."""
    start = time.monotonic()
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        rows = list(pool.map(run, *zip(*commands().items(), strict=True)))
    for name, seconds, status in rows:
        print(f"{name:<20}{seconds:>6.0f} s  {'failed' if status else 'ok'}")
    print(f"all in {time.monotonic() - start:.0f} s")
    return int(any(status for _, _, status in rows))


if __name__ == "__main__":
    sys.exit(main())
