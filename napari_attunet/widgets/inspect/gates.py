"""What each gate lets through on the mask and beside it, in numbers and in words."""

from __future__ import annotations

import functools

from qtpy.QtWidgets import QPushButton, QVBoxLayout, QWidget

from napari_attunet.attention import GateStatistics
from napari_attunet.errors import AttUnetError
from napari_attunet.widgets.feedback import wrapped_label
from napari_attunet.widgets.inspect.figures import TABLES, NumberTable, save_as
from napari_attunet.widgets.inspect.look import statistics_steps
from napari_attunet.widgets.inspect.seen import ON_PIXELS, Seen
from napari_attunet.widgets.inspect.session import Asker, Session

__all__ = ["GatesPanel"]

COLUMNS = (
    ("gate", "Where it is; level 1 is the finest"),
    ("on", "Mean α on the mask"),
    ("off", "Mean α beside the mask"),
    ("on/off", "Contrast: above 1 it lets more through on the mask than beside it"),
    ("open", "Share of the image where α is above 0.9"),
    ("shut", "Share of the image where α is below 0.1"),
    ("bits", "Mean entropy of α: 0 where open or closed, 1 where half open everywhere"),
    ("size", "Cells of its own grid"),
)


class GatesPanel(QWidget):
    """The table of gates; a click shows the gate's map on the image.

    ::

        gate        on   off  on/off  open  shut  bits  size
        α level 1  0.76 0.78   0.98   0.10  0.01  0.71  512x512
        ...
        α level 2: opens on the background rather than on the objects.
        [ Save table … ]

    Parameters
    ----------
    session : Session
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._asker = Asker(session, self._on_measured, self)
        self._measured: Seen | None = None
        self.table = NumberTable(COLUMNS)
        self.remarks = wrapped_label()
        self.save = QPushButton("Save table …")
        layout = QVBoxLayout(self)
        layout.addWidget(self.table)
        layout.addWidget(self.remarks)
        layout.addWidget(self.save)
        layout.addStretch(1)
        self.table.itemSelectionChanged.connect(self._on_chosen)
        self.save.clicked.connect(self._on_save)
        session.changed.connect(self._measure)
        session.mask_changed.connect(self._measure)
        self._measure()

    def close_down(self) -> None:
        """Measure no more: the dock is being closed."""
        self._asker.stop()
        self._measured = None

    def _measure(self) -> None:
        seen = self._session.seen
        self._asker.stop()
        self.save.setEnabled(False)
        if seen is None:
            self._measured = None  # nor is its network kept
            self._tell_only("Segment an image, or look at the part that you see.")
            return
        if not any(m.kind in ON_PIXELS for m in seen.maps):
            self._tell_only(f"{seen.spec.key} has no gates.")
            return
        try:
            mask = self._session.mask()
        except AttUnetError as error:
            self._tell_only(str(error))
            return
        self._asker.ask(functools.partial(statistics_steps, seen, mask))

    def _tell_only(self, text: str) -> None:
        self.table.fill([])
        self.remarks.setText(text)

    def _on_measured(self, answer: tuple[Seen, list[GateStatistics]]) -> None:
        seen, found = answer
        if seen is not self._session.seen:
            return
        chosen = self.table.chosen
        self.table.blockSignals(True)
        self.table.fill(
            [
                (
                    gate.name,
                    gate.inside,
                    gate.outside,
                    gate.contrast,
                    gate.open,
                    gate.closed,
                    gate.entropy,
                    "x".join(str(n) for n in gate.shape if n > 1),
                )
                for gate in found
            ],
            [gate.remark for gate in found],
        )
        if chosen >= 0:
            self.table.choose(chosen)
        self.table.blockSignals(False)
        if seen is not self._measured:  # another part: show the same gate there
            self._measured = seen
            self._on_chosen()
        said = [
            f"{g.name}: {g.remark[0].lower()}{g.remark[1:]}" for g in found if g.remark
        ]
        self.remarks.setText("\n".join(said) or "All gates favour the mask.")
        self.save.setEnabled(True)

    def _on_chosen(self) -> None:
        seen, source, row = self._session.seen, self._session.source, self.table.chosen
        if seen is None or source is None or row < 0:
            return
        maps = [m for m in seen.maps if m.kind in ON_PIXELS]
        if row < len(maps):
            self._session.stage.show_map(source, seen, maps[row])

    def _on_save(self) -> None:
        save_as(self, TABLES, "gates.csv", self.table.save)
