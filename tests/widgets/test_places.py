"""Finding the doubtful places of a layer, and going there."""

from __future__ import annotations

import dataclasses
import gc
import subprocess
import sys
import threading
import time
import weakref

import dask.array
import numpy as np
import pytest
from napari.layers import Image
from skimage import data

from napari_attunet.errors import DataError
from napari_attunet.library import Library
from napari_attunet.model import Model, save_model
from napari_attunet.progress import Progress, drain
from napari_attunet.review import Place
from napari_attunet.spec import ModelSpec, NetworkSpec
from napari_attunet.widgets import places as module
from napari_attunet.widgets.jobs import _Work
from napari_attunet.widgets.places import NEXT_SHORTCUT, PlacesPanel
from napari_attunet.widgets.results import Settings
from napari_attunet.widgets.search import find_places, plan_search, show, zoom_for
from napari_attunet.widgets.warm import segmenter_for

TIMEOUT = 20_000


def save(folder, name, **network):
    network = NetworkSpec(out_channels=3, features=(4, 8), **network)
    spec = ModelSpec(name=name, network=network, classes=("none", "cell", "edge"))
    save_model(Model.fresh(spec), folder / f"{spec.key}.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save(folder, "grey")
    save(folder, "colour", in_channels=3)
    save(folder, "volume", ndim=3)
    return folder


@pytest.fixture(autouse=True)
def _no_bundled_models(monkeypatch, folder):
    monkeypatch.setattr("napari_attunet.library.bundled_models", lambda: folder)


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path)


@pytest.fixture
def panel(viewer, library):
    panel = PlacesPanel(viewer, library)
    viewer.window.add_dock_widget(panel, name="places")
    return panel


@pytest.fixture
def found(monkeypatch):
    """Places that every search finds; a search waits at `found.go`."""

    class Found:
        places = (
            Place(position=(20, 30), size=10, score=0.9, reason="cell or edge"),
            Place(position=(70, 40), size=10, score=0.5),
            Place(position=(90, 10), size=10, score=0.25),
        )
        go = threading.Event()

        def steps(self, search):
            done = 0
            while not self.go.is_set():
                time.sleep(0.005)
                yield Progress(done := done + 1, 10_000, "Waiting")
            return self.places

    found = Found()
    found.go = threading.Event()
    found.go.set()
    monkeypatch.setattr(module, "find_places", found.steps)
    return found


def add_cells(viewer, **arguments) -> Image:
    pixels = data.cell()[100:260, 100:230]
    return viewer.add_image(pixels, name="cells", **arguments)


def search(qtbot, panel) -> bool:
    with qtbot.waitSignal(panel.finished, timeout=TIMEOUT) as signal:
        panel.look.click()
        assert panel.running
    assert not panel.running
    return signal.args[0]


def listed(panel) -> list[str]:
    return [panel.places.item(i).text() for i in range(panel.places.count())]


# --- the search -------------------------------------------------------------------


def network_of(**network):
    return ModelSpec(name="it", network=NetworkSpec(out_channels=3, **network))


@pytest.mark.parametrize(
    ("shape", "labels", "network", "point", "axes", "part", "frame"),
    [
        ((40, 50), "yx", {}, (3, 4), "YX", (40, 50), ()),
        ((5, 40, 50), "tyx", {}, (2.2, 3, 4), "YX", (40, 50), (2,)),
        ((5, 40, 50), "tyx", {}, (99, 3, 4), "YX", (40, 50), (4,)),
        ((4, 5, 40, 50), "tzyx", {}, (1, 2, 0, 0), "YX", (40, 50), (1, 2)),
        ((4, 5, 40, 50), "tzyx", {"ndim": 3}, (1, 2, 0, 0), "ZYX", (5, 40, 50), (1,)),
        (
            (4, 3, 40, 50),
            "tcyx",
            {"in_channels": 3},
            (1, 2, 0, 0),
            "CYX",
            (3, 40, 50),
            (1,),
        ),
    ],
    ids=["image", "stack", "beyond", "volumes", "volumes in 3D", "channels"],
)
def test_only_the_frame_that_is_shown(shape, labels, network, point, axes, part, frame):
    layer = Image(np.zeros(shape, np.uint8), axis_labels=tuple(labels))
    task = plan_search(layer, network_of(**network), Settings(model="m"), point=point)
    assert (task.axes, task.image.shape, task.frame) == (axes, part, frame)
    whole = plan_search(layer, network_of(**network), Settings(model="m"))
    assert (whole.axes, whole.image.shape) == (labels.upper(), shape)
    assert task.layer_axes == whole.axes


