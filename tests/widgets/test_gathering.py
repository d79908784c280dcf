"""From layers to a correction; no window needed."""

from __future__ import annotations

from dataclasses import replace

import dask.array
import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Labels, Shapes

from napari_attunet.corrections import (
    BACKGROUND_BRUSH,
    Correction,
    background_brush,
)
from napari_attunet.corrections.split import hash_image
from napari_attunet.errors import DataError
from napari_attunet.progress import drain
from napari_attunet.widgets.gathering import (
    Aim,
    correction_of,
    examine,
    frame_shown,
    image_axes,
    take,
)
from napari_attunet.widgets.layers import Mark, Snapshot, set_mark
from napari_attunet.widgets.making import layers_of

SQUARE = np.array([[4.5, 9.5], [4.5, 20.5], [15.5, 20.5], [15.5, 9.5]])


@pytest.fixture
def viewer():
    return ViewerModel()


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)


def taken(
    viewer, image, labels, *, slices="shown", extent="whole", regions=None, **aim
):
    for layer in (image, labels, regions):
        if layer is not None and layer not in viewer.layers:
            viewer.add_layer(layer)
    return take(
        image,
        labels,
        aim=Aim(**aim),
        extent=extent,
        regions=regions,
        slices=slices,
        dims=viewer.dims,
    )


def predict(image, labels, said, *, role="objects", **record) -> None:
    mark = Mark(
        source=image.unique_id,
        model="m@1",
        role=role,
        layer=labels.unique_id,
        fingerprint="",
        record=record,
        prediction=Snapshot.of(said),
    )
    set_mark(labels, mark)


# --- one picture -----------------------------------------------------------------


def test_a_picture_is_taken_as_it_is(viewer):
    image = Image(pixels(30, 40), name="cells")
    labels = Labels(np.zeros((30, 40), np.int32), name="mine")
    labels.data[3:9, 4:9] = 2
    what = taken(viewer, image, labels)
    labels.data[...] = 9  # painted on meanwhile
    correction = drain(correction_of(what))
    assert correction.axes == "YX"
    assert (correction.output, correction.extent, correction.ndim) == (
        "objects",
        "whole",
        2,
    )
    np.testing.assert_array_equal(correction.image, image.data)
    assert correction.labels.max() == 2
    assert np.count_nonzero(correction.labels) == 30
    assert correction.background is None
    assert correction.prediction is None
    assert correction.regions is None
    assert correction.model is None
    assert correction.name == "cells"
    assert correction.source == {
        "image": "cells",
        "labels": "mine",
        "path": None,
        "shape": [30, 40],
        "slices": "all",
        "shown": None,
    }


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_brush_and_masks_of_small_integers(viewer, dtype):
    labels = Labels(np.zeros((30, 40), dtype))
    labels.data[:5] = 255
    labels.data[9:] = background_brush(dtype)
    correction = drain(correction_of(taken(viewer, Image(pixels(30, 40)), labels)))
    assert correction.background == background_brush(dtype)
    truth = correction.truth()
    np.testing.assert_array_equal(truth.labels > 0, labels.data == 255)


@pytest.mark.parametrize("output", ["objects", "classes"])
def test_what_the_model_had_said_goes_along_if_it_said_the_same_thing(viewer, output):
    image, labels = Image(pixels(30, 40)), Labels(np.ones((30, 40), np.int32))
    said = labels.data.copy()
    predict(image, labels, said, role="objects")
    labels.data[:5] = 3
    correction = drain(
        correction_of(taken(viewer, image, labels, extent="painted", output=output))
    )
    if output == "objects":
        np.testing.assert_array_equal(correction.prediction, said)
        assert correction.model == "m@1"
    else:
        assert correction.prediction is None
        assert correction.model is None


def test_colours_have_no_labels_of_their_own(viewer):
    image = Image(pixels(30, 40, 3), rgb=True)
    labels = Labels(np.ones((30, 40), np.int32))
    correction = drain(correction_of(taken(viewer, image, labels, in_channels=3)))
    assert correction.axes == "YXC"
    assert correction.image.shape == (30, 40, 3)
    correction.truth()


