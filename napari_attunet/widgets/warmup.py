"""Loading all that is heavy in a thread, with the window alive meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from napari.layers import Labels

__all__ = ["load_engine", "warm_up"]


#: napari silences warnings while it makes colours, which two threads cannot do at a
#: time.
_ONE_AT_A_TIME = threading.Lock()


def warm_up() -> None:
    """Load the engine and what napari needs for labels; call it in a thread.

    Only where the viewer has a layer already: the first one of all sets up the registry
    of units, which two threads cannot do at a time; an image that is opened in that
    moment would be refused.
    """
    load_engine()
    with _ONE_AT_A_TIME, _no_collections():
        _make_labels()


def load_engine() -> None:
    """Import PyTorch and the engine; call it in a thread.

    Importing is mostly Python, which leaves the other threads their turn. Two things
    don't, for hundreds of milliseconds: the dynamic linker, which initialises
    PyTorch's large libraries under the interpreter's lock, and full collections of
    garbage, which the many new objects set off for nothing. So the libraries are
    opened first by a foreign call, which holds no lock, and the collector rests.
    """
    with _ONE_AT_A_TIME:
        _import_engine()


@functools.cache
def _import_engine() -> None:
    if "torch" not in sys.modules and sys.platform.startswith("linux"):
        _open_libraries()
    with _no_collections():
        importlib.import_module("napari_attunet.segmenter")


@functools.cache
def _make_labels() -> None:
    """Make the first labels: they import pandas and make their colours."""
    Labels(np.zeros((1, 1), np.int32))


def _open_libraries() -> None:
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return
    open_library = ctypes.CDLL(None).dlopen
    open_library.restype = ctypes.c_void_p
    open_library.argtypes = (ctypes.c_char_p, ctypes.c_int)
    for name in ("libc10.so", "libtorch_cpu.so", "libtorch_python.so"):
        library = Path(found.origin).parent / "lib" / name
        # Should it fail, importing says why.
        open_library(os.fsencode(library), os.RTLD_NOW | os.RTLD_LOCAL)


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
