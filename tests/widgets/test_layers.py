"""What a layer means and where results lie; no window needed."""

from __future__ import annotations

from dataclasses import replace

import dask.array
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.layers import Image, Labels

from napari_attunet.errors import DataError
from napari_attunet.widgets.layers import (
    Mark,
    Snapshot,
    array_of,
    attention_look,
    attention_name,
    axes_of,
    fingerprint,
    is_result,
    is_untouched,
    labels_name,
    mark_of,
    prediction_of,
    results_of,
    set_mark,
)
from napari_attunet.widgets.poses import Pose, fit

#: napari says so of every volume that is turned out of its slices.
pytestmark = pytest.mark.filterwarnings("ignore:Non-orthogonal slicing:UserWarning")


def image(*shape: int, **arguments) -> Image:
    return Image(np.zeros(shape, np.uint8), **arguments)


# --- a layer as an array ---------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "arguments", "model", "axes"),
    [
        ((30, 40), {}, (2, 1), "YX"),
        ((30, 40, 3), {"rgb": True}, (2, 1), "YXC"),
        ((30, 40, 3), {"rgb": True}, (2, 3), "YXC"),
        ((5, 30, 40, 4), {"rgb": True}, (2, 3), "ZYXC"),
        ((9, 30, 40), {}, (2, 1), "ZYX"),
        ((9, 30, 40), {}, (3, 1), "ZYX"),
        ((2, 9, 30, 40), {}, (3, 1), "TZYX"),
        ((2, 30, 40), {}, (2, 2), "CYX"),
        # Not shown as colours, so its last axis is X, however short it is.
        ((30, 40, 3), {"rgb": False}, (2, 1), "ZYX"),
        ((30, 40, 3), {"rgb": False}, (2, 3), "ZYX"),
        ((9, 30, 40), {"axis_labels": ("t", "y", "x")}, (2, 1), "TYX"),
        ((9, 30, 40), {"axis_labels": ("Channel", " row", "column")}, (2, 1), "CYX"),
        ((9, 30, 40, 3), {"rgb": True, "axis_labels": ("t", "y", "x")}, (2, 1), "TYXC"),
        # Labels that say too little, or nonsense, don't count.
        ((9, 30, 40), {"axis_labels": ("t", "a", "b")}, (2, 1), "ZYX"),
        ((9, 30, 40), {"axis_labels": ("x", "x", "y")}, (2, 1), "ZYX"),
        ((9, 30, 40), {"axis_labels": ("t", "c", "z")}, (2, 1), "ZYX"),
    ],
)
def test_axes(shape, arguments, model, axes):
    layer = image(*shape, **arguments)
    ndim, in_channels = model
    assert axes_of(layer, ndim=ndim, in_channels=in_channels) == axes
    assert len(axes) == array_of(layer).ndim


def test_axes_of_a_multiscale_layer_are_those_of_its_finest_level():
    layer = Image([np.zeros((64, 80)), np.zeros((32, 40))], multiscale=True)
    assert array_of(layer).shape == (64, 80)
    assert axes_of(layer, ndim=2) == "YX"


def test_a_picture_does_for_no_volume():
    with pytest.raises(DataError, match="3D model"):
        axes_of(image(30, 40), ndim=3)


def test_lazy_pixels_stay_lazy():
    pixels = dask.array.zeros((64, 64), chunks=16)
    assert array_of(Image(pixels, contrast_limits=(0, 1))) is pixels


# --- where results lie -----------------------------------------------------------

numbers = st.floats(-5, 5).map(lambda x: round(x, 3))
scales = st.floats(0.1, 5).map(lambda x: round(x, 3))


@st.composite
def placed(draw, rgb: bool = False) -> Image:
    """A layer of 2 to 4 axes, placed in any way that napari knows."""
    n = draw(st.integers(2, 4))
    rotate = np.eye(n)
    angle = draw(st.floats(-3, 3))
    rotate[-2:, -2:] = [
        [np.cos(angle), -np.sin(angle)],
        [np.sin(angle), np.cos(angle)],
    ]
    affine = np.eye(n + 1)
    affine[:n, :n] += 0.1 * np.array(
        draw(
            st.lists(st.lists(numbers, min_size=n, max_size=n), min_size=n, max_size=n)
        )
    )
    affine[:n, n] = draw(st.lists(numbers, min_size=n, max_size=n))
    shear = np.eye(n)
    lower = draw(st.booleans())
    shear[(np.tril_indices if lower else np.triu_indices)(n, -1 if lower else 1)] = (
        draw(numbers)
    )
    if abs(np.linalg.det(affine)) < 0.05:
        affine[:n, :n] = np.eye(n)
    shape = (4,) * n
    return Image(
        np.zeros((*shape, 3) if rgb else shape, np.uint8),
        rgb=rgb,
        scale=draw(st.lists(scales, min_size=n, max_size=n)),
        translate=draw(st.lists(numbers, min_size=n, max_size=n)),
        rotate=rotate,
        shear=shear,
        affine=affine,
        units="um",
        axis_labels=tuple("tzyx"[-n:]),
    )


