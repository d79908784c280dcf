"""The panel that collects corrections, from strokes on a layer to samples on disk."""

from __future__ import annotations

import functools
import gc
import threading
import time
import weakref

import numpy as np
import pytest
from napari.layers import Image, Labels
from napari.layers._layer_actions import _duplicate_layer
from qtpy.compat import isalive
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QFileDialog, QVBoxLayout, QWidget
from skimage import data

from napari_attunet.corrections import (
    BACKGROUND_BRUSH,
    Correction,
    TrainingSet,
    default_folder,
)
from napari_attunet.library import Library
from napari_attunet.model import Model, save_model
from napari_attunet.progress import Progress
from napari_attunet.spec import ModelSpec, NetworkSpec
from napari_attunet.widgets import collect as module
from napari_attunet.widgets import counting
from napari_attunet.widgets.collect import BRUSH_KEY, CollectPanel, paint_background
from napari_attunet.widgets.jobs import _Work
from napari_attunet.widgets.layers import prediction_of
from napari_attunet.widgets.poses import Pose
from napari_attunet.widgets.segment import SegmentWidget

TIMEOUT = 20_000

CLASSES = ModelSpec(
    name="tissue",
    network=NetworkSpec(out_channels=3),
    classes=("background", "gland", "stroma"),
)


@pytest.fixture
def training_set(tmp_path):
    return TrainingSet(tmp_path / "training")


@pytest.fixture
def panel(viewer, training_set):
    panel = CollectPanel(viewer, training_set)
    viewer.window.add_dock_widget(panel, name="test")
    panel.counting.timer.setInterval(10)
    return panel


@pytest.fixture
def slow(monkeypatch):
    """Make the work wait until it is told to go on."""
    go = threading.Event()
    correction_of = module.correction_of

    def waiting(taken):
        while not go.is_set():
            time.sleep(0.005)
            yield Progress(0, 0)
        return (yield from correction_of(taken))

    monkeypatch.setattr(module, "correction_of", waiting)
    return go


def add_cells(viewer, **arguments) -> Image:
    return viewer.add_image(data.cell()[100:260, 100:230], name="cells", **arguments)


def paint_disk(labels, centre, number, size=20) -> None:
    labels.brush_size = size
    labels.paint(centre, number)


def counted(qtbot, panel) -> str:
    """What the count line says once nothing is left to count."""
    qtbot.waitUntil(
        lambda: not panel.counting.busy,
        timeout=TIMEOUT,
    )
    return panel.count.text().replace("\u202f", " ")


def press(qtbot, panel, button) -> None:
    """Press a button that starts a job, and wait for its end."""
    counted(qtbot, panel)
    assert button.isEnabled()
    assert not button.isHidden()
    button.click()
    qtbot.waitUntil(lambda: panel._job is None, timeout=TIMEOUT)


def painted(viewer, panel, **arguments) -> tuple[Image, Labels]:
    """Add an image, and labels with two objects on it."""
    image = add_cells(viewer, **arguments)
    labels = viewer.add_labels(
        np.zeros(image.data.shape, np.int32), name="mine", **arguments
    )
    paint_disk(labels, (40, 40), 1)
    paint_disk(labels, (100, 90), 2)
    panel.select(image, labels)
    return image, labels


# --- choosing --------------------------------------------------------------------


def test_an_empty_viewer(viewer, panel, qtbot):
    assert counted(qtbot, panel) == ""
    assert not panel.add.isEnabled()
    assert not panel.brush.isEnabled()
    assert panel.renew.isHidden()
    assert panel.table.table.isHidden()
    assert not panel.table.empty.isHidden()


