"""Attention and labels on the screen, pixel for pixel where their source is.

The source consists of blocks of one colour, the result has one cell for each block, so
that both must look the same.
"""

from __future__ import annotations

import numpy as np
import pytest
from napari.utils.colormaps import DirectLabelColormap

from napari_attunet.widgets.layers import axes_of
from napari_attunet.widgets.poses import Pose, fit

pytestmark = [
    pytest.mark.gl,
    pytest.mark.filterwarnings("ignore:Non-orthogonal slicing:UserWarning"),
]

#: Differences of colour below this are rounding.
ROUNDING = 0.02

TURNED = {"rotate": 25, "shear": [0.3]}
AFFINE = np.array([[0.9, 0.3, 5], [-0.2, 1.1, 7], [0, 0, 1]])
AFFINE_3D = np.eye(4)
AFFINE_3D[1:, 1:] = AFFINE

FLAT = {
    "plain": {},
    "scale": {"scale": (2, 3)},
    "translate": {"scale": (0.5, 0.7), "translate": (10, -20)},
    "units": {"scale": (0.3, 0.3), "units": "um", "axis_labels": ("y", "x")},
    "rotate": {"rotate": 30},
    "shear": {"shear": [0.4]},
    "shear, lower": {"shear": np.array([[1, 0], [0.4, 1]])},
    "affine": {"affine": AFFINE},
    "all": {"scale": (2, 0.8), "translate": (3, 4), "affine": AFFINE, **TURNED},
    "mirrored": {"scale": (-1, 2), "rotate": 10},
}


def blocks(cells: tuple[int, ...], factors: tuple[int, ...]):
    """Return random cells, and an image in which each fills a block."""
    rng = np.random.default_rng(1)
    values = rng.permutation(np.linspace(0.2, 1, int(np.prod(cells)), dtype=np.float32))
    values = values.reshape(cells)
    return values, np.kron(values, np.ones(factors, np.float32))


@pytest.fixture
def viewer(make_napari_viewer):
    viewer = make_napari_viewer(show=True)
    viewer.window.resize(900, 700)
    return viewer


def picture(viewer, layer) -> np.ndarray:
    for other in viewer.layers:
        other.visible = other is layer
    shot = viewer.screenshot(canvas_only=True, flash=False)
    return shot[..., :3].astype(float) / 255


def wrong_pixels(viewer, source, result) -> int:
    """Return in how many pixels two layers differ, of all where one is seen."""
    one, two = picture(viewer, source), picture(viewer, result)
    seen = (one > 0.1).any(-1) | (two > 0.1).any(-1)
    assert seen.sum() > 5000
    return int((np.abs(one - two).max(-1) > ROUNDING).sum())


def place(viewer, source, values, factors, axes=None, **arguments):
    axes = axes or axes_of(source, ndim=2)
    array = source.data[0] if source.multiscale else source.data
    values, pose = fit(
        values, factors, axes=axes, shape=array.shape, pose=Pose.of(source)
    )
    return viewer.add_image(
        values,
        contrast_limits=(0, 1),
        interpolation2d="nearest",
        **{**pose.arguments(), **arguments},
    )


def show(viewer, pixels, **arguments):
    layer = viewer.add_image(pixels, contrast_limits=(0, 1), **arguments)
    viewer.reset_view()
    return layer


