"""What counts, and how much: by pixels, not by numbers, and never across frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_attunet.corrections import (
    BACKGROUND_BRUSH,
    CHANGED_WEIGHT,
    RING,
    SURROUNDINGS,
    background_brush,
    brush_in,
    kind_of,
    truth,
)

EXTENTS = ["whole", "regions", "painted"]


def canvas(*boxes: tuple[int, slice, slice], size: int = 40) -> np.ndarray[Any, Any]:
    """An image of rectangles: number, rows, columns."""
    labels = np.zeros((size, size), np.int32)
    for number, rows, columns in boxes:
        labels[rows, columns] = number
    return labels


def around(
    rows: slice, columns: slice, reach: int, size: int = 40
) -> np.ndarray[Any, Any]:
    """A rectangle and so many pixels around it."""
    mask = np.zeros((size, size), bool)
    mask[
        max(0, rows.start - reach) : rows.stop + reach,
        max(0, columns.start - reach) : columns.stop + reach,
    ] = True
    return mask


# ---- without a prediction ---------------------------------------------------------


def test_of_a_whole_image_all_is_known():
    labels = canvas((3, np.s_[2:5], np.s_[2:5]))
    found = truth(labels, extent="whole", output="objects")
    assert np.array_equal(found.labels, labels)
    assert found.labels.dtype == np.int32
    assert found.weight.dtype == np.float32
    assert (found.weight == 1).all()
    assert not found.changed.any()


def test_of_regions_the_inside_is_known():
    regions = np.zeros((40, 40), bool)
    regions[:20] = True
    labels = canvas((3, np.s_[18:25], np.s_[2:5]))
    found = truth(labels, extent="regions", output="objects", regions=regions)
    assert np.array_equal(found.weight, regions)


@pytest.mark.parametrize("output", ["objects", "classes"])
def test_of_paint_the_painted_is_known_and_around_objects_a_ring(output):
    rows, columns = np.s_[10:20], np.s_[10:20]
    labels = canvas((3, rows, columns))
    found = truth(labels, extent="painted", output=output)
    known = around(rows, columns, RING if output == "objects" else 0)
    assert np.array_equal(found.weight, known)


def test_the_brush_says_background():
    labels = canvas((3, np.s_[10:20], np.s_[10:20]), (200, np.s_[:5], np.s_[:5]))
    found = truth(labels, extent="painted", output="classes", background=200)
    assert np.array_equal(found.labels, np.where(labels == 200, 0, labels))
    assert np.array_equal(found.weight, labels > 0)


def test_there_is_no_ring_around_the_brush():
    labels = canvas((200, np.s_[10:20], np.s_[10:20]))
    found = truth(labels, extent="painted", output="objects", background=200)
    assert np.array_equal(found.weight, labels > 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_a_brush_is_told_from_objects(dtype):
    brush = background_brush(dtype)
    labels = np.zeros((20, 20), dtype)
    assert brush_in(labels) is None
    labels[0] = 1
    labels[1] = brush
    assert brush_in(labels) == brush
    labels[2] = brush - 1  # so many objects
    assert brush_in(labels) is None
    mask = np.kron(np.eye(3), np.ones((5, 5))).astype(bool)
    assert brush_in(mask.astype(np.uint8) * 255) is None


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.uint64])
def test_a_brush_fits_every_integer_type(dtype):
    brush = background_brush(dtype)
    assert brush == (254 if dtype == np.uint8 else BACKGROUND_BRUSH)
    labels = np.zeros((6, 6), dtype)
    labels[0] = brush
    found = truth(labels, extent="painted", output="classes", background=brush)
    assert not found.labels.any()
    assert found.weight.sum() == 6


# ---- with a prediction ------------------------------------------------------------


def test_a_change_and_its_surroundings_weigh_more():
    rows, columns = np.s_[10:14], np.s_[10:14]
    prediction = canvas((1, np.s_[25:30], np.s_[25:30]))
    labels = canvas((1, np.s_[25:30], np.s_[25:30]), (2, rows, columns))
    found = truth(labels, extent="whole", output="objects", prediction=prediction)
    near = around(rows, columns, SURROUNDINGS)
    assert np.array_equal(found.weight, np.where(near, CHANGED_WEIGHT, 1))
    assert np.array_equal(found.changed, labels == 2)


def test_an_untouched_prediction_is_no_truth_and_an_erased_object_is_background():
    prediction = canvas((1, np.s_[2:8], np.s_[2:8]), (2, np.s_[20:28], np.s_[20:28]))
    labels = np.where(prediction == 2, 0, prediction)
    found = truth(labels, extent="painted", output="objects", prediction=prediction)
    assert np.array_equal(
        found.weight, np.where(prediction == 2, CHANGED_WEIGHT, 0).astype(np.float32)
    )


def test_of_a_touched_object_all_is_known_and_the_ring():
    rows, columns = np.s_[20:28], np.s_[20:28]
    prediction = canvas((1, np.s_[2:8], np.s_[2:8]), (2, rows, columns))
    labels = prediction.copy()
    labels[27, 20:28] = 0  # its last row is shaved off
    found = truth(labels, extent="painted", output="objects", prediction=prediction)
    expected = around(np.s_[20:27], columns, RING).astype(np.float32)
    expected[27, 20:28] = CHANGED_WEIGHT
    assert np.array_equal(found.weight, expected)


def test_a_ring_tells_nothing_of_an_untouched_neighbour():
    prediction = canvas((1, np.s_[10:20], np.s_[10:20]))
    labels = prediction + canvas((2, np.s_[10:20], np.s_[20:25]))
    found = truth(labels, extent="painted", output="objects", prediction=prediction)
    assert not found.weight[labels == 1].any()
    assert (found.weight[labels == 2] == CHANGED_WEIGHT).all()


def test_objects_need_no_background_between_them():
    labels = np.repeat([1, 10**6], 8).reshape(4, 4)
    found = truth(labels, extent="whole", output="objects", prediction=labels * 0)
    assert found.changed.all()


def test_a_parted_object_changed_in_its_smaller_part():
    prediction = canvas((1, np.s_[10:20], np.s_[10:20]))
    labels = prediction.copy()
    labels[10:20, 17:20] = 2
    found = truth(labels, extent="whole", output="objects", prediction=prediction)
    assert np.array_equal(found.changed, labels == 2)


def test_of_joined_objects_the_smaller_changed():
    prediction = canvas(
        (1, np.s_[10:20], np.s_[10:17]), (2, np.s_[10:20], np.s_[17:20])
    )
    labels = np.minimum(prediction, 1)
    found = truth(labels, extent="whole", output="objects", prediction=prediction)
    assert np.array_equal(found.changed, prediction == 2)
    painted = truth(labels, extent="painted", output="objects", prediction=prediction)
    assert (painted.weight[labels > 0] >= 1).all()


def test_a_class_is_its_number():
    prediction = canvas((1, np.s_[10:20], np.s_[10:20]))
    labels = prediction * 2
    found = truth(labels, extent="painted", output="classes", prediction=prediction)
    assert np.array_equal(found.weight, np.where(labels, CHANGED_WEIGHT, 0))


def test_the_brush_over_a_predicted_object_is_a_change():
    prediction = canvas((1, np.s_[10:20], np.s_[10:20]))
    labels = np.where(prediction, 99, 0)
    labels[0, 0] = 99
    found = truth(
        labels,
        extent="painted",
        output="objects",
        prediction=prediction,
        background=99,
    )
    expected = np.where(prediction, CHANGED_WEIGHT, 0)
    expected[0, 0] = 1
    assert np.array_equal(found.weight, expected)
    assert not found.labels.any()


def test_regions_hide_what_changed_outside():
    prediction = np.zeros((40, 40), np.int32)
    labels = canvas((1, np.s_[10:20], np.s_[10:20]))
    regions = np.zeros((40, 40), bool)
    regions[:, :15] = True
    found = truth(
        labels,
        extent="regions",
        output="objects",
        prediction=prediction,
        regions=regions,
    )
    assert (found.weight[~regions] == 0).all()
    assert (found.weight[10:20, 5:15] == CHANGED_WEIGHT).all()


# ---- laws -------------------------------------------------------------------------


@st.composite
def stacks(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Labels and a prediction that share many objects, as stacks of frames."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    frames = draw(st.integers(1, 3))
    prediction = rng.integers(0, 6, (frames, 4, 4)).repeat(3, 1).repeat(3, 2)
    labels = prediction.copy()
    for _ in range(draw(st.integers(0, 4))):
        t, y, x = rng.integers(0, (frames, 12, 12))
        labels[t, y : y + 4, x : x + 4] = rng.integers(0, 8)
    return labels, prediction


@settings(max_examples=60, deadline=None)
@given(arrays=stacks(), extent=st.sampled_from(EXTENTS), seed=st.integers(0, 2**32 - 1))
def test_numbers_of_objects_mean_nothing(arrays, extent, seed):
    rng = np.random.default_rng(seed)
    labels, prediction = arrays
    regions = rng.random(labels.shape) < 0.7
    renumbered = [
        np.append(0, rng.choice(10**6, 8, replace=False) + 1)[a] for a in arrays
    ]
    options = {"extent": extent, "output": "objects", "regions": regions, "ndim": 2}
    plain = truth(labels, prediction=prediction, **options)
    other = truth(renumbered[0], prediction=renumbered[1], **options)
    assert np.array_equal(plain.weight, other.weight)
    assert np.array_equal(plain.changed, other.changed)


@settings(max_examples=60, deadline=None)
@given(
    arrays=stacks(),
    extent=st.sampled_from(EXTENTS),
    output=st.sampled_from(["objects", "classes"]),
    predicted=st.booleans(),
)
def test_frames_know_nothing_of_each_other(arrays, extent, output, predicted):
    labels, prediction = arrays
    regions = np.indices(labels.shape).sum(0) % 3 > 0
    whole = truth(
        labels,
        extent=extent,
        output=output,
        regions=regions,
        prediction=prediction if predicted else None,
        background=5,
        ndim=2,
    )
    for t in range(len(labels)):
        frame = truth(
            labels[t],
            extent=extent,
            output=output,
            regions=regions[t],
            prediction=prediction[t] if predicted else None,
            background=5,
        )
        assert np.array_equal(whole.labels[t], frame.labels)
        assert np.array_equal(whole.weight[t], frame.weight)
        assert np.array_equal(whole.changed[t], frame.changed)


@settings(max_examples=60, deadline=None)
@given(arrays=stacks(), output=st.sampled_from(["objects", "classes"]))
def test_what_was_changed_is_known_and_what_is_unchanged_teaches_nothing(
    arrays, output
):
    labels, prediction = arrays
    options = {"extent": "painted", "output": output, "ndim": 2}
    found = truth(labels, prediction=prediction, **options)
    assert (found.weight[found.changed] == CHANGED_WEIGHT).all()
    # A change of foreground to background, or back, is one under any numbers.
    assert found.changed[(labels > 0) != (prediction > 0)].all()
    same = truth(prediction, prediction=prediction, **options)
    assert not same.weight.any()


# ---- what labels look like --------------------------------------------------------


def nuclei(count: int) -> np.ndarray[Any, Any]:
    """Squares in rows, each with its own number."""
    numbers = np.arange(1, count + 1)
    side = int(np.ceil(np.sqrt(count)))
    grid = np.zeros((side * 5, side * 5), np.int32)
    grid[(numbers - 1) // side * 5, (numbers - 1) % side * 5] = numbers
    return grid


@pytest.mark.parametrize("likely", ["objects", "classes"])
def test_numbered_objects_look_like_objects(likely):
    assert kind_of(nuclei(30), likely=likely) == "objects"


@pytest.mark.parametrize("likely", ["objects", "classes"])
def test_a_few_numbers_in_many_pieces_look_like_classes(likely):
    assert kind_of(nuclei(30) % 3, likely=likely) == "classes"
    assert kind_of((nuclei(30) > 0).astype(np.uint8), likely=likely) == "classes"


@pytest.mark.parametrize("labels", [nuclei(2), np.zeros((5, 5), int)])
def test_what_may_be_either_is_the_likely(labels):
    assert kind_of(labels) == "classes"
    assert kind_of(labels, likely="objects") == "objects"


def test_objects_that_are_numbered_anew_in_each_frame_are_still_objects():
    stack = np.stack([np.roll(nuclei(6), i, axis=0) for i in range(4)])
    assert kind_of(stack, ndim=2) == "objects"
