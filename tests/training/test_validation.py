"""What is known is scored in full, and nothing else."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from napari_attunet import evaluation
from napari_attunet.spec import ModelSpec, NetworkSpec
from napari_attunet.training import validation
from napari_attunet.training.samples import Pair
from napari_attunet.training.validation import validate

SHAPE = (24, 30)
NETWORK = NetworkSpec(features=(2, 4), out_channels=3)
OBJECTS = ModelSpec(name="m", network=NETWORK, output="objects")
CLASSES = ModelSpec(name="m", network=NETWORK, output="classes")
TWO = ModelSpec(name="m", network=dataclasses.replace(NETWORK, out_channels=2))

labels = arrays.arrays(np.int32, SHAPE, elements=st.integers(0, 4))


def score(found, truth, weight=None, spec=OBJECTS, axes="YX"):
    """Score what a model finds that finds just that."""

    class Finder:
        def __init__(self, model, **_):
            self.model = model

        def steps(self, image, *, axes, region):
            part = (...,) if region is None else tuple(region)
            return SimpleNamespace(labels=found[part])
            yield

    weight = None if weight is None else np.asarray(weight, np.float32)
    pair = Pair(np.zeros(truth.shape), truth, axes, weight=weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "Segmenter", Finder)
        return validate(SimpleNamespace(spec=spec), [pair])


def box(*corners, value=1):
    """An image of labels with one object."""
    image = np.zeros(SHAPE, np.int32)
    image[corners[0] : corners[1], corners[2] : corners[3]] = value
    return image


def around(truth, reach=2):
    """What is known of a painted object: itself, and a ring."""
    known = np.zeros(SHAPE, bool)
    for row, column in np.argwhere(truth > 0):
        known[
            max(0, row - reach) : row + reach + 1,
            max(0, column - reach) : column + reach + 1,
        ] = True
    return known


PAINTED = box(8, 14, 8, 14)


@settings(deadline=None, max_examples=50)
@given(found=labels, truth=labels)
def test_where_all_is_known_all_is_scored(found, truth):
    wanted = evaluation.score([(found, truth)])
    for weight in (None, np.full(SHAPE, 3.0)):
        scores = score(found, truth, weight)
        assert scores["dice"] == pytest.approx(wanted.dice)
        assert scores["ap50"] == pytest.approx(wanted.ap50)


def test_who_finds_too_much_of_a_painted_object_is_not_right():
    far_too_large = box(2, 20, 2, 20)
    scores = score(far_too_large, PAINTED, around(PAINTED))
    assert scores["dice"] == pytest.approx(2 * 36 / (36 + 18 * 18))
    assert scores["ap50"] == 0
    exact = score(PAINTED, PAINTED, around(PAINTED))
    assert (exact["dice"], exact["ap50"]) == (1, 1)


def test_joined_to_a_neighbour_of_which_nothing_is_known():
    joined = PAINTED + box(8, 14, 14, 22)
    assert score(joined, PAINTED, around(PAINTED))["ap50"] == 0
    beside = PAINTED + box(8, 14, 17, 22, value=2)
    assert score(beside, PAINTED, around(PAINTED)) == score(
        PAINTED, PAINTED, around(PAINTED)
    )


def test_ends_of_others_are_pixels_but_no_objects():
    reaching_in = PAINTED + box(4, 20, 15, 25, value=2)  # one column of the ring
    scores = score(reaching_in, PAINTED, around(PAINTED))
    assert scores["ap50"] == 1
    assert scores["dice"] == pytest.approx(2 * 36 / (36 + 36 + 10))
    inside = PAINTED + box(9, 12, 15, 16, value=2)  # all of it in the ring
    assert score(inside, PAINTED, around(PAINTED))["ap50"] == 0.5


def test_an_object_that_is_known_in_part_is_scored_in_part():
    truth = box(8, 14, 0, 20)
    known = np.zeros(SHAPE, bool)
    known[:, :10] = True
    scores = score(box(8, 14, 0, 30), truth, known)
    assert (scores["dice"], scores["ap50"]) == (1, 1)


@settings(deadline=None, max_examples=50)
@given(found=labels, other=labels)
def test_what_is_far_from_all_that_is_known_does_not_count(found, other):
    truth = PAINTED + box(0, 24, 25, 30, value=2)  # a prediction that was left
    known = around(PAINTED)
    away = ~around(PAINTED, 3)
    one = np.where(away, found + 10, box(7, 13, 8, 15))
    two = np.where(away, other + 20, box(7, 13, 8, 15))
    assert score(one, truth, known) == score(two, truth, known)


def test_of_classes_only_known_pixels_count():
    known = around(PAINTED)
    assert score(box(2, 20, 2, 20), PAINTED, known, CLASSES) == {
        "dice": pytest.approx(2 * 36 / (36 + 100))
    }


def test_a_class_that_a_model_does_not_know_counts():
    truth = PAINTED + box(16, 20, 16, 20, value=2)
    blind = score(PAINTED, truth, spec=TWO)
    assert blind == {"dice": 0.5}
    half = PAINTED + box(16, 18, 16, 20, value=2)
    assert score(half, truth, spec=CLASSES)["dice"] == pytest.approx((1 + 2 / 3) / 2)


def test_objects_that_are_numbered_anew_in_every_slice():
    truth = np.stack([PAINTED + box(2, 6, 20, 28, value=2)] * 3)
    found = np.where(truth > 0, truth + 2 * np.arange(3)[:, None, None], 0)
    for axes in ("ZYX", "YXT"):
        last = axes[0] == "Y"
        scores = score(
            *(np.moveaxis(a, 0, -1) if last else a for a in (found, truth)), axes=axes
        )
        assert (scores["dice"], scores["ap50"]) == (1, 1)
    network = NetworkSpec(features=(2, 4), out_channels=3, ndim=3)
    volumes = dataclasses.replace(OBJECTS, network=network)
    assert score(truth, truth, spec=volumes, axes="ZYX")["ap50"] == 1
    assert score(found, truth, spec=volumes, axes="ZYX")["ap50"] == 0


def test_large_numbers_take_no_memory():
    truth = PAINTED * np.int32(2**31 - 1)
    assert score(PAINTED, truth, around(PAINTED))["ap50"] == 1


def test_nothing_found_and_nothing_there():
    nothing = np.zeros(SHAPE, np.int32)
    known = around(PAINTED)
    assert score(nothing, nothing, known)["dice"] == 1
    assert score(nothing, PAINTED, known)["dice"] == 0