def test_channels_are_taken_as_the_user_chose_before(folder, rng):
    both = rng.random((2, 40, 50)).astype(np.float32)
    layer = Image(both, axis_labels=("c", "y", "x"))
    settings = Settings(model=str(folder / "grey@1.safetensors"), channels=(1,))
    found = drain(find_places(plan_search(layer, network_of(), settings)))
    alone = dataclasses.replace(settings, channels="auto")
    wanted = drain(find_places(plan_search(Image(both[1]), network_of(), alone)))
    assert found == wanted
    assert found


def test_all_that_was_chosen_is_used(folder, rng, monkeypatch):
    chosen = {"device": "cpu", "threads": 1, "tile": 96, "precision": "exact"}
    settings = Settings(model=str(folder / "grey@1.safetensors"), **chosen)
    task = plan_search(Image(rng.random((40, 50))), network_of(), settings)
    asked = []

    def remembered(model, **options):
        asked.append(options)
        return segmenter_for(model, **options)

    monkeypatch.setattr("napari_attunet.widgets.results.segmenter_for", remembered)
    drain(find_places(task))
    assert asked == [chosen]


def test_positions_are_those_in_the_whole_stack(folder, rng):
    pixels = rng.random((3, 40, 50)).astype(np.float32)
    layer = Image(dask.array.from_array(pixels), scale=(2, 1, 1))
    settings = Settings(model=str(folder / "grey@1.safetensors"))
    task = plan_search(layer, network_of(), settings, point=(4, 0, 0))
    places = drain(find_places(task))
    assert places
    assert {place.position[0] for place in places} == {2.0}
    assert all(len(place.position) == 3 for place in places)


def test_a_layer_that_does_not_suit(viewer, panel, told):
    add_cells(viewer)
    panel.choose_model("volume")
    panel.look.click()
    assert not panel.running
    assert "3D model" in told()[0]
    assert panel.message.text() == told()[0]
    with pytest.raises(DataError):
        plan_search(viewer.layers[0], network_of(ndim=3), Settings(model="m"))


# --- the view ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zoom", "size", "expected"),
    [
        (2.0, 10, 2.0),  # 400 pixels of 800 are seen: twice what is needed
        (1.9, 10, 4.0),
        (8.0, 10, 8.0),
        (8.1, 10, 4.0),
        (4.0, 100, 800 / 600),
    ],
)
def test_the_zoom_is_changed_only_if_it_must_be(zoom, size, expected):
    place = Place(position=(0, 0), size=size, score=1)
    assert zoom_for(place, zoom=zoom, canvas=800, pixel=1) == expected
    half = zoom_for(place, zoom=2 * zoom, canvas=800, pixel=0.5)
    assert half == 2 * expected


def test_the_view_in_a_layer_that_lies_anyhow(viewer):
    layer = add_cells(viewer, scale=(0.5, 0.25), translate=(100, 7), rotate=90)
    show(viewer, layer, "YX", Place(position=(20, 30), size=9, score=1))
    # Rotated by a quarter, rows run along x and columns against y.
    expected = (100 - 30 * 0.25, 7 + 20 * 0.5)
    np.testing.assert_allclose(viewer.scene.camera.center[-2:], expected, atol=1e-9)
    seen = min(viewer.canvas.size) / viewer.scene.camera.zoom / 0.25
    assert 100 <= seen <= 400


def test_the_view_in_a_stack(viewer):
    layer = viewer.add_image(np.zeros((4, 5, 60, 70)), scale=(10, 2, 1, 1))
    place = Place(position=(3, 1, 20, 30), size=9, score=1)
    show(viewer, layer, "TZYX", place)
    assert viewer.dims.current_step[:2] == (3, 1)
    assert viewer.scene.camera.center[-2:] == (20, 30)


