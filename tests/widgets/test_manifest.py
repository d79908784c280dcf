"""What napari is promised in the manifest, is there."""

from __future__ import annotations

import tomllib
from pathlib import Path

import npe2
import numpy as np
import pytest
from napari.layers import Layer
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication, QProgressDialog, QWidget

import napari_attunet
from napari_attunet.errors import Cancelled, DataError
from napari_attunet.widgets import samples
from napari_attunet.widgets.jobs import _Work

MANIFEST = Path(napari_attunet.__file__).with_name("napari.yaml")


@pytest.fixture(scope="module")
def manifest() -> npe2.PluginManifest:
    return npe2.PluginManifest.from_file(MANIFEST)


def test_the_name_is_that_of_the_distribution(manifest):
    project = MANIFEST.parents[1] / "pyproject.toml"
    if not project.exists():
        pytest.skip("installed without its sources")
    described = tomllib.loads(project.read_text())["project"]
    assert manifest.name == described["name"]
    entry_points = described["entry-points"]["napari.manifest"]
    assert entry_points == {manifest.name: "napari_attunet:napari.yaml"}


def test_every_command_can_be_imported(manifest):
    manifest.validate_imports()
    commands = manifest.contributions.commands
    assert len(commands) == 10
    for command in commands:
        assert callable(npe2.manifest.utils.import_python_name(command.python_name))


def test_every_command_is_known(manifest):
    known = {command.id for command in manifest.contributions.commands}
    used = {widget.command for widget in manifest.contributions.widgets}
    used |= {sample.command for sample in manifest.contributions.sample_data}
    items = manifest.contributions.menus["napari/layers/segment"]
    used |= {item.command for item in items}
    assert used == known


def test_the_docks_are_widgets_and_have_their_names(manifest):
    from napari_attunet.widgets import segment, train
    from napari_attunet.widgets.inspect import dock

    names = [widget.display_name for widget in manifest.contributions.widgets]
    assert names == [segment.DOCK, train.DOCK, dock.DOCK]
    assert manifest.name == segment.PLUGIN
    assert issubclass(segment.SegmentWidget, QWidget)
    assert issubclass(train.TrainWidget, QWidget)
    assert issubclass(dock.AttentionWidget, QWidget)


def test_the_command_is_in_the_menu_and_runs(make_napari_viewer, monkeypatch, qtbot):
    from napari._app_model import get_app_model

    called = []
    monkeypatch.setattr(
        "napari_attunet.widgets.segment.SegmentWidget.start",
        lambda widget: called.append(widget),
    )
    viewer = make_napari_viewer()
    viewer.add_image(np.zeros((20, 20)), name="it")
    app = get_app_model()
    items = app.menus.get_menu("napari/layers/segment")
    assert "napari-attunet.segment" in [item.command.id for item in items]
    app.commands.execute_command("napari-attunet.segment").result()
    assert [widget.source.name for widget in called] == ["it"]
    qtbot.waitUntil(lambda: not _Work.alive, timeout=20_000)


# --- samples ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nuclei_2d", "nuclei_3d", "immunohistochemistry"])
def test_samples_are_layers(name):
    made = getattr(samples, name)()
    layers = [Layer.create(*layer) for layer in made]
    assert len(layers) == 2
    assert len({layer.name for layer in layers}) == 2
    assert sum(layer.visible for layer in layers) == 1
    assert np.array_equal(layers[0].extent.world, layers[1].extent.world)


def test_truth_belongs_to_the_nuclei():
    (image, _, _), (truth, _, kind) = samples.nuclei_2d()
    assert kind == "labels"
    assert image[truth > 0].mean() > 1.5 * image[truth == 0].mean()


def test_mitosis_is_fetched(qtbot, monkeypatch):
    pixels = np.zeros((4, 4), np.uint8)
    monkeypatch.setattr("skimage.data.human_mitosis", lambda: pixels)
    ((fetched, arguments, kind),) = samples.human_mitosis()
    assert fetched is pixels
    assert (arguments["name"], kind) == ("human mitosis", "image")
    qtbot.waitUntil(lambda: not _Work.alive)


@pytest.mark.parametrize(
    "error", [ConnectionError("offline"), ValueError("wrong hash")]
)
def test_mitosis_cannot_be_fetched(qtbot, monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr("skimage.data.human_mitosis", fail)
    with pytest.raises(DataError, match="connection to the internet") as caught:
        samples.human_mitosis()
    assert str(error) in str(caught.value)
    qtbot.waitUntil(lambda: not _Work.alive)


def test_waiting_for_mitosis_is_seen_and_can_be_cancelled(qtbot, monkeypatch):
    import threading

    go = threading.Event()
    monkeypatch.setattr("skimage.data.human_mitosis", lambda: go.wait(10))
    seen = []

    def press_cancel():
        for window in QApplication.topLevelWidgets():
            if isinstance(window, QProgressDialog) and window.isVisible():
                seen.append(window.labelText())
                window.canceled.emit()

    timer = QTimer()
    timer.timeout.connect(press_cancel)
    timer.start(20)
    try:
        with pytest.raises(Cancelled):
            samples.human_mitosis()
    finally:
        go.set()
    timer.stop()
    assert seen == ["Downloading human mitosis …"]
    qtbot.waitUntil(lambda: not _Work.alive)
