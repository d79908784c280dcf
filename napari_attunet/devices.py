"""Where a network runs: which device, why not another, and on how many threads."""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from napari_attunet.architecture import PRECISIONS
from napari_attunet.errors import DeviceError
from napari_attunet.memory import available, give_back, prefer_huge_pages

__all__ = [
    "Device",
    "available_devices",
    "choose_device",
    "choose_dtype",
    "default_threads",
    "fast_type",
    "free_memory",
    "has_bfloat16",
    "release_memory",
    "threads",
]

prefer_huge_pages()

#: Overrides the number of threads wherever none is asked for.
THREADS_VARIABLE = "NAPARI_ATTUNET_THREADS"

#: Where Linux says how much of the cores a container gets: so many microseconds in
#: so many (cgroup, version 2). More threads would run, and then all stand still.
QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, slots=True)
class Device:
    """A device that was chosen.

    Attributes
    ----------
    name : str
        PyTorch's name: ``"cuda"``, ``"cuda:1"``, ``"mps"`` or ``"cpu"``.
    description : str
        The name of the card, or the number of threads.
    reason : str
        Why this one: in particular, if it is not CUDA, why not.
    """

    name: str
    description: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.description})"


def available_devices() -> tuple[str, ...]:
    """Return the kinds of device that work on this machine, best first."""
    found = []
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    return (*found, "cpu")


def choose_device(device: str = "auto", threads: int | None = None) -> Device:
    """Return the device to run on.

    Parameters
    ----------
    device : str
        ``"auto"`` takes CUDA, then Apple's MPS, then the CPU; or a PyTorch name.
    threads : int, optional
        How many the CPU will use, by default `default_threads`; to be told.

    Raises
    ------
    DeviceError
        If that device was asked for and is not there; the message says why.
    """
    if device == "auto":
        kind = name = available_devices()[0]
    else:
        kind, name = device.split(":")[0], device
    if not re.fullmatch(r"(cuda|mps|cpu)(:\d+)?", name):
        raise DeviceError(
            f"There is no device {device!r}: choose auto, cuda, cuda:0, mps or cpu."
        )
    if kind not in available_devices():
        why = _why_no_cuda() if kind == "cuda" else "PyTorch finds no Apple GPU."
        raise DeviceError(f"{device} cannot be used: {why} Choose auto or cpu.")
    if kind == "cuda":
        index = torch.device(name).index or 0
        if index >= torch.cuda.device_count():
            raise DeviceError(
                f"{device} is not there: this machine has {torch.cuda.device_count()} "
                "CUDA device(s), counted from 0."
            )
        return Device(name, torch.cuda.get_device_name(index), "CUDA is available.")
    if kind == "mps":
        return Device(name, "Apple GPU", "Apple's GPU is available.")
    count = threads or default_threads()
    reason = _why_no_cuda() if device == "auto" else "You chose the CPU."
    return Device(name, f"{count} thread{'s' * (count != 1)}", reason)


def _why_no_cuda() -> str:
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return "CUDA is not used because this PyTorch was built without it."
    if not torch.backends.cuda.is_built():
        return "CUDA is not used because this PyTorch was built without it."
    return "CUDA is not used because no NVIDIA card or driver was found."


def default_threads(spare: int = 0) -> int:
    """Return how many threads to use: as many as cores this process may run on.

    Parameters
    ----------
    spare : int
        Cores that are left to another process, if there are more.
    """
    asked = os.environ.get(THREADS_VARIABLE, "")
    if asked:
        if not asked.isdecimal() or int(asked) < 1:
            raise DeviceError(
                f"{THREADS_VARIABLE} must be a whole number from 1, got {asked!r}."
            )
        return int(asked)
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows don't tell
        cores = os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no container, or no limit: "max"
        quota, period = map(int, QUOTA.read_text().split())
        cores = min(cores, math.ceil(quota / period))
    return max(1, min(cores - spare, _counts.outside()))


def has_bfloat16(device: str) -> bool:
    """Return whether a device computes in bfloat16, rather than emulating it.

    Parameters
    ----------
    device : str
        As PyTorch calls it.
    """
    if device.startswith("cuda"):
        with torch.cuda.device(device):  # cards differ
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu":  # older releases of PyTorch do not tell
        told: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(told.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return False


def fast_type(device: str) -> torch.dtype | None:
    """Return the type of 16 bits that a device computes in, if there is one.

    CUDA cards from Volta on have float16; bfloat16, which only later ones have, rounds
    eight times as coarsely. But float16 ends at 65504: who uses it has to look for
    infinity.

    Parameters
    ----------
    device : str
        As PyTorch calls it.
    """
    if device.startswith("cuda"):
        capability = torch.cuda.get_device_capability(device)
        return torch.float16 if capability >= (7, 0) else None
    return torch.bfloat16 if has_bfloat16(device) else None


def choose_dtype(precision: str, device: Device) -> tuple[torch.dtype, str]:
    """Return in which type to compute, and why not in the one that was asked for.

    Parameters
    ----------
    precision : str
        ``"exact"`` is float32; ``"fast"`` what `fast_type` says; ``"auto"`` is fast on
        CUDA cards, and exact elsewhere.
    device : Device

    Raises
    ------
    DeviceError
        If there is no such precision.
    """
    if precision not in PRECISIONS:
        choices = ", ".join(PRECISIONS)
        raise DeviceError(f"The precision is one of {choices}; got {precision!r}.")
    wanted = precision == "fast" or (
        precision == "auto" and device.name.startswith("cuda")
    )
    dtype = fast_type(device.name) if wanted else None
    if precision == "fast" and dtype is None:
        return torch.float32, (
            f"{device.name} has no fast mode: it computed in float32."
        )
    return dtype or torch.float32, ""


def free_memory(device: Device) -> int:
    """Return how many bytes a device can still give."""
    if device.name.startswith("cuda"):
        with torch.cuda.device(device.name):
            kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
            return int(torch.cuda.mem_get_info()[0]) + kept
    return available()  # Apple's GPUs share the memory


def release_memory(device: Device) -> None:
    """Give memory that is free, but kept for later, back to the device or system."""
    if device.name.startswith("cuda"):
        torch.cuda.empty_cache()
    elif device.name.startswith("mps"):
        torch.mps.empty_cache()
    else:
        give_back()


class _Counts:
    """How many threads PyTorch had before we changed that, whoever is at work now.

    PyTorch's number is partly of a thread and partly of the process. If each run gave
    back what it found, one that began within another would leave the other's behind.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_thread = threading.local()
        self._runs = 0
        self._outside = 0

    def outside(self) -> int:
        """Return PyTorch's own number, or what the user has set."""
        with self._lock:
            return self._outside if self._runs else torch.get_num_threads()

    @contextlib.contextmanager
    def using(self, count: int) -> Iterator[None]:
        """Set a number for the block, then that of the block around it."""
        with self._lock:
            if not self._runs:
                self._outside = torch.get_num_threads()
            self._runs += 1
        around: int | None = getattr(self._of_thread, "count", None)
        self._of_thread.count = count
        torch.set_num_threads(count)
        try:
            yield
        finally:
            self._of_thread.count = around
            with self._lock:
                self._runs -= 1
                torch.set_num_threads((self._runs and around) or self._outside)


_counts = _Counts()


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Use so many threads of PyTorch within the block, then as many as before.

    Blocks of several Python threads may overlap.
    """
    if count is not None and count < 1:
        raise DeviceError(f"At least one thread is needed, got {count}.")
    count = count or default_threads()
    with _counts.using(count):
        yield count
