"""The table of what a round of learning came to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QSizePolicy,
    QTableWidget,
    QTableWidgetItem,
)

if TYPE_CHECKING:
    from napari_attunet.training.record import Contender

__all__ = ["HEAD", "ScoreTable"]

#: Rows of the table, and what they stand for.
MEANINGS = {
    "parent": "The model that learning started from",
    "tuned": "That model, trained further",
    "scratch": "A new model, trained from nothing",
}

#: Columns of the table, under two heads.
MEASURED = {"validation": "held out", "corrections": "corrections"}
SCORES = {"dice": "Dice", "ap50": "AP50"}

#: Rows above the contenders.
HEAD = 2


class ScoreTable(QTableWidget):
    """Contenders in rows, scores in columns under what they were measured on."""

    def __init__(self) -> None:
        super().__init__()
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setShowGrid(False)
        # Qt's own headers cannot span columns.
        self._head = cast("Any", self.horizontalHeader())
        self._head.setVisible(False)
        self._side = cast("Any", self.verticalHeader())
        self._side.setVisible(False)

    @property
    def chosen(self) -> int:
        """Number of the selected contender; negative if none is."""
        return self.currentRow() - HEAD

    def fill(self, contenders: Sequence[Contender], proposed: str) -> None:
        """Show the contenders, and select the proposed one."""
        columns = [
            (on, name)
            for on in MEASURED
            for name in SCORES
            if any(name in c.scores.get(on, {}) for c in contenders)
        ]
        self.clear()
        self.clearSpans()
        self.setRowCount(HEAD + len(contenders))
        self.setColumnCount(1 + len(columns))
        for row in range(HEAD):
            self._put(row, 0, "", head=True)
        for column, (on, name) in enumerate(columns, 1):
            self._put(0, column, MEASURED[on], head=True)
            self._put(1, column, SCORES[name], head=True)
        for on in MEASURED:
            of = [i for i, (o, _) in enumerate(columns, 1) if o == on]
            if of[1:]:
                self.setSpan(0, of[0], 1, len(of))
        for row, contender in enumerate(contenders, HEAD):
            star = " ★" if contender.name == proposed else ""
            meaning = MEANINGS.get(contender.name, "")
            tip = f"{meaning} ({contender.model}){'; proposed' * bool(star)}"
            self._put(row, 0, contender.name + star, tip=tip)
            for column, (on, name) in enumerate(columns, 1):
                score = contender.scores.get(on, {}).get(name)
                all_scores = [c.scores.get(on, {}).get(name, -1.0) for c in contenders]
                best = max(all_scores) if len(set(all_scores)) > 1 else None
                text = "–" if score is None else f"{score:.3f}"
                self._put(row, column, text, bold=score is not None and score == best)
            if contender.name == proposed:
                self.selectRow(row)
        self._head.setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self._head.setSectionResizeMode(0, QHeaderView.ResizeMode.ResizeToContents)
        self._side.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self._fit_height()

    def _put(
        self,
        row: int,
        column: int,
        text: str,
        *,
        head: bool = False,
        bold: bool = False,
        tip: str = "",
    ) -> None:
        item = QTableWidgetItem(text)
        item.setToolTip(tip)
        if column:
            item.setTextAlignment(Qt.AlignmentFlag.AlignCenter)
        if head:
            item.setFlags(Qt.ItemFlag.NoItemFlags)
        font = item.font()
        font.setBold(bold)
        item.setFont(font)
        self.setItem(row, column, item)

    def _fit_height(self) -> None:
        rows = sum(self.rowHeight(row) for row in range(self.rowCount()))
        self.setFixedHeight(rows + 2 * self.frameWidth())

    def changeEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        """Keep all rows in sight when the theme brings another font."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            QTimer.singleShot(0, self._fit_height)
