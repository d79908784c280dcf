"""What gates do is counted by the pixels their cells cover, and said in words."""

import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_attunet import attention as module
from napari_attunet.attention import (
    alpha_on,
    cell_coverage,
    describe_transform,
    frame_corners,
    gate_statistics,
)
from napari_attunet.canvas import AttentionMap
from napari_attunet.errors import DataError


def attention(values, factor=1):
    values = np.asarray(values, np.float32)
    return AttentionMap(
        name="α level 1",
        level=1,
        kind="gate",
        values=values,
        scale=(factor,) * values.ndim,
        translate=((factor - 1) / 2,) * values.ndim,
    )


@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    scale=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 100),
    slab=st.sampled_from([1, 30, 1 << 22]),
)
def test_a_coarse_map_counts_as_if_it_were_laid_on_the_pixels(shape, scale, seed, slab):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < 0.4
    grid = tuple(-(-n // s) for n, s in zip(shape, scale, strict=True))
    alpha = rng.random(grid).astype(np.float32)
    one = AttentionMap("α level 2", 2, "gate", alpha, scale, (0.0, 0.0))
    pixels = alpha.repeat(scale[0], 0).repeat(scale[1], 1)[: shape[0], : shape[1]]
    pixels = pixels.astype(float)

    with mock.patch.object(module, "SLAB", slab):
        found = gate_statistics(one, mask)

    assert found.mean == pytest.approx(pixels.mean())
    for value, where in ((found.inside, mask), (found.outside, ~mask)):
        if where.any():
            assert value == pytest.approx(pixels[where].mean())
        else:
            assert math.isnan(value)
    assert found.open == pytest.approx((pixels > 0.9).mean())
    assert found.closed == pytest.approx((pixels < 0.1).mean())
    entropy = -(pixels * np.log2(pixels) + (1 - pixels) * np.log2(1 - pixels))
    assert found.entropy == pytest.approx(entropy.mean())
    assert cell_coverage(mask, scale).sum() == mask.sum()


HALF = np.zeros((4, 4), bool)
HALF[:2] = True


@pytest.mark.parametrize(
    ("on", "off", "remark"),
    [
        (0.9, 0.2, ""),
        (1.0, 0.0, ""),
        (0.2, 0.9, "Opens on the background rather than on the objects."),
        (0.0, 1.0, "Opens on the background rather than on the objects."),
        (0.75, 0.7, "Does not tell objects from background."),
        (0.97, 0.96, "Does nothing: open everywhere."),
        (0.03, 0.01, "Does nothing: closed everywhere."),
        (0.5, 0.5, "Does nothing: 0.50 everywhere."),
    ],
)
def test_what_is_worth_knowing_is_said(on, off, remark):
    assert gate_statistics(attention(np.where(HALF, on, off)), HALF).remark == remark


def test_numbers_of_a_gate_that_is_only_open_or_closed():
    found = gate_statistics(attention(HALF), HALF)
    assert (found.inside, found.outside, found.contrast) == (1, 0, math.inf)
    assert (found.open, found.closed, found.entropy) == (0.5, 0.5, 0)
    shut = gate_statistics(attention(HALF * 0), HALF)
    assert math.isnan(shut.contrast)
    assert shut.remark == "Does nothing: closed everywhere."


@pytest.mark.parametrize("shape", [(4, 4), (8,), (1, 8, 8), (9, 8)])
def test_a_mask_of_another_image_is_refused(shape):
    with pytest.raises(DataError, match="shape"):
        gate_statistics(attention(np.ones((4, 4)), 2), np.ones(shape, bool))


def test_where_nothing_is_there_is_no_contrast():
    found = gate_statistics(attention(HALF * 0), HALF & False)
    assert math.isnan(found.inside)
    assert math.isnan(found.contrast)


def test_a_gate_is_opened_by_how_much_of_a_cell_a_mask_covers():
    mask = np.zeros((4, 5), bool)
    mask[:2, :3] = True
    found = alpha_on(mask, (2, 2))  # the last column of cells is half as wide
    np.testing.assert_array_equal(found, [[1, 0.5, 0], [0, 0, 0]])


REGION = (slice(-8, 24), slice(16, 80))
CORNERS = [(-8.5, 15.5), (-8.5, 79.5), (23.5, 79.5), (23.5, 15.5)]


def turned(degrees, zoom=1.0):
    """Return a transform that turns about the middle of `REGION`, pixels to pixels."""
    angle = math.radians(degrees)
    # Y points down, so this turns X upwards: against the clock.
    linear = zoom * np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    middle = np.array([15.5, 31.5])
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = np.add(middle, (-8, 16)) - linear @ middle
    return matrix


def test_the_frame_of_no_transform_is_what_the_network_saw():
    np.testing.assert_allclose(frame_corners(turned(0), REGION), CORNERS)
    assert "by 0.0° and 1.00 times" in describe_transform(turned(0))


def test_the_frame_goes_where_the_transform_looks():
    found = frame_corners(turned(90, zoom=2), REGION)
    # The upper left corner lies 16 up and 32 left of the middle (7.5, 47.5); turned
    # against the clock and twice as far it is 64 down and 32 left.
    np.testing.assert_allclose(found[0], (7.5 + 64, 47.5 - 32))
    assert np.ptp(found[:, 0]) == pytest.approx(2 * 64)
    assert np.ptp(found[:, 1]) == pytest.approx(2 * 32)


@pytest.mark.parametrize(
    ("degrees", "zoom", "said"),
    [
        (30, 1.5, "counter-clockwise by 30.0° and 1.50 times"),
        (-90, 0.5, "turned clockwise by 90.0° and 0.50 times"),
    ],
)
def test_a_transform_in_words(degrees, zoom, said):
    assert said in describe_transform(turned(degrees, zoom))
    volume = np.eye(4)
    volume[1:, 1:] = turned(degrees, zoom)
    assert said in describe_transform(volume)


def test_the_frame_of_a_volume_goes_around_its_middle_plane():
    found = frame_corners(np.eye(4), (slice(0, 9), slice(0, 4), slice(0, 6)))
    np.testing.assert_allclose(found[:, 0], 4)
    np.testing.assert_allclose(found[0, 1:], (-0.5, -0.5))
