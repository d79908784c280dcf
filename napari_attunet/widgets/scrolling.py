"""Panels that may be higher than the dock they are in."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFrame, QScrollArea, QWidget

__all__ = ["scrolling"]

#: Pixels around each panel.
MARGIN = 6


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