def test_the_view_in_a_smaller_layer_leaves_the_other_axes(viewer):
    viewer.add_image(np.zeros((6, 60, 70)))
    layer = viewer.add_image(np.zeros((60, 70)))
    viewer.dims.set_point(0, 4)
    show(viewer, layer, "YX", Place(position=(20, 30), size=9, score=1))
    assert viewer.dims.current_step[0] == 4
    assert viewer.scene.camera.center[-2:] == (20, 30)


def test_the_view_leaves_the_channel_that_is_shown(viewer):
    layer = viewer.add_image(np.zeros((4, 3, 60, 70)))
    viewer.dims.set_point((0, 1), (0, 2))
    show(viewer, layer, "TCYX", Place(position=(3, 20, 30), size=9, score=1))
    assert viewer.dims.current_step[:2] == (3, 2)


def test_the_view_in_colours_and_in_3d(viewer):
    rgb = viewer.add_image(np.zeros((60, 70, 3), np.uint8), rgb=True)
    show(viewer, rgb, "YXC", Place(position=(20, 30), size=9, score=1))
    assert viewer.scene.camera.center[-2:] == (20, 30)
    viewer.layers.clear()
    volume = viewer.add_image(np.zeros((10, 60, 70)), scale=(3, 1, 1))
    viewer.dims.ndisplay = 3
    show(viewer, volume, "ZYX", Place(position=(5, 20, 30), size=9, score=1))
    assert viewer.scene.camera.center == (15, 20, 30)


# --- the panel --------------------------------------------------------------------


