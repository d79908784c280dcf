"""The live plot: what its curves hold, and that it draws them seldom and late."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from napari.utils.theme import get_theme

from napari_attunet.widgets.plot import REDRAW, Curve, LossPlot

losses = st.lists(st.floats(0, 10), min_size=1, max_size=50)


def curve_of(values) -> Curve:
    curve = Curve()
    for step, loss in enumerate(values, 1):
        curve.add(step, {"loss": loss, "learning_rate": 0.1})
    return curve


# --- curves ----------------------------------------------------------------------


@given(losses)
def test_the_smooth_line_stays_within_what_was_measured(values):
    curve = curve_of(values)
    assert curve.losses == values
    assert len(curve.smooth) == len(curve.steps) == len(values)
    assert curve.smooth[0] == pytest.approx(values[0])
    for smooth, so_far in zip(curve.smooth, range(1, len(values) + 1), strict=True):
        seen = values[:so_far]
        assert min(seen) - 1e-9 <= smooth <= max(seen) + 1e-9


def test_the_smooth_line_is_smoother():
    rng = np.random.default_rng(0)
    curve = curve_of(1 + rng.normal(0, 0.3, 200))
    assert np.std(curve.smooth[50:]) < 0.5 * np.std(curve.losses[50:])


def test_a_step_told_twice_counts_once():
    curve = curve_of([1.0, 2.0])
    curve.add(2, {})  # a heartbeat
    curve.add(2, {"loss": 2.0, "dice": 0.5})
    curve.add(2, {"loss": 2.0, "dice": 0.5})
    assert curve.losses == [1.0, 2.0]
    assert (curve.scored, curve.scores) == ([2], [0.5])


def test_scores_are_the_mean_of_dice_and_ap():
    curve = Curve()
    curve.add(1, {"loss": 1, "dice": 0.8, "ap50": 0.4, "ap70": 0})
    curve.add(2, {"loss": 1, "dice": 0.7})  # classes have no AP
    assert curve.scores == pytest.approx([0.6, 0.7])


def test_a_restart_goes_on_from_the_checkpoint():
    curve = curve_of([5.0, 4.0, 3.0, 2.0])
    curve.add(4, {"loss": 2.0, "dice": 0.5})
    curve.add(3, {"loss": 3.5})
    assert curve.steps == [1, 2, 3]
    assert curve.losses == [5.0, 4.0, 3.5]
    assert curve.scored == []
    assert curve.restarts == [3]


# --- the widget ------------------------------------------------------------------


@pytest.fixture
def plot(qtbot):
    plot = LossPlot("dark")
    qtbot.addWidget(plot)
    plot.show()
    return plot


def feed(plot, contender="tuned", count=30):
    for step in range(1, count + 1):
        values = {"loss": 1 / step}
        if step % 10 == 0:
            values |= {"dice": 0.9, "ap50": 0.7}
        plot.add(contender, step, values)


def test_opening_imports_no_pyqtgraph():
    code = (
        "import sys, napari_attunet.widgets.learn; "
        "sys.exit(bool({'torch', 'pyqtgraph'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_is_as_high_as_it_was(plot, qtbot):
    height = plot.height()
    feed(plot)
    qtbot.waitUntil(lambda: bool(plot._items))
    qtbot.wait(20)
    assert plot.height() == height == 180


def test_every_contender_has_its_own_colour(plot, qtbot):
    feed(plot, "tuned")
    feed(plot, "scratch")
    qtbot.waitUntil(lambda: len(plot._items) == 2)
    pens = {
        name: items["smooth"].opts["pen"].color().name()
        for name, items in plot._items.items()
    }
    assert len(set(pens.values())) == 2
    for name, items in plot._items.items():
        xs, ys = items["smooth"].getOriginalDataset()
        assert list(xs) == plot.curves[name].steps
        assert list(ys) == plot.curves[name].smooth
        assert items["score"].getOriginalDataset()[1] == pytest.approx([0.8] * 3)
        assert pens[name] in plot._legend.text()


def test_scores_have_an_axis_of_their_own(plot, qtbot):
    feed(plot)
    qtbot.waitUntil(lambda: bool(plot._items))
    (low, high) = plot._right.viewRange()[1]
    assert low <= 0 <= 1 <= high < 1.2
    assert plot._items["tuned"]["score"] in plot._right.addedItems
    assert plot._plot.getPlotItem().getViewBox().viewRange()[1][0] == 0


def test_many_values_are_drawn_at_once(qtbot, monkeypatch):
    drawn = []
    draw = LossPlot._draw
    monkeypatch.setattr(
        LossPlot, "_draw", lambda plot: drawn.append(plot) or draw(plot)
    )
    plot = LossPlot("dark")
    qtbot.addWidget(plot)
    feed(plot, count=500)
    assert not drawn
    assert plot._timer.interval() == REDRAW >= 100
    qtbot.waitUntil(lambda: bool(drawn))
    qtbot.wait(2 * REDRAW)
    assert len(drawn) == 1


def test_a_restart_is_marked(plot, qtbot):
    feed(plot, count=20)
    plot.add("tuned", 10, {"loss": 1.0})
    qtbot.waitUntil(lambda: len(plot._marks) == 1)
    assert plot._marks[0].value() == 10


def test_it_can_begin_anew(plot, qtbot):
    plot.clear()
    feed(plot, "tuned")
    feed(plot, "scratch")
    qtbot.waitUntil(lambda: len(plot._items) == 2)
    plot.clear()
    assert plot._legend.text() == ""
    assert not plot.curves
    feed(plot, "scratch")
    qtbot.waitUntil(lambda: list(plot._items) == ["scratch"])


def test_it_follows_the_theme(plot, qtbot):
    plot.follow_theme("light")  # before there is anything to see
    feed(plot)
    qtbot.waitUntil(lambda: bool(plot._items))
    for name in ("light", "dark"):
        plot.follow_theme(name)
        theme = get_theme(name)
        ground = plot._plot.backgroundBrush().color().name()
        assert ground == _long(theme.background.as_hex())
        pen = plot._plot.getPlotItem().getAxis("left").textPen()
        assert pen.color().name() == _long(theme.text.as_hex())


def _long(colour: str) -> str:
    return f"#{''.join(2 * c for c in colour[1:])}" if len(colour) == 4 else colour
