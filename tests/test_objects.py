from __future__ import annotations

import time
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import watershed

from napari_attunet import objects
from napari_attunet.errors import DataError
from napari_attunet.objects import class_labels, object_labels
from napari_attunet.spec import ObjectSettings
from napari_attunet.training.targets import object_targets

PLAIN = ObjectSettings(min_size=0, fill_holes=False)
seeds = st.integers(0, 2**32 - 1)
ndims = st.sampled_from([2, 3])


def packed_balls(seed, ndim):
    """Convex objects, many of them touching, each at least three pixels deep."""
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(30, 60, 2)) if ndim == 2 else (22, 26, 24)
    grid = np.indices(shape)
    labels = np.zeros(shape, np.int32)
    nearest = np.zeros(shape)
    for number in range(1, random.integers(2, 12)):
        radius = random.uniform(5, 10)
        squares = (
            (axis - random.uniform(0, size)) ** 2
            for axis, size in zip(grid, shape, strict=True)
        )
        power = sum(squares) - radius**2
        labels[power < nearest] = number
        nearest = np.minimum(nearest, power)
    for number in range(1, labels.max() + 1):
        mask = labels == number
        if mask.any() and ndimage.distance_transform_edt(np.pad(mask, 1)).max() < 3:
            labels[mask] = 0
    return labels


def one_hot(classes):
    return (classes == 1).astype(np.float32), (classes == 2).astype(np.float32)


def smooth_probabilities(seed, ndim):
    """Interior and boundary of a network that is quite unsure, without ties."""
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(1, 48 if ndim == 2 else 16, ndim))
    logits = random.normal(size=(3, *shape))
    for channel in logits:
        channel[...] = ndimage.gaussian_filter(channel, random.uniform(0.4, 3))
    logits *= 2 / (logits.std() + 1e-9)
    odds = np.exp(logits)
    return (odds / odds.sum(axis=0))[1:].astype(np.float32)


def is_same_partition(a, b):
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    one_to_one = all(len(np.unique(row)) == pairs.shape[1] for row in pairs)
    return one_to_one and np.array_equal(a > 0, b > 0)


def test_targets_of_a_square():
    labels = np.zeros((9, 9), int)
    labels[1:8, 1:8] = 7
    expected = np.zeros((9, 9), int)
    expected[1:8, 1:8] = 2
    expected[2:7, 2:7] = 1  # radius 4, of which 0.4 is less than two pixels
    np.testing.assert_array_equal(object_targets(labels), expected)
    assert object_targets(labels).dtype == np.uint8
    expected[2:7, 2:7] = 2
    expected[3:6, 3:6] = 1
    np.testing.assert_array_equal(object_targets(labels, fraction=0.5), expected)


def test_targets_separate_what_touches_and_stay_open_at_the_border():
    labels = np.repeat([[1] * 8 + [2] * 8], 5, axis=0)
    row = [1] * 6 + [2, 2, 2, 2] + [1] * 6
    np.testing.assert_array_equal(object_targets(labels), [row] * 5)


@pytest.mark.parametrize("size", [1, 2])
def test_smallest_objects_keep_an_interior(size):
    labels = np.zeros((5, 6), np.uint16)
    labels[2, 2 : 2 + size] = 3
    np.testing.assert_array_equal(object_targets(labels), labels > 0)


@given(seed=seeds, ndim=ndims)
@settings(max_examples=30, deadline=None)
def test_targets_cover_each_object_and_leave_it_an_interior(seed, ndim):
    random = np.random.default_rng(seed)
    shape = random.integers(1, 14, ndim)
    labels = random.integers(-2, 5, shape) * random.integers(0, 2, shape)
    classes = object_targets(labels)
    np.testing.assert_array_equal(classes > 0, labels > 0)
    for number in np.unique(labels[labels > 0]):
        assert (classes[labels == number] == 1).any()


