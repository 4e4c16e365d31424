"""Files that are either whole under their name or not there at all."""

import contextlib
import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

PART = ".part"  # ending of a file that is being written; nothing ever reads one


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a hidden neighbour of `path` for writing and rename it to `path` when the block ends without an error.

    The bytes are flushed to the disk before the rename and the folder after it, so a crash or a power loss leaves the
    old file or the new one, never a mixture. An OSError (a full disk) names `path`; the neighbour is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PART}")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.filename is None and error.errno is not None:  # a failed write knows its number only
            raise OSError(error.errno, f"writing failed: {error.strerror}; nothing was published", str(path)) from error
        raise
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Publish `value` as indented JSON under `path`, atomically."""
    with atomic_file(path) as file:
        file.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_parts(folder: Path) -> None:
    """Delete what killed writers left below `folder`. Only for a folder whose lock the caller holds."""
    for part in folder.rglob(f".*{PART}"):
        if part.is_file():
            part.unlink(missing_ok=True)


_held: set[int] = set()  # file numbers of the locks that this process holds


def _leave_locks_to_parent() -> None:
    """In a forked child: a data worker that outlives a killed run for a moment must not keep its lock."""
    if _held:
        null = os.open(os.devnull, os.O_RDONLY)
        for number in _held:
            os.dup2(null, number, inheritable=False)
        os.close(null)
        _held.clear()


os.register_at_fork(after_in_child=_leave_locks_to_parent)


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` (made when absent); the system frees it when the process dies.

    With `wait=False` a lock that another process holds raises BlockingIOError, whose text is what that process wrote
    into the file about itself: its host and process number.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            file.seek(0)
            raise BlockingIOError(error.errno, file.read().strip() or "another process", str(path)) from None
        file.truncate(0)
        file.write(f"{socket.gethostname()} process {os.getpid()}\n")
        file.flush()
        _held.add(file.fileno())
        try:
            yield
        finally:
            _held.discard(file.fileno())
