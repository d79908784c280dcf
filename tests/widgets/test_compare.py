"""Old against new: where they differ, how it is shown, and what is left of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from napari.layers import Labels
from napari.utils.colormaps.standardize_color import transform_color
from qtpy.QtWidgets import QVBoxLayout, QWidget
from skimage import data

from napari_attunet.errors import ChannelError, DataError
from napari_attunet.model import Model, save_model
from napari_attunet.progress import drain
from napari_attunet.spec import ModelSpec, NetworkSpec
from napari_attunet.training.record import Contender, Round
from napari_attunet.widgets.compare import CompareView
from napari_attunet.widgets.comparison import (
    CHANGE_COLOURS,
    GAINED,
    LOST,
    OTHER,
    Comparison,
    changes,
    describe,
)
from napari_attunet.widgets.layers import is_result
from napari_attunet.widgets.score_table import HEAD

TIMEOUT = 20_000


# --- what differs ----------------------------------------------------------------

labels = arrays.arrays(np.int32, (6, 8), elements=st.integers(0, 3))


@pytest.mark.parametrize("output", ["objects", "classes"])
@given(old=labels, new=labels)
def test_gained_and_lost_are_what_foreground_says(output, old, new):
    changed = changes(old, new, output=output, ndim=2)
    assert np.array_equal(changed == GAINED, (old == 0) & (new > 0))
    assert np.array_equal(changed == LOST, (old > 0) & (new == 0))
    assert not changed[(old == 0) & (new == 0)].any()


@given(old=labels, new=labels)
def test_the_other_way_round_gains_are_losses(old, new):
    there = changes(old, new, output="objects", ndim=2)
    back = changes(new, old, output="objects", ndim=2)
    assert np.array_equal(there == GAINED, back == LOST)
    assert np.array_equal(there == OTHER, back == OTHER)


@given(old=labels)
def test_other_numbers_are_no_change_for_objects(old):
    renumbered = np.array([0, 7, 5, 9])[old]
    assert not changes(old, renumbered, output="objects", ndim=2).any()
    as_classes = changes(old, renumbered, output="classes", ndim=2)
    assert np.array_equal(as_classes == OTHER, old > 0)


def test_a_parted_object_shows_its_new_line():
    old = np.zeros((20, 20), int)
    old[4:16, 2:18] = 1
    new = old.copy()
    new[4:16, 10:18] = 2
    changed = changes(old, new, output="objects", ndim=2)
    assert set(np.unique(changed)) == {0, OTHER}
    assert set(np.nonzero(changed)[1]) == {9, 10}
    assert np.array_equal(changed, changes(new, old, output="objects", ndim=2))


def test_a_line_may_move_a_little():
    old = np.ones((20, 20), int)
    old[:, 10:] = 2
    near, far = np.ones((2, 20, 20), int)
    near[:, 11:] = 2
    far[:, 15:] = 2
    assert not changes(old, near, output="objects", ndim=2).any()
    assert (changes(old, far, output="objects", ndim=2) == OTHER).any()


def test_frames_do_not_touch_each_other():
    old = np.ones((2, 10, 10), int)
    new = np.stack([np.ones((10, 10), int), np.full((10, 10), 2)])
    assert not changes(old, new, output="objects", ndim=2).any()
    assert (changes(old, new, output="objects", ndim=3) == OTHER).any()


def test_what_changed_is_said():
    assert "Gained 25.0%" in describe(np.array([[GAINED, LOST], [0, 0]], np.uint8))


# --- the view --------------------------------------------------------------------


def save(path, version, output="objects", bias=(0, 0, 0)):
    spec = ModelSpec(
        name="grey",
        version=version,
        network=NetworkSpec(out_channels=3, features=(4, 8, 16)),
        output=output,
        colors=("#000000", "#ff0000", "#00ff00"),
    )
    model = Model.fresh(spec)
    model.network.head.bias.data += torch.tensor(bias, dtype=torch.float32)
    return save_model(model, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("round")
    save(folder / "parent.safetensors", 1, bias=(9, 0, 0))  # sees nothing
    save(folder / "tuned.safetensors", 2, bias=(0, 9, 0))  # sees one large object
    return folder


SCORES = {
    "validation": {"dice": 0.77, "ap50": 0.31, "ap70": 0.1},
    "corrections": {"dice": 0.8, "ap50": 0.6},
}
BETTER = {
    "validation": {"dice": 0.88, "ap50": 0.47, "ap70": 0.2},
    "corrections": {"dice": 0.9, "ap50": 0.5},
}
ROUND = Round(
    contenders=(
        Contender(name="parent", model="grey@1", scores=SCORES, merit=0.5, file=None),
        Contender(
            name="tuned",
            model="grey@2",
            scores=BETTER,
            merit=0.7,
            file="tuned.safetensors",
        ),
    ),
    proposed="tuned",
    reason="tuned is best with 0.700.",
    trusted=True,
)


@pytest.fixture
def view(viewer, qtbot):
    host, view = QWidget(), CompareView(viewer)
    QVBoxLayout(host).addWidget(view)
    viewer.window.add_dock_widget(host, name="test")
    return view


def present(view, folder, outcome=ROUND, image=None, parent="parent.safetensors"):
    view.present(
        outcome, folder, parent=parent and folder / parent, image=image, device="cpu"
    )


def cells_of(table):
    return [
        [
            table.item(row, column).text() if table.item(row, column) else ""
            for column in range(table.columnCount())
        ]
        for row in range(table.rowCount())
    ]


def test_it_hides_until_there_is_something(view):
    assert view.isHidden()
    assert not view.accept.isEnabled()
    assert view.chosen is None


def test_the_table(view, folder):
    present(view, folder)
    assert not view.isHidden()
    assert cells_of(view.table) == [
        ["", "held out", "held out", "corrections", "corrections"],
        ["", "Dice", "AP50", "Dice", "AP50"],
        ["parent", "0.770", "0.310", "0.800", "0.600"],
        ["tuned ★", "0.880", "0.470", "0.900", "0.500"],
    ]
    bold = [
        [view.table.item(HEAD + row, 1 + column).font().bold() for column in range(4)]
        for row in range(2)
    ]
    assert bold == [[False, False, False, True], [True, True, True, False]]
    assert view.reason.text() == "tuned is best with 0.700."
    assert view.chosen.name == "tuned"
    assert view.accept.isEnabled()
    assert view.accept.text() == "Accept tuned"
    assert "trained further" in view.table.item(HEAD + 1, 0).toolTip()


def test_all_rows_are_seen(view, folder, qtbot):
    present(view, folder)
    qtbot.wait(10)
    table = view.table
    last = table.visualItemRect(table.item(table.rowCount() - 1, 0))
    assert table.viewport().rect().contains(last)


def test_classes_have_no_ap(view, folder):
    contenders = tuple(
        dataclasses.replace(c, scores={"corrections": {"dice": 0.5}})
        for c in ROUND.contenders
    )
    present(view, folder, dataclasses.replace(ROUND, contenders=contenders))
    assert cells_of(view.table)[:2] == [["", "corrections"], ["", "Dice"]]


def test_the_old_model_may_be_the_best(view, folder, qtbot):
    present(view, folder, dataclasses.replace(ROUND, proposed="parent"))
    assert view.chosen.name == "parent"
    assert not view.accept.isEnabled()
    assert view.discard.text() == "Keep the old model"
    with qtbot.waitSignal(view.discarded):
        view.discard.click()
    view.table.selectRow(HEAD + 1)  # the user knows better
    with qtbot.waitSignal(view.accepted) as signal:
        view.accept.click()
    assert signal.args == ["tuned"]


def test_nothing_can_be_pressed_twice(view, folder):
    present(view, folder)
    view.set_busy(True)
    assert not view.accept.isEnabled()
    assert not view.discard.isEnabled()
    view.set_busy(False)
    assert view.accept.isEnabled()


@pytest.fixture
def cells(viewer):
    return viewer.add_image(
        data.cell()[100:180, 100:170], name="cells", scale=(0.5, 0.5), units="um"
    )


def test_what_a_new_model_finds(viewer, view, folder, cells, qtbot):
    """There is nothing to compare it with, but all to decide on."""
    present(view, folder, parent=None, image=cells)
    view.table.selectRow(HEAD + 1)
    assert view.show_changes.text() == "Show what it finds"
    said = []
    view.told.connect(said.append)
    view.show_changes.click()
    qtbot.waitUntil(lambda: len(view.layers) == 1, timeout=TIMEOUT)
    qtbot.waitUntil(lambda: view._job is None, timeout=TIMEOUT)
    (found,) = view.layers
    assert (found.name, found.visible) == ("cells · new", True)
    assert said[-1] == "This is what the new model finds."
    assert found.data.any()
    np.testing.assert_array_equal(found.scale, cells.scale)
    assert all(button.isHidden() for button in view.switch.buttons())
    view.clear()
    qtbot.waitUntil(lambda: list(viewer.layers) == [cells], timeout=TIMEOUT)


def compare(qtbot, view):
    view.show_changes.click()
    assert view.show_changes.text() == "Stop"
    qtbot.waitUntil(lambda: len(view.layers) == 3, timeout=TIMEOUT)
    qtbot.waitUntil(lambda: view._job is None, timeout=TIMEOUT)


def test_what_would_change(viewer, view, folder, cells, qtbot):
    own = viewer.add_labels(np.zeros((80, 70), int), name="mine")
    present(view, folder, image=cells)
    assert view.switch.buttons()[0].isHidden()
    compare(qtbot, view)
    old, new, changed = view.layers
    assert [layer.name for layer in view.layers] == [
        "cells · old",
        "cells · new",
        "cells · changes",
    ]
    assert np.array_equal(
        changed.data, changes(old.data, new.data, output="objects", ndim=2)
    )
    assert (changed.data == GAINED).any()
    for layer in view.layers:
        assert isinstance(layer, Labels)
        assert not layer.editable
        assert is_result(layer)
        np.testing.assert_allclose(layer.scale, cells.scale)
        assert layer.units == cells.units
    for value, colour in CHANGE_COLOURS.items():
        np.testing.assert_allclose(changed.get_color(value), transform_color(colour)[0])
    assert "Gained" in describe(changed.data)
    for number, layer in enumerate(view.layers):
        view.switch.buttons()[number].click()
        assert [at.visible for at in view.layers] == [at is layer for at in view.layers]
    view.clear()
    assert not any(layer.visible for layer in (old, new, changed))
    assert view.layers == []
    assert view.isHidden()
    qtbot.waitUntil(lambda: list(viewer.layers) == [cells, own])


def test_a_second_look_replaces_the_first(viewer, view, folder, cells, qtbot):
    present(view, folder, image=cells)
    compare(qtbot, view)
    viewer.layers.remove(view.layers[0])  # the user may
    first = view.layers[0]
    compare(qtbot, view)
    qtbot.waitUntil(lambda: first not in viewer.layers)
    assert len(viewer.layers) == 4


def test_looking_can_be_stopped(viewer, view, folder, cells, qtbot):
    present(view, folder, image=cells)
    view.show_changes.click()
    view.show_changes.click()
    qtbot.waitUntil(lambda: view._job is None, timeout=TIMEOUT)
    assert list(viewer.layers) == [cells]
    assert view.show_changes.text() == "Show what would change"


def test_the_image_goes_meanwhile(viewer, view, folder, cells, qtbot):
    present(view, folder, image=cells)
    view.show_changes.click()
    viewer.layers.remove(cells)
    qtbot.waitUntil(lambda: view._job is None, timeout=TIMEOUT)
    assert not viewer.layers


def test_what_fails_is_told(view, folder, cells, qtbot):
    present(view, folder / "gone", image=cells)
    with qtbot.waitSignal(view.failed):
        view.show_changes.click()
    assert view._job is None


def test_axes_that_do_not_suit(viewer, view, folder, qtbot):
    layer = viewer.add_image(np.zeros((2, 2, 2, 20, 20, 20)))
    present(view, folder, image=layer)
    with qtbot.waitSignal(view.failed) as signal:
        view.show_changes.click()
    assert isinstance(signal.args[0], DataError)


def test_an_old_model_of_other_channels_had_found_nothing(tmp_path, viewer):
    old = save(tmp_path / "old.safetensors", 1)
    network = NetworkSpec(features=(4, 8), in_channels=2, out_channels=3)
    spec = ModelSpec(name="both", network=network, output="objects")
    new = save_model(Model.fresh(spec), tmp_path / "new.safetensors")
    both = np.random.default_rng(0).random((2, 40, 50))
    layer = viewer.add_image(both, axis_labels=("c", "y", "x"))
    before, after, changed = drain(Comparison.of(layer, old, new, "cpu").compute())
    assert not before.data.any()
    np.testing.assert_array_equal(changed.data == GAINED, after.data > 0)
    with pytest.raises(ChannelError):
        drain(Comparison.of(layer, new, old, "cpu").compute())


def test_classes_keep_their_colours(tmp_path, viewer, cells):
    old = save(tmp_path / "old.safetensors", 1, output="classes")
    new = save(tmp_path / "new.safetensors", 2, output="classes")
    task = Comparison.of(cells, old, new, "cpu")
    layers = drain(task.compute())
    np.testing.assert_allclose(layers[0].get_color(1), (1, 0, 0, 1))