@pytest.mark.parametrize("shape", [(30, 40), (1, 30, 40), (2, 30, 40)])
def test_channels_along_the_first_axis(viewer, shape):
    image = Image(pixels(2, 30, 40), axis_labels=("c", "y", "x"))
    labels = Labels(np.zeros(shape, np.int32))
    labels.data[..., 3:9, 4:9] = 1
    if len(shape) == 3:  # painted while another channel was shown
        labels.data[-1, 20:25, 4:9] = 2
    predict(image, labels, np.zeros(shape, np.int32), axes="CYX")
    shapes = Shapes([SQUARE], shape_type="polygon")
    what = taken(viewer, image, labels, extent="regions", regions=shapes)
    correction = drain(correction_of(what))
    assert correction.axes == "CYX"
    assert correction.labels.shape == (30, 40)
    assert correction.labels.max() == len(shape) - 1
    assert correction.prediction.shape == (30, 40)
    assert correction.regions.sum() == 11 * 11
    correction.truth()


@pytest.mark.parametrize("shape", [(30, 41), (4, 30, 40), (40, 30)])
def test_labels_of_another_shape_are_refused(viewer, shape):
    image = Image(pixels(30, 40), name="cells")
    labels = Labels(np.ones(shape, np.int32), name="mine")
    with pytest.raises(DataError, match=r"“mine” has the shape .* need \(30, 40\)"):
        taken(viewer, image, labels)


def test_a_picture_does_for_no_volume(viewer):
    labels = Labels(np.ones((30, 40), np.int32))
    with pytest.raises(DataError, match="3D model"):
        taken(viewer, Image(pixels(30, 40)), labels, ndim=3)


def test_regions_that_are_not_there(viewer):
    image, labels = Image(pixels(30, 40)), Labels(np.ones((30, 40), np.int32))
    with pytest.raises(DataError, match="no regions"):
        taken(viewer, image, labels, extent="regions")
    drawn = Shapes(ndim=2, name="drawn")
    what = taken(viewer, image, labels, extent="regions", regions=drawn)
    assert "“drawn” holds no regions" in drain(examine(what)).problem


def test_a_multiscale_image_at_its_finest(viewer):
    image = Image([pixels(64, 80), pixels(32, 40)], multiscale=True)
    labels = Labels(np.ones((64, 80), np.int32))
    correction = drain(correction_of(taken(viewer, image, labels)))
    assert correction.image.shape == (64, 80)


def test_axes_are_those_of_the_segmentation():
    image = Image(pixels(4, 30, 40))
    labels = Labels(np.ones((4, 30, 40), np.int32))
    assert image_axes(image, labels, Aim()) == "ZYX"
    predict(image, labels, labels.data, axes="TYX")
    assert image_axes(image, labels, Aim()) == "TYX"
    assert image_axes(image, labels, Aim(ndim=3)) == "ZYX"  # another model's
    predict(Image(pixels(4, 30, 40)), labels, labels.data, axes="TYX")
    assert image_axes(image, labels, Aim()) == "ZYX"


# --- stacks ----------------------------------------------------------------------


@pytest.fixture
def stack(viewer):
    """A stack that is not where the viewer's origin is, and its labels."""
    placed = {"scale": (3, 2, 2), "translate": (30, 0, 0)}
    image = Image(pixels(5, 30, 40), name="stack", **placed)
    labels = Labels(np.zeros((5, 30, 40), np.int32), **placed)
    labels.data[1, 3:9, 4:9] = 1
    labels.data[3, 3:9, 4:9] = 2
    viewer.add_layer(image)
    viewer.add_layer(labels)
    return image, labels


def test_the_slice_that_is_shown(viewer, stack):
    image, labels = stack
    predict(image, labels, np.zeros((5, 30, 40), np.int32), axes="ZYX")
    viewer.dims.set_point(0, 30 + 3 * 3)
    assert frame_shown(image, viewer.dims, "ZYX", 2) == {"Z": 3}
    corners = np.hstack([np.full((4, 1), 30 + 9.0), 2 * SQUARE])
    shapes = Shapes([corners], shape_type="polygon")
    what = taken(viewer, image, labels, extent="regions", regions=shapes)
    assert what.labels.nbytes == labels.data[3].nbytes
    labels.data[3] = 0
    correction = drain(correction_of(what))
    assert correction.axes == "YX"
    assert correction.name == "stack, z 3"
    assert correction.source["shown"] == {"Z": 3}
    np.testing.assert_array_equal(correction.image, image.data[3])
    assert correction.labels.max() == 2
    assert correction.prediction.shape == (30, 40)
    assert correction.regions.sum() == 11 * 11
    correction.truth()