def test_fitting_labels_are_chosen_and_a_choice_stays(viewer, panel):
    choices = panel.choices
    cells = add_cells(viewer)
    assert choices.source is cells
    assert choices.corrected is None
    alien = viewer.add_labels(np.zeros((5, 5), int), name="alien")
    assert choices.labels.currentText() == "alien"  # to be told why it can't be
    mine = viewer.add_labels(np.zeros(cells.data.shape, int), name="mine")
    assert choices.corrected is mine
    other = viewer.add_labels(np.zeros(cells.data.shape, int), name="other")
    assert choices.corrected is other
    panel.select(cells, mine)
    viewer.add_labels(np.zeros(cells.data.shape, int))
    mine.name = "renamed"
    viewer.layers.reverse()
    assert choices.corrected is mine
    assert choices.labels.currentText() == "renamed"
    assert choices.labels.itemText(choices.labels.count() - 1) == "alien"
    viewer.layers.remove(mine)
    assert choices.corrected is not mine
    assert choices.corrected is not alien
    viewer.layers.clear()
    assert choices.source is None
    assert choices.corrected is None


def test_what_counts_is_said_openly(viewer, panel):
    _, labels = painted(viewer, panel)
    choices = panel.choices
    assert choices.extent.currentData() == "painted"
    assert "unknown" in choices.explanation.text()
    assert choices.regions_row.isHidden()
    choices.extent.setCurrentIndex(choices.extent.findData("regions"))
    assert not choices.regions_row.isHidden()
    assert "Outside" in choices.explanation.text()
    choices.extent.setCurrentIndex(choices.extent.findData("whole"))
    assert "taught as background" in choices.explanation.text()
    viewer.add_labels(np.zeros((160, 130), int), name="more")
    panel.select(choices.source, viewer.layers["more"])
    assert choices.extent.currentData() == "painted"
    panel.select(choices.source, labels)
    assert choices.extent.currentData() == "whole"  # as it was chosen for these


def test_slices_are_offered_of_stacks(viewer, panel):
    add_cells(viewer)
    choices = panel.choices
    assert choices.slices.isHidden()
    stack = viewer.add_image(np.zeros((4, 20, 30), np.uint8))
    panel.select(stack)
    assert not choices.slices.isHidden()
    texts = [choices.slices.itemText(i) for i in range(3)]
    assert texts == ["This slice", "All slices", "Slices with labels"]
    choices.extent.setCurrentIndex(choices.extent.findData("regions"))
    assert choices.slices.itemText(2) == "Slices with regions"
    panel.model_spec(ModelSpec(name="v", network=NetworkSpec(ndim=3)))
    assert choices.slices.isHidden()


# --- painting --------------------------------------------------------------------


def test_brushes(viewer, panel):
    image, labels = painted(viewer, panel)
    viewer.layers.selection.active = image
    panel.brush.click()
    assert viewer.layers.selection.active is labels
    assert labels.mode == "paint"
    assert labels.selected_label == BACKGROUND_BRUSH
    paint_disk(labels, (10, 10), labels.selected_label)
    assert panel.new_object.text() == "New object"
    panel.new_object.click()
    assert labels.selected_label == 3
    panel.model_spec(CLASSES)
    assert panel.new_object.text() == "New class"
    labels.data[...] = 0
    panel.new_object.click()
    assert labels.selected_label == 3


def test_the_brush_has_a_free_key(viewer, panel, told):
    from app_model.types import KeyBinding
    from napari._app_model import get_app_model
    from napari.utils.shortcuts import default_shortcuts

    key = KeyBinding.from_str(BRUSH_KEY.replace("-", "+"))
    taken = {str(k) for keys in default_shortcuts.values() for k in keys}
    taken |= {str(rule.keybinding) for rule in get_app_model().keybindings}
    taken |= {str(k) for k in (*Labels.class_keymap, *type(viewer).class_keymap)}
    assert str(key) not in taken
    assert viewer.keymap[key] is paint_background
    paint_background(viewer)
    assert told() == ["Select a Labels layer first."]
    labels = viewer.add_labels(np.zeros((5, 5), np.uint8))
    paint_background(viewer)
    assert (labels.selected_label, labels.mode) == (254, "paint")


