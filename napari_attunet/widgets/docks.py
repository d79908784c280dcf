"""What all docks have in common: a viewer, an end, and panels higher than they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, Qt
from qtpy.QtWidgets import QFrame, QScrollArea, QWidget

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["DockPart", "scrolling", "unwrapped"]

#: Pixels around each panel.
MARGIN = 6


class DockPart(QWidget):
    """A dock's widget, or a panel that can be one: it stops when the dock is closed."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Qt's metaclass and that of abstract classes do not go together.
        if cls.close_down is DockPart.close_down:
            raise TypeError(f"{cls.__name__} has to say how it closes down.")

    def close_down(self) -> None:
        """Stop all work, and let go of the viewer and its layers."""

    def event(self, event: Any) -> bool:
        """Close down with the dock: napari then takes the parent away."""
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self.close_down()
        return bool(super().event(event))


def unwrapped(viewer: Any) -> napari.viewer.Viewer:
    """Return a viewer itself: widgets and commands get a proxy, which dies first."""
    return getattr(viewer, "__wrapped__", viewer)


def scrolling(panel: QWidget) -> QScrollArea:
    """Return a panel that is as wide as the dock and may be higher than it."""
    layout = panel.layout()
    if layout is not None:
        layout.setContentsMargins(MARGIN, MARGIN, MARGIN, MARGIN)
    area = QScrollArea()
    area.setWidget(panel)
    area.setWidgetResizable(True)
    area.setFrameShape(QFrame.Shape.NoFrame)
    area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    return area
