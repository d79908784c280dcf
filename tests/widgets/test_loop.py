"""The whole way round in one viewer: segment, paint, train, compare, accept, go back.

Nothing is stood in for: the training is a process of its own.
"""

from __future__ import annotations

import contextlib
import time

import numpy as np
import psutil
import pytest
from napari.layers import Labels

from napari_attunet.library import Library
from napari_attunet.samples import synthetic_nuclei
from napari_attunet.widgets.jobs import _Work
from napari_attunet.widgets.score_table import HEAD
from napari_attunet.widgets.segment import SegmentWidget
from napari_attunet.widgets.train import TrainWidget

pytestmark = pytest.mark.slow

MODEL = "nuclei-fluorescence"
TIMEOUT = 120_000


@pytest.fixture
def library(tmp_path, monkeypatch):
    monkeypatch.setenv("NAPARI_ATTUNET_MODELS", str(tmp_path / "models"))
    return Library()


@pytest.fixture
def docks(viewer, library, tmp_path, qtbot):
    segmenting = SegmentWidget(viewer)
    learning = TrainWidget(viewer, folder=tmp_path / "set")
    for number, dock in enumerate((segmenting, learning)):
        viewer.window.add_dock_widget(dock, name=f"dock {number}")
    qtbot.waitUntil(lambda: not _Work.alive, timeout=TIMEOUT)
    return segmenting, learning


def children():
    """Return the trainings that this process has begun."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "train" in process.cmdline():
                found.append(process)
    return found


def press(qtbot, button, until):
    qtbot.waitUntil(button.isEnabled, timeout=TIMEOUT)
    button.click()
    qtbot.waitUntil(lambda: bool(until()), timeout=TIMEOUT)


def labels_of(viewer):
    return [at for at in viewer.layers if isinstance(at, Labels)]


def test_the_whole_way_round(viewer, docks, library, qtbot):
    segmenting, learning = docks
    pixels, truth = synthetic_nuclei((96, 128), seed=3)
    viewer.add_image(pixels, name="cells")
    segmenting.model.choose(MODEL)
    press(qtbot, segmenting.segment, lambda: labels_of(viewer))
    (labels,) = labels_of(viewer)
    found = labels.data.copy()

    # correct: one object is painted as it is
    corrections = learning.corrections
    choices = corrections.choices
    choices.extent.setCurrentIndex(choices.extent.findData("painted"))
    corrections.new_object.click()
    labels.brush_size = 1
    number = labels.selected_label
    for at in np.argwhere(truth == truth[truth > 0][0]):
        labels.paint(at, number)
    mine = labels.data.copy()
    assert (mine != found).any()
    press(qtbot, corrections.add, lambda: "was added" in corrections.message.text())

    # train, and watch
    panel = learning.learning
    panel.form.model.choose(MODEL)
    panel.form.options.steps.setValue(12)
    panel.form.options.threads.setValue(1)
    press(qtbot, panel.train, lambda: children())
    qtbot.waitUntil(lambda: not panel.running, timeout=TIMEOUT)
    assert not children()
    names = [c.name for c in panel._outcome.contenders]
    assert names == ["parent", "tuned"]

    # compare, and accept
    panel.compare.table.selectRow(HEAD + names.index("tuned"))
    press(qtbot, panel.compare.show_changes, lambda: len(panel.compare.layers) == 3)
    new = panel.compare.layers[1].data
    press(qtbot, panel.compare.accept, lambda: "in use" in panel.message.text())
    assert library.current(MODEL).spec.key == f"{MODEL}@2"
    assert library.current(MODEL).spec.parent == f"{MODEL}@1"
    qtbot.waitUntil(lambda: len(labels_of(viewer)) == 1, timeout=TIMEOUT)

    # segment again: beside what was painted, which is the user's
    press(qtbot, segmenting.segment, lambda: len(labels_of(viewer)) == 2)
    np.testing.assert_array_equal(labels_of(viewer)[1].data > 0, new > 0)
    np.testing.assert_array_equal(labels.data, mine)

    # and back
    learning.versions.select(f"{MODEL}@1")
    versions = learning.versions
    press(qtbot, versions.use, lambda: "now in use" in versions.message.text())
    assert library.current(MODEL).spec.key == f"{MODEL}@1"
    qtbot.waitUntil(lambda: segmenting.entry.spec.key == f"{MODEL}@1", timeout=TIMEOUT)
    press(qtbot, segmenting.segment, lambda: again(viewer, found))

    # closing the viewer ends what trains
    press(qtbot, panel.train, lambda: children())
    learning.close_down()
    until = time.monotonic() + 10
    while children() and time.monotonic() < until:
        qtbot.wait(50)
    assert not children()


def again(viewer, found):
    return any(np.array_equal(at.data, found) for at in labels_of(viewer)[1:])
