"""What there is at a pixel: α at every level and the probabilities of the classes."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtWidgets import QPushButton, QVBoxLayout, QWidget

from napari_attunet.widgets.feedback import wrapped_label
from napari_attunet.widgets.inspect.figures import FIGURES, Bars, save_as
from napari_attunet.widgets.inspect.pointer import Pointer
from napari_attunet.widgets.inspect.seen import Probed
from napari_attunet.widgets.inspect.session import Session

__all__ = ["ProbePanel"]

IDLE = "Move the mouse over the image; a click holds the place."


class ProbePanel(QWidget):
    """Bars that follow the cursor.

    ::

        y 120, x 88 (held: click again to go on)
        α level 1           ████████
        α level 2           ████
        SE encoder level 1  ██████    (mean of its channels)
        nucleus             ██████████
        [ Save figure … ]

    Parameters
    ----------
    session : Session
    pointer : Pointer
    theme : str
        Name of the viewer's theme.
    """

    def __init__(self, session: Session, pointer: Pointer, theme: str) -> None:
        super().__init__()
        self._session = session
        self._held = False
        self.probed: Probed | None = None
        self.place = wrapped_label(IDLE)
        self.bars = Bars(theme)
        self.save = QPushButton("Save figure …")
        self.save.setEnabled(False)
        layout = QVBoxLayout(self)
        layout.addWidget(self.place)
        layout.addWidget(self.bars)
        layout.addWidget(self.save)
        layout.addStretch(1)
        self.save.clicked.connect(self._on_save)
        pointer.moved.connect(self._on_moved)
        pointer.clicked.connect(self._on_clicked)
        session.changed.connect(self._on_changed)

    @property
    def held(self) -> bool:
        """Whether it stays where it was clicked."""
        return self._held

    def probe(self, world: Sequence[float]) -> None:
        """Show what there is at a place of the world."""
        seen, viewer = self._session.seen, self._session.viewer
        if seen is None or viewer is None:
            return
        if viewer.dims.ndisplay != 2:
            self.probed = None
            self.bars.clear()
            self.place.setText("The probe needs the 2D view.")
            return
        self.probed = found = seen.probe(self._session.place(world))
        if found is None:
            self.bars.clear()
            self.place.setText(IDLE)
            return
        self._tell(found, seen.label_axes)
        groups = (found.attention, found.channels, found.classes)
        shown = [item for group in groups for item in group]
        self.bars.show_values(
            [name for name, _ in shown],
            [value for _, value in shown],
            [len(group) for group in groups],
        )
        self.save.setEnabled(True)

    def _tell(self, found: Probed, axes: str) -> None:
        where = ", ".join(
            f"{axis.lower()} {at}"
            for axis, at in zip(axes, found.position, strict=True)
        )
        hint = " (held: click again to go on)" if self._held else ""
        self.place.setText(where + hint)

    def _on_moved(self, world: Sequence[float]) -> None:
        if self.isVisibleTo(self.window()) and not self._held:
            self.probe(world)

    def _on_clicked(self, world: Sequence[float]) -> None:
        if not self.isVisibleTo(self.window()):
            return
        self._held = not self._held
        self.probe(world)
        if self.probed is None:  # nothing there that could be held
            self._held = False

    def _on_changed(self) -> None:
        self._held, self.probed = False, None
        self.bars.clear()
        self.place.setText(IDLE)
        self.save.setEnabled(False)

    def _on_save(self) -> None:
        save_as(self, FIGURES, "probe.png", self.bars.save)
