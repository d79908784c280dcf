"""How a training goes, drawn while it goes: its losses and its scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from napari.utils.theme import get_theme
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

__all__ = ["Curve", "LossPlot"]

#: Pixels; without a fixed height, a plot takes half of the dock.
HEIGHT = 180

#: Milliseconds between two paintings.
REDRAW = 100

#: Share of the past in the smooth line: it follows about 1 / (1 - share) steps.
SMOOTHNESS = 0.9

#: Above this quantile of all losses, curves leave the picture: the first steps of a
#: network from scratch would press everything else to the ground.
SEEN = 0.98

#: Told apart on dark and on light ground, and by people who don't see red or green.
COLOURS = {"tuned": "#2f9be6", "scratch": "#e69f00"}
OTHER_COLOUR = "#cc79a7"

#: The scores whose mean is drawn; classes have no AP.
SCORES = ("dice", "ap50")


@dataclass
class Curve:
    """What one contender has shown so far; no Qt.

    Attributes
    ----------
    steps, losses, smooth : list
        Step numbers, the loss of each, and its bias-free running mean.
    scored, scores : list
        Steps at which it was validated, and what came of it.
    restarts : list of int
        Steps at which it went on from a checkpoint.
    """

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smooth: list[float] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    restarts: list[int] = field(default_factory=list)
    _sum: float = 0.0
    _weight: float = 0.0

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Take what a step measured; a step that is told again replaces the first."""
        if self.steps and step < self.steps[-1]:
            self._go_back(step)
        scores = [values[name] for name in SCORES if name in values]
        if scores and step not in self.scored[-1:]:
            self.scored.append(step)
            self.scores.append(sum(scores) / len(scores))
        loss = values.get("loss")
        if loss is None or step in self.steps[-1:]:
            return
        self._sum = SMOOTHNESS * self._sum + (1 - SMOOTHNESS) * loss
        self._weight = SMOOTHNESS * self._weight + (1 - SMOOTHNESS)
        self.steps.append(step)
        self.losses.append(loss)
        self.smooth.append(self._sum / self._weight)

    def _go_back(self, step: int) -> None:
        kept = sum(s < step for s in self.steps)
        del self.steps[kept:], self.losses[kept:], self.smooth[kept:]
        kept = sum(s < step for s in self.scored)
        del self.scored[kept:], self.scores[kept:]
        self.restarts = [*(s for s in self.restarts if s < step), step]