def test_opening_imports_no_torch():
    code = (
        "import sys, napari_attunet.widgets.places; "
        "sys.exit(bool({'torch', 'monai'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_empty_viewer(viewer, panel):
    assert not panel.look.isEnabled()
    assert not panel.forward.isEnabled()
    panel.start()
    panel.stop()
    panel.go_on()
    panel.go_back()
    assert not panel.running


def test_a_real_search(viewer, panel, qtbot):
    cells = add_cells(viewer, scale=(0.5, 0.5))
    panel.choose_model("grey")
    panel.flips.setChecked(True)
    assert search(qtbot, panel)
    texts = listed(panel)
    assert 1 < len(texts) <= 20
    assert texts[0].startswith("1 · ")
    assert "%" in texts[0]
    assert "cells" in panel.message.text()
    panel.places.setCurrentRow(1)
    centre = cells.world_to_data(viewer.scene.camera.center[-2:])
    np.testing.assert_allclose(centre, panel._places[1].position)


def test_the_image_chooses_the_model(viewer, panel):
    add_cells(viewer)
    assert panel.model.entry.spec.name == "grey"
    assert panel.only_shown.isHidden()
    panel.select(viewer.add_image(data.immunohistochemistry(), name="tissue"))
    assert panel.model.entry.spec.name == "colour"
    panel.select(viewer.add_image(np.zeros((3, 40, 40))))
    assert not panel.only_shown.isHidden()


def test_walking_through_the_places(viewer, panel, qtbot, found):
    add_cells(viewer)
    before = viewer.scene.camera.center
    assert search(qtbot, panel)
    assert listed(panel) == ["1 · 90% · cell or edge", "2 · 50%", "3 · 25%"]
    assert viewer.scene.camera.center == before  # nobody asked to go anywhere yet
    seen = []
    for step in (
        panel.forward.click,
        panel.forward.click,
        panel.forward.click,
        panel.forward.click,
        panel.back.click,
        panel.back.click,
    ):
        step()
        seen.append(tuple(map(round, viewer.scene.camera.center[-2:])))
    first, second, third = ((20, 30), (70, 40), (90, 10))
    assert seen == [first, second, third, first, third, second]
    viewer.scene.camera.center = (0, 0, 0)
    panel.places.itemClicked.emit(panel.places.currentItem())  # the same once more
    assert tuple(map(round, viewer.scene.camera.center[-2:])) == second


def test_the_shortcut_goes_on_and_is_free(viewer, panel, qtbot, found):
    from app_model.types import KeyBinding
    from napari._app_model import get_app_model
    from napari.utils.shortcuts import default_shortcuts

    ours = KeyBinding.from_str(
        NEXT_SHORTCUT.replace("-", "+").replace("Control", "Ctrl")
    )
    taken = {str(key) for keys in default_shortcuts.values() for key in keys}
    taken |= {str(rule.keybinding) for rule in get_app_model().keybindings}
    assert str(ours) not in taken
    add_cells(viewer)
    search(qtbot, panel)
    viewer.keymap[ours](viewer)
    assert panel.places.currentRow() == 0
    viewer.keymap[ours](viewer)
    assert panel.places.currentRow() == 1


def test_nothing_in_doubt(viewer, panel, qtbot, found):
    add_cells(viewer)
    found.places = ()
    assert not search(qtbot, panel)
    assert "no doubt" in panel.message.text()
    assert not panel.forward.isEnabled()


def test_cancelling(viewer, panel, qtbot, found):
    add_cells(viewer)
    found.go.clear()
    with qtbot.waitSignal(panel.finished, timeout=TIMEOUT) as signal:
        panel.start()
        qtbot.waitUntil(lambda: panel.bar.value() > 2)
        assert not panel.look.isEnabled()
        panel.start()  # a second press does nothing
        panel.cancel.click()
        assert not panel.cancel.isEnabled()
    assert signal.args == [False]
    assert panel.message.text() == "Stopped."
    assert listed(panel) == []
    found.go.set()
    assert search(qtbot, panel)


def test_removing_the_layer_takes_its_places_away(viewer, panel, qtbot, found, told):
    cells = add_cells(viewer)
    other = viewer.add_image(np.zeros((50, 50)), name="other")
    panel.select(cells)
    search(qtbot, panel)
    viewer.layers.remove(other)
    assert len(listed(panel)) == 3
    viewer.layers.remove(cells)
    assert listed(panel) == []
    assert not panel.forward.isEnabled()
    panel.go_on()
    assert told() == []


def test_removing_the_layer_stops_the_search(viewer, panel, qtbot, found, told):
    cells = add_cells(viewer)
    found.go.clear()
    with qtbot.waitSignal(panel.finished, timeout=TIMEOUT) as signal:
        panel.start()
        viewer.layers.remove(cells)
    assert signal.args == [False]
    assert "was removed" in told()[0]


def test_a_layer_that_was_moved_after_the_search(viewer, panel, qtbot, found):
    cells = add_cells(viewer)
    search(qtbot, panel)
    cells.translate, cells.name = (1000, 0), "renamed"
    panel.go_on()
    assert tuple(map(round, viewer.scene.camera.center[-2:])) == (1020, 30)


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, DataError])
def test_no_error_kills_the_panel(viewer, panel, qtbot, found, monkeypatch, told, kind):
    add_cells(viewer)

    def broken(search):
        yield Progress(0, 1)
        raise kind("unforeseen")

    with monkeypatch.context() as patch:
        patch.setattr(module, "find_places", broken)
        assert not search(qtbot, panel)
    assert any("unforeseen" in message for message in told())
    assert "unforeseen" in panel.message.text()
    assert search(qtbot, panel)


@pytest.mark.parametrize("how", ["remove_dock", "close_dock", "close_viewer"])
def test_closing_during_a_search_stops_it(viewer, panel, qtbot, found, how):
    add_cells(viewer)
    found.go.clear()
    panel.start()
    qtbot.waitUntil(lambda: panel.bar.value() > 2)
    if how == "remove_dock":
        viewer.window.remove_dock_widget(panel)
    elif how == "close_dock":
        panel.parent().destroyOnClose()
    else:
        viewer.close()
    qtbot.waitUntil(lambda: not _Work.alive, timeout=TIMEOUT)
    if how != "close_viewer":
        viewer.add_image(np.zeros((5, 5)))
        viewer.layers.clear()
        for call in list(viewer.keymap.values()):
            call(viewer)


def test_a_closed_panel_and_its_image_are_let_go(viewer, library, qtbot, found):
    layer = add_cells(viewer)
    panel = PlacesPanel(viewer, library)
    viewer.window.add_dock_widget(panel)
    search(qtbot, panel)
    gone = weakref.ref(panel)
    viewer.window.remove_dock_widget(panel)
    viewer.layers.remove(layer)
    del panel, layer
    qtbot.wait(20)
    gc.collect()
    assert gone() is None