@pytest.mark.parametrize(
    ("shape", "arguments", "labels_shape"),
    [
        ((40, 50), {"scale": (2, 3), "translate": (1, 1)}, (40, 50)),
        ((40, 50, 3), {"rgb": True, "rotate": 20}, (40, 50)),
        ((3, 40, 50), {"scale": (3, 1, 1), "units": "um"}, (3, 40, 50)),
        ((2, 40, 50), {"axis_labels": ("c", "y", "x"), "scale": (1, 2, 2)}, (40, 50)),
    ],
)
def test_new_labels_and_regions_lie_on_the_image(
    viewer, panel, shape, arguments, labels_shape
):
    image = viewer.add_image(np.zeros(shape, np.uint8), **arguments)
    panel.choices.new_labels.click()
    labels = panel.choices.corrected
    assert labels.data.shape == labels_shape
    for corner in ((0, 0), (9, 17)):
        place = (0,) * (image.ndim - 2) + corner
        there = labels.data_to_world(place[-labels.ndim :])
        np.testing.assert_allclose(image.data_to_world(place)[-2:], there[-2:])
    assert (labels.mode, labels.selected_label) == ("paint", 1)
    panel.choices.extent.setCurrentIndex(1)
    panel.choices.new_regions.click()
    shapes = viewer.layers[-1]
    assert panel.choices.regions.currentText() == shapes.name
    assert Pose.of(shapes) == Pose.of(image)


# --- counting --------------------------------------------------------------------


def test_counts_follow_the_strokes(viewer, panel, qtbot):
    _, labels = painted(viewer, panel)
    before = counted(qtbot, panel)
    assert before.startswith("2 objects · ")
    assert before.endswith(" of 20 800 pixels count")
    paint_disk(labels, (140, 20), 3)
    assert counted(qtbot, panel).startswith("3 objects · ")
    labels.undo()
    assert counted(qtbot, panel) == before
    labels.data[:20, :20] = 3  # by a script
    labels.refresh()
    assert counted(qtbot, panel).startswith("3 objects · ")
    labels.data[:20, :20] = 0
    labels.fill((0, 0), 4)
    assert counted(qtbot, panel).startswith("3 objects · ")
    labels.data = np.zeros_like(labels.data)
    assert "Nothing is painted" in counted(qtbot, panel)


def test_classes_are_counted_by_name(viewer, panel, qtbot):
    painted(viewer, panel)
    panel.model_spec(CLASSES)
    text = counted(qtbot, panel)
    assert text.startswith("gland: ")
    assert " · stroma: " in text


def test_labels_that_do_not_fit_are_told(viewer, panel, qtbot, told):
    cells = add_cells(viewer)
    alien = viewer.add_labels(np.ones((5, 5), int), name="alien")
    panel.select(cells, alien)
    assert "“alien” has the shape (5, 5)" in counted(qtbot, panel)
    assert not told()
    panel.add.click()
    assert told() == [panel.message.text()] == [panel.count.text()]


def test_the_question_what_labels_are(viewer, panel, qtbot, training_set):
    cells = add_cells(viewer)
    classes = np.zeros(cells.data.shape, np.int32)
    classes[5::20, 5::20] = 1
    classes = np.kron(classes[::5, ::5], np.ones((5, 5), np.int32))[:160, :130]
    labels = viewer.add_labels(classes)
    chosen = []
    panel.output_chosen.connect(chosen.append)
    counted(qtbot, panel)
    assert not panel.question.isHidden()
    assert "look like classes" in panel.question.text.text()
    assert "look like" not in panel.count.text()  # asked, not warned
    panel.question.no.click()
    assert panel.question.isHidden()
    assert chosen == ["objects"]
    counted(qtbot, panel)
    assert panel.question.isHidden()
    labels = viewer.add_labels(classes.copy())
    counted(qtbot, panel)
    assert panel.choices.corrected is labels
    panel.question.yes.click()
    assert chosen == ["objects", "classes"]
    assert panel.output == "classes"
    assert counted(qtbot, panel).startswith("class 1: ")
    assert panel.question.isHidden()
    press(qtbot, panel, panel.add)
    assert training_set.samples()[0].output == "classes"