@pytest.mark.parametrize("placement", FLAT.values(), ids=FLAT.keys())
@pytest.mark.parametrize("factors", [(16, 16), (2, 8)])
def test_a_picture(viewer, placement, factors):
    values, pixels = blocks((160 // factors[0], 192 // factors[1]), factors)
    source = show(viewer, pixels, **placement)
    assert wrong_pixels(viewer, source, place(viewer, source, values, factors)) == 0


def test_the_test_sees_half_a_cell(viewer):
    values, pixels = blocks((10, 12), (16, 16))
    source = show(viewer, pixels)
    naive = place(viewer, source, values, (16, 16), translate=(0, 0))
    assert wrong_pixels(viewer, source, naive) > 1000


def test_colours(viewer):
    values, pixels = blocks((10, 12), (16, 16))
    source = viewer.add_image(
        (np.repeat(pixels[..., None], 3, -1) * 255).round().astype(np.uint8),
        rgb=True,
        scale=(2, 1),
        rotate=20,
    )
    viewer.reset_view()
    assert wrong_pixels(viewer, source, place(viewer, source, values, (16, 16))) == 0


def test_levels(viewer):
    values, pixels = blocks((20, 24), (16, 16))
    levels = [pixels, pixels[::2, ::2], pixels[::4, ::4]]
    source = show(viewer, levels, multiscale=True, scale=(0.5, 0.5), rotate=15)
    assert wrong_pixels(viewer, source, place(viewer, source, values, (16, 16))) == 0


@pytest.mark.parametrize(
    "placement",
    [{"scale": (3, 1, 1)}, {"affine": AFFINE_3D, "scale": (2, 1, 1.5)}],
    ids=["scale", "affine"],
)
@pytest.mark.parametrize("factors", [(2, 8, 8), (1, 8, 8)])
def test_every_slice_of_a_volume(viewer, placement, factors):
    values, pixels = blocks((6 // factors[0], 20, 24), factors)
    source = show(viewer, pixels, **placement)
    result = place(viewer, source, values, factors)
    for z in range(6):
        viewer.dims.set_point(0, z * source.scale[0])
        assert wrong_pixels(viewer, source, result) == 0


def test_a_volume_from_outside(viewer):
    factors = (4, 8, 8)
    values, pixels = blocks((3, 4, 5), factors)
    source = show(viewer, pixels, scale=(2, 1, 1), rotate=(10, 20, 30))
    result = place(viewer, source, values, factors, interpolation3d="nearest")
    source.interpolation3d = "nearest"
    viewer.dims.ndisplay = 3
    viewer.reset_view()
    visuals = viewer.window._qt_viewer.canvas.layer_to_visual
    for layer in (source, result):  # steps much finer than the pixels of either
        visuals[layer].node.relative_step_size = 0.02
    one, two = picture(viewer, source), picture(viewer, result)
    seen = [(shot > 0.1).any(-1) for shot in (one, two)]
    assert seen[0].sum() > 5000
    # Where a ray grazes an edge, its steps fall differently in large and small cells.
    assert (seen[0] ^ seen[1]).sum() < 0.003 * seen[0].sum()


def test_every_frame_of_a_film(viewer):
    values, pixels = blocks((3, 10, 12), (1, 16, 16))
    source = show(viewer, pixels, axis_labels=("t", "y", "x"), scale=(10, 0.5, 0.5))
    result = place(viewer, source, values, (1, 16, 16))
    for t in range(3):
        viewer.dims.set_point(0, t * 10)
        assert wrong_pixels(viewer, source, result) == 0


@pytest.mark.parametrize("axes", ["TCYX", "CYX"])
def test_every_channel_shows_the_result(viewer, axes):
    """All channels are alike here, as the result is that of all of them."""
    n_frames = 2 if "T" in axes else 1
    values, pixels = blocks((n_frames, 10, 12), (1, 16, 16))
    pixels = np.repeat(pixels[:, None], 4, axis=1)
    factors = (1, 16, 16)
    if "T" not in axes:
        values, pixels, factors = values[0], pixels[0], factors[1:]
    placement = {"scale": (7, 2, 1, 1)[-len(axes) :], "translate": [5] * len(axes)}
    source = show(viewer, pixels, **placement)
    result = place(viewer, source, values, factors, axes)
    channel = axes.index("C")
    for t in range(n_frames):
        for c in range(4):
            index = np.zeros(len(axes))
            index[0], index[channel] = t, c
            world = source.data_to_world(index)
            for axis in range(len(axes) - 2):
                viewer.dims.set_point(axis, world[axis])
            assert wrong_pixels(viewer, source, result) == 0


@pytest.mark.parametrize("placement", FLAT.values(), ids=FLAT.keys())
def test_labels(viewer, placement):
    values, pixels = blocks((10, 12), (16, 16))
    source = show(viewer, pixels, **placement)
    numbers = np.arange(1, values.size + 1, dtype=np.int32).reshape(values.shape)
    greys = {
        int(i): np.array([grey, grey, grey, 1])
        for i, grey in zip(numbers.flat, values.flat, strict=True)
    }
    full = np.kron(numbers, np.ones((16, 16), np.int32))
    full, pose = fit(full, (1, 1), axes="YX", shape=full.shape, pose=Pose.of(source))
    labels = viewer.add_labels(
        full,
        opacity=1,
        colormap=DirectLabelColormap(color_dict={None: "transparent", **greys}),
        **pose.arguments(),
    )
    assert wrong_pixels(viewer, source, labels) == 0
