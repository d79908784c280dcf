"""The attention dock in a real viewer: look, measure, probe, ask what if, compare."""

from __future__ import annotations

import csv
import gc
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from napari.components import ViewerModel
from napari.layers import Image, Labels, Shapes
from skimage import data

from napari_attunet.attention import describe_transform, frame_corners
from napari_attunet.header import read_spec
from napari_attunet.library import Library
from napari_attunet.model import Model, save_model
from napari_attunet.progress import Progress, drain
from napari_attunet.segmenter import segment
from napari_attunet.spec import (
    AttentionSpec,
    GateSpec,
    ModelSpec,
    NetworkSpec,
    TransformerSpec,
)
from napari_attunet.widgets.choices import Choices
from napari_attunet.widgets.inspect import figures
from napari_attunet.widgets.inspect.dock import SETTLE, AttentionWidget
from napari_attunet.widgets.inspect.look import Look
from napari_attunet.widgets.inspect.stage import STEPS, painted_alpha
from napari_attunet.widgets.inspect.versions import changes_of
from napari_attunet.widgets.layers import is_result
from napari_attunet.widgets.results import Settings
from napari_attunet.widgets.segment import SegmentWidget

TIMEOUT = 30_000


def cells():
    return data.cell()[100:260, 100:230]


def save(folder, name, version=1, seed=0, **network):
    options = {"out_channels": 3, "features": (4, 6, 8), **network}
    spec = ModelSpec(
        name=name,
        version=version,
        network=NetworkSpec(**options),
        classes=("none", "cell", "edge"),
        output="classes",
    )
    model = Model.fresh(spec, seed=seed)
    with torch.no_grad():  # gates that are open everywhere have nothing to show
        for key, tensor in model.network.state_dict().items():
            if key.endswith(("weight", "bias")):
                generator = torch.Generator().manual_seed(len(key) + seed)
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
        if spec.network.ndim == 2:  # no class may take it all
            found = segment(cells(), model, axes="YX", probabilities=True)
            shares = np.median(np.log(found.probabilities + 1e-6), axis=(1, 2))
            model.network.head.bias -= torch.from_numpy(shares)
    save_model(model, folder / f"{spec.key}.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save(folder, "grey", gate=GateSpec())
    save(folder, "grey", version=2, seed=5, gate=GateSpec())
    save(
        folder,
        "more",
        gate=None,
        attention=(
            AttentionSpec(kind="se"),
            AttentionSpec(kind="self", where="bottleneck", pool=2),
        ),
        transformer=TransformerSpec(),
    )
    save(folder, "cbam", attention=(AttentionSpec(kind="cbam"),))
    save(folder, "plain", gate=None)
    save(folder, "deep", features=(4, 4, 4, 4, 4), gate=GateSpec())
    save(folder, "twice", gate=GateSpec(kind="grid", count=2))
    save(folder, "volume", ndim=3, gate=GateSpec(kind="grid"))
    save(folder, "turned", ndim=3, transformer=TransformerSpec())
    return folder


@pytest.fixture(autouse=True)
def _no_bundled_models(monkeypatch, folder):
    monkeypatch.setattr("napari_attunet.library.bundled_models", lambda: folder)


@pytest.fixture
def dock(viewer, tmp_path):
    dock = AttentionWidget(viewer, Library(tmp_path))
    viewer.window.add_dock_widget(dock, name="attention")
    return dock


def add_cells(viewer, **arguments) -> Image:
    return viewer.add_image(cells(), name="cells", **arguments)


@pytest.fixture
def segmented(viewer, dock, qtbot, tmp_path):
    """Segment with a model as the user does, and return what the dock sees of it."""
    widget = SegmentWidget(viewer, Library(tmp_path))
    viewer.window.add_dock_widget(widget, name="segment")

    def run(model):
        dock.choose_model(model)
        widget.choose_model(model)
        with qtbot.waitSignal(widget.finished, timeout=TIMEOUT):
            widget.start()
        settle(qtbot, dock)
        qtbot.waitUntil(lambda: dock.session.seen is not None, timeout=TIMEOUT)
        settle(qtbot, dock)
        return dock.session.seen

    return run


def look(qtbot, dock) -> bool:
    with qtbot.waitSignal(dock.finished, timeout=TIMEOUT) as signal:
        dock.look.click()
        assert dock.running
    settle(qtbot, dock)
    return signal.args[0]


def settle(qtbot, dock) -> None:
    """Wait until nobody asks anything any more."""
    askers = (
        dock.gates._asker,
        dock.blocks._asker,
        dock.what_if._asker,
        dock.what_if._ablating,
        dock.versions._asker,
    )
    timers = (dock.what_if._timer, dock._timer)
    qtbot.waitUntil(
        lambda: (
            not any(a.busy for a in askers) and not any(t.isActive() for t in timers)
        ),
        timeout=TIMEOUT,
    )


def named(viewer, text):
    return [layer for layer in viewer.layers if text in layer.name]


def column(table, number) -> list[str]:
    return [table.item(row, number).text() for row in range(table.rowCount())]


# --- looking ---------------------------------------------------------------------


def test_an_empty_viewer(viewer, dock):
    assert not dock.look.isEnabled()
    dock.start()
    assert not dock.running
    assert "Press the button" in dock.message.text()
    assert dock.gates.table.rowCount() == 0


def test_gates_are_listed_and_shown(viewer, dock, qtbot, tmp_path):
    source = add_cells(viewer, scale=(2, 3))
    dock.choose_model("grey")
    assert look(qtbot, dock)
    assert dock.message.text().startswith("grey@2 on y 0 to 159, x 0 to 129")
    assert column(dock.gates.table, 0) == ["α level 1", "α level 2"]
    dock.gates.table.save(tmp_path / "gates.csv")  # with all digits
    with (tmp_path / "gates.csv").open() as file:
        row = next(csv.DictReader(file))
    alpha = dock.session.seen.maps[0].values.astype(float)
    mask = dock.session.seen.labels > 0
    assert alpha[mask].mean() != pytest.approx(alpha[~mask].mean(), rel=1e-5)
    assert float(row["on"]) == pytest.approx(alpha[mask].mean())
    assert float(row["off"]) == pytest.approx(alpha[~mask].mean())

    active = viewer.layers.selection.active
    dock.gates.table.selectRow(1)
    (shown,) = named(viewer, "α level 2")
    np.testing.assert_array_equal(shown.data, dock.session.seen.maps[1].values)
    np.testing.assert_allclose(shown.scale, np.array(source.scale) * 2)
    assert is_result(shown)
    assert viewer.layers.selection.active is active  # the user's choice stays
    dock.gates.table.selectRow(0)
    (other,) = named(viewer, "α level 1")
    assert other.visible
    assert not shown.visible
    assert look(qtbot, dock)  # again, into the same layers
    dock.gates.table.selectRow(1)
    dock.gates.table.selectRow(0)
    assert len(named(viewer, "α level")) == 2


def test_it_begins_with_the_last_run(viewer, dock, qtbot, segmented):
    source = add_cells(viewer)
    segmented("grey")
    assert "last run" in dock.message.text()
    assert dock.gates.table.rowCount() == 2
    dock.gates.table.selectRow(1)
    assert len(named(viewer, "α level 2")) == 1  # the layer that was there
    assert named(viewer, "α level 2")[0].visible
    assert not named(viewer, "α level 1")[0].visible
    assert not dock.what_if.states  # nothing to ask yet
    assert "Look at the visible part" in dock.what_if.text.text()

    # A corrected mask counts as it is; a chosen one instead of it.
    (labels,) = [x for x in viewer.layers if isinstance(x, Labels)]
    truth = viewer.add_labels(np.zeros(source.data.shape, np.uint8), name="truth")
    truth.data[:80] = 1
    dock.choose_mask(truth)
    settle(qtbot, dock)
    alpha = dock.session.seen.maps[0].values
    assert float(dock.gates.table.item(0, 1).text()) == pytest.approx(
        alpha[:80].mean(), abs=0.006
    )
    viewer.layers.remove(labels)
    settle(qtbot, dock)
    assert dock.session.seen is None  # nothing is left of that run


def test_labels_of_another_shape_are_refused_in_words(viewer, dock, qtbot):
    add_cells(viewer)
    viewer.add_labels(np.zeros((7, 7), np.uint8), name="wrong")
    dock.choose_model("grey")
    assert look(qtbot, dock)
    dock.mask_box.setCurrentText("wrong")
    settle(qtbot, dock)
    assert "Choose other labels" in dock.gates.remarks.text()


def test_an_image_that_does_not_suit_the_model(viewer, dock, qtbot, told):
    add_cells(viewer)
    dock.choose_model("volume")
    dock.start()
    assert not dock.running
    assert told()
    assert dock.message.text() in told()[0]


def test_cancel_and_removal(viewer, dock, qtbot, monkeypatch):
    go = threading.Event()

    def waiting(self):
        while not go.is_set():
            time.sleep(0.005)
            yield Progress(0, 0, "Waiting")

    monkeypatch.setattr(Look, "compute", waiting)
    source = add_cells(viewer)
    dock.choose_model("grey")
    dock.look.click()
    assert dock.cancel.isEnabled()
    with qtbot.waitSignal(dock.finished, timeout=TIMEOUT):
        dock.cancel.click()
        assert dock.message.text() == "Stopping …"
    assert dock.message.text() == "Stopped."
    assert dock.session.seen is None
    dock.look.click()
    with qtbot.waitSignal(dock.finished, timeout=TIMEOUT):
        viewer.layers.remove(source)
    assert not dock.look.isEnabled()


def test_what_is_seen_goes_with_its_image(viewer, dock, qtbot):
    source = add_cells(viewer)
    dock.choose_model("grey")
    assert look(qtbot, dock)
    dock.what_if.set_state(1, "closed")
    settle(qtbot, dock)
    inspection = weakref.ref(dock.session.seen.inspection)
    viewer.layers.remove(source)
    settle(qtbot, dock)
    assert dock.session.seen is None
    assert dock.gates.table.rowCount() == 0
    gc.collect()
    assert inspection() is None  # nor is its memory kept


def test_a_second_run_is_seen(viewer, dock, qtbot, segmented):
    source = add_cells(viewer)
    first = segmented("grey")
    dock.gates.table.selectRow(0)
    # The same image once more, turned upside down under our hands by a script.
    source.data[:] = source.data[::-1].copy()
    second = segmented("grey")
    assert second is not first
    assert not np.array_equal(second.maps[0].values, first.maps[0].values)
    assert len(named(viewer, "α level 1")) == 1
    assert named(viewer, "α level 1")[0].data is second.maps[0].values
    # The mask follows the brush.
    (labels,) = [x for x in viewer.layers if isinstance(x, Labels)]
    labels.brush_size = 120
    with qtbot.waitSignal(dock.session.mask_changed, timeout=TIMEOUT):
        labels.paint((80, 60), 0)
    settle(qtbot, dock)
    expected = second.maps[0].values[labels.data > 0].mean()
    found = dock.gates.table.item(0, 1).text()
    assert float(found) == pytest.approx(expected, abs=0.006)


def test_another_model_meanwhile_is_not_mistaken(viewer, dock, qtbot):
    add_cells(viewer)
    dock.choose_model("grey")
    assert look(qtbot, dock)
    dock.look.click()
    with qtbot.waitSignal(dock.finished, timeout=TIMEOUT):
        dock.choose_model("plain")
    settle(qtbot, dock)
    assert dock.session.seen is None
    assert look(qtbot, dock)
    assert dock.session.seen.spec.name == "plain"


def test_what_belongs_to_another_model_is_hidden(viewer, dock, qtbot):
    add_cells(viewer)
    dock.choose_model("grey")
    assert look(qtbot, dock)
    dock.what_if.set_state(1, "closed")
    settle(qtbot, dock)
    (shown,) = named(viewer, "what if")
    assert shown.visible
    dock.choose_model("plain")
    settle(qtbot, dock)
    assert not shown.visible


def test_another_image_has_its_own_layers(viewer, dock, qtbot):
    add_cells(viewer)
    other = viewer.add_image(cells()[::-1].copy(), name="others")
    dock.choose_model("grey")
    for source in (viewer.layers["cells"], other):
        dock.select(source)
        assert look(qtbot, dock)
        dock.gates.table.selectRow(0)
        dock.what_if.set_state(1, "as painted")
        settle(qtbot, dock)
        if source is not other:
            named(viewer, "paint")[0].paint((20, 20), 1)
            settle(qtbot, dock)
    first, second = named(viewer, "paint α level 1")
    assert first.data.any()
    assert not second.data.any()
    assert first.name.startswith("cells")
    assert second.name.startswith("others")
    assert not first.visible
    assert [x.visible for x in named(viewer, "· α level 1")] == [False, True]


def test_other_pixels_and_another_place_are_looked_at_anew(viewer, dock, qtbot):
    source = add_cells(viewer)
    dock.choose_model("grey")
    for change in (
        lambda: setattr(source, "scale", (2, 2)),
        lambda: setattr(source, "data", source.data[:99]),
        lambda: setattr(source, "data", np.stack([source.data] * 2)),
    ):
        assert look(qtbot, dock)
        change()
        settle(qtbot, dock)
        assert dock.session.seen is None


def test_results_are_no_labels_to_learn_from(viewer, dock, qtbot):
    add_cells(viewer)
    dock.choose_model("grey")
    assert look(qtbot, dock)
    dock.what_if.set_state(1, "as painted")
    settle(qtbot, dock)
    choices = Choices(viewer)
    assert choices.corrected is None
    assert choices.labels.count() == 0
    choices.release()
    assert dock.mask_box.count() == 1


def test_closing_the_dock_lets_go_of_everything(viewer, tmp_path, qtbot):
    add_cells(viewer)
    dock = AttentionWidget(viewer, Library(tmp_path))
    window = viewer.window.add_dock_widget(dock, name="attention")
    dock.choose_model("grey")
    assert look(qtbot, dock)
    dock.what_if.set_state(1, "as painted")
    settle(qtbot, dock)
    before = len(viewer.mouse_move_callbacks)
    inspection = weakref.ref(dock.session.seen.inspection)
    viewer.window.remove_dock_widget(window)
    assert len(viewer.mouse_move_callbacks) == before - 1
    (paint,) = named(viewer, "paint")
    gc.collect()
    assert inspection() is None
    paint.paint((5, 5), 1)  # nobody hears it
    viewer.theme = "light"
    viewer.add_image(cells(), name="more")
    qtbot.wait(2 * SETTLE)
    assert dock.session.seen is None
    assert not dock.gates._asker.busy
    assert dock.image.count() == 0 or dock.image.source is None


# --- probing ---------------------------------------------------------------------


class Mouse:
    """An event as napari's canvas makes them."""

    def __init__(self, kind, position, button=1):
        self.type, self.position, self.button = kind, position, button


def click(viewer, position, drag=False):
    event = Mouse("mouse_press", position)
    for callback in viewer.mouse_drag_callbacks:
        if callback.__module__.startswith("napari_attunet"):
            steps = callback(viewer, event)
            next(steps)
            if drag:
                event.type = "mouse_move"
                next(steps)
            event.type = "mouse_release"
            assert next(steps, None) is None


def move(viewer, position):
    for callback in viewer.mouse_move_callbacks:
        callback(viewer, Mouse("mouse_move", position))


def test_the_probe_follows_the_mouse_and_holds(viewer, dock, qtbot):
    add_cells(viewer, scale=(2, 2))
    dock.choose_model("grey")
    assert look(qtbot, dock)
    dock.tabs.setCurrentIndex(1)
    assert dock.probe.isVisibleTo(dock.window())
    for row in range(0, 60, 2):  # only the last one matters
        move(viewer, (float(row), 80.0))
    qtbot.waitUntil(lambda: dock.probe.probed is not None, timeout=TIMEOUT)
    assert dock.probe.probed.position == (29, 40)
    assert dock.probe.place.text() == "y 29, x 40"
    seen = dock.session.seen
    assert dock.probe.bars.values[0] == seen.maps[0].values[29, 40]
    assert dock.probe.bars.values[1] == seen.maps[1].values[14, 20]
    assert sum(dock.probe.bars.values[2:]) == pytest.approx(1, abs=1e-5)

    click(viewer, (20.0, 20.0), drag=True)
    assert not dock.probe.held
    click(viewer, (20.0, 20.0))
    assert dock.probe.held
    assert dock.probe.probed.position == (10, 10)
    move(viewer, (40.0, 40.0))
    qtbot.wait(60)
    assert dock.probe.probed.position == (10, 10)
    click(viewer, (20.0, 20.0))
    move(viewer, (-99.0, 40.0))
    qtbot.waitUntil(lambda: dock.probe.probed is None, timeout=TIMEOUT)
    viewer.dims.ndisplay = 3
    dock.probe.probe((1, 1))
    assert "2D" in dock.probe.place.text()
    click(viewer, (20.0, 20.0))
    assert not dock.probe.held


def test_a_click_of_a_painter_is_not_ours(viewer, dock, qtbot):
    source = add_cells(viewer)
    labels = viewer.add_labels(np.zeros(source.data.shape, np.uint8))
    dock.choose_model("grey")
    assert look(qtbot, dock)
    dock.tabs.setCurrentIndex(1)
    assert dock.probe.isVisibleTo(dock.window())
    labels.mode = "paint"
    viewer.layers.selection.active = labels
    click(viewer, (20.0, 20.0))
    assert not dock.probe.held


# --- blocks ----------------------------------------------------------------------


def test_channels_queries_and_the_frame(viewer, dock, qtbot, tmp_path, monkeypatch):
    add_cells(viewer)
    dock.choose_model("more")
    dock.tabs.setCurrentIndex(2)
    assert look(qtbot, dock)
    blocks = dock.blocks
    assert not blocks.nothing.isVisible()
    assert blocks.block.count() == 5  # three levels down, two up
    values = blocks.bars.values
    assert list(values) == sorted(values, reverse=True)
    blocks.block.setCurrentIndex(2)
    assert len(blocks.bars.values) == 8
    assert "8 channels" in blocks.summary.text()
    monkeypatch.setattr(figures, "ask_path", lambda *_: tmp_path / "channels.csv")
    blocks.save_table.click()
    with (tmp_path / "channels.csv").open() as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + 4 + 6 + 8 + 6 + 4

    click(viewer, (50.0, 60.0))
    settle(qtbot, dock)
    (asked,) = named(viewer, "looks at")
    assert asked.data.max() == pytest.approx(1)
    assert blocks.looked.text().startswith("From y 50, x 60 it looks at about")
    mechanism = dock.session.seen.inspection.mechanisms
    (mechanism,) = [m for m in mechanism if m.kind == "pairwise"]
    found = dock.session.seen.inspection.look(mechanism, (50, 60))
    np.testing.assert_allclose(asked.translate, found.translate)  # the part begins at 0
    np.testing.assert_allclose(asked.scale, found.scale)
    means = [t.values.mean() for t in dock.session.seen.tables if t.kind == "channel"]
    probed = dock.session.seen.probe((50, 60))
    assert [value for _, value in probed.channels] == pytest.approx(means)
    click(viewer, (150.0, 20.0))
    settle(qtbot, dock)
    assert len(named(viewer, "looks at")) == 1
    click(viewer, (-500.0, 20.0))
    assert "not looked at" in blocks.looked.text()

    blocks.frame.click()
    (frame,) = named(viewer, "sampled frame")
    assert isinstance(frame, Shapes)
    (table,) = [t for t in dock.session.seen.tables if t.kind == "transform"]
    corners = frame_corners(table.values[0], table.regions[0])
    np.testing.assert_allclose(frame.data[0], corners)  # the part begins at 0
    assert blocks.frame_text.text() == describe_transform(table.values[0])
    blocks.frame.click()
    assert len(named(viewer, "sampled frame")) == 1
    assert frame not in viewer.layers
    (frame,) = named(viewer, "sampled frame")
    assert look(qtbot, dock)
    assert not frame.visible  # these were answers about what was seen before
    assert not asked.visible
    viewer.layers.clear()
    settle(qtbot, dock)
    assert not blocks.frame.isVisibleTo(blocks)


def test_channels_of_the_slice_that_is_shown(viewer, dock, qtbot, segmented):
    stack = np.stack([cells(), cells()[::-1], cells()])
    source = viewer.add_image(stack, name="stack", axis_labels=("t", "y", "x"))
    viewer.dims.set_point(0, 0)
    table = segmented("cbam").tables[0]
    assert table.values.shape[:2] == (3, 1)
    for step in (0, 1, 2):
        viewer.dims.set_point(0, step)
        expected = sorted(table.values[step, 0], reverse=True)
        np.testing.assert_allclose(dock.blocks.bars.values, expected)
    viewer.layers.remove(source)  # there are fewer axes now
    settle(qtbot, dock)
    assert dock.session.seen is None


def test_a_plain_network_has_nothing_to_show(viewer, dock, qtbot):
    add_cells(viewer)
    dock.choose_model("plain")
    assert look(qtbot, dock)
    assert "no gates" in dock.gates.remarks.text()
    assert "no gates" in dock.what_if.text.text()
    assert "no attention" in dock.blocks.nothing.text()
    assert not dock.what_if.ablate.isEnabled()


# --- what if ---------------------------------------------------------------------


def test_closing_a_gate_shows_what_changes(viewer, dock, qtbot):
    add_cells(viewer)
    dock.choose_model("grey")
    assert look(qtbot, dock)
    seen = dock.session.seen
    dock.what_if.set_state(1, "closed")
    settle(qtbot, dock)
    (shown,) = named(viewer, "what if")
    after = seen.inspection.answer({1: 0.0}).labels
    np.testing.assert_array_equal(shown.data > 0, after != seen.labels)
    assert (after != seen.labels).any()
    changed = int((after != seen.labels).sum())
    told = dock.what_if.text.text().replace("\N{NARROW NO-BREAK SPACE}", "")
    assert told.startswith(f"{changed} pixels change")
    dock.what_if.reset.click()
    settle(qtbot, dock)
    assert not shown.visible
    assert "nothing changes" in dock.what_if.text.text()


def test_answers_that_are_out_of_date_are_not_shown(viewer, dock, qtbot, monkeypatch):
    add_cells(viewer)
    dock.choose_model("grey")
    assert look(qtbot, dock)
    shown = []
    show = dock.session.stage.show_changes
    monkeypatch.setattr(
        dock.session.stage, "show_changes", lambda *a: (shown.append(a), show(*a))[1]
    )
    for state in ("closed", "open", "closed", "open"):
        dock.what_if.set_state(1, state)
    settle(qtbot, dock)
    assert len(shown) == 1  # neither the first nor those between
    after = dock.session.seen.inspection.answer({1: 1.0}).labels
    (shown,) = named(viewer, "what if")
    np.testing.assert_array_equal(shown.data > 0, after != dock.session.seen.labels)


def test_painting_a_gate(viewer, dock, qtbot):
    add_cells(viewer, translate=(5, 9))
    dock.choose_model("grey")
    assert look(qtbot, dock)
    seen, gate = dock.session.seen, dock.session.seen.maps[1]
    dock.what_if.set_state(2, "as painted")
    settle(qtbot, dock)
    (paint,) = named(viewer, "paint α level 2")
    assert viewer.layers.selection.active is paint
    assert paint.mode == "paint"
    assert paint.data.shape == gate.values.shape
    assert np.isnan(painted_alpha(gate, paint)).all()  # as learnt
    assert dock.what_if.effect.changed.max() == 0  # nothing is painted yet

    paint.brush_size = 30
    paint.paint((20, 30), 1)
    paint.paint((60, 40), STEPS)
    qtbot.waitUntil(lambda: dock.what_if._timer.isActive(), timeout=TIMEOUT)
    settle(qtbot, dock)
    alpha = painted_alpha(gate, paint)
    assert alpha[20, 30] == 0
    assert alpha[60, 40] == 1
    after = seen.inspection.answer({2: alpha}).labels
    np.testing.assert_array_equal(dock.what_if.effect.changed > 0, after != seen.labels)
    paint.undo()
    paint.undo()
    qtbot.waitUntil(lambda: dock.what_if._timer.isActive(), timeout=TIMEOUT)
    settle(qtbot, dock)
    assert dock.what_if.effect.changed.max() == 0


@pytest.mark.parametrize("angle", [0, 33])
def test_what_was_painted_is_never_lost(viewer, dock, qtbot, angle):
    source = add_cells(viewer, rotate=angle, scale=(2, 3))
    dock.choose_model("grey")
    assert look(qtbot, dock)
    dock.what_if.set_state(1, "as painted")
    settle(qtbot, dock)
    (paint,) = named(viewer, "paint")
    paint.paint((20, 30), 1)
    painted = paint.data.copy()
    settle(qtbot, dock)
    dock.what_if.set_state(2, "closed")
    assert look(qtbot, dock)  # the same part again
    assert named(viewer, "paint") == [paint]
    np.testing.assert_array_equal(paint.data, painted)
    source.corner_pixels = np.array([(20, 16), (60, 70)])
    assert look(qtbot, dock)  # another part
    assert len(named(viewer, "paint")) == 2
    np.testing.assert_array_equal(paint.data, painted)


def test_several_gates_on_a_skip(viewer, dock, qtbot):
    add_cells(viewer)
    dock.choose_model("twice")
    assert look(qtbot, dock)
    assert column(dock.gates.table, 0) == [
        "α level 1 gate 1",
        "α level 1 gate 2",
        "α level 2 gate 1",
        "α level 2 gate 2",
    ]
    assert len(dock.what_if.states) == 2
    dock.what_if.set_state(1, "as painted")
    settle(qtbot, dock)
    assert dock.what_if.effect.changed.max() == 0  # nothing is painted


def test_a_gate_open_on_labels_only(viewer, dock, qtbot):
    source = add_cells(viewer)
    truth = viewer.add_labels(np.zeros(source.data.shape, np.uint8), name="truth")
    truth.data[:80] = 3
    dock.choose_model("grey")
    dock.choose_mask(truth)
    assert look(qtbot, dock)
    dock.what_if.set_state(2, "open on the mask only")
    settle(qtbot, dock)
    seen = dock.session.seen
    alpha = np.zeros(seen.maps[1].values.shape, np.float32)
    alpha[:40] = 1
    after = seen.inspection.answer({2: alpha}).labels
    np.testing.assert_array_equal(dock.what_if.effect.changed > 0, after != seen.labels)


def test_each_gate_in_turn(viewer, dock, qtbot, tmp_path, monkeypatch):
    add_cells(viewer)
    dock.choose_model("grey")
    assert look(qtbot, dock)
    dock.what_if.ablate.click()
    assert not dock.what_if.ablate.isEnabled()
    settle(qtbot, dock)
    table = dock.what_if.table
    assert table.rowCount() == 5
    assert column(table, 0)[0] == "all"
    assert column(table, 2)[0] == "1.00"  # of what the model itself said
    assert min(map(float, column(table, 2))) < 1
    monkeypatch.setattr(figures, "ask_path", lambda *_: tmp_path / "ablation.csv")
    dock.what_if.save.click()
    with (tmp_path / "ablation.csv").open() as file:
        assert len(list(csv.reader(file))) == 6


# --- versions --------------------------------------------------------------------


def test_two_versions_side_by_side(viewer, dock, qtbot, tmp_path, monkeypatch, told):
    add_cells(viewer)
    dock.choose_model("grey@1")
    assert look(qtbot, dock)
    panel = dock.versions
    assert panel.model.choose("grey")
    panel.compare.click()
    settle(qtbot, dock)
    assert column(panel.table, 0) == ["α level 1", "α level 2"]
    (shown,) = named(viewer, "α changed")
    other = panel._changes[0].other.values
    this = dock.session.seen.maps[0].values
    np.testing.assert_allclose(shown.data, other - this, atol=1e-6)
    low, high = shown.contrast_limits
    assert low == -high
    this_mean, other_mean = (float(column(panel.table, c)[0]) for c in (1, 2))
    assert other_mean - this_mean == pytest.approx((other - this).mean(), abs=0.011)
    for name in ("figure.png", "figure.svg"):
        monkeypatch.setattr(figures, "ask_path", lambda *_, n=name: tmp_path / n)
        panel.save_figure.click()
        assert (tmp_path / name).stat().st_size > 1000
    assert b"<svg" in (tmp_path / "figure.svg").read_bytes()

    panel.model.choose("plain")
    panel.compare.click()
    settle(qtbot, dock)
    assert "no gate in common" in panel.text.text()
    assert panel.table.rowCount() == 0
    panel.model.choose("grey")
    panel.compare.click()
    settle(qtbot, dock)
    assert panel.table.rowCount() == 2
    panel.model.choose("volume")
    panel.compare.click()
    settle(qtbot, dock)
    assert panel.table.rowCount() == 0  # nothing of the one before
    assert "cannot look" in panel.text.text()
    assert told()


def test_another_comparison_takes_the_place_of_the_first(viewer, dock, qtbot):
    add_cells(viewer)
    dock.choose_model("grey@1")
    assert look(qtbot, dock)
    panel = dock.versions
    panel.model.choose("grey")
    panel.compare.click()
    settle(qtbot, dock)
    first = named(viewer, "α changed")[0].data.copy()
    panel.model.choose("grey@1")  # with itself
    panel.compare.click()
    settle(qtbot, dock)
    (shown,) = named(viewer, "α changed")
    assert first.any()
    assert not shown.data.any()
    assert "grey@1 (this) and grey@1 (other)" in panel.text.text()


def test_a_network_with_more_levels_is_compared_where_both_looked(folder):
    model = ViewerModel()
    source = model.add_image(np.pad(cells(), 60, mode="reflect"))
    source.corner_pixels = np.array([(36, 44), (135, 143)])
    seen = {}
    for name in ("grey@2", "deep@1"):
        path = folder / f"{name}.safetensors"
        settings = Settings(model=str(path))
        seen[name] = drain(Look.of(model, source, read_spec(path), settings).compute())
    grey, deep = seen["grey@2"], seen["deep@1"]
    assert [r.start for r in grey.region] == [36, 44]
    assert [r.start for r in deep.region] == [32, 32]  # on its coarser grid
    found = changes_of(grey, deep)
    assert [change.this.name for change in found] == ["α level 1", "α level 2"]
    for change, first in zip(found, ((4, 12), (2, 6)), strict=True):
        rows, columns = change.this.values.shape
        expected = next(m for m in deep.maps if m.name == change.this.name).values[
            first[0] : first[0] + rows, first[1] : first[1] + columns
        ]
        np.testing.assert_array_equal(change.other.values, expected)
        np.testing.assert_array_equal(
            change.signed.values, expected - change.this.values
        )
    assert changes_of(deep, grey) == []  # it saw more than the other


# --- stacks and volumes ----------------------------------------------------------


def test_a_slice_of_a_stack(viewer, dock, qtbot):
    stack = np.stack([cells()] * 3)
    viewer.add_image(stack, name="stack", axis_labels=("t", "y", "x"))
    viewer.dims.set_point(0, 1)
    dock.choose_model("grey")
    assert look(qtbot, dock)
    assert dock.message.text().startswith("grey@2 on t 1, y 0 to")
    dock.gates.table.selectRow(0)
    (shown,) = named(viewer, "α level 1")
    assert shown.data.shape == (1, 160, 130)
    assert shown.translate[0] == 1
    dock.what_if.set_state(1, "as painted")
    settle(qtbot, dock)
    (paint,) = named(viewer, "paint")
    paint.paint((0, 40, 50), 1)
    qtbot.waitUntil(lambda: dock.what_if._timer.isActive(), timeout=TIMEOUT)
    settle(qtbot, dock)
    rows, columns = np.nonzero(dock.what_if.effect.changed[0])
    assert rows.size  # the mask changes around the stroke, in this slice
    assert abs(rows.mean() - 40) < 20
    assert abs(columns.mean() - 50) < 20
    found = dock.session.seen.probe((1, 20, 30))
    assert found.position == (1, 20, 30)
    assert dock.session.seen.probe((0, 20, 30)) is None  # another slice


def test_a_volume(viewer, dock, qtbot):
    volume = np.random.default_rng(0).normal(100, 20, (12, 40, 44)).astype(np.float32)
    viewer.add_image(volume, name="volume", scale=(2, 1, 1))
    dock.choose_model("volume")
    assert look(qtbot, dock)
    dock.gates.table.selectRow(0)
    (shown,) = named(viewer, "α level 1")
    assert shown.data.shape == (6, 20, 22)
    np.testing.assert_allclose(shown.scale, (4, 2, 2))
    dock.what_if.set_state(1, "closed")
    settle(qtbot, dock)
    assert named(viewer, "what if")[0].data.shape == (12, 40, 44)
    dock.versions.model.choose("volume")
    dock.versions.compare.click()
    settle(qtbot, dock)
    assert column(dock.versions.table, 4) == ["0.00", "0.00"]  # with itself


def test_the_frame_of_a_volume_lies_in_the_slice_that_is_shown(viewer, dock, qtbot):
    volume = np.random.default_rng(0).normal(100, 20, (12, 40, 44)).astype(np.float32)
    viewer.add_image(volume, name="volume", scale=(2, 1, 1))
    viewer.dims.set_point(0, 8)
    dock.choose_model("turned")
    assert look(qtbot, dock)
    dock.blocks.frame.click()
    (frame,) = named(viewer, "sampled frame")
    np.testing.assert_array_equal(frame.data[0][:, 0], 4)