def test_counting_never_waits_for_what_is_out_of_date(
    viewer, panel, qtbot, monkeypatch
):
    _, labels = painted(viewer, panel)
    counted(qtbot, panel)
    examine, starts = counting.examine, []
    go = threading.Event()

    def waiting(taken, digest):
        starts.append(taken)
        while not go.is_set():
            time.sleep(0.005)
            yield Progress(0, 0)
        return (yield from examine(taken, digest))

    monkeypatch.setattr(counting, "examine", waiting)
    paint_disk(labels, (140, 20), 3)
    qtbot.waitUntil(lambda: len(starts) == 1, timeout=TIMEOUT)
    paint_disk(labels, (140, 60), 4)
    qtbot.waitUntil(lambda: len(starts) == 2, timeout=TIMEOUT)
    go.set()
    assert counted(qtbot, panel).startswith("4 objects")
    assert panel.counting._taken is None  # copies of pixels


def test_no_sample_is_overwritten_by_another_image(viewer, panel, qtbot):
    image, _ = painted(viewer, panel)
    press(qtbot, panel, panel.add)
    counted(qtbot, panel)
    assert not panel.renew.isHidden()
    other = viewer.add_image(image.data[::-1], name="other")
    panel.select(other)
    assert panel.renew.isHidden()  # at once, not when it was counted
    panel.select(image)
    assert panel.renew.isHidden()
    counted(qtbot, panel)
    assert not panel.renew.isHidden()


# --- the training set ------------------------------------------------------------


def test_a_sample_is_added_updated_and_removed(viewer, panel, qtbot, training_set):
    image, labels = painted(viewer, panel)
    before = labels.data.copy()
    state = (labels.mode, labels.selected_label, dict(labels.metadata), image.data)
    changes = []
    panel.changed.connect(lambda: changes.append(1))
    assert panel.add.text() == "Add to training set"
    press(qtbot, panel, panel.add)
    assert len(changes) == 1
    (sample,) = training_set.samples()
    assert (sample.name, sample.extent, sample.output) == (
        "cells",
        "painted",
        "objects",
    )
    assert "was added" in panel.message.text()
    assert "held out" not in panel.message.text()  # few strokes are all learnt from
    correction = training_set.read(sample)
    np.testing.assert_array_equal(correction.labels, before)
    np.testing.assert_array_equal(correction.image, image.data)
    assert panel.table.selected.id == sample.id
    # A snapshot: painting leaves it alone until it is updated.
    paint_disk(labels, (140, 20), 3)
    np.testing.assert_array_equal(training_set.read(sample).labels, before)
    counted(qtbot, panel)
    assert panel.add.text() == "Add as new"
    press(qtbot, panel, panel.renew)
    (updated,) = training_set.samples()
    assert updated.id == sample.id
    np.testing.assert_array_equal(training_set.read(updated).labels, labels.data)
    assert "was updated" in panel.message.text()
    press(qtbot, panel, panel.add)
    assert len(training_set.samples()) == 2
    # The newest one is on top, and goes only if it is meant.
    table = panel.table
    table.table.selectRow(0)
    newest = table.selected
    assert newest.id != sample.id
    table.remove_button.click()
    assert "“cells”" in table.question.text.text()
    table.question.no.click()
    assert len(training_set.samples()) == 2
    table.remove_button.click()
    table.question.yes.click()
    assert [s.id for s in training_set.samples()] == [sample.id]
    assert table.table.rowCount() == 1
    assert len(changes) == 4
    # All this has changed nothing of the user's.
    assert (labels.mode, labels.selected_label, labels.metadata, image.data) == state
    assert len(viewer.layers) == 2


def test_regions_on_another_scale(viewer, panel, qtbot, training_set):
    painted(viewer, panel, scale=(0.5, 0.5), translate=(10, 20))
    shapes = viewer.add_shapes(ndim=2, scale=(0.25, 0.25), translate=(10, 20))
    panel.choices.extent.setCurrentIndex(panel.choices.extent.findData("regions"))
    assert "“Shapes” holds no regions" in counted(qtbot, panel)
    corners = 2.0 * np.array([[19.5, 9.5], [19.5, 69.5], [79.5, 69.5], [79.5, 9.5]])
    shapes.add(corners, shape_type="polygon")
    text = counted(qtbot, panel)
    assert text.startswith("1 object · 3 600 of 20 800 pixels count")
    assert "outside the regions" in text
    press(qtbot, panel, panel.add)
    correction = training_set.read(training_set.samples()[0])
    wanted = np.zeros((160, 130), bool)
    wanted[20:80, 10:70] = True
    np.testing.assert_array_equal(correction.regions, wanted)


