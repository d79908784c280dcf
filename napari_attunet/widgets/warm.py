"""The segmenter used last stays loaded for a while: the next press is sooner."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_attunet.segmenter import Segmenter

__all__ = ["let_go", "segmenter_for", "used"]

#: After so long without use its memory, on a GPU or not, is given back.
IDLE_SECONDS = 300.0

_lock = threading.Lock()
_kept: tuple[tuple[Any, ...], Segmenter] | None = None
_timer: threading.Timer | None = None


def segmenter_for(
    model: str,
    *,
    device: str = "auto",
    threads: int | None = None,
    tile: int | None = None,
    precision: str = "auto",
) -> Segmenter:
    """Return a segmenter, the last one if it is the same; call it in a thread.

    Parameters
    ----------
    model : str
        Path of the model's file; what has been written anew is loaded anew.
    device, threads, tile, precision
        As of `Segmenter`.

    Raises
    ------
    ModelError, DeviceError
        If the model cannot be loaded, or the device is not there.
    """
    global _kept
    from napari_attunet.model import load_model
    from napari_attunet.segmenter import Segmenter

    path = Path(model)
    state = path.stat() if path.is_file() else None
    written = state and (state.st_mtime_ns, state.st_size)
    key = (model, written, device, threads, tile, precision)
    with _lock:
        kept = _kept
    if kept is not None and kept[0] == key:
        segmenter = kept[1]
    else:
        del kept
        let_go()  # two at a time may be one too many
        segmenter = Segmenter(
            load_model(model),
            device=device,
            threads=threads,
            tile=tile,
            precision=precision,
        )
    with _lock:
        _kept = (key, segmenter)
        _restart()
    return segmenter


def let_go() -> bool:
    """Give the memory back, and return whether there was any; runs under way go on."""
    global _kept, _timer
    with _lock:
        if _timer is not None:
            _timer.cancel()
        kept, _kept, _timer = _kept, None, None
    if kept is None:
        return False
    from napari_attunet.devices import release_memory

    device = kept[1].device
    del kept
    release_memory(device)
    return True


def used() -> None:
    """Say that the segmenter has been in use until now."""
    with _lock:
        if _kept is not None:
            _restart()


def _restart() -> None:
    global _timer
    if _timer is not None:
        _timer.cancel()
    _timer = threading.Timer(IDLE_SECONDS, let_go)
    _timer.daemon = True
    _timer.start()
