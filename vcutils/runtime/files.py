"""Files that appear whole or not at all, folders that one process holds, the log of what was done."""

import codecs
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from vcutils.runtime.settings import UserError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise UserError, with the path and what is needed, when the body cannot write: full, read-only, no permission."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); it needs room on its disk and the right to write "
            "there: make room or name another place, then start again; finished work is kept"
        ) from error


@contextmanager
def reading(path: Path, complaint: str, advice: str) -> Iterator[None]:
    """Raise UserError, with the path, the reason and what to do, when the body cannot make sense of a file."""
    try:
        yield
    except Exception as error:  # parsers raise almost anything for a forged file: RecursionError, MemoryError, …
        raise UserError(f"{path}: {complaint} ({error}); {advice}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: yields a temporary path beside `path`, which takes its place on success.

    Raises UserError when it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{uuid4().hex[:12]}{path.suffix}")
        # An unlocked temporary file belongs to a dead process.
        lock = FileLock(_lock_of(temporary))
        lock.acquire(blocking=False)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            _remove(temporary, lock)


@contextmanager
def holding(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes from doing `what` (a plain file name) in `folder` meanwhile; sweep up what killed ones left.

    The operating system ends the hold with the process, however that dies; a second hold in the same process is
    refused too. Raises UserError that says who holds it, or that the folder cannot be written.
    """
    path = folder / f".{what}.lock"
    lock = FileLock(path)
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            holder = "another process"
            with suppress(OSError):  # Windows lets nobody read a locked file
                holder = path.read_text(encoding="utf-8", errors="replace") or holder
            raise UserError(f"{folder}: {what} goes on there already, by {holder}; wait, or stop it") from None
    try:
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        with suppress(OSError):  # a full disk: the files themselves will tell
            path.write_text(f"process {os.getpid()} on {platform.node()} since {since}", encoding="utf-8")
        _sweep(folder)
        yield
    finally:
        _remove(path, lock)


def _lock_of(temporary: Path) -> Path:
    return temporary.with_name(f".lock-{temporary.name}")


def _sweep(folder: Path) -> None:
    """Remove the temporary files of dead processes below a folder."""
    for parent, _, names in os.walk(folder):
        for name in {n.removeprefix(".lock-") for n in names if n.startswith((".tmp-", ".lock-.tmp-"))}:
            _remove_dead(Path(parent, name))


def sweep_beside(path: Path) -> None:
    """Remove the temporary files that killed processes left beside a file of any folder; other programs' stay."""
    for lock in path.parent.glob(f".lock-.tmp-*{path.suffix}"):
        _remove_dead(lock.with_name(lock.name.removeprefix(".lock-")))


def _remove_dead(temporary: Path) -> None:
    lock = FileLock(_lock_of(temporary))
    with suppress(Timeout, OSError):  # in use, or another user's
        lock.acquire(blocking=False)
        _remove(temporary, lock)


def _remove(path: Path, lock: FileLock) -> None:
    """Remove a file and its lock. Windows removes no file that is open, so there the lock ends first."""
    if os.name == "nt":
        lock.release()
    for file in (path, Path(lock.lock_file)):
        with suppress(OSError):
            file.unlink()
    lock.release()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all, with the same line ends on every system."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def note(folder: Path, text: str) -> None:
    """Add a line with the time to log.txt of data/<corpus>/, which tells what every stage did."""
    with writing(folder / "log.txt"):
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.txt", "a", encoding="utf-8", newline="\n") as file:
            file.write(f"{datetime.now().astimezone().isoformat(' ', 'seconds')}  {text}\n")


def duration(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 12 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def read_text(path: Path) -> str:
    """The text of a file in UTF-8 (broken characters become �) or UTF-16, with Unix line ends. Raises UserError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if is_utf16 else "utf-8-sig", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, **options: Any) -> Any:
    """The value in a JSON file. Raises UserError for one that is not JSON, FileNotFoundError where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), **options)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
