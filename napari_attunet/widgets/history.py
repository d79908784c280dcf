"""The versions of all models as a tree of descent: go back, rename, copy, delete."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from qtpy.QtCore import QEvent, Qt, Signal
from qtpy.QtWidgets import (
    QGridLayout,
    QHeaderView,
    QInputDialog,
    QLabel,
    QMessageBox,
    QPushButton,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_attunet.library import Entry, Library, Node
from napari_attunet.progress import Progress, Steps
from napari_attunet.spec import ModelSpec
from napari_attunet.widgets.boxes import LibraryWatch
from napari_attunet.widgets.feedback import complain, wrapped_label
from napari_attunet.widgets.jobs import Job

__all__ = ["HistoryPanel", "data_of", "scores_of"]

COLUMNS = ("Model", "✓", "Images", "Dice", "AP50", "Date")

#: Pixels; in a narrower dock the date, which comes last, is left to the tooltip.
ROOMY = 420

#: What is measured, in the words of the field; the first two have columns.
SCORES = {"dice": "Dice", "ap50": "AP50", "ap70": "AP70"}


class HistoryPanel(QWidget):
    """All versions, each under the one it was trained from, and what to do with them.

    ::

        Model                 ✓  Images  Dice  AP50  Date
        ▾ nuclei-histology@1  ✓  48      0.84  0.61
          ▾ mine@1               1       0.86  0.44  2026-11-20
              mine@2          ✓  3       0.88  0.47  2026-11-21
        [ Use this version ] [ Rename…  ]
        [ Duplicate…       ] [ Delete   ]
        mine@1 is now in use.

    Parameters
    ----------
    library : Library
    parent : QWidget, optional
    """

    #: The library was changed here; `refresh` has been called already.
    changed = Signal()

    def __init__(self, library: Library, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._library = library
        self._job: Job | None = None
        self._done = ""  # what is told when the job under way is done
        self._build()
        self.tree.itemSelectionChanged.connect(self._show_state)
        self.use.clicked.connect(self.use_selected)
        self.rename.clicked.connect(self.rename_selected)
        self.duplicate.clicked.connect(self.duplicate_selected)
        self.delete.clicked.connect(self.delete_selected)
        self._watch = LibraryWatch(library, self)
        self._watch.changed.connect(self.refresh)
        self.refresh()

    def _build(self) -> None:
        self.tree = QTreeWidget()
        self.tree.setHeaderLabels(COLUMNS)
        self.tree.setUniformRowHeights(True)
        self.tree.setIndentation(14)  # the dock is narrow
        self.tree.setTextElideMode(Qt.TextElideMode.ElideMiddle)  # versions come last
        self.tree.setMinimumHeight(140)
        header = self.tree.header()
        if header is not None:
            header.setStretchLastSection(False)
            header.setMinimumSectionSize(24)
            header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
            header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.use = QPushButton("Use this version")
        self.use.setToolTip(
            "Take it wherever the name alone is given, until a newer version comes"
        )
        self.rename = QPushButton("Rename…")
        self.rename.setToolTip("Give all of your versions of this model another name")
        self.duplicate = QPushButton("Duplicate…")
        self.duplicate.setToolTip("Copy this version under a name of its own")
        self.delete = QPushButton("Delete…")
        self.delete.setToolTip("Delete the file of this version")
        self.message: QLabel = wrapped_label()
        buttons = QGridLayout()
        for number, button in enumerate(
            (self.use, self.rename, self.duplicate, self.delete)
        ):
            buttons.addWidget(button, number // 2, number % 2)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.tree, 1)
        layout.addLayout(buttons)
        layout.addWidget(self.message)

    # --- what is shown --------------------------------------------------------------

    @property
    def selected(self) -> Entry | None:
        """The version that is selected."""
        items = self.tree.selectedItems()
        return items[0].data(0, Qt.ItemDataRole.UserRole) if items else None

    def select(self, key: str) -> None:
        """Select a version."""
        for item in self._items():
            if item.data(0, Qt.ItemDataRole.UserRole).spec.key == key:
                self.tree.setCurrentItem(item)

    def refresh(self) -> None:
        """Read the library again."""
        kept = self.selected
        self.tree.clear()
        self.tree.addTopLevelItems([_item(node) for node in self._library.lineage()])
        self.tree.expandAll()
        if kept is not None:
            self.select(kept.spec.key)
        self._show_state()

    def event(self, event: Any) -> bool:
        """Leave out what there is no room for."""
        if event.type() == QEvent.Type.Resize:
            self.tree.setColumnHidden(COLUMNS.index("Date"), self.width() < ROOMY)
        return bool(super().event(event))

    def _items(self) -> list[QTreeWidgetItem]:
        flags = Qt.MatchFlag.MatchContains | Qt.MatchFlag.MatchRecursive
        return list(self.tree.findItems("", flags))

    def _show_state(self) -> None:
        entry, free = self.selected, self._job is None
        own = entry is not None and not entry.bundled
        self.use.setEnabled(free and entry is not None and not entry.current)
        self.duplicate.setEnabled(free and entry is not None)
        self.rename.setEnabled(free and own)
        self.delete.setEnabled(free and own)

    # --- what is done ---------------------------------------------------------------

    def use_selected(self) -> None:
        """Make the selected version the one that is used."""
        entry = self.selected
        if entry is not None:
            key = entry.spec.key
            work = functools.partial(self._library.make_current, key)
            self._start(work, f"{key} is now in use.")

    def rename_selected(self) -> None:
        """Ask for another name, and give it to all versions of the selected model."""
        entry = self.selected
        if entry is None:
            return
        old = entry.spec.name
        new = self._ask_name(f"New name of all your versions of {old}:", old)
        if new and new != old:
            work = functools.partial(self._library.rename, old, new)
            self._start(work, f"{old} is now called {new}.")

    def duplicate_selected(self) -> None:
        """Ask for a name, and copy the selected version under it."""
        entry = self.selected
        if entry is None:
            return
        key = entry.spec.key
        new = self._ask_name(f"Name of the copy of {key}:", f"{entry.spec.name}-copy")
        if new:
            work = functools.partial(self._library.duplicate, key, new)
            self._start(work, f"{new}@1 is a copy of {key}.")

    def delete_selected(self) -> None:
        """Delete the selected version, if the user means it."""
        entry = self.selected
        if entry is None:
            return
        key = entry.spec.key
        answer = QMessageBox.question(
            self,
            f"Delete {key}?",
            f"Delete {key}? Its file is removed, and there is no way back. Versions "
            "that were trained from it stay.",
        )
        if answer == QMessageBox.StandardButton.Yes:
            work = functools.partial(self._library.remove, key)
            self._start(work, f"{key} was deleted.")

    def _ask_name(self, question: str, proposal: str) -> str:
        name, agreed = QInputDialog.getText(self, "Name", question, text=proposal)
        return name.strip() if agreed else ""

    def _start(self, work: Callable[[], object], done: str) -> None:
        """Do something to the library in a thread: models may be large."""
        if self._job is not None:
            return
        self._done = done
        self._job = Job(functools.partial(_one_step, work), self)
        self._job.succeeded.connect(self._on_succeeded)
        self._job.failed.connect(self._on_failed)
        self._job.ended.connect(self._on_ended)
        self._show_state()
        self._job.start()

    def _on_succeeded(self) -> None:
        self.message.setText(self._done)

    def _on_failed(self, error: Exception) -> None:
        self.message.setText(complain(error))

    def _on_ended(self) -> None:
        self._job = None
        self.refresh()
        self.changed.emit()


def _one_step(work: Callable[[], object]) -> Steps[object]:
    yield Progress(0, 0)
    return work()


# --- a version in words -------------------------------------------------------------


def _item(node: Node) -> QTreeWidgetItem:
    entry = node.entry
    spec = entry.spec
    images = data_of(spec).get("images")
    scores = scores_of(spec)
    item = QTreeWidgetItem(
        [
            spec.key,
            "✓" if entry.current else "",
            "" if images is None else str(images),
            *(f"{scores[n]:.2f}" if n in scores else "" for n in list(SCORES)[:2]),
            "" if entry.bundled else _date(entry),
        ]
    )
    item.setData(0, Qt.ItemDataRole.UserRole, entry)
    item.setTextAlignment(1, Qt.AlignmentFlag.AlignCenter)
    font = item.font(0)
    font.setBold(entry.current)
    item.setFont(0, font)
    for column in range(len(COLUMNS)):
        item.setToolTip(column, _tip(entry))
    item.addChildren([_item(child) for child in node.children])
    return item


def _date(entry: Entry) -> str:
    """Return when the file was written, on this machine's clock."""
    try:
        seconds = entry.path.stat().st_mtime
    except OSError:  # gone by now
        return ""
    return datetime.fromtimestamp(seconds).astimezone().date().isoformat()


