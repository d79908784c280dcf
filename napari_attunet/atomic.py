"""Files are written whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

__all__ = ["replacing"]

#: Seconds. A temporary file so old was left by a process that was killed.
STALE = 24 * 3600


@contextlib.contextmanager
def replacing(
    path: Path,
    *,
    exclusive: bool = False,
    alone: AbstractContextManager[object] = contextlib.nullcontext(),  # noqa: B008
    durable: bool = True,
) -> Iterator[Path]:
    """Give a temporary name beside a path; what is there moves to it if all went well.

    A crash leaves the old file or none, never half of one. The name begins with a dot
    and ends as the path does, which libraries look at. What killed processes left of
    earlier attempts at the same path is cleared away after a day.

    Parameters
    ----------
    path : Path
        A file or folder to be; the folder that holds it is made where it is missing.
    exclusive : bool
        Fail if there is something at the path when all is written: of two processes
        that write the same file one then gets a ``FileExistsError``. Files only.
    alone : context manager
        Entered for the moment of the move. A folder is not replaced in one step, so
        that others may find none: a lock that they heed as well keeps them out.
    durable : bool
        Wait until all is on the disk before it moves, so that a power cut leaves the
        old file or the new one, too. What is made again as easily need not wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield temporary
        if durable:
            _settle(temporary)
        if exclusive:
            path.hardlink_to(temporary)
        else:
            with alone:
                _move(temporary, path)
        if durable:  # its name is there before what it was made of goes
            _flush(path.parent, os.O_RDONLY)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def _settle(path: Path) -> None:
    """Wait until a file, or all that is in a folder, is on the disk."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            _flush(file, os.O_RDWR)


def _flush(path: Path, flags: int) -> None:
    with contextlib.suppress(OSError):  # not every system and disk can
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _move(temporary: Path, path: Path) -> None:
    old = temporary.with_name(f"{temporary.name}.old")
    if path.is_dir():  # a folder can't be replaced in one step
        path.replace(old)
    try:
        temporary.replace(path)
    except OSError:
        if old.exists():
            old.replace(path)
        raise
    if old.exists():
        shutil.rmtree(old)


def _sweep(path: Path) -> None:
    digits = "[0-9a-f]" * 8
    for left_over in path.parent.glob(f".{digits}.{glob.escape(path.name)}"):
        with contextlib.suppress(OSError):  # another process sweeps as well
            found = left_over.stat()  # a copy may carry the date of what it copies
            if time.time() - max(found.st_mtime, found.st_ctime) < STALE:
                continue
            if left_over.is_dir():
                shutil.rmtree(left_over)
            else:
                left_over.unlink()