@given(seed=seeds, ndim=ndims)
@settings(max_examples=20, deadline=None)
def test_objects_survive_the_way_there_and_back(seed, ndim):
    labels = packed_balls(seed, ndim)
    found = object_labels(*one_hot(object_targets(labels)), ObjectSettings())
    np.testing.assert_array_equal(found > 0, labels > 0)
    numbers = np.unique(labels[labels > 0])
    assert found.max() == len(numbers)
    for number in numbers:
        mask = labels == number
        partner = found == np.bincount(found[mask]).argmax()
        assert (mask & partner).sum() / (mask | partner).sum() > 0.5


@given(seed=seeds, ndim=ndims, seed_threshold=st.floats(0.2, 0.8))
@settings(max_examples=60, deadline=None)
def test_equals_one_watershed_of_the_whole_image(seed, ndim, seed_threshold):
    interior, boundary = smooth_probabilities(seed, ndim)
    options = ObjectSettings(
        min_size=0, fill_holes=False, seed_threshold=seed_threshold
    )
    foreground = interior + boundary >= 0.5
    near = ndimage.generate_binary_structure(ndim, 2)
    markers, n = ndimage.label(foreground & (interior >= seed_threshold), near)
    regions, _ = ndimage.label(foreground)
    without = foreground & ~np.isin(regions, regions[markers > 0])
    markers[without] = regions[without] + n
    whole = watershed(-interior, markers, mask=foreground).astype(np.int64)
    expected = whole + regions * 10**6  # one diagonal seed may serve two regions
    assert is_same_partition(object_labels(interior, boundary, options), expected)


@given(seed=seeds, ndim=ndims, min_size=st.integers(0, 30), half=st.booleans())
@settings(max_examples=40, deadline=None)
def test_numbers_are_consecutive_and_no_object_is_too_small(seed, ndim, min_size, half):
    interior, boundary = smooth_probabilities(seed, ndim)
    if half:
        interior, boundary = np.float16(interior), np.float16(boundary)
    labels = object_labels(interior, boundary, ObjectSettings(min_size=min_size))
    assert labels.dtype == np.int32
    sizes = np.bincount(labels.ravel())[1:]
    assert np.all(sizes >= max(1, min_size))


@given(seed=seeds, ndim=ndims)
@settings(max_examples=40, deadline=None)
def test_filling_equals_filling_one_object_after_the_other(seed, ndim):
    interior, boundary = smooth_probabilities(seed, ndim)
    plain = object_labels(interior, boundary, PLAIN)
    filled = object_labels(interior, boundary, ObjectSettings(min_size=0))
    expected = plain.copy()
    for number in range(1, plain.max() + 1):
        pieces, n = ndimage.label(ndimage.binary_fill_holes(plain == number))
        added = (pieces > 0) & (plain != number)
        holes, n = ndimage.label(added)
        for hole in range(1, n + 1):
            mask = holes == hole
            if not plain[mask].any():  # else another object lies in the hole
                expected[mask] = number
    np.testing.assert_array_equal(filled, expected)


def test_a_seed_splits_and_no_seed_does_not():
    foreground = np.ones((3, 9), np.float32)
    interior = np.tile(
        np.float32([0.9, 0.8, 0.7, 0.4, 0.1, 0.4, 0.7, 0.8, 0.9]), (3, 1)
    )
    labels = object_labels(interior, foreground - interior, PLAIN)
    assert set(np.unique(labels)) == {1, 2}
    assert np.all(labels[:, :4] == labels[0, 0])
    assert np.all(labels[:, 5:] == labels[0, 8])
    high = ObjectSettings(seed_threshold=0.95)
    assert np.all(object_labels(interior, foreground - interior, high) == 1)


def test_a_seed_across_a_corner_counts_in_both_regions():
    interior = np.zeros((4, 10), np.float32)
    interior[:2, :5] = [0.9, 0.9, 0.3, 0.9, 0.9]
    interior[2:, 5:] = 0.8  # meets the one above at a corner only
    boundary = np.where(interior == np.float32(0.3), 0.5, 0)
    labels = object_labels(interior, boundary, PLAIN)
    assert labels.max() == 3
    assert len({labels[0, 0], labels[0, 4], labels[3, 9]}) == 3