def test_units_of_the_viewer_tell_the_slice(viewer):
    image = Image(pixels(5, 30, 40), scale=(0.5, 1, 1), units="um")
    viewer.add_layer(image)
    viewer.add_layer(Image(pixels(5, 30, 40), scale=(500, 1000, 1000), units="nm"))
    assert str(viewer.dims.units[0]) == "nanometer"
    viewer.dims.set_point(0, 1500)
    assert frame_shown(image, viewer.dims, "ZYX", 2) == {"Z": 3}


def test_all_slices(viewer, stack):
    image, labels = stack
    correction = drain(correction_of(taken(viewer, image, labels, slices="all")))
    assert correction.axes == "ZYX"
    np.testing.assert_array_equal(correction.labels, labels.data)
    np.testing.assert_array_equal(correction.image, image.data)


@pytest.mark.parametrize("case", ["labels", "changes", "regions", "one", "none"])
def test_slices_with_something_in_them(viewer, stack, case):
    image, labels = stack
    extent, regions, wanted = "whole", None, [1, 3]
    if case == "changes":
        extent, wanted = "painted", [0, 3]
        said = labels.data.copy()
        labels.data[0, 3, 3:6] = 7
        labels.data[3] = 0
        predict(image, labels, said, axes="ZYX")
    elif case == "regions":
        extent, wanted = "regions", [2, 3, 4]
        corners = np.hstack([[[36.0], [36], [42], [42]], 2 * SQUARE])
        regions = Shapes([corners], shape_type="polygon", ndim=3)
    elif case == "one":
        wanted = [1]
        labels.data[3] = 0
    elif case == "none":
        labels.data[...] = 0
    what = taken(viewer, image, labels, slices="filled", extent=extent, regions=regions)
    if case == "none":
        assert drain(examine(what)).problem == (
            "There are no labels in any slice of stack yet."
        )
        return
    correction = drain(correction_of(what))
    index = wanted[0] if case == "one" else wanted
    assert correction.axes == ("YX" if case == "one" else "ZYX")
    assert correction.source["frames"] == [[i] for i in wanted]
    np.testing.assert_array_equal(correction.image, image.data[index])
    np.testing.assert_array_equal(correction.labels, labels.data[index])
    correction.truth()


def test_slices_along_two_axes(viewer):
    image = Image(pixels(2, 3, 30, 40))
    labels = Labels(np.zeros((2, 3, 30, 40), np.int32))
    labels.data[0, 2, 3:9], labels.data[1, 1, 3:9] = 1, 2
    viewer.add_layer(image)
    viewer.dims.set_point((0, 1), (1, 2))
    one = drain(correction_of(taken(viewer, image, labels)))
    np.testing.assert_array_equal(one.image, image.data[1, 2])
    assert one.name.endswith(", t 1, z 2")
    filled = drain(correction_of(taken(viewer, image, labels, slices="filled")))
    assert filled.axes == "TYX"
    assert filled.source["frames"] == [[0, 2], [1, 1]]
    np.testing.assert_array_equal(filled.image, image.data[[0, 1], [2, 1]])
    filled.truth()


def test_volumes_in_time(viewer):
    image = Image(pixels(2, 6, 30, 40))
    labels = Labels(np.ones((2, 6, 30, 40), np.int32))
    viewer.add_layer(image)
    viewer.dims.set_point(0, 1)
    correction = drain(correction_of(taken(viewer, image, labels, ndim=3)))
    assert correction.axes == "ZYX"
    np.testing.assert_array_equal(correction.image, image.data[1])


def test_a_volume_is_one(viewer):
    image, labels = Image(pixels(6, 30, 40)), Labels(np.ones((6, 30, 40), np.int32))
    what = taken(viewer, image, labels, ndim=3)
    assert what.slices == "all"
    assert drain(correction_of(what)).axes == "ZYX"