def test_slices(viewer, panel, qtbot, training_set):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 60, 70)).astype(np.uint8)
    stack = viewer.add_image(pixels, name="stack", scale=(3, 1, 1))
    panel.choices.new_labels.click()
    labels = panel.choices.corrected
    for z in (1, 3):
        viewer.dims.set_current_step(0, z)
        assert "Nothing is painted on stack" in counted(qtbot, panel)
        paint_disk(labels, (z, 30, 30), z)
        assert counted(qtbot, panel).startswith("1 object")
        press(qtbot, panel, panel.add)
    samples = training_set.samples()
    assert [s.name for s in samples] == ["stack, z 1", "stack, z 3"]
    assert [s.axes for s in samples] == ["YX", "YX"]
    viewer.dims.set_current_step(0, 1)
    counted(qtbot, panel)
    assert panel._sample.id == samples[0].id
    viewer.dims.set_current_step(0, 2)
    counted(qtbot, panel)
    assert panel._sample is None
    panel.choices.slices.setCurrentIndex(1)
    counted(qtbot, panel)
    viewer.dims.set_current_step(0, 4)
    qtbot.wait(5)
    assert (
        not panel.counting.timer.isActive()
    )  # scrolling changes nothing of all slices
    labels.undo()
    assert panel.counting.timer.isActive()
    labels.redo()
    slices = panel.choices.slices
    slices.setCurrentIndex(slices.findData("filled"))
    assert counted(qtbot, panel).startswith("2 objects")
    press(qtbot, panel, panel.add)
    correction = training_set.read(training_set.samples()[-1])
    np.testing.assert_array_equal(correction.image, stack.data[[1, 3]])
    assert correction.axes == "ZYX"
    slices.setCurrentIndex(slices.findData("all"))
    press(qtbot, panel, panel.add)
    assert training_set.samples()[-1].shape == (5, 60, 70)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that has learned nothing, but finds something."""
    folder = tmp_path_factory.mktemp("models")
    spec = ModelSpec(
        name="grey",
        network=NetworkSpec(out_channels=3, features=(4, 8)),
        output="objects",
    )
    save_model(Model.fresh(spec, seed=1), folder / f"{spec.key}.safetensors")
    return folder


def test_what_was_changed_on_a_result_is_found(
    viewer, panel, qtbot, training_set, monkeypatch, model
):
    monkeypatch.setattr("napari_attunet.library.bundled_models", lambda: model)
    image = add_cells(viewer)
    widget = SegmentWidget(viewer, Library(model))
    viewer.window.add_dock_widget(widget)
    run = functools.partial(qtbot.waitSignal, widget.finished, timeout=TIMEOUT)
    with run():
        widget.start()
    labels = panel.choices.corrected
    assert labels.name == "cells · labels"
    assert panel.choices.extent.currentData() == "painted"
    assert "What you changed counts" in panel.choices.explanation.text()
    assert "still what the model predicted" in counted(qtbot, panel)
    said = labels.data.copy()
    paint_disk(labels, (40, 40), int(labels.data.max()) + 1)
    changed = np.count_nonzero(labels.data != said)
    assert f"{changed} changed" in counted(qtbot, panel)
    press(qtbot, panel, panel.add)
    correction = training_set.read(training_set.samples()[0])
    np.testing.assert_array_equal(correction.prediction, said)
    np.testing.assert_array_equal(correction.labels, labels.data)
    assert correction.model == "grey@1"
    # What the user duplicates knows it too, and a result that is updated anew.
    viewer.layers.selection = {labels}
    _duplicate_layer(viewer.layers)
    copy = viewer.layers["cells · labels copy"]
    panel.select(image, copy)
    assert f"{changed} changed" in counted(qtbot, panel)
    labels.undo()
    data_before = labels.data
    with run():
        widget.start()
    assert labels.data is not data_before
    np.testing.assert_array_equal(prediction_of(labels).prediction.array(), labels.data)


def test_new_classes_and_the_brush_can_be_seen_on_a_result(
    viewer, panel, qtbot, monkeypatch, tmp_path
):
    spec = ModelSpec(
        name="classes",
        network=NetworkSpec(out_channels=3, features=(4, 8)),
        colors=("#000000", "#ff0000", "#00ff00"),
    )
    save_model(Model.fresh(spec, seed=1), tmp_path / f"{spec.key}.safetensors")
    monkeypatch.setattr("napari_attunet.library.bundled_models", lambda: tmp_path)
    add_cells(viewer)
    widget = SegmentWidget(viewer, Library(tmp_path))
    viewer.window.add_dock_widget(widget)
    with qtbot.waitSignal(widget.finished, timeout=TIMEOUT):
        widget.start()
    labels = panel.choices.corrected
    colors = [tuple(labels.get_color(n)) for n in (1, 2, 3, 4, BACKGROUND_BRUSH)]
    assert len(set(colors)) == 5
    assert all(color[3] == 1 for color in colors)
    assert labels.get_color(0) is None or labels.get_color(0)[3] == 0


def test_a_stack_that_is_opened_again_is_updated_as_a_whole(
    viewer, panel, training_set, qtbot
):
    image = np.stack([data.cell()[100:160, 100:170]] * 3)
    labels = np.zeros(image.shape, np.int32)
    labels[:, 10:30, 10:30] = 1
    source = {"path": "/there/a.tif", "image": "a", "slices": "filled"}
    given = training_set.add(
        Correction(
            image=image,
            axes="TYX",
            labels=labels,
            output="objects",
            name="tissue",
            source=source,
        )
    )
    panel.table.refresh()
    panel.table.select(given)
    press(qtbot, panel, panel.table.show_button)
    assert panel.choices.slices.currentData() == "all"
    panel.choices.corrected.data[:, 40:50, 40:50] = 2
    panel.choices.corrected.refresh()
    panel.choices.edited.emit()
    press(qtbot, panel, panel.renew)
    (sample,) = training_set.samples()
    assert (sample.id, sample.name, sample.source) == (given.id, "tissue", source)
    assert training_set.read(sample).labels.max() == 2
    panel.choices.slices.setCurrentIndex(panel.choices.slices.findData("shown"))
    press(qtbot, panel, panel.add)
    (part,) = (s for s in training_set.samples() if s.id != given.id)
    assert part.name.startswith("tissue, t ")
    assert part.source["sample"] == source
    copy = viewer.add_image(image, name="copy", metadata=panel.choices.source.metadata)
    panel.choices.slices.setCurrentIndex(panel.choices.slices.findData("all"))
    panel.select(viewer.layers[0])
    panel.choices.take_whole()
    panel.select(copy)
    assert panel.choices.slices.currentData() == "shown"
    panel.select(copy, viewer.add_labels(labels))
    assert panel.choices.take().name.startswith("copy, ")
    assert not panel.choices.take().reopened


def test_a_sample_is_shown_and_goes_on_from_there(viewer, panel, qtbot, training_set):
    painted(viewer, panel)
    shapes = viewer.add_shapes(
        [[[19.5, 9.5], [19.5, 69.5], [79.5, 69.5], [79.5, 9.5]]], shape_type="polygon"
    )
    panel.choices.extent.setCurrentIndex(panel.choices.extent.findData("regions"))
    assert shapes.name == panel.choices.regions.currentText()
    press(qtbot, panel, panel.add)
    (sample,) = training_set.samples()
    viewer.layers.clear()
    assert counted(qtbot, panel) == ""
    panel.table.table.selectRow(0)
    press(qtbot, panel, panel.table.show_button)
    assert [layer.name for layer in viewer.layers] == [
        "cells · sample",
        "cells · sample labels",
        "cells · sample regions",
    ]
    assert panel.choices.extent.currentData() == "regions"
    before = training_set.read(sample)
    paint_disk(panel.choices.corrected, (50, 50), 9)
    press(qtbot, panel, panel.renew)
    (updated,) = training_set.samples()
    after = training_set.read(updated)
    assert updated.id == sample.id
    assert after.labels.max() == 9
    np.testing.assert_array_equal(after.regions, before.regions)


def test_samples_can_be_left_out(viewer, panel, qtbot, training_set):
    painted(viewer, panel)
    press(qtbot, panel, panel.add)
    changes = []
    panel.changed.connect(lambda: changes.append(1))
    item = panel.table.table.item(0, 0)
    assert item.checkState() == Qt.CheckState.Checked
    item.setCheckState(Qt.CheckState.Unchecked)
    assert not training_set.samples()[0].used
    assert changes == [1]
    panel.table.refresh()
    assert panel.table.table.item(0, 0).checkState() == Qt.CheckState.Unchecked
    assert changes == [1]


def test_the_table_tells_what_is_in_it(viewer, panel, qtbot, training_set):
    painted(viewer, panel)
    press(qtbot, panel, panel.add)
    table = panel.table
    name, note = (table.table.item(0, i).text() for i in (0, 1))
    assert name == "cells\n2 objects · painted"
    assert note.startswith(("learn\n", "both\n", "validate\n"))
    assert table.damaged.isHidden()
    (training_set.folder / "odd").mkdir()
    table.refresh()
    assert "1 folder cannot be read" in table.damaged.text()
    assert "odd" in table.damaged.toolTip()


def test_a_sample_that_is_gone(viewer, panel, qtbot, training_set, told):
    painted(viewer, panel)
    press(qtbot, panel, panel.add)
    training_set.remove(training_set.samples()[0])
    panel.table.table.item(0, 0).setCheckState(Qt.CheckState.Unchecked)
    assert len(told()) == 1
    assert panel.table.table.rowCount() == 0


def test_another_training_set(viewer, panel, qtbot, monkeypatch, tmp_path):
    painted(viewer, panel)
    press(qtbot, panel, panel.add)
    counted(qtbot, panel)
    assert not panel.renew.isHidden()
    changes = []
    panel.changed.connect(lambda: changes.append(1))
    other = tmp_path / "other"
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: "")
    panel.table.open_button.click()
    assert not changes
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(other))
    panel.table.open_button.click()
    assert panel.training_set.folder == other
    assert changes == [1]
    assert panel.renew.isHidden()
    assert str(other) in panel.table.folder.toolTip()
    monkeypatch.setenv("NAPARI_ATTUNET_TRAINING", str(tmp_path / "default"))
    panel.table.default_button.click()
    assert panel.training_set.folder == default_folder()
    assert panel.table.default_button.isHidden()
    panel.training_set = TrainingSet(tmp_path / "training")
    assert panel.table.table.rowCount() == 1
    assert not panel.renew.isHidden()


# --- what users do meanwhile -----------------------------------------------------


def test_layers_renamed_painted_and_removed_while_it_is_saved(
    viewer, panel, qtbot, training_set, slow
):
    image, labels = painted(viewer, panel)
    before = labels.data.copy()
    counted(qtbot, panel)
    panel.add.click()
    assert not panel.add.isEnabled()
    panel.add.click()
    image.name = "renamed"
    paint_disk(labels, (140, 20), 3)
    viewer.layers.clear()
    slow.set()
    qtbot.waitUntil(lambda: panel._job is None, timeout=TIMEOUT)
    (sample,) = training_set.samples()
    assert sample.name == "cells"
    np.testing.assert_array_equal(training_set.read(sample).labels, before)


@pytest.mark.parametrize("how", ["remove_dock", "close_dock", "close_viewer"])
def test_closing_while_it_is_saved(viewer, panel, qtbot, training_set, slow, how):
    _, labels = painted(viewer, panel)
    panel.add.click()
    paint_disk(labels, (140, 20), 3)  # and something waits to be counted
    if how == "remove_dock":
        viewer.window.remove_dock_widget(panel)
    elif how == "close_dock":
        panel.parent().destroyOnClose()
    else:
        viewer.close()
    qtbot.waitUntil(lambda: not _Work.alive, timeout=TIMEOUT)
    assert not training_set.samples()
    if how != "close_viewer":  # whoever listens must still be able to
        paint_disk(labels, (140, 20), 4)
        viewer.add_image(np.zeros((3, 5, 5)))
        viewer.dims.set_current_step(0, 1)
        viewer.layers.clear()


def test_a_panel_inside_of_another_that_is_closed(viewer, qtbot, training_set):
    host = QWidget()
    layout = QVBoxLayout(host)
    panel = CollectPanel(viewer, training_set)
    layout.addWidget(panel)
    viewer.window.add_dock_widget(host)
    _, labels = painted(viewer, panel)
    viewer.window.remove_dock_widget(host)
    host.deleteLater()
    qtbot.waitUntil(lambda: not isalive(panel), timeout=TIMEOUT)
    paint_disk(labels, (140, 20), 4)
    viewer.add_image(np.zeros((3, 5, 5)))
    viewer.dims.set_current_step(0, 1)
    viewer.layers.clear()


def test_a_closed_panel_is_collected(viewer, qtbot, training_set):
    panel = CollectPanel(viewer, training_set)
    viewer.window.add_dock_widget(panel)
    painted(viewer, panel)
    panel.counting.timer.setInterval(10)
    press(qtbot, panel, panel.add)
    gone = weakref.ref(panel)
    viewer.window.remove_dock_widget(panel)
    qtbot.waitUntil(lambda: not _Work.alive, timeout=TIMEOUT)
    del panel
    qtbot.wait(20)
    gc.collect()
    assert gone() is None


def test_removed_layers_are_let_go(viewer, panel, qtbot):
    image, labels = painted(viewer, panel)
    gone = [weakref.ref(image), weakref.ref(labels)]
    press(qtbot, panel, panel.add)
    viewer.layers.clear()
    del image, labels
    counted(qtbot, panel)
    qtbot.wait(20)
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError])
def test_no_error_kills_the_panel(viewer, panel, qtbot, monkeypatch, told, kind):
    painted(viewer, panel)
    correction_of = module.correction_of

    def broken(taken):
        yield Progress(0, 0)
        raise kind("unforeseen")

    monkeypatch.setattr(module, "correction_of", broken)
    press(qtbot, panel, panel.add)
    assert any("unforeseen" in message for message in told())
    assert "unforeseen" in panel.message.text()
    monkeypatch.setattr(module, "correction_of", correction_of)
    press(qtbot, panel, panel.add)
    assert "was added" in panel.message.text()


# --- the window stays alive and narrow -------------------------------------------


def test_the_window_stays_alive_while_a_large_image_is_counted(viewer, panel, qtbot):
    pixels = np.random.default_rng(0).integers(0, 255, (2048, 2048)).astype(np.uint8)
    viewer.add_image(pixels, name="large")
    panel.choices.new_labels.click()
    labels = panel.choices.corrected
    paint_disk(labels, (500, 500), 1, size=200)
    counted(qtbot, panel)
    longest, last = 0.0, time.perf_counter()

    def beat() -> None:
        nonlocal longest, last
        now = time.perf_counter()
        longest, last = max(longest, now - last), now

    paint_disk(labels, (900, 900), 2, size=200)
    timer = QTimer()
    timer.timeout.connect(beat)
    gc.collect()
    gc.disable()
    try:
        last = time.perf_counter()
        timer.start(5)
        counted(qtbot, panel)
    finally:
        timer.stop()
        gc.enable()
    assert longest < 0.25  # 0.1 s are promised; shared machines need a margin


def test_nothing_is_cut_in_a_narrow_dock(viewer, panel, qtbot):
    image, _ = painted(viewer, panel)
    image.name = "a very long name of an image that does not fit at all"
    panel.choices.extent.setCurrentIndex(1)
    assert panel.minimumSizeHint().width() <= 320
    panel.question.ask("?", "Train classes instead", "No, they are objects")
    assert panel.minimumSizeHint().width() <= 320