def test_a_hole_at_the_border_stays():
    interior = np.ones((4, 5), np.float32)
    interior[0, 2] = interior[2, 2] = 0
    labels = object_labels(interior, 0 * interior, ObjectSettings(min_size=0))
    assert (labels[0, 2], labels[2, 2]) == (0, 1)


def test_a_hole_that_holds_or_touches_another_object_stays():
    interior = np.zeros((9, 21), np.float32)
    interior[:, :10] = 1
    interior[2:7, 2:7] = 0
    interior[4, 4] = 1  # an island
    interior[:, 11:] = 1
    interior[4, 15] = 0  # a plain hole
    labels = object_labels(
        interior, np.zeros_like(interior), ObjectSettings(min_size=0)
    )
    assert labels[3, 3] == 0
    assert labels[4, 4] not in (0, labels[0, 0])
    assert labels[4, 15] == labels[0, 11] != labels[0, 0]


def test_small_objects_are_measured_with_their_holes_filled():
    interior = np.zeros((5, 5), np.float32)
    interior[1:4, 1:4] = 1
    interior[2, 2] = 0
    options = ObjectSettings(min_size=9)
    assert object_labels(interior, 0 * interior, options).sum() == 9


@pytest.mark.parametrize("shape", [(0, 4), (6, 7), (1, 1), (3, 4, 5)])
def test_nothing_and_everything(shape):
    nothing, everything = np.zeros(shape, np.float32), np.ones(shape, np.float32)
    assert not object_labels(nothing, nothing, PLAIN).any()
    labels = object_labels(everything, nothing, PLAIN)
    np.testing.assert_array_equal(labels, np.ones(shape, np.int32))
    unknown = np.full(shape, np.nan, np.float32)
    assert not object_labels(unknown, unknown, PLAIN).any()
    classes = object_targets(np.ones(shape, int))
    np.testing.assert_array_equal(classes, np.ones(shape, int))
    assert not object_targets(np.zeros(shape, int)).any()


def test_object_numbers_do_not_wrap():
    interior = np.zeros((600, 600), np.float32)
    interior[::2, ::2] = 1
    labels = object_labels(interior, 0 * interior, PLAIN)
    assert labels.max() == 90_000
    assert len(np.unique(labels)) == 90_001


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_targets_take_any_integers(dtype):
    small = np.pad(np.ones((6, 6), dtype), 2)
    large = small * dtype(np.iinfo(dtype).max)
    np.testing.assert_array_equal(object_targets(large), object_targets(small))
    np.testing.assert_array_equal(object_targets(small > 0), object_targets(small))


def test_targets_are_made_quickly():
    labels = np.kron(np.arange(64).reshape(8, 8), np.ones((32, 32), int))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        object_targets(labels)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.06  # in fact 5 ms; the rest is for slow machines


def test_labels_of_fractions_are_refused():
    with pytest.raises(DataError, match="float32"):
        object_targets(np.ones((4, 4), np.float32))


def test_class_labels():
    probabilities = np.float32([[0.5, 0.4, 0.1], [0.3, 0.35, 0.3], [0.2, 0.25, 0.6]])
    assert class_labels(probabilities).tolist() == [0, 0, 2]
    assert class_labels(probabilities, threshold=0.35).tolist() == [0, 1, 2]
    assert class_labels(probabilities, threshold=0.65).tolist() == [0, 0, 0]
    assert class_labels(probabilities).dtype == np.int32
    unknown = np.full((2, 3), np.nan, np.float32)
    assert class_labels(unknown, threshold=0.5).tolist() == [0, 0, 0]


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="one shape"):
        object_labels(np.zeros((3, 4)), np.zeros((4, 3)), PLAIN)
    with pytest.raises(ValueError, match="two classes"):
        class_labels(np.zeros((1, 4, 4)))


# --- necks ------------------------------------------------------------------------


def balls(*centres, shape, radius=8):
    """Return a mask of discs or balls."""
    grid = np.indices(shape)
    mask = np.zeros(shape, bool)
    for centre in centres:
        squares = [(g - c) ** 2 for g, c in zip(grid, centre, strict=True)]
        mask |= sum(squares) <= radius**2
    return mask


