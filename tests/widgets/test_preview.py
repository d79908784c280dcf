"""Watching it learn: what is looked at, where it is shown, and how often."""

from __future__ import annotations

import os

import dask.array
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.layers import Image
from qtpy.QtCore import QObject
from skimage import data

from napari_attunet.model import Model, save_model
from napari_attunet.progress import drain
from napari_attunet.spec import ModelSpec, NetworkSpec
from napari_attunet.widgets.jobs import _Work
from napari_attunet.widgets.layers import is_result
from napari_attunet.widgets.poses import Pose
from napari_attunet.widgets.preview import (
    INTERVAL,
    LARGEST,
    Preview,
    look_at,
    visible_region,
)

TIMEOUT = 20_000


# --- what is looked at -----------------------------------------------------------

sides = st.integers(1, 3000)


def region_of(layer, low, high, *, axes, ndim=2, displayed=(-2, -1), point=None):
    corners = np.zeros((2, layer.ndim), int)
    for axis, (start, stop) in zip(displayed, zip(low, high, strict=True), strict=True):
        corners[:, axis] = start, stop
    layer.corner_pixels = corners
    point = point or (0,) * layer.ndim
    region = visible_region(layer, displayed, point, axes=axes, ndim=ndim)
    return [(part.start, part.stop) for part in region]


def lazy(*shape) -> Image:
    pixels = dask.array.zeros(shape, chunks=512)
    return Image(pixels, contrast_limits=(0, 1), multiscale=False)


@settings(deadline=None)  # the first image of all imports much
@given(height=sides, width=sides, at=st.data())
def test_a_part_lies_within_the_image(height, width, at):
    low = [at.draw(st.integers(0, n - 1)) for n in (height, width)]
    high = [
        at.draw(st.integers(a, n - 1))
        for a, n in zip(low, (height, width), strict=True)
    ]
    layer = Image(np.broadcast_to(np.uint8(0), (height, width)), contrast_limits=(0, 1))
    region = region_of(layer, low, high, axes="YX")
    for (start, stop), size, a, b in zip(
        region, (height, width), low, high, strict=True
    ):
        assert 0 <= start < stop <= size
        assert stop - start <= 512
        assert start <= (a + b) / 2 <= stop  # the middle of what one sees


def test_what_is_seen_is_what_is_segmented():
    layer = lazy(1000, 2000)
    assert region_of(layer, (100, 200), (399, 599), axes="YX") == [
        (100, 400),
        (200, 600),
    ]


def test_the_middle_of_a_large_view():
    layer = lazy(2000, 2000)
    assert region_of(layer, (0, 0), (1999, 1999), axes="YX") == [(744, 1256)] * 2


def test_the_frame_that_is_shown():
    layer = lazy(5, 300, 300)
    layer.scale = (2, 1, 1)
    region = region_of(layer, (0, 0), (299, 299), axes="TYX", point=(6, 0, 0))
    assert region == [(3, 4), (0, 300), (0, 300)]


def test_all_channels():
    layer = lazy(3, 300, 300)
    region = region_of(layer, (0, 0), (299, 299), axes="CYX", point=(1, 0, 0))
    assert region[0] == (0, 3)


def test_some_slices_for_a_volume():
    layer = lazy(100, 300, 300)
    region = region_of(layer, (0, 0), (299, 299), axes="ZYX", ndim=3, point=(50, 0, 0))
    sizes = [stop - start for start, stop in region]
    assert sizes == [16, 160, 160] == list(LARGEST[3])
    assert region[0][0] < 50 < region[0][1]


def test_a_coarse_level_is_counted_in_full_pixels():
    fine = np.zeros((1024, 1024), np.uint8)
    layer = Image([fine, fine[::4, ::4]], multiscale=True, contrast_limits=(0, 1))
    layer.data_level = 1
    region = region_of(layer, (25, 50), (124, 149), axes="YX")
    assert region == [(100, 497), (200, 597)]