def test_a_lazy_image_is_not_read_for_counting(viewer):
    reads = []

    def read(block):
        reads.append(1)
        return block + 1

    lazy = dask.array.map_blocks(
        read,
        dask.array.zeros((4, 30, 40), np.uint8, chunks=(1, 30, 40)),
        dtype=np.uint8,
    )
    image = Image(lazy, contrast_limits=(0, 1))
    labels = Labels(np.ones((4, 30, 40), np.int32))
    what = taken(viewer, image, labels, slices="all")
    reads.clear()
    digest = drain(examine(what)).digest
    assert reads
    reads.clear()
    findings = drain(examine(what, digest))
    assert not reads
    assert findings.count.total == 4 * 30 * 40
    assert findings.digest == digest


# --- what is found ---------------------------------------------------------------


def test_findings(viewer):
    image, labels = Image(pixels(64, 64)), Labels(np.zeros((64, 64), np.int32))
    found = drain(examine(taken(viewer, image, labels, extent="painted")))
    assert "Nothing is painted" in found.problem
    assert found.count is None
    labels.data[5:10, 5:10] = 1
    found = drain(examine(taken(viewer, image, labels, extent="painted")))
    assert found.problem == ""
    assert found.count.objects == 1
    assert found.kind == "objects"
    labels.data[40:45, 40:45] = BACKGROUND_BRUSH
    more = drain(examine(taken(viewer, image, labels, extent="painted")))
    assert more.digest == found.digest
    assert more.count.objects == 1
    assert more.count.known == found.count.known + 25


@pytest.mark.parametrize(
    ("output", "kind"), [("objects", "classes"), ("classes", "objects")]
)
def test_what_looks_like_the_other_kind_is_found_and_not_warned_of(
    viewer, output, kind
):
    labels = np.zeros((64, 64), np.int32)
    for i, (row, column) in enumerate(np.ndindex(6, 6)):
        labels[row * 10 : row * 10 + 5, column * 10 : column * 10 + 5] = (
            i + 1 if kind == "objects" else i % 2 + 1
        )
    what = taken(viewer, Image(pixels(64, 64)), Labels(labels), output=output)
    found = drain(examine(what))
    assert found.kind == kind
    assert not any("look like" in warning for warning in found.warnings)
    assert any("look like" in warning for warning in found.count.warnings)


# --- and back --------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["YX", "YXC", "CYX", "YXC2", "ZYX"])
def test_a_reopened_correction_is_the_same_again(viewer, axes):
    shape = {"YX": (30, 40), "YXC": (30, 40, 3), "CYX": (2, 30, 40)}
    shape |= {"YXC2": (30, 40, 2), "ZYX": (4, 30, 40)}
    axes, shape = axes[:3], shape[axes]
    image = Image(pixels(*shape), rgb=axes == "YXC" and shape[-1] == 3)
    label_shape = tuple(n for a, n in zip(axes, shape, strict=True) if a != "C")
    said = np.ones(label_shape, np.int32)
    painted, regions = said.copy(), np.zeros(label_shape, bool)
    painted[..., 5:10, 5:10], regions[..., 3:20, 4:30] = 2, True
    first = Correction(
        image=pixels(*shape),
        axes=axes,
        labels=painted,
        output="objects",
        extent="regions",
        regions=regions,
        prediction=said,
        background=BACKGROUND_BRUSH,
        model="m@1",
        name="it",
    )
    image, labels, shapes = layers_of(first)
    assert [at.name for at in (image, labels, shapes)] == [
        "it · sample",
        "it · sample labels",
        "it · sample regions",
    ]
    what = taken(viewer, image, labels, slices="all", extent="regions", regions=shapes)
    again = drain(correction_of(what))
    assert again.model == "m@1"
    for name in ("labels", "regions", "prediction"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    assert drain(examine(what)).digest == hash_image(first.image, first.axes)
    other = replace(first, background=2)  # as a script may call it
    again = layers_of(other)[1].data
    assert (again == BACKGROUND_BRUSH).sum() == (painted == 2).sum()
    labels.paint((0,) * (labels.ndim - 2) + (6, 6), 5)
    assert painted.max() == 2  # the sample's own pixels are not painted on
