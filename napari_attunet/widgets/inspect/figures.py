"""Bars, and figures and tables that leave the viewer as files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from napari.utils.theme import get_theme
from qtpy.QtCore import QRect, Qt
from qtpy.QtGui import QImage, QPainter
from qtpy.QtSvg import QSvgGenerator
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QGraphicsView,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_attunet.atomic import replacing
from napari_attunet.widgets.feedback import complain

__all__ = [
    "FIGURES",
    "TABLES",
    "Bars",
    "NumberTable",
    "save_as",
    "save_figure",
    "save_table",
]

#: Pixels of one bar, and of what is above and below all of them.
BAR, FRAME = 18, 26

#: Of the groups of bars; seen on dark and on light ground, and told apart by most.
COLOURS = ("#e69f00", "#009e73", "#2f9be6")

FIGURES = "PNG picture (*.png);;SVG drawing (*.svg)"
TABLES = "CSV table (*.csv)"

#: Pixels of a saved picture's width: sharp in print at the width of a column.
SAVED_WIDTH = 1600


class Bars(QWidget):
    """Horizontal bars from 0 to 1, named on the left.

    pyqtgraph is imported with the first values.

    Parameters
    ----------
    theme : str
        Name of the viewer's theme.
    """

    def __init__(self, theme: str) -> None:
        super().__init__()
        self._theme = theme
        self._plot: Any = None
        self._bars: Any = None
        self._names: tuple[str, ...] = ()
        self.values: tuple[float, ...] = ()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)

    def show_values(
        self,
        names: Sequence[str],
        values: Sequence[float],
        groups: Sequence[int] = (),
    ) -> None:
        """Show bars.

        Parameters
        ----------
        names : sequence of str
            From top to bottom; an empty one is not written.
        values : sequence of float
        groups : sequence of int, optional
            So many of them belong together and have a colour; by default all.
        """
        if self._plot is None:
            self._build()
        self.values = tuple(values)
        if tuple(names) != self._names:
            self._names = tuple(names)
            ticks = [(-i, name) for i, name in enumerate(names) if name]
            self._plot.getAxis("left").setTicks([ticks])
            self._plot.setYRange(-len(names) + 0.4, 0.6, padding=0)
            self._plot.setFixedHeight(BAR * len(names) + FRAME)
        colours = [
            COLOURS[group]
            for group, count in enumerate(groups or (len(names),))
            for _ in range(count)
        ]
        self._bars.setOpts(
            x0=[0.0] * len(names),
            y=[-float(i) for i in range(len(names))],
            width=list(self.values),
            height=0.7,
            brushes=colours,
            pens=colours,
        )

    def clear(self) -> None:
        """Show no bars."""
        if self._plot is not None:
            self._bars.setOpts(width=[0.0] * len(self._names))
        self.values = ()

    def follow_theme(self, theme: str) -> None:
        """Take the colours of a theme."""
        self._theme = theme
        if self._plot is not None:
            _paint(self._plot, theme)

    def save(self, path: Path) -> None:
        """Write the bars to a PNG or SVG file."""
        if self._plot is not None:
            save_figure(self._plot, path)

    def _build(self) -> None:
        import pyqtgraph

        self._plot = pyqtgraph.PlotWidget()
        plot = self._plot.getPlotItem()
        plot.setMenuEnabled(False)
        plot.hideButtons()
        plot.getViewBox().setMouseEnabled(False, False)
        self._plot.setXRange(0, 1, padding=0.01)
        self._bars = pyqtgraph.BarGraphItem(x0=[], y=[], width=[], height=0.7)
        self._plot.addItem(self._bars)
        layout = self.layout()
        if layout is not None:
            layout.addWidget(self._plot)
        _paint(self._plot, self._theme)


def _paint(plot: Any, theme: str) -> None:
    colours = get_theme(theme)
    plot.setBackground(colours.background.as_hex())
    for name in ("left", "bottom"):
        axis = plot.getPlotItem().getAxis(name)
        axis.setPen(colours.secondary.as_hex())
        axis.setTextPen(colours.text.as_hex())


class NumberTable(QTableWidget):
    """A table of names and numbers that can be sorted and saved.

    Parameters
    ----------
    columns : sequence of (str, str)
        Head of each column, and what it means.
    """

    def __init__(self, columns: Sequence[tuple[str, str]]) -> None:
        super().__init__(0, len(columns))
        self._columns = tuple(columns)
        for number, (text, meaning) in enumerate(columns):
            head = QTableWidgetItem(text)
            head.setToolTip(meaning)
            self.setHorizontalHeaderItem(number, head)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setShowGrid(False)
        side, top = self.verticalHeader(), self.horizontalHeader()
        if side is not None and top is not None:
            side.setVisible(False)
            top.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
            top.setMinimumSectionSize(20)
            top.setSortIndicator(-1, Qt.SortOrder.AscendingOrder)  # as filled
            # Eight columns have to fit into a dock.
            top.setStyleSheet("QHeaderView::section { padding: 1px 3px; }")
        self._rows: list[tuple[object, ...]] = []

    def fill(self, rows: Sequence[Sequence[object]], tips: Sequence[str] = ()) -> None:
        """Show rows; the first cell of each remembers its number.

        Parameters
        ----------
        rows : sequence of sequence
            Numbers are shown with two digits, and sorted as numbers.
        tips : sequence of str, optional
            For each row.
        """
        self._rows = [tuple(row) for row in rows]
        self.setSortingEnabled(False)
        self.setRowCount(len(rows))
        for number, row in enumerate(rows):
            for column, value in enumerate(row):
                item = _Cell(value, number)
                if tips:
                    item.setToolTip(tips[number])
                self.setItem(number, column, item)
        self.setSortingEnabled(True)
        self.resizeRowsToContents()
        height = sum(self.rowHeight(row) for row in range(self.rowCount()))
        self.setMinimumHeight(min(260, height + 50))

    @property
    def chosen(self) -> int:
        """Number of the selected row, as it was filled; negative if none is."""
        rows = self.selectedItems()
        return rows[0].data(Qt.ItemDataRole.UserRole) if rows else -1

    def choose(self, number: int) -> None:
        """Select a row by its number as filled."""
        for row in range(self.rowCount()):
            item = self.item(row, 0)
            if item is not None and item.data(Qt.ItemDataRole.UserRole) == number:
                self.selectRow(row)

    def save(self, path: Path) -> None:
        """Write the table to a CSV file, with all digits."""
        save_table(path, [head for head, _ in self._columns], self._rows)


class _Cell(QTableWidgetItem):
    """A cell that sorts by its value."""

    def __init__(self, value: object, number: int) -> None:
        text = f"{value:.2f}" if isinstance(value, float) else str(value)
        super().__init__(text.replace("nan", "–"))
        self._value = value
        self.setData(Qt.ItemDataRole.UserRole, number)
        if not isinstance(value, str):
            middle = Qt.AlignmentFlag.AlignVCenter
            self.setTextAlignment(Qt.AlignmentFlag.AlignRight | middle)

    def __lt__(self, other: QTableWidgetItem) -> bool:
        mine, its = self._value, getattr(other, "_value", None)
        numbers = (int, float)
        if isinstance(mine, numbers) and isinstance(its, numbers):
            return (mine != mine, mine) < (its != its, its)  # NaN last
        return str(mine) < str(its)


def save_table(
    path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """Write a CSV file, whole or not at all."""
    with replacing(path) as new, new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)


def save_figure(view: QGraphicsView, path: Path) -> None:
    """Write what a view shows to a PNG or SVG file, by the path's suffix.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    with replacing(path) as new:
        wide, high = view.width(), view.height()
        if path.suffix.lower() == ".svg":
            drawing = QSvgGenerator()
            drawing.setFileName(str(new))
            drawing.setSize(view.size())
            drawing.setViewBox(QRect(0, 0, wide, high))
            _render(view, drawing)
        else:
            factor = SAVED_WIDTH / max(1, wide)
            picture = QImage(
                SAVED_WIDTH, round(high * factor), QImage.Format.Format_RGB32
            )
            _render(view, picture)
            if not picture.save(str(new)):
                raise OSError(
                    f"{path.name} could not be written: choose a name that ends in "
                    ".png or .svg."
                )


def _render(view: QGraphicsView, on: Any) -> None:
    painter = QPainter(on)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    view.render(painter)
    painter.end()


def save_as(
    parent: QWidget, kinds: str, name: str, write: Callable[[Path], None]
) -> None:
    """Ask where to, and write a file there; what goes wrong is told."""
    path = ask_path(parent, kinds, name)
    if path is None:
        return
    try:
        write(path)
    except OSError as error:
        complain(error)


def ask_path(parent: QWidget, kinds: str, name: str) -> Path | None:
    """Ask where to save; None if the user does not want to."""
    chosen, kind = QFileDialog.getSaveFileName(parent, "Save", name, kinds)
    if not chosen:
        return None
    path = Path(chosen)
    return path if path.suffix else path.with_suffix(kind[-5:-1])
