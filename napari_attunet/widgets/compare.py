"""Old or new: what a round of learning came to, and the decision about it."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import (
    QButtonGroup,
    QHBoxLayout,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_attunet.progress import Progress
from napari_attunet.widgets.comparison import Comparison, describe
from napari_attunet.widgets.feedback import wrapped_label
from napari_attunet.widgets.jobs import Job
from napari_attunet.widgets.score_table import ScoreTable

if TYPE_CHECKING:
    import napari.viewer
    from napari.layers import Image, Layer

    from napari_attunet.training.record import Contender, Round

__all__ = ["CompareView"]

#: What the button says where there is an old model, and where there is none.
SHOW_CHANGES, SHOW_NEW = "Show what would change", "Show what it finds"


class CompareView(QWidget):
    """The table of contenders, what would change, and Accept or Discard.

    ::

                          held out      corrections
                          Dice  AP50    Dice  AP50
        parent             .77   .31     .80   .35
        tuned ★            .88   .47     .91   .52
        scratch            .81   .40     .85   .44
        tuned is best with 0.675 ...
        [ Show what would change         ]
        [  Old  ] [  New  ] [  Changes   ]
        [        Accept        ] [Discard]

    Parameters
    ----------
    viewer : Viewer
    """

    #: Name of the contender that is to become the next version.
    accepted = Signal(str)
    discarded = Signal()
    #: Old, new and changes are in the viewer.
    shown = Signal()
    #: A sentence for the line of messages.
    told = Signal(str)
    failed = Signal(object)

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._viewer_ref = weakref.ref(viewer)
        self._round: Round | None = None
        self._folder = Path()
        self._parent: Path | None = None
        self._image: Image | None = None
        self._device = "auto"
        self._layers: list[Layer] = []
        self._coming: list[Layer] = []  # made, but not yet in the viewer
        self._going: list[Layer] = []  # no longer shown, but still in the viewer
        self._job: Job | None = None
        self._busy = False
        self._build()
        self.clear()

    def _build(self) -> None:
        self.table = ScoreTable()
        self.reason = wrapped_label()
        self.show_changes = QPushButton(SHOW_CHANGES)
        self.show_changes.setToolTip(
            "Segment the image with the chosen model, and with the old one if there "
            "is one; gained pixels are green, lost ones red, other borders or classes "
            "yellow"
        )
        self.switch = QButtonGroup(self)
        switches = QHBoxLayout()
        for number, text in enumerate(("Old", "New", "Changes")):
            button = QPushButton(text)
            button.setCheckable(True)
            self.switch.addButton(button, number)
            switches.addWidget(button)
        self.accept = QPushButton("Accept")
        self.accept.setToolTip("Keep the chosen model as the next version")
        self.accept.setMinimumHeight(32)
        self.discard = QPushButton("Discard")
        self.discard.setToolTip("Drop what was learnt; the old model stays in use")
        self.discard.setMinimumHeight(32)
        decision = QHBoxLayout()
        decision.addWidget(self.accept, 2)
        decision.addWidget(self.discard, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.table)
        layout.addWidget(self.reason)
        layout.addWidget(self.show_changes)
        layout.addLayout(switches)
        layout.addLayout(decision)
        self.table.itemSelectionChanged.connect(self._on_chosen)
        self.show_changes.clicked.connect(self._on_show_changes)
        self.switch.idClicked.connect(self._on_switched)
        self.accept.clicked.connect(self._on_accept)
        self.discard.clicked.connect(self.discarded)

    # --- what it shows --------------------------------------------------------------

    def present(
        self,
        outcome: Round,
        folder: Path,
        *,
        parent: Path | None,
        image: Image | None,
        device: str = "auto",
    ) -> None:
        """Show a round.

        Parameters
        ----------
        outcome : Round
        folder : Path
            Holds the contenders' files.
        parent : Path, optional
            File of the model the round started from; a new model has none.
        image : Image, optional
            To show changes on.
        device : str
        """
        self._round, self._folder, self._parent = outcome, folder, parent
        self._image, self._device = image, device
        self.reason.setText(outcome.reason)
        self.table.fill(outcome.contenders, outcome.proposed)
        self.setVisible(True)
        self._on_chosen()

    def choose_image(self, image: Image | None) -> None:
        """Show changes on another image."""
        self._image = image
        self._show_state()

    @property
    def chosen(self) -> Contender | None:
        """The contender whose row is selected."""
        if self._round is None:
            return None
        row = self.table.chosen
        contenders = self._round.contenders
        return contenders[row] if 0 <= row < len(contenders) else None

    @property
    def layers(self) -> list[Layer]:
        """Old, new and changes, as far as they are still in the viewer."""
        viewer = self._viewer_ref()
        return [x for x in self._layers if viewer is not None and x in viewer.layers]

    def set_busy(self, busy: bool) -> None:
        """Let nothing be pressed while a decision is carried out."""
        self._busy = busy
        self._show_state()

    def clear(self) -> None:
        """Take the comparison's layers away and show nothing."""
        self.stop()
        self._take_away()
        self._coming, self._round = [], None
        self.setVisible(False)
        self._show_state()

    def stop(self) -> None:
        """Stop segmenting."""
        if self._job is not None:
            self._job.cancel()

    def _on_chosen(self) -> None:
        chosen = self.chosen
        if chosen is not None and chosen.name != "parent":
            self.accept.setText(f"Accept {chosen.name}")
        else:
            self.accept.setText("Accept")
        self._show_state()

    def _show_state(self) -> None:
        chosen, running = self.chosen, self._job is not None
        new = chosen is not None and chosen.name != "parent" and chosen.file is not None
        self.accept.setEnabled(new and not self._busy)
        self.discard.setEnabled(self._round is not None and not self._busy)
        self.discard.setText("Keep the old model" if chosen and not new else "Discard")
        possible = new and self._image is not None
        self.show_changes.setEnabled(running or (possible and not self._busy))
        show = SHOW_NEW if self._parent is None else SHOW_CHANGES
        self.show_changes.setText("Stop" if running else show)
        for button in self.switch.buttons():
            button.setVisible(len(self._layers) > 1)

    # --- what would change ----------------------------------------------------------

    def _on_show_changes(self) -> None:
        if self._job is not None:
            self.stop()
            return
        chosen, image = self.chosen, self._image
        if chosen is None or chosen.file is None or image is None:
            return
        new = self._folder / chosen.file
        try:
            task = Comparison.of(image, self._parent, new, self._device)
        except Exception as error:  # noqa: BLE001 - told where all errors are told
            self.failed.emit(error)
            return
        self._job = Job(functools.partial(task.compute), self)
        self._job.progressed.connect(self._on_progressed)
        self._job.succeeded.connect(self._on_compared)
        self._job.failed.connect(self.failed)
        self._job.ended.connect(self._on_ended)
        self._job.start()
        self._show_state()

    def _on_progressed(self, progress: Progress) -> None:
        self.told.emit(progress.message)

    def _on_compared(self, layers: Sequence[Layer]) -> None:
        self._take_away()  # those of an earlier look
        self._coming = list(layers)
        only = "This is what the new model finds."  # there is no old one
        self.told.emit(describe(layers[-1].data) if layers[1:] else only)
        QTimer.singleShot(0, self._deliver_next)

    def _deliver_next(self) -> None:
        """Add one layer; the window is painted before the next one."""
        viewer, image = self._viewer_ref(), self._image
        if not self._coming:
            return
        if viewer is None or image is None or image not in viewer.layers:
            self._coming = []
            return
        layer = self._coming.pop(0)
        layer.name = f"{image.name} · {layer.name}"
        layer.editable = False
        viewer.layers.append(layer)
        self._layers.append(layer)
        if self._coming:
            QTimer.singleShot(0, self._deliver_next)
            return
        self.switch.buttons()[-1].setChecked(True)
        self._show_state()
        self.shown.emit()

    def _take_away(self) -> None:
        """Hide our layers at once, and remove one after the other.

        napari collects garbage with each, which takes a third of a second.
        """
        self._going += self.layers
        self._layers = []
        for layer in self._going:
            layer.visible = False
        QTimer.singleShot(0, self._remove_next)

    def _remove_next(self) -> None:
        viewer = self._viewer_ref()
        if viewer is None or not self._going:
            return
        layer = self._going.pop()
        if layer in viewer.layers:
            viewer.layers.remove(layer)
        QTimer.singleShot(0, self._remove_next)

    def _on_ended(self) -> None:
        self._job = None
        self._show_state()

    def _on_switched(self, number: int) -> None:
        for position, layer in enumerate(self._layers):
            layer.visible = position == number

    def _on_accept(self) -> None:
        if self.chosen is not None:
            self.accepted.emit(self.chosen.name)