class LossPlot(QWidget):
    """Losses on the left axis, faint and smoothed; validation scores on the right.

    pyqtgraph is imported with the first value that comes, so that opening the viewer
    does not wait for it. Import it in a thread before: then nothing waits at all.

    Parameters
    ----------
    theme : str
        Name of the viewer's theme.
    """

    def __init__(self, theme: str) -> None:
        super().__init__()
        self._theme = theme
        self._curves: dict[str, Curve] = {}
        self._items: dict[str, dict[str, Any]] = {}
        self._marks: list[Any] = []
        self._plot: Any = None
        self._right: Any = None
        self._legend = QLabel()
        self._legend.setTextFormat(Qt.TextFormat.RichText)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(REDRAW)
        self._timer.timeout.connect(self._draw)
        self._layout = QVBoxLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setSpacing(0)
        self._layout.addWidget(self._legend)
        self.setFixedHeight(HEIGHT)

    @property
    def curves(self) -> Mapping[str, Curve]:
        """What there is to see, by contender."""
        return self._curves

    def add(self, contender: str, step: int, values: Mapping[str, float]) -> None:
        """Take what a contender measured at a step, and show it soon."""
        self._curves.setdefault(contender, Curve()).add(step, values)
        if not self._timer.isActive():
            self._timer.start()

    def clear(self) -> None:
        """Begin with an empty plot."""
        self._curves.clear()
        if self._plot is not None:
            for parts in self._items.values():
                for name, item in parts.items():
                    (self._right if name == "score" else self._plot).removeItem(item)
            self._items.clear()
            self._remove_marks()
        self._legend.clear()

    def follow_theme(self, theme: str) -> None:
        """Take the colours of a theme."""
        self._theme = theme
        if self._plot is not None:
            self._paint_frame()
            self._draw()

    # --- drawing --------------------------------------------------------------------

    def _build(self) -> None:
        import pyqtgraph

        self._plot = pyqtgraph.PlotWidget()
        plot = self._plot.getPlotItem()
        plot.setMenuEnabled(False)
        plot.hideButtons()
        plot.setLabel("left", "loss")
        plot.setLabel("right", "validation score")
        plot.showAxis("right")
        plot.getAxis("bottom").setHeight(18)
        plot.getAxis("left").enableAutoSIPrefix(False)
        plot.layout.setContentsMargins(0, 6, 0, 0)  # half of the topmost number
        plot.getViewBox().setMouseEnabled(False, False)
        self._plot.setAntialiasing(True)
        # A second pair of axes over the first: pyqtgraph's own way to have two scales.
        self._right = pyqtgraph.ViewBox(enableMenu=False)
        self._right.setMouseEnabled(False, False)
        self._right.setYRange(0, 1, padding=0.02)
        plot.scene().addItem(self._right)
        plot.getAxis("right").linkToView(self._right)
        self._right.setXLink(plot)
        plot.getViewBox().sigResized.connect(self._on_resized)
        self._layout.addWidget(self._plot, 1)
        self._paint_frame()

    def _on_resized(self) -> None:
        self._right.setGeometry(
            self._plot.getPlotItem().getViewBox().sceneBoundingRect()
        )

    def _paint_frame(self) -> None:
        theme = get_theme(self._theme)
        text, line = theme.text.as_hex(), theme.secondary.as_hex()
        self._plot.setBackground(theme.background.as_hex())
        for name in ("left", "bottom", "right"):
            axis = self._plot.getPlotItem().getAxis(name)
            axis.setPen(line)  # before the text's: it colours the title as well
            axis.setTextPen(text)

    def _draw(self) -> None:
        if not self._curves:
            return
        if self._plot is None:
            self._build()
        self._remove_marks()
        for contender, curve in self._curves.items():
            items = self._items.get(contender)
            if items is None:
                items = self._items[contender] = self._make_items(contender)
            items["raw"].setData(curve.steps, curve.losses)
            items["smooth"].setData(curve.steps, curve.smooth)
            items["score"].setData(curve.scored, curve.scores)
            self._mark_restarts(contender, curve)
        self._set_range()
        self._legend.setText(
            "&nbsp;&nbsp; ".join(
                f'<span style="color: {_colour(name)}">━</span> {name}'
                for name in self._curves
            )
            + "&nbsp;&nbsp; ◆ validation"
        )

    def _make_items(self, contender: str) -> dict[str, Any]:
        import pyqtgraph

        colour = pyqtgraph.mkColor(_colour(contender))
        faint = pyqtgraph.mkColor(colour)
        faint.setAlpha(70)
        dashed = pyqtgraph.mkPen(colour, width=1, style=Qt.PenStyle.DashLine)
        items = {
            # Long trainings have more steps than the plot has pixels.
            "raw": pyqtgraph.PlotDataItem(
                pen=pyqtgraph.mkPen(faint, width=1),
                autoDownsample=True,
                downsampleMethod="peak",
            ),
            "smooth": pyqtgraph.PlotDataItem(
                pen=pyqtgraph.mkPen(colour, width=2),
                autoDownsample=True,
                downsampleMethod="mean",
            ),
            "score": pyqtgraph.PlotDataItem(
                pen=dashed, symbol="d", symbolSize=9, symbolBrush=colour, symbolPen=None
            ),
        }
        self._plot.addItem(items["raw"])
        self._plot.addItem(items["smooth"])
        self._right.addItem(items["score"])
        return items

    def _mark_restarts(self, contender: str, curve: Curve) -> None:
        import pyqtgraph

        for step in curve.restarts:
            pen = pyqtgraph.mkPen(_colour(contender), style=Qt.PenStyle.DotLine)
            line = pyqtgraph.InfiniteLine(step, pen=pen)
            self._plot.addItem(line, ignoreBounds=True)
            self._marks.append(line)

    def _remove_marks(self) -> None:
        for line in self._marks:
            self._plot.removeItem(line)
        self._marks = []

    def _set_range(self) -> None:
        losses = sorted(x for c in self._curves.values() for x in c.losses)
        if losses:
            smooth = max(c.smooth[-1] for c in self._curves.values() if c.smooth)
            top = max(losses[int(SEEN * (len(losses) - 1))], smooth)
            self._plot.setYRange(0, top * 1.05 or 1, padding=0)
        last = max((c.steps[-1] for c in self._curves.values() if c.steps), default=1)
        self._plot.setXRange(0, max(last, 1), padding=0.02)


def _colour(contender: str) -> str:
    return COLOURS.get(contender, OTHER_COLOUR)
