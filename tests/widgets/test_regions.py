"""Regions as masks: wherever layers lie, in whatever slice they were drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.layers import Image, Shapes
from skimage.draw import disk

from napari_attunet.errors import DataError
from napari_attunet.widgets.poses import Pose
from napari_attunet.widgets.regions import Drawing, mask_of, outlines_of, unit_factors

#: napari says so of every volume that is turned out of its slices.
pytestmark = pytest.mark.filterwarnings("ignore:Non-orthogonal slicing:UserWarning")

SQUARE = np.array([[4.5, 9.5], [4.5, 20.5], [15.5, 20.5], [15.5, 9.5]])

POSES = {
    "plain": {},
    "scale": {"scale": (0.5, 2)},
    "translate": {"scale": (3, 3), "translate": (7, -11)},
    "rotate": {"rotate": 33},
    "shear": {"shear": [0.3], "scale": (2, 1)},
    "affine": {"affine": [[1, 0.2, 5], [-0.1, 2, 3], [0, 0, 1]], "scale": (0.1, 0.1)},
    "mirrored": {"scale": (1, -1)},
}


def image(*shape: int, **arguments) -> Image:
    return Image(np.zeros(shape, np.uint8), **arguments)


def mask(shapes: Shapes, layer: Image, **arguments) -> np.ndarray:
    shape = layer.data.shape[: layer.ndim]
    return mask_of(Drawing.of(shapes), Pose.of(layer), shape, **arguments)


def expected() -> np.ndarray:
    wanted = np.zeros((30, 40), bool)
    wanted[5:16, 10:21] = True
    return wanted


def carried(corners: np.ndarray, one, other) -> np.ndarray:
    """Corners in another layer's grid, by napari's own means."""
    return np.array([other.world_to_data(one.data_to_world(c)) for c in corners])


@pytest.mark.parametrize("of_image", POSES)
@pytest.mark.parametrize("of_shapes", POSES)
def test_a_square_covers_its_pixels_wherever_both_layers_lie(of_image, of_shapes):
    layer = image(30, 40, **POSES[of_image])
    empty = Shapes(ndim=2, **POSES[of_shapes])
    drawn = carried(SQUARE, layer, empty)
    shapes = Shapes([drawn], shape_type="polygon", **POSES[of_shapes])
    np.testing.assert_array_equal(mask(shapes, layer), expected())


@pytest.mark.parametrize("kind", ["rectangle", "polygon", "ellipse"])
def test_on_the_same_grid_it_is_as_napari_says(kind):
    shapes = Shapes([SQUARE], shape_type=kind)
    theirs = shapes.to_masks((30, 40))[0]
    ours = mask(shapes, image(30, 40))
    # napari's ellipse is a coarser polygon, and it counts the pixels on the edge.
    assert np.count_nonzero(ours != theirs) <= (8 if kind == "ellipse" else 0)
    assert ours.any()


def test_an_ellipse_is_round():
    corners = [[2.5, 2.5], [2.5, 42.5], [42.5, 42.5], [42.5, 2.5]]
    found = mask(Shapes([corners], shape_type="ellipse"), image(50, 50))
    wanted = np.zeros((50, 50), bool)
    wanted[disk((22.5, 22.5), 20)] = True
    assert np.count_nonzero(found != wanted) <= 4


def test_several_shapes_add_up_and_may_reach_beyond_the_image():
    shapes = Shapes([SQUARE, SQUARE + 100, SQUARE - 12], shape_type="polygon")
    found = mask(shapes, image(30, 40))
    assert found[5:16, 10:21].all()
    assert found[:4, :9].all()
    assert not found[20:].any()


def test_a_shape_in_a_stack_covers_the_slice_it_was_drawn_in():
    layer = image(5, 30, 40, scale=(3, 1, 1), translate=(6, 0, 0))
    world = np.hstack([np.full((4, 1), 6 + 2 * 3 + 1.0), SQUARE])  # nearest is slice 2
    found = mask(Shapes([world], shape_type="polygon"), layer)
    np.testing.assert_array_equal(found[2], expected())
    assert not found[[0, 1, 3, 4]].any()


def test_shapes_without_slices_cover_all_of_them():
    layer = image(5, 30, 40, scale=(3, 2, 2))
    found = mask(Shapes([SQUARE], shape_type="polygon", scale=(2, 2)), layer)
    np.testing.assert_array_equal(found, np.broadcast_to(expected(), (5, 30, 40)))


def test_a_shape_through_slices_covers_those_it_goes_through():
    corners = np.hstack([[[1.0], [1.0], [3.0], [3.0]], SQUARE])
    found = mask(Shapes([corners], shape_type="polygon", ndim=3), image(5, 30, 40))
    assert found.any(axis=(1, 2)).tolist() == [False, True, True, True, False]


def test_a_shape_may_be_drawn_in_a_side_view():
    corners = np.array([[0.5, 7, 9.5], [0.5, 7, 20.5], [3.5, 7, 20.5], [3.5, 7, 9.5]])
    found = mask(Shapes([corners], shape_type="polygon"), image(5, 30, 40))
    wanted = np.zeros((5, 30, 40), bool)
    wanted[1:4, 7, 10:21] = True
    np.testing.assert_array_equal(found, wanted)


def test_a_part_of_the_image_is_the_part_of_its_mask():
    layer = image(5, 30, 40)
    corners = np.hstack([np.full((4, 1), 2.0), SQUARE])
    shapes = Shapes([corners], shape_type="polygon")
    whole = mask(shapes, layer)
    part = mask_of(Drawing.of(shapes), Pose.of(layer), (1, 20, 20), origin=(2, 3, 15))
    np.testing.assert_array_equal(part, whole[2:3, 3:23, 15:35])


def test_colours_are_no_axis():
    layer = Image(np.zeros((30, 40, 3), np.uint8), rgb=True)
    found = mask(Shapes([SQUARE], shape_type="polygon"), layer)
    np.testing.assert_array_equal(found, expected())


def test_shapes_of_a_layer_with_more_axes():
    corners = np.hstack([np.full((4, 1), 9.0), SQUARE])
    found = mask(Shapes([corners], shape_type="polygon"), image(30, 40))
    np.testing.assert_array_equal(found, expected())


def test_units_are_converted():
    layer = image(30, 40, scale=(0.5, 0.5), units="um")
    shapes = Shapes([SQUARE * 500], shape_type="polygon", units="nm")
    np.testing.assert_array_equal(mask(shapes, layer), expected())
    # As in the viewer, pixels and micrometres are the same.
    shapes = Shapes([SQUARE * 0.5], shape_type="polygon")
    np.testing.assert_array_equal(mask(shapes, layer), expected())
    assert unit_factors(shapes.units, layer.units) == (1, 1)


@pytest.mark.parametrize("kind", ["none", "line"])
def test_what_has_no_inside_is_refused(kind):
    shapes = Shapes(ndim=2, name="drawn")
    if kind == "line":
        shapes.add([[0, 0], [5, 5]], shape_type="line")
    with pytest.raises(DataError, match="“drawn” holds no regions") as error:
        mask(shapes, image(30, 40))
    assert ("only 1 line" in str(error.value)) == (kind == "line")


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(9, 12), (3, 9, 12)]),
    st.sampled_from([0.2, 0.5, 0.8, 0.95]),
)
@settings(max_examples=25, deadline=None)
def test_a_mask_becomes_shapes_and_the_same_mask_again(seed, shape, share):
    # With holes, and parts inside of them.
    wanted = np.random.default_rng(seed).random(shape) < share
    shapes = Shapes(outlines_of(wanted), shape_type="polygon", ndim=len(shape))
    found = mask(shapes, image(*shape)) if wanted.any() else np.zeros(shape, bool)
    np.testing.assert_array_equal(found, wanted)


def test_a_region_with_a_hole_is_one_shape():
    wanted = np.ones((20, 20), bool)
    wanted[5:9, 5:9] = wanted[12:15, 3:17] = False
    (outline,) = outlines_of(wanted)
    # Each corner of three rectangles is cut off, and of two bridges there are two ends.
    assert len(outline) <= 3 * 8 + 2 * 4 + 1
