"""The training set as a table: what is learned from, what of it, since when."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from napari.utils.notifications import show_error
from qtpy.QtCore import QSignalBlocker, Qt, Signal
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)
from superqt import QElidingLabel

from napari_attunet.corrections import (
    Sample,
    TrainingSet,
    default_folder,
    remember_folder,
)
from napari_attunet.errors import DataError
from napari_attunet.widgets.feedback import wrapped_label
from napari_attunet.widgets.question import Question
from napari_attunet.widgets.suggestions import grouped, plural

__all__ = ["SampleTable"]

#: What a sample is for, and why it is so.
PARTS = {
    "none": ("learn", "The model learns from it."),
    "all": (
        "validate",
        "Held out: it is never learned from, and tells how good the model is.",
    ),
    "blocks": (
        "both",
        "The model learns from it, but for some blocks that tell how good it is.",
    ),
}

#: Rows that are shown before the table scrolls.
ROWS_SHOWN = 4


class SampleTable(QWidget):
    """Lists the samples of a training set, and lets the user choose among them.

    ::

        …/training/default  [Open …] [Default]
        ☑ tissue                 learn
          12 objects · painted   20 Nov 14:05
        ☐ cells, z 3             both
          3 410 px · whole       19 Nov 09:12
        1 sample cannot be read.
        [  Show  ] [ Remove … ]

    Parameters
    ----------
    training_set : TrainingSet
    parent : QWidget, optional
    """

    #: What is on disk has changed, or another training set was chosen.
    changed = Signal()

    #: The user wants to see a sample.
    opened = Signal(object)

    def __init__(
        self, training_set: TrainingSet, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self._training_set = training_set
        self._samples: tuple[Sample, ...] = ()
        self._build()
        self._connect()
        self.refresh()

    # --- building -------------------------------------------------------------------

    def _build(self) -> None:
        self.table = QTableWidget(0, 2)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setShowGrid(False)
        self.table.setWordWrap(False)
        self.table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        columns: Any = self.table.horizontalHeader()
        columns.hide()
        columns.setMinimumSectionSize(20)
        columns.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        columns.setSectionResizeMode(1, QHeaderView.ResizeMode.ResizeToContents)
        rows: Any = self.table.verticalHeader()
        rows.hide()
        self.empty = wrapped_label("The training set is empty.")
        self.damaged = wrapped_label()
        self.show_button = QPushButton("Show")
        self.show_button.setToolTip("Open the sample's image and labels as layers")
        self.remove_button = QPushButton("Remove …")
        self.remove_button.setToolTip("Delete the sample from the training set")
        self.question = Question()
        self.folder = QElidingLabel()
        self.folder.setElideMode(Qt.TextElideMode.ElideMiddle)
        self.open_button = QPushButton("Open …")
        self.open_button.setToolTip("Choose the folder of another training set")
        self.default_button = QPushButton("Default")
        self.default_button.setToolTip("Go back to the default training set")

        buttons = QHBoxLayout()
        buttons.addWidget(self.show_button)
        buttons.addWidget(self.remove_button)
        folder = QHBoxLayout()
        folder.addWidget(self.folder, 1)
        folder.addWidget(self.open_button)
        folder.addWidget(self.default_button)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(folder)
        layout.addWidget(self.empty)
        layout.addWidget(self.table)
        layout.addWidget(self.damaged)
        layout.addLayout(buttons)
        layout.addWidget(self.question)

    def _connect(self) -> None:
        self.table.itemChanged.connect(self._on_item_changed)
        self.table.itemSelectionChanged.connect(self._on_selection_changed)
        self.table.itemDoubleClicked.connect(self._on_show)
        self.show_button.clicked.connect(self._on_show)
        self.remove_button.clicked.connect(self._on_remove)
        self.question.answered.connect(self._on_answered)
        self.open_button.clicked.connect(self._on_open)
        self.default_button.clicked.connect(self._on_default)

    # --- what is shown --------------------------------------------------------------

    @property
    def training_set(self) -> TrainingSet:
        """The training set shown."""
        return self._training_set

    @training_set.setter
    def training_set(self, training_set: TrainingSet) -> None:
        self._training_set = training_set
        self.refresh()

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The samples as they were when last looked at, oldest first."""
        return self._samples

    @property
    def selected(self) -> Sample | None:
        """The selected sample."""
        rows = {item.row() for item in self.table.selectedItems()}
        return self._samples[-1 - rows.pop()] if rows else None  # newest on top

    def select(self, sample: Sample) -> None:
        """Select a sample, if it is there."""
        for row, other in enumerate(reversed(self._samples)):
            if other.id == sample.id:
                self.table.selectRow(row)

    def refresh(self) -> None:
        """Look at the folder again."""
        kept = self.selected
        self._samples = self._training_set.samples()
        with QSignalBlocker(self.table):
            self.table.setRowCount(len(self._samples))
            for row, sample in enumerate(reversed(self._samples)):
                self._fill_row(row, sample)
            self.table.clearSelection()
        if kept is not None:
            self.select(kept)
        shown = min(len(self._samples), ROWS_SHOWN)
        height = sum(self.table.rowHeight(row) for row in range(shown))
        self.table.setFixedHeight(height + 2 * self.table.frameWidth() + 2)
        self.table.setVisible(bool(self._samples))
        self.empty.setVisible(not self._samples)
        self._show_damaged()
        folder = str(self._training_set.folder)
        self.folder.setText(folder)
        self.folder.setToolTip(f"The training set is kept in {folder}")
        is_default = self._training_set.folder == default_folder()
        self.default_button.setVisible(not is_default)
        self._on_selection_changed()

    def _fill_row(self, row: int, sample: Sample) -> None:
        part, why = PARTS[sample.validation]
        name = QTableWidgetItem(f"{sample.name}\n{_amount(sample)} · {sample.extent}")
        name.setCheckState(
            Qt.CheckState.Checked if sample.used else Qt.CheckState.Unchecked
        )
        name.setToolTip(
            f"{sample.name}: {_amount(sample)}, "
            f"{grouped(sample.count['known'])} pixels count. Unchecked, it is kept "
            "but not used."
        )
        when = datetime.fromisoformat(sample.updated).astimezone()
        note = QTableWidgetItem(f"{part}\n{when:%d %b %H:%M}")
        note.setToolTip(f"{why} Saved on {when:%d %B %Y at %H:%M}.")
        for column, item in enumerate((name, note)):
            self.table.setItem(row, column, item)
        height = 2 * self.table.fontMetrics().lineSpacing() + 8
        self.table.setRowHeight(row, height)

    def _show_damaged(self) -> None:
        damaged = self._training_set.damaged()
        count = len(damaged)
        self.damaged.setVisible(bool(damaged))
        self.damaged.setText(
            f"{plural(count, 'folder')} cannot be read as {'a ' * (count == 1)}sample"
            f"{'s' * (count != 1)}; see the tooltip."
        )
        self.damaged.setToolTip(
            "\n".join(f"{path.name}: {why}" for path, why in damaged.items())
        )

    # --- what the user does ---------------------------------------------------------

    def _on_selection_changed(self) -> None:
        self.question.hide()
        for button in (self.show_button, self.remove_button):
            button.setEnabled(self.selected is not None)
            button.setVisible(bool(self._samples))

    def _on_item_changed(self, item: QTableWidgetItem) -> None:
        if item.column() != 0:
            return
        sample = self._samples[-1 - item.row()]
        used = item.checkState() == Qt.CheckState.Checked
        if used != sample.used:
            self._change(lambda: self._training_set.set_used(sample, used))

    def _on_show(self) -> None:
        if self.selected is not None:
            self.opened.emit(self.selected)

    def _on_remove(self) -> None:
        if self.selected is not None:
            self.question.ask(
                f"Delete the sample “{self.selected.name}”? Your layers stay.",
                "Delete",
                "Keep",
            )

    def _on_answered(self, yes: bool) -> None:
        sample = self.selected
        if yes and sample is not None:
            self._change(lambda: self._training_set.remove(sample))

    def _change(self, write: Callable[[], object]) -> None:
        try:
            write()
        except DataError as error:
            show_error(str(error))
        self.refresh()
        self.changed.emit()

    def _on_open(self) -> None:
        start = self._training_set.folder
        folder = QFileDialog.getExistingDirectory(
            self, "Folder of a training set", str(start if start.is_dir() else "")
        )
        if folder:
            self.choose(Path(folder))

    def _on_default(self) -> None:
        self.choose(default_folder())

    def choose(self, folder: Path) -> None:
        """Show the training set in a folder, which may be empty or missing."""
        self.training_set = TrainingSet(folder)
        remember_folder(folder)
        self.changed.emit()


def _amount(sample: Sample) -> str:
    if sample.output == "objects":
        return plural(sample.count["objects"], "object")
    return f"{grouped(sample.count['known'])} px"
