"""Student code in a process of its own: with limits of time, memory and files, and without the network where possible.

The process writes its result as a small JSON file; nothing that student code made is ever unpickled. This is a fence
against accidents, not against attacks: code that wants to can read files, and forge its own mark. Mark in a container.
"""

import ast
import ctypes
import json
import linecache
import multiprocessing
import os
import re
import signal
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from vcutils.course.exercises import EXERCISES, TOPICS, describe, verdict

SECONDS, MEGABYTES = 20.0, 2000  # of one exercise; memory beyond what Python and torch take themselves
WAITING = 120.0  # seconds after which code that computes nothing is stopped
FILE_BYTES, RESULT_BYTES = 64 << 20, 1 << 16
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # flags of Linux' unshare
PRELOAD = [  # what the notebooks' setup cells import
    "nltk",
    "vcutils.course.artifacts",
    "vcutils.attention.checks",
    "vcutils.corpora.sample",
    "vcutils.scores.ablations",
    *(f"vcutils.course.{module}" for _, module in TOPICS.values()),
]
IMPORTS = (ast.Import, ast.ImportFrom)
BUILDS = re.compile(r"\bcourse_(?:data|run)\(")  # the call that builds what a whole notebook needs
Cells = Sequence[str]


def examine(task: dict[str, Any], seconds: float = SECONDS, megabytes: int = MEGABYTES) -> dict[str, Any]:
    """The result {"mark", "reason"} of an exercise in a process of its own.

    `task` has the "number", the student's code "cells", the "setup" cells of the exercise's notebook and the hidden
    "tests".
    """
    forks = "forkserver" in multiprocessing.get_all_start_methods()  # imports torch once, not in every process
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory(prefix="vcutils-grade-", ignore_cleanup_errors=True) as folder:
        process = context.Process(target=_work, args=(json.dumps(task), folder, seconds, megabytes), daemon=True)
        process.start()
        longest = max(WAITING, 5 * seconds)
        process.join(longest)
        alive = process.is_alive()
        with suppress(OSError, AttributeError):  # what it has started goes with it; Windows has no groups
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
        if alive:
            return {"mark": 0.0, "reason": f"stopped after {longest:g} seconds: does it wait for something?"}
        if process.exitcode == -int(getattr(signal, "SIGXCPU", 0) or 1 << 30):
            return {"mark": 0.0, "reason": f"stopped after {seconds:g} seconds of computing: an endless loop?"}
        result = _read(Path(folder) / "result.json")
        if result is None:
            code = process.exitcode or 0
            ended = f"was ended by signal {-code}" if code < 0 else f"ended early, with exit code {code}"
            return {"mark": 0.0, "reason": f"the process {ended}"}
        return result


def network_is_cut() -> bool:
    """Whether this system lets a process give up its network."""
    return bool(examine({"number": None}).get("network_cut"))


def definitions(cells: Cells, name: str = "") -> tuple[dict[str, Any], Any, str]:
    """Run the imports, definitions and assignments of notebook cells; what fails is skipped.

    Returns the namespace, the last function of that `name` that was defined, and why there is none.
    """
    space: dict[str, Any] = {"__name__": "notebook"}
    function, why = None, f"no function `{name}` in any notebook"
    for number, source in enumerate(cells, 1):
        source = re.sub(r"(?m)^\s*[%!].*$", "", source)  # magics
        file = f"<cell {number}>"
        try:
            body = ast.parse(source).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            if re.search(rf"\b{name}\b\s*[(=]", source) and name:
                line = getattr(error, "lineno", None)
                why = f"the cell with `{name}` cannot be read: {type(error).__name__}" + f" in line {line}" * bool(line)
            continue
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        for statement in body:
            if not isinstance(statement, DEFINITIONS) or BUILDS.search(ast.unparse(statement)):
                continue
            try:
                with (
                    nullcontext() if isinstance(statement, IMPORTS) else _alarm(5)
                ):  # half an import is a broken module
                    exec(compile(ast.Module([statement], []), file, "exec"), space)
            except BaseException as error:
                if _defines(statement, name):
                    function, why = None, f"`{name}` cannot be defined: {type(error).__name__}: {str(error)[:200]}"
                continue
            if _defines(statement, name):
                function = space[name]
    return space, function, why