def like(values, pose: Pose) -> Labels:
    return Labels(values, **pose.arguments())


def small_labels(n: int) -> np.ndarray:
    return np.zeros((2,) * n, np.int32)


@settings(deadline=None, max_examples=60)
@given(source=placed(), data=st.data())
def test_coarse_cells_lie_on_the_pixels_they_cover(source, data):
    n = source.ndim
    factors = np.array(data.draw(st.lists(st.integers(1, 16), min_size=n, max_size=n)))
    coarse = like(small_labels(n), Pose.of(source).coarser(factors))
    for cell in (np.zeros(n), np.ones(n), np.arange(n)):
        middle = factors * cell + (factors - 1) / 2
        np.testing.assert_allclose(
            coarse.data_to_world(cell), source.data_to_world(middle), atol=1e-8
        )
    np.testing.assert_allclose(coarse.scale, source.scale * factors)
    np.testing.assert_allclose(coarse.rotate, source.rotate, atol=1e-12)
    assert coarse.units == source.units
    assert coarse.axis_labels == source.axis_labels


@settings(deadline=None, max_examples=60)
@given(source=placed(rgb=True))
def test_colours_are_no_axis_of_a_pose(source):
    labels = like(small_labels(source.ndim), Pose.of(source))
    at = np.arange(source.ndim)
    np.testing.assert_allclose(
        labels.data_to_world(at), source.data_to_world(at), atol=1e-8
    )


@settings(deadline=None, max_examples=60)
@given(source=placed(), other=placed())
def test_a_layer_moves_where_it_belongs(source, other):
    pose = Pose.of(source)
    layer = like(small_labels(source.ndim), pose)
    assert Pose.of(layer) == pose
    source.translate = np.asarray(source.translate) + 1
    moved = Pose.of(source)
    assert moved != pose
    moved.apply_to(layer)
    assert Pose.of(layer) == moved
    at = np.arange(source.ndim)
    np.testing.assert_allclose(layer.data_to_world(at), source.data_to_world(at))
    assert Pose.of(other) == Pose.of(other)


def test_wrong_number_of_factors():
    with pytest.raises(ValueError, match="2 factors"):
        Pose.of(image(3, 3)).coarser((2, 2, 2))


def test_channels_in_front_are_left_away():
    source = image(
        2, 8, 8, scale=(1, 2, 3), translate=(7, 5, 4), axis_labels=("c", "y", "x")
    )
    values, pose = fit(
        np.zeros((4, 4)), (2, 2), axes="CYX", shape=(2, 8, 8), pose=Pose.of(source)
    )
    layer = Image(values, **pose.arguments())
    assert layer.axis_labels == ("y", "x")
    np.testing.assert_allclose(
        layer.data_to_world((1, 1)), source.data_to_world((0, 2.5, 2.5))[1:]
    )


@pytest.mark.parametrize(
    ("axes", "arguments"),
    [
        ("TCYX", {}),  # in the middle
        ("CYX", {"rotate": (20, 30, 10)}),  # mixed with the other axes
        ("CYX", {"shear": (0.2, 0, 0)}),
    ],
    ids=["middle", "rotated", "sheared"],
)
def test_other_channels_become_one_thick_cell(axes, arguments):
    n, channel = len(axes), axes.index("C")
    shape = (3,) * n
    source = image(*shape, scale=np.arange(1, n + 1), **arguments)
    values, pose = fit(
        np.zeros((3,) * (n - 1)),
        (1,) * (n - 1),
        axes=axes,
        shape=shape,
        pose=Pose.of(source),
    )
    layer = Image(values, **pose.arguments())
    assert layer.data.shape[channel] == 1
    for index in np.ndindex(shape):  # every channel is seen in that cell
        cell = np.round(layer.world_to_data(source.data_to_world(index))).astype(int)
        expected = list(index)
        expected[channel] = 0
        assert list(cell) == expected


# --- names, looks, marks ---------------------------------------------------------


def test_names():
    assert labels_name("cells") == "cells · labels"
    names = [attention_name("cells", f"α level {i}", i, 3) for i in (1, 2, 3)]
    assert names == [
        "cells · α level 1 (fine)",
        "cells · α level 2",
        "cells · α level 3 (coarse)",
    ]
    assert attention_name("cells", "α level 1", 1, 1) == "cells · α level 1"


