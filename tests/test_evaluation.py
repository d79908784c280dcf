from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from napari_attunet.errors import DataError
from napari_attunet.evaluation import (
    Matches,
    Scores,
    class_dice,
    dice,
    match_objects,
    score,
    score_image,
)

seeds = st.integers(0, 2**32 - 1)


def row(*runs):
    """One line of labels from (number, length) pairs."""
    return np.concatenate([np.full(length, number) for number, length in runs])


def random_pair(seed):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(1, 9, 2))
    return random.integers(0, 5, shape), random.integers(0, 5, shape)


def test_dice_by_hand():
    truth = np.array([[1, 1, 0, 0], [2, 2, 0, 0]])
    prediction = np.array([[0, 9, 9, 0], [9, 9, 0, 0]])
    assert dice(prediction, truth) == 2 * 3 / (4 + 4)
    assert dice(truth > 0, truth) == 1
    assert dice(0 * truth, truth) == 0
    assert dice(0 * truth, 0 * truth) == 1


def test_class_dice_by_hand():
    truth = np.array([0, 0, 1, 1, 1, 2])
    prediction = np.array([0, 1, 1, 1, 2, 0])
    assert class_dice(prediction, truth, 4) == (2 / 4, 4 / 6, 0, 1)


def test_matching_by_hand():
    # truth      1 1 1 1 2 2 2 2 2 . . . 3 3 3 .
    # prediction 7 7 7 . 8 8 . . . . 9 9 . 5 5 5
    truth = row((1, 4), (2, 5), (0, 3), (3, 3), (0, 1))
    prediction = row((7, 3), (0, 1), (8, 2), (0, 4), (9, 2), (0, 1), (5, 3))
    # IoU: 7 with 1 is 3/4, 8 with 2 is 2/5, 5 with 3 is 2/4, and 9 meets nothing.
    assert match_objects(prediction, truth) == Matches(2, 2, 1)
    assert match_objects(prediction, truth, 0.51) == Matches(1, 3, 2)
    assert match_objects(prediction, truth, 0.75) == Matches(1, 3, 2)
    assert match_objects(prediction, truth, 0.76) == Matches(0, 4, 3)
    assert match_objects(prediction, truth, 0.4) == Matches(3, 1, 0)
    assert Matches(2, 2, 1).ap == 2 / 5


def test_of_two_halves_of_one_object_one_counts():
    truth, halves = row((1, 8)), row((1, 4), (2, 4))
    assert match_objects(halves, truth) == Matches(1, 1, 0)
    assert match_objects(truth, halves) == Matches(1, 0, 1)


def test_as_many_pairs_as_can_be_are_made_at_low_thresholds():
    # The best partner of both true objects is the same; only one can have it.
    truth = row((1, 4), (2, 4))
    prediction = row((1, 2), (2, 6))
    # IoU: 1-1 2/4, 1-2 2/8, 2-2 4/6
    assert match_objects(prediction, truth, 0.2) == Matches(2, 0, 0)


def test_below_zero_is_background():
    truth = row((-1, 4), (1, 4), (-2, 2))
    prediction = row((-7, 3), (1, 5), (0, 2))
    assert match_objects(prediction, truth, 0.8) == Matches(1, 0, 0)
    assert dice(prediction, truth) == 2 * 4 / (5 + 4)


def test_no_objects():
    nothing, one = np.zeros((4, 4), int), np.eye(4, dtype=int)
    assert match_objects(nothing, nothing) == Matches(0, 0, 0)
    assert Matches().ap == 1
    assert match_objects(one, nothing) == Matches(0, 1, 0)
    assert match_objects(nothing, one) == Matches(0, 0, 1)
    empty = np.zeros((0, 3), int)
    assert match_objects(empty, empty) == Matches()


@given(seed=seeds, iou=st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.7, 1.0]))
@settings(max_examples=60, deadline=None)
def test_equals_optimal_assignment_in_a_dense_table(seed, iou):
    prediction, truth = random_pair(seed)
    ids = [np.unique(a[a > 0]) for a in (prediction, truth)]
    table = np.array(
        [
            [
                ((prediction == p) & (truth == t)).sum()
                / ((prediction == p) | (truth == t)).sum()
                for t in ids[1]
            ]
            for p in ids[0]
        ]
    ).reshape(len(ids[0]), len(ids[1]))
    tp = int((table >= iou)[linear_sum_assignment(-1.0 * (table >= iou))].sum())
    expected = Matches(tp, len(ids[0]) - tp, len(ids[1]) - tp)
    assert match_objects(prediction, truth, iou) == expected


@given(seed=seeds, iou=st.sampled_from([0.1, 0.5, 0.7]))
@settings(max_examples=30, deadline=None)
def test_numbering_does_not_matter_and_sides_swap(seed, iou):
    prediction, truth = random_pair(seed)
    matches = match_objects(prediction, truth, iou)
    names = np.array([-3, 2**40, 70_000, 3, 2**62])
    assert match_objects(names[prediction], truth, iou) == matches
    assert match_objects(truth, prediction, iou) == Matches(
        matches.tp, matches.fn, matches.fp
    )


def test_many_objects_need_no_dense_table():
    labels = np.arange(1, 250_001).reshape(500, 500)  # dense: half a terabyte
    assert match_objects(labels, labels, 1.0) == Matches(250_000, 0, 0)


def test_scores_of_several_images():
    truth = row((1, 4), (2, 4), (0, 2))
    good = row((3, 4), (4, 3), (0, 3))  # IoU 1 and 3/4
    poor = row((3, 5), (0, 5))  # IoU 4/5 and none
    nothing = np.zeros(10, int)
    scores = score(
        (p, t) for p, t in [(good, truth), (poor, truth), (nothing, nothing)]
    )
    assert [image.at70 for image in scores.images] == [
        Matches(2, 0, 0),
        Matches(1, 0, 1),
        Matches(0, 0, 0),
    ]
    assert scores.dice == pytest.approx((14 / 15 + 10 / 13 + 1) / 3)
    assert scores.ap50 == scores.ap70 == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert scores.ap50_pooled == scores.ap70_pooled == 3 / 4
    plain = json.loads(json.dumps(scores.to_dict()))
    assert plain["ap50_pooled"] == 3 / 4
    assert plain["images"][1] == {
        "dice": 10 / 13,
        "ap50": 0.5,
        "ap70": 0.5,
        "objects": 2,
        "found": 1,
        "missed": 1,
        "invented": 0,
    }


def test_thresholds_are_told_apart():
    image = score_image(row((1, 6), (0, 4)), row((1, 10)))
    assert (image.at50.ap, image.at70.ap) == (1, 0)
    scores = Scores((image,))
    assert (scores.ap50, scores.ap50_pooled) == (1, 1)
    assert (scores.ap70, scores.ap70_pooled) == (0, 0)


def test_what_cannot_be_compared_is_refused():
    labels = np.ones((3, 4), int)
    with pytest.raises(DataError, match=r"\(4, 3\)"):
        dice(labels.T, labels)
    with pytest.raises(DataError, match="prediction is float64"):
        match_objects(labels * 1.0, labels)
    with pytest.raises(DataError, match="no images"):
        score([])
    with pytest.raises(ValueError, match="IoU"):
        match_objects(labels, labels, 0)