def test_a_part_lies_where_it_was_cut_from():
    layer = Image(
        np.zeros((50, 60)),
        scale=(0.5, 2),
        translate=(3, 4),
        rotate=30,
        shear=[0.2],
        affine=[[1, 0.1, 5], [0, 1, 6], [0, 0, 1]],
        contrast_limits=(0, 1),
    )
    pose = Pose.of(layer).shifted((10, 20))
    part = Image(np.zeros((5, 5)), contrast_limits=(0, 1), **pose.arguments())
    for corner in ((0, 0), (4, 0), (2, 3)):
        whole = np.add(corner, (10, 20))
        np.testing.assert_allclose(
            part.data_to_world(corner), layer.data_to_world(whole)
        )


# --- looking ---------------------------------------------------------------------


def save(path, finds=True, **network):
    spec = ModelSpec(
        name="learning",
        network=NetworkSpec(out_channels=3, features=(4, 8, 16), **network),
        output="objects",
    )
    model = Model.fresh(spec)
    model.network.head.bias.data += torch.tensor((0.0, 9, 0) if finds else (9.0, 0, 0))
    save_model(model, path)
    later = path.stat().st_mtime_ns + 10**9  # clocks of file systems are coarse
    os.utime(path, ns=(later, later))
    return path


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def owner():
    return QObject()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def preview(viewer, owner, clock):
    return Preview(viewer, owner, clock)


@pytest.fixture
def cells(viewer):
    return viewer.add_image(
        data.cell()[:400, :300], name="cells", scale=(0.5, 0.5), units="um"
    )


def look(qtbot, preview):
    preview.poll()
    assert preview.looking
    qtbot.waitUntil(lambda: not preview.looking, timeout=TIMEOUT)


def test_a_part_is_segmented_and_placed(viewer, cells, tmp_path):
    weights = save(tmp_path / "w.safetensors")
    cells.corner_pixels = np.array([[100, 50], [250, 200]])
    seen = look_at(viewer, cells, weights)
    layer, pose = drain(seen.compute())
    assert layer.data.shape == (151, 151)
    np.testing.assert_allclose(pose.translate, (50, 25))
    np.testing.assert_allclose(layer.translate, (50, 25))


@pytest.mark.parametrize(
    ("shape", "arguments", "network", "shown"),
    [
        ((40, 50, 3), {"rgb": True}, {"in_channels": 3}, 2),
        ((3, 40, 50), {}, {}, 3),
        ((3, 40, 50), {"axis_labels": tuple("cyx")}, {"in_channels": 3}, 2),
        ((2, 3, 40, 50), {"axis_labels": tuple("tcyx")}, {"in_channels": 3}, 4),
        ((8, 40, 50), {}, {"ndim": 3}, 3),
        ((2, 8, 40, 50), {}, {"ndim": 3}, 4),
    ],
    ids=["RGB", "stack", "channels", "channels within", "volume", "volumes in time"],
)
def test_every_kind_of_image(viewer, tmp_path, shape, arguments, network, shown):
    weights = save(tmp_path / "w.safetensors", **network)
    pixels = np.zeros(shape, np.uint8)
    layer = viewer.add_image(pixels, contrast_limits=(0, 1), **arguments)
    seen, pose = drain(look_at(viewer, layer, weights).compute())
    assert seen.ndim == pose.ndim == shown
    viewer.layers.append(seen)


def test_weights_are_seen_when_they_come(viewer, preview, cells, tmp_path, qtbot):
    weights = tmp_path / "w.safetensors"
    preview.start(weights, cells, "cpu")
    preview.poll()
    assert not preview.looking  # nothing there yet
    save(weights)
    preview._next = 0
    look(qtbot, preview)
    layer = preview.layer
    assert layer.name == "cells · learning"
    assert layer in viewer.layers
    assert is_result(layer)
    assert not layer.editable
    assert layer.data.any()
    assert layer.units == cells.units
    assert viewer.layers.selection.active is cells  # the user may be painting there