def _tip(entry: Entry) -> str:
    spec = entry.spec
    data, settings = data_of(spec), spec.training.get("settings")
    lines = [f"{spec.key}{', in use' * entry.current}", spec.description]
    if entry.bundled:
        lines.append("Came with napari-attunet.")
    if spec.parent:
        lines.append(f"Trained from {spec.parent}.")
    if "images" in data:
        held = data.get("validation_images")
        lines.append(
            f"Trained on {data['images']} images"
            + (f", scored on {held} others." if held else ".")
        )
    lines += [f"{SCORES[n]}: {v:.3f}" for n, v in scores_of(spec).items()]
    if isinstance(settings, Mapping):
        lines += ["Settings:", *_settings_lines(settings)]
    if not entry.bundled:
        lines.append(f"Stored on {_date(entry)} as {entry.path}")
    return "\n".join(line for line in lines if line)


def _settings_lines(settings: Mapping[str, Any]) -> Sequence[str]:
    return [f"  {name}: {json.dumps(value)}" for name, value in settings.items()]


def data_of(spec: ModelSpec) -> Mapping[str, Any]:
    """Return what a model's record tells of its training images; may be empty."""
    data = spec.training.get("data")
    return data if isinstance(data, Mapping) else {}


def scores_of(spec: ModelSpec) -> dict[str, float]:
    """Return what a model's record tells of its scores on validation; may be empty."""
    found = spec.training.get("scores")
    if isinstance(found, Mapping) and isinstance(found.get("validation"), Mapping):
        found = found["validation"]
    if not isinstance(found, Mapping):
        return {}
    return {
        name: float(found[name])
        for name in SCORES
        if isinstance(found.get(name), int | float)
    }