def split(mask, depth, **options):
    interior = mask.astype(np.float32)
    settings = ObjectSettings(split_depth=depth, min_size=0, **options)
    return object_labels(interior, np.zeros_like(interior), settings)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_neck_parts_two_round_objects(ndim):
    shape = (24, 44) if ndim == 2 else (24, 44, 24)
    one, two = (12, 12, 12)[:ndim], (12, 26, 12)[:ndim]
    mask = balls(one, two, shape=shape)
    assert split(mask, 0).max() == 1
    labels = split(mask, 1.0)
    assert labels.max() == 2
    np.testing.assert_array_equal(labels > 0, mask)
    assert labels[one] != labels[two]
    # the cut runs through the neck, half way between the two
    columns = np.moveaxis(labels, 1, -1).reshape(-1, 44)
    first = (columns == labels[one]).any(0)
    assert abs(int(np.flatnonzero(first).max()) - 19) <= 2
    # a depth that the neck doesn't reach leaves them joined
    assert split(mask, 6.0).max() == 1


@pytest.mark.parametrize("seed", range(5))
def test_convex_objects_are_not_parted(seed):
    random = np.random.default_rng(seed)
    angle, long, short = random.uniform(0, np.pi), random.uniform(12, 25), 7
    y, x = np.indices((64, 64)) - 31.5
    along, across = (
        x * np.cos(angle) + y * np.sin(angle),
        y * np.cos(angle) - x * np.sin(angle),
    )
    mask = (along / long) ** 2 + (across / short) ** 2 <= 1
    assert split(mask, 1.0).max() == 1


def test_a_hole_is_no_neck():
    mask = balls((16, 16), shape=(32, 32), radius=10)
    mask[14:18, 14:18] = False
    labels = split(mask, 1.0)
    assert labels.max() == 1
    assert labels[16, 16] == 1


def test_slivers_seed_nothing_beside_an_object():
    interior = balls((12, 12), shape=(24, 40)).astype(np.float32)
    boundary = np.zeros_like(interior)
    boundary[12, 21:30] = 1
    interior[12, 30] = 1  # one sure pixel at the end of a bridge of unsure ones
    thresholds = {"min_size": 0, "split_depth": 1.0}
    assert object_labels(interior, boundary, ObjectSettings(**thresholds)).max() == 1
    thresholds["split_depth"] = 0.0
    assert object_labels(interior, boundary, ObjectSettings(**thresholds)).max() == 2


@given(
    seed=seeds,
    ndim=ndims,
    slab=st.integers(1, 20),
    depth=st.sampled_from([0.0, 0.6]),
    fill_holes=st.booleans(),
)
@example(seed=4112, ndim=2, slab=6, depth=0.6, fill_holes=False)
@settings(max_examples=40, deadline=None)
def test_slabs_change_nothing(seed, ndim, slab, depth, fill_holes):
    interior, boundary = smooth_probabilities(seed, ndim)
    options = ObjectSettings(min_size=3, fill_holes=fill_holes, split_depth=depth)
    with mock.patch.object(objects, "FARTHEST", 4):
        whole = object_labels(interior, boundary, options)
        with mock.patch.object(objects, "SLAB", slab):
            in_slabs = object_labels(interior, boundary, options)
    assert is_same_partition(in_slabs, whole)
    # numbers may come in another order where necks were parted, but without a gap
    np.testing.assert_array_equal(np.unique(in_slabs), np.unique(whole))


def test_rows_of_a_distance_are_those_of_the_whole():
    random = np.random.default_rng(0)
    seeded = ndimage.gaussian_filter(random.normal(size=(90, 40)), 5) > 0
    with mock.patch.object(objects, "FARTHEST", 6):
        whole = objects._edge_distance(seeded, slice(0, 90))
        for rows in (slice(0, 7), slice(30, 33), slice(80, 90)):
            np.testing.assert_allclose(
                objects._edge_distance(seeded, rows), whole[rows], atol=1e-5
            )
    assert whole.max() > 5


def test_the_image_border_is_an_edge_of_the_distance_map():
    distance = objects._edge_distance(np.ones((30, 40), bool), slice(0, 30))
    assert distance[0].max() < 2
    assert distance[15, 20] > 12