def _defines(statement: ast.stmt, name: str) -> bool:
    """Whether a statement writes the function of that name (importing one is not writing it)."""
    if isinstance(statement, ast.FunctionDef):
        return statement.name == name
    is_lambda = isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Lambda)
    return is_lambda and any(isinstance(t, ast.Name) and t.id == name for t in statement.targets)  # type: ignore


def mark(task: dict[str, Any]) -> dict[str, Any]:
    """1.0: right by the check and by the hidden tests; 0.5: by the check alone; 0.0; and the reason."""
    number, name = task["number"], EXERCISES[task["number"]].function
    _, function, why = definitions([*task["setup"], *task["cells"]], name)
    if function is None:
        return {"mark": 0.0, "reason": why}
    state, message = verdict(number, function)
    if state != "right":
        return {"mark": 0.0, "reason": "not written" if state == "blank" else message}
    tests, _, _ = definitions(task["setup"])
    tests[name] = function
    try:
        exec(compile(task["tests"], "<hidden tests>", "exec"), tests)
    except AssertionError as error:
        return {"mark": 0.5, "reason": f"a hidden test fails: {error}"}
    except BaseException as error:
        return {"mark": 0.5, "reason": f"a hidden test stops with {describe(error, function)}"}
    return {"mark": 1.0, "reason": "right"}


def _work(text: str, folder: str, seconds: float, megabytes: int) -> None:
    """In the new process: give up what is not needed, mark, write the result, end."""
    task, result = json.loads(text), {"mark": 0.0, "reason": "not marked"}
    with suppress(OSError, AttributeError):
        os.setsid()
    os.chdir(folder)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    network_cut = _cut_network()
    if task["number"] is None:
        result["network_cut"] = network_cut
    else:
        import torch

        torch.set_num_threads(1)
        _limit(seconds, megabytes)
        try:
            result = mark(task)
        except MemoryError:
            result["reason"] = "out of memory"
        except BaseException as error:
            result["reason"] = f"marking stopped with {type(error).__name__}"
    Path(folder, "result.json").write_text(json.dumps(result), encoding="utf-8")
    os._exit(0)


def _cut_network() -> bool:
    """Move this process into a network without connections; only Linux can, and not everywhere."""
    try:
        unshare = ctypes.CDLL(None, use_errno=True).unshare
    except (OSError, AttributeError, TypeError):
        return False
    return unshare(NEW_NETWORK) == 0 or unshare(NEW_USER | NEW_NETWORK) == 0


def _limit(seconds: float, megabytes: int) -> None:
    """Limits of this process, where the system has them: processor time, memory, size of a file, no core dump."""
    with suppress(ImportError):
        import resource

        used = 8 << 30  # where the system does not tell
        with suppress(OSError, ValueError):
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits = {
            "CPU": int(time.process_time() + seconds) + 1,
            "AS": used + (megabytes << 20),
            "FSIZE": FILE_BYTES,
            "CORE": 0,
        }
        for name, value in limits.items():
            with suppress(OSError, ValueError):
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value + 2 * (name == "CPU")))


@contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the body after so many seconds of computing, where the system can."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} seconds")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _read(path: Path) -> dict[str, Any] | None:
    """A result that student code may have tampered with: small, plain, of the right types, or None."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        about = path.lstat()
        if stat.S_ISREG(about.st_mode) and about.st_size <= RESULT_BYTES:
            found = json.loads(path.read_text("utf-8"))
            result = {"mark": float(found["mark"]), "reason": str(found["reason"])[:500]}
            if result["mark"] in (0.0, 0.5, 1.0):
                return result | {"network_cut": found.get("network_cut") is True}
    return None
