"""Hearing of what is painted and drawn in some layers, and in no others."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Labels, Layer
from qtpy.QtCore import QObject, Signal

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["StrokeWatch"]


class StrokeWatch(QObject):
    """Tells when watched layers are edited.

    When Qt deletes it with the dock it is in, napari by itself stops telling it.

    Parameters
    ----------
    viewer : Viewer
    parent : QObject
    """

    #: Labels were painted on, or shapes drawn.
    edited = Signal()

    #: An image has other pixels.
    repainted = Signal()

    def __init__(self, viewer: napari.viewer.Viewer, parent: QObject) -> None:
        super().__init__(parent)
        self._viewer_ref = weakref.ref(viewer)
        self._watched: list[tuple[Any, Callable[..., None]]] = []
        self._view: tuple[Any, ...] | None = None  # when labels were drawn last

    def follow(self, layers: Sequence[Layer]) -> None:
        """Watch these layers, instead of those before."""
        for event, slot in self._watched:
            event.disconnect(slot)
        self._watched, self._view = [], self._look()
        for layer in layers:
            events = layer.events
            if isinstance(layer, Image):
                self._watched.append((events.data, self._on_pixels))
                continue
            self._watched.append((events.data, self._on_edit))
            if isinstance(layer, Labels):
                self._watched.append((events.labels_update, self._on_edit))
                self._watched.append((events.paint, self._on_edit))
                self._watched.append((events.set_data, self._on_refresh))
        for event, slot in self._watched:
            event.connect(slot)

    def _on_pixels(self, event: Any = None) -> None:
        self.repainted.emit()

    def _on_edit(self, event: Any = None) -> None:
        self.edited.emit()

    def _on_refresh(self, event: Any = None) -> None:
        """Hear of undo and of scripts: they tell no more than that it looks new.

        So it does when another slice is shown, which is no edit.
        """
        view = self._look()
        if view == self._view:
            self._on_edit()
        self._view = view

    def _look(self) -> tuple[Any, ...] | None:
        """Return which slice the viewer shows, and how."""
        viewer = self._viewer_ref()
        if viewer is None:
            return None
        return viewer.dims.current_step, viewer.dims.order, viewer.dims.ndisplay
