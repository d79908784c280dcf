"""Where the mouse is over the canvas, for whoever wants to know."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from qtpy.compat import isalive
from qtpy.QtCore import QObject, QTimer, Signal

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["Pointer"]

#: Milliseconds: the mouse moves more often than anything can be drawn.
PAUSE = 25

#: Number of the left button in napari's events.
LEFT = 1


class Pointer(QObject):
    """Tells where the mouse is, and where it was clicked without being dragged.

    A click while the active layer is painted or drawn on is that layer's.

    Parameters
    ----------
    viewer : Viewer
    parent : QObject
    """

    #: World coordinates, a tuple.
    moved = Signal(object)
    clicked = Signal(object)

    def __init__(self, viewer: napari.viewer.Viewer, parent: QObject) -> None:
        super().__init__(parent)
        self._viewer_ref = weakref.ref(viewer)
        self._place: tuple[float, ...] = ()
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(PAUSE)
        self._timer.timeout.connect(self._tell)
        self._on_move, self._on_drag = _callbacks(weakref.ref(self))
        viewer.mouse_move_callbacks.append(self._on_move)
        viewer.mouse_drag_callbacks.append(self._on_drag)

    def move(self, place: tuple[float, ...]) -> None:
        """Take a new place, and tell of it soon."""
        self._place = place
        if not self._timer.isActive():
            self._timer.start()

    def release(self) -> None:
        """Let go of the viewer."""
        viewer = self._viewer_ref()
        if viewer is None:
            return
        for callbacks, ours in (
            (viewer.mouse_move_callbacks, self._on_move),
            (viewer.mouse_drag_callbacks, self._on_drag),
        ):
            if ours in callbacks:
                callbacks.remove(ours)

    def _tell(self) -> None:
        self.moved.emit(self._place)


def _callbacks(
    pointer_ref: Callable[[], Pointer | None],
) -> tuple[Callable[..., None], Callable[..., Iterator[None]]]:
    """Return what the viewer calls; it holds no pointer."""

    def found() -> Pointer | None:
        pointer = pointer_ref()
        # Qt may have deleted it with the dock.
        return pointer if pointer is not None and isalive(pointer) else None  # type: ignore[no-untyped-call]

    def on_move(viewer: Any, event: Any) -> None:
        pointer = found()
        if pointer is not None:
            pointer.move(tuple(event.position))

    def on_drag(viewer: Any, event: Any) -> Iterator[None]:
        active = viewer.layers.selection.active
        busy = active is not None and str(active.mode) not in ("pan_zoom", "transform")
        busy = busy or event.button != LEFT
        dragged = False
        yield
        while event.type == "mouse_move":
            dragged = True
            yield
        pointer = found()
        if pointer is not None and not dragged and not busy:
            pointer.clicked.emit(tuple(event.position))

    return on_move, on_drag
