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
        raise UserError(f"{path}: {complaint} ({' '.join(str(error).split())}); {advice}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that takes the place of `path` on success. Raises UserError when it cannot be written."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{uuid4().hex[:12]}{path.suffix}")
        lock = FileLock(temporary.with_name(f".lock-{temporary.name}"))
        lock.acquire(blocking=False)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()
            _remove(lock)


@contextmanager
def holding(folder: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Keep all others from doing `what` (a plain file name) in `folder` meanwhile; sweep up what killed ones left.

    The operating system ends the hold with the process. Raises UserError that says who holds it (it may `wait` for
    them instead), or why it cannot.
    """
    path = folder / f".{what}.lock"
    lock = FileLock(path)
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            holder = "another process"
            with suppress(OSError):  # Windows lets nobody read a locked file
                holder = path.read_text(encoding="utf-8", errors="replace") or holder
            raise UserError(f"{folder}: {what} goes on there already, by {holder}; wait, or stop it") from None
    try:
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        with suppress(OSError):  # a full disk: the files themselves will tell
            path.write_text(f"process {os.getpid()} on {platform.node()} since {since}", encoding="utf-8")
        sweep(folder)
        yield
    finally:
        _remove(lock)


def is_held(folder: Path, what: str) -> bool:
    """Whether a process is at `what` in a folder; see `holding`."""
    lock = FileLock(folder / f".{what}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    _remove(lock)
    return False


def sweep(folder: Path, pattern: str = "**/.lock-.tmp-*") -> None:
    """Remove the temporary files that dead processes left below a folder: those whose lock nobody holds."""
    locks: list[Path] = []
    with suppress(OSError):  # a folder that goes meanwhile
        locks.extend(folder.glob(pattern))
    for path in locks:
        lock = FileLock(path)
        with suppress(Timeout, OSError):  # in use, or another user's
            lock.acquire(blocking=False)
            path.with_name(path.name.removeprefix(".lock-")).unlink(missing_ok=True)
            _remove(lock)


def _remove(lock: FileLock) -> None:
    """End a lock and remove its file. Windows removes no file that is open, so there the lock ends first."""
    if os.name == "nt":
        lock.release()
    with suppress(OSError):
        Path(lock.lock_file).unlink()
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
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read, or not JSON ({error})") from error