def test_only_new_weights_and_not_too_often(preview, cells, clock, tmp_path, qtbot):
    weights = save(tmp_path / "w.safetensors")
    preview.start(weights, cells, "cpu")
    look(qtbot, preview)
    layer = preview.layer
    clock.now += 100
    preview.poll()
    assert not preview.looking  # the same weights
    save(weights, finds=False)
    preview.poll()
    assert not preview.looking  # the file was looked at just now
    clock.now += INTERVAL
    look(qtbot, preview)
    assert preview.layer is layer
    assert not layer.data.any()
    save(weights)
    clock.now += INTERVAL - 0.1
    preview.poll()
    assert not preview.looking
    clock.now += 0.2
    preview.poll()
    assert preview.looking
    job = preview._job
    clock.now += 100
    save(weights)
    preview.poll()
    assert preview._job is job  # never two at a time
    qtbot.waitUntil(lambda: not preview.looking, timeout=TIMEOUT)


def test_slow_looks_rest_longer(preview, cells, clock, tmp_path, qtbot):
    preview.start(save(tmp_path / "w.safetensors"), cells, "cpu")
    preview.poll()
    clock.now += 10  # so long it takes
    qtbot.waitUntil(lambda: not preview.looking, timeout=TIMEOUT)
    assert preview._next == pytest.approx(100 + 40)


def test_the_layer_goes(viewer, preview, cells, tmp_path, qtbot):
    preview.start(save(tmp_path / "w.safetensors"), cells, "cpu")
    look(qtbot, preview)
    preview.stop()
    assert len(viewer.layers) == 2
    preview.remove()
    assert list(viewer.layers) == [cells]
    preview.remove()


def test_the_user_takes_the_layer_away(viewer, preview, cells, clock, tmp_path, qtbot):
    weights = save(tmp_path / "w.safetensors")
    preview.start(weights, cells, "cpu")
    look(qtbot, preview)
    viewer.layers.remove(preview.layer)
    save(weights)
    clock.now += 100
    with qtbot.waitSignal(preview.dismissed):
        preview.poll()
    clock.now += 100
    preview.poll()
    assert not preview.looking
    assert list(viewer.layers) == [cells]


def test_the_image_goes_meanwhile(viewer, preview, cells, tmp_path, qtbot):
    preview.start(save(tmp_path / "w.safetensors"), cells, "cpu")
    preview.poll()
    viewer.layers.remove(cells)
    qtbot.waitUntil(lambda: not preview.looking, timeout=TIMEOUT)
    assert not viewer.layers


@pytest.mark.parametrize("damage", [b"", b"no weights"])
def test_what_cannot_be_read_is_told_once(
    preview, cells, clock, tmp_path, qtbot, damage
):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(damage)
    preview.start(weights, cells, "cpu")
    with qtbot.waitSignal(preview.failed) as signal:
        preview.poll()
    assert "no preview" in signal.args[0]
    clock.now += 100
    preview.poll()
    assert not preview.looking


def test_an_image_that_does_not_suit(viewer, preview, tmp_path, qtbot):
    flat = viewer.add_image(np.zeros((30, 30)))
    preview.start(save(tmp_path / "w.safetensors", ndim=3), flat, "cpu")
    with qtbot.waitSignal(preview.failed):
        preview.poll()


def test_the_owner_is_deleted_while_it_looks(viewer, tmp_path, qtbot, cells):
    owner = QObject()
    preview = Preview(viewer, owner)
    preview.start(save(tmp_path / "w.safetensors"), cells, "cpu")
    preview.poll()
    owner.deleteLater()
    del owner
    qtbot.waitUntil(lambda: not _Work.alive, timeout=TIMEOUT)
    assert list(viewer.layers) == [cells]
