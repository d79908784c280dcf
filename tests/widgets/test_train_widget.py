"""The dock that holds all parts of learning from corrections, and their ties."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from qtpy.QtWidgets import QScrollArea
from skimage import data

from napari_attunet.corrections import Correction, TrainingSet
from napari_attunet.library import Library
from napari_attunet.model import Model, save_model
from napari_attunet.spec import ModelSpec, NetworkSpec
from napari_attunet.widgets.jobs import _Work
from napari_attunet.widgets.learn_form import NEW_MODEL
from napari_attunet.widgets.segment import PLUGIN
from napari_attunet.widgets.train import DOCK, TrainWidget, learn_from_corrections

TIMEOUT = 20_000


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, output in (("grey", "objects"), ("regions", "classes")):
        spec = ModelSpec(
            name=name,
            network=NetworkSpec(out_channels=3, features=(4, 8, 16)),
            output=output,
        )
        save_model(Model.fresh(spec), folder / f"{spec.key}.safetensors")
    return folder


@pytest.fixture(autouse=True)
def _somewhere_else(monkeypatch, models, tmp_path):
    monkeypatch.setattr("napari_attunet.library.bundled_models", lambda: models)
    monkeypatch.setenv("NAPARI_ATTUNET_TRAINING", str(tmp_path / "default"))


@pytest.fixture
def widget(viewer, tmp_path, qtbot):
    widget = TrainWidget(viewer, Library(tmp_path / "library"), tmp_path / "set")
    viewer.window.add_dock_widget(widget, name="test")
    qtbot.waitUntil(lambda: not _Work.alive, timeout=TIMEOUT)
    return widget


def test_opening_imports_no_torch():
    code = (
        "import sys, napari_attunet.widgets.train; "
        "sys.exit(bool({'torch', 'monai', 'pyqtgraph'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_part_has_its_tab(widget):
    assert [widget.tabs.tabText(i) for i in range(widget.tabs.count())] == [
        "1 Corrections",
        "2 Learn",
        "3 Versions",
        "4 Check",
    ]
    for number, panel in enumerate(widget.panels):
        area = widget.tabs.widget(number)
        assert isinstance(area, QScrollArea)
        assert area.widget() is panel


def test_nothing_is_wider_than_the_dock(viewer, widget, qtbot):
    viewer.add_image(
        data.cell()[:100, :100], name="a name that is far too long for any dock of 340"
    )
    widget.learning.form.options.expand(animate=False)
    assert widget.minimumWidth() == 340
    for panel in widget.panels:
        assert panel.minimumSizeHint().width() <= 340
    assert widget.tabs.tabBar().sizeHint().width() <= 340


def test_the_default_folder(viewer, tmp_path, qtbot):
    widget = TrainWidget(viewer)
    qtbot.addWidget(widget)
    assert widget.learning._training_set.folder == tmp_path / "default"
    qtbot.waitUntil(lambda: not _Work.alive, timeout=TIMEOUT)


def test_what_is_added_can_be_learnt_from(widget):
    assert not widget.learning.train.isEnabled()
    labels = np.zeros((64, 64), np.int32)
    labels[10:30, 10:30] = 1
    image = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    widget.corrections.training_set.add(
        Correction(image=image, axes="YX", labels=labels, output="objects")
    )
    widget.corrections.changed.emit()
    assert widget.learning.train.isEnabled()


def test_another_folder(widget, tmp_path):
    other = TrainingSet(tmp_path / "other")
    widget.corrections.training_set = other
    widget.corrections.changed.emit()
    assert widget.learning._training_set.folder == other.folder


def test_corrections_are_counted_for_the_model_that_learns(widget):
    form = widget.learning.form
    form.model.choose("regions")
    assert widget.corrections.output == "classes"
    form.model.choose("grey")
    assert widget.corrections.output == "objects"
    form.model.setCurrentText(NEW_MODEL)
    form.options.dimensions.setCurrentText("3D")
    assert widget.corrections.choices.aim.ndim == 3


def test_the_user_wants_classes(widget):
    widget.learning.form.model.choose("grey")
    widget.corrections.output_chosen.emit("classes")
    assert widget.learning.form.settings().output is None  # samples tell
    widget.learning.form.model.setCurrentText(NEW_MODEL)
    assert widget.learning.form.settings().output == "classes"


def test_layers_reach_every_part(viewer, widget):
    cells = viewer.add_image(data.cell()[:100, :100], name="cells")
    assert widget.learning.form.source is cells
    assert widget.corrections.choices.source is cells
    assert widget.places.image.source is cells


def test_a_version_that_goes_is_no_longer_offered(widget, models, tmp_path, qtbot):
    library = Library(tmp_path / "library")
    library.duplicate("grey", "mine")
    widget.versions.changed.emit()
    model = widget.learning.form.model
    assert model.findText("mine") >= 0
    assert model.itemText(model.count() - 1) == NEW_MODEL


def test_an_accepted_version_is_in_the_tree(widget, models, tmp_path):
    entry = Library(tmp_path / "library").duplicate("grey", "mine")
    widget.learning.accepted.emit(SimpleNamespace(spec=entry.spec))
    widget.versions.select("mine@1")
    assert widget.versions.selected.spec.key == "mine@1"


def test_closing_the_dock_closes_every_part(viewer, widget, monkeypatch, qtbot):
    closed = []
    parts = [widget.corrections, widget.learning, widget.places]
    for panel in parts:
        close = panel.close_down
        monkeypatch.setattr(
            panel, "close_down", lambda c=close, p=panel: closed.append(p) or c()
        )
    viewer.window.remove_dock_widget(widget)
    assert closed == parts
    viewer.add_image(np.zeros((4, 4)))  # nobody listens any more
    qtbot.wait(10)


def test_the_command_opens_the_dock(viewer, qtbot):
    learn_from_corrections(viewer)
    dock = viewer.window.dock_widgets[f"{DOCK} ({PLUGIN})"]
    assert isinstance(dock, TrainWidget)
    qtbot.waitUntil(lambda: not _Work.alive, timeout=TIMEOUT)