@pytest.mark.parametrize("rgb", [True, False])
@pytest.mark.parametrize("volume", [True, False])
def test_attention_is_drawn_the_same_way_each_time(rgb, volume):
    layer = Image(
        np.zeros((4, 4), np.float32), **attention_look(rgb=rgb, volume=volume)
    )
    assert tuple(layer.contrast_limits) == (0, 1)
    assert layer.interpolation2d == layer.interpolation3d == "nearest"


def mark(source, layer, role="objects", model="m@1", print_="") -> Mark:
    return Mark(
        source=source.unique_id,
        model=model,
        role=role,
        layer=layer.unique_id,
        fingerprint=print_,
        record={},
    )


def test_only_results_of_this_source_and_model_are_found_newest_first():
    source, other = image(4, 4), image(4, 4)
    layers = [source, other]
    for at, model, role in (
        (source, "m@1", "objects"),
        (source, "m@1", "α level 1"),
        (source, "m@2", "objects"),
        (other, "m@1", "objects"),
    ):
        layer = Labels(np.zeros((4, 4), int))
        layer.metadata["theirs"] = 1
        set_mark(layer, mark(at, layer, role, model))
        assert layer.metadata["theirs"] == 1
        layers.append(layer)
    assert results_of(layers, source, "m@1") == [layers[3], layers[2]]


def test_a_duplicate_is_the_users_own():
    source, layer = image(4, 4), Labels(np.zeros((4, 4), int))
    set_mark(layer, mark(source, layer))
    copy = Labels(layer.data.copy(), metadata=dict(layer.metadata))
    assert mark_of(layer) is not None
    assert mark_of(copy) is None
    assert is_result(copy)  # and yet no image to segment
    assert not is_result(source)


def test_any_edit_changes_the_fingerprint():
    labels = np.zeros((3, 5, 7), np.int32)
    first = fingerprint(labels)
    assert fingerprint(labels.copy()) == first
    assert fingerprint(np.asfortranarray(labels)) == first
    for index in ((0, 0, 0), (2, 4, 6), (1, 2, 3)):
        edited = labels.copy()
        edited[index] = 1
        assert fingerprint(edited) != first
    assert fingerprint(labels.astype(np.int64)) != first
    assert fingerprint(labels.reshape(5, 3, 7)) != first
    assert fingerprint(dask.array.from_array(labels)) == ""


def test_labels_are_untouched_until_painted_and_again_after_undo():
    source, layer = image(8, 8), Labels(np.zeros((8, 8), np.int32))
    assert not is_untouched(layer)
    set_mark(layer, mark(source, layer, print_=fingerprint(layer.data)))
    assert is_untouched(layer)
    layer.paint((4, 4), 1)
    assert not is_untouched(layer)
    layer.undo()
    assert is_untouched(layer)


# --- what a model had said ---------------------------------------------------------


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
    st.sampled_from([np.uint8, np.int32, np.int64]),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_snapshot_gives_back_the_very_labels(shape, dtype, transposed):
    labels = np.random.default_rng(0).integers(0, 99, shape).astype(dtype)
    labels = labels.T if transposed else labels
    snapshot = Snapshot.of(labels)
    found = snapshot.array()
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, labels)
    for index in range(len(labels)):
        np.testing.assert_array_equal(snapshot.array(index), labels[index])
    found[...] = 1  # its own
    np.testing.assert_array_equal(snapshot.array(), labels)


def test_a_snapshot_is_small():
    labels = np.zeros((256, 256), np.int32)
    labels[20:90, 30:80], labels[100:200, 40:50] = 1, 2
    snapshot = Snapshot.of(labels)
    assert sum(map(len, snapshot.parts)) < labels.nbytes / 50
    labels[...] = 7
    assert snapshot.array().max() == 2


def test_the_prediction_stays_with_the_labels_and_their_duplicates():
    source, layer = image(6, 8), Labels(np.ones((6, 8), int))
    assert prediction_of(layer) is None
    set_mark(layer, mark(source, layer))
    assert prediction_of(layer) is None  # delivered by an older version
    said = replace(mark(source, layer), prediction=Snapshot.of(layer.data))
    set_mark(layer, said)
    copy = Labels(layer.data.copy(), metadata=dict(layer.metadata))
    layer.paint((3, 3), 5)
    for labels in (layer, copy):
        assert prediction_of(labels) is said
        assert prediction_of(labels).prediction.array().max() == 1
    copy.data = np.zeros((5, 5), int)
    assert prediction_of(copy) is None
    assert prediction_of(source) is None
