"""Memory of this process: how much can be had, and what becomes of what is freed."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

import psutil

__all__ = ["PAGES", "available", "give_back", "is_full", "prefer_huge_pages"]

#: Tells PyTorch to take large pages; read before its first tensor.
PAGES = "THP_MEM_ALLOC_ENABLE"

#: Where Linux says what a container may use, does use, and what for.
LIMIT, USED, DETAILS = (
    Path("/sys/fs/cgroup", name)
    for name in ("memory.max", "memory.current", "memory.stat")
)

#: How PyTorch says on its backends that memory is full.
FULL = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "invalid buffer size",
    "alloc_failed",
)


def is_full(error: BaseException) -> bool:
    """Return whether that is what an error, of PyTorch's too, means."""
    # CUDA has a type of its own; MPS and the CPU's allocator only say so.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return any(phrase in text for phrase in FULL)


def available() -> int:
    """Return how many bytes can be had without swapping.

    In a container with a limit (cgroup, version 2, its own and not one further up) it
    is what that leaves; files that are only kept in memory for a next time don't count.
    """
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # no container, or no limit: "max"
        left = int(LIMIT.read_text()) - int(USED.read_text())
        for line in DETAILS.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("active_file", "inactive_file"):
                left += int(value)
        free = min(free, left)
    return max(0, free)


def prefer_huge_pages() -> None:
    """Let PyTorch take large tensors in pages of 2 MB (on Linux).

    They come and go with each layer of a network, and the system clears each page
    before it hands it out: a quarter of the time of a small network. It takes effect
    before the first tensor; what the environment already says, stands.
    """
    os.environ.setdefault(PAGES, "1")


def give_back() -> None:
    """Give memory that is free, but kept for later, back to the system."""
    # glibc keeps freed tensors of up to 32 MB, in fragments that the next larger one
    # doesn't fit into: a third of a gigabyte after a few tiles.
    with contextlib.suppress(AttributeError, TypeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
