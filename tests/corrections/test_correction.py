"""What a user may have done wrong is told in a sentence; the rest is counted."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from napari_attunet.corrections import Correction
from napari_attunet.errors import DataError


def correction(**changes: Any) -> Correction:
    """An image with nine objects, wholly checked."""
    labels = np.zeros((30, 40), np.int32)
    for i in range(9):
        labels[i // 3 * 10 + 2 : i // 3 * 10 + 7, i % 3 * 10 + 2 : i % 3 * 10 + 7] = (
            i + 1
        )
    settings: dict[str, Any] = {
        "image": np.zeros((30, 40, 3), np.uint8),
        "axes": "YXC",
        "labels": labels,
        "output": "objects",
        "name": "liver",
    }
    return Correction(**settings | changes)


EMPTY = np.zeros((30, 40), np.int32)
NOWHERE = np.zeros((30, 40), bool)
CORNER = NOWHERE.copy()
CORNER[28:, 38:] = True
DOT = EMPTY.copy()
DOT[12, 30] = 1

WRONG = {
    "another shape": ({"labels": np.zeros((30, 41), int)}, r"\(30, 41\).*\(30, 40\)"),
    "prediction of another shape": ({"prediction": EMPTY.T}, "prediction .*shape"),
    "regions of another shape": ({"regions": NOWHERE.T}, "regions .*shape"),
    "float": ({"labels": EMPTY.astype(np.float32)}, "float32.*whole numbers"),
    "bool": ({"labels": NOWHERE}, "bool.*whole numbers"),
    "negative": ({"labels": EMPTY - 3}, "negative.*-3"),
    "too large": ({"labels": EMPTY + np.int64(2**40)}, "1099511627776"),
    "negative prediction": ({"prediction": EMPTY - 1}, "prediction .*negative"),
    "nothing painted": ({"labels": EMPTY, "extent": "painted"}, "Nothing is painted"),
    "nothing corrected": (
        {"prediction": correction().labels * 7, "extent": "painted"},
        "still what the model predicted",
    ),
    "no regions": ({"extent": "regions"}, "no regions"),
    "empty regions": ({"extent": "regions", "regions": NOWHERE}, "no regions"),
    "labels outside": ({"extent": "regions", "regions": CORNER}, "outside the regions"),
    "one pixel": ({"labels": DOT}, r"single pixel.*\(12, 30\)"),
    "one painted pixel": ({"labels": DOT, "extent": "painted"}, "single pixel"),
    "a class too high": (
        {"labels": correction().labels * 100, "output": "classes"},
        "up to 900",
    ),
    "axes": ({"axes": "CYX"}, "shape"),
    "too few axes": ({"ndim": 3}, "3D model"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_learned_from_is_refused_in_a_sentence(changes, message):
    with pytest.raises(DataError, match=f"(?s){message}.*\\.$"):
        correction(**changes).check()


@pytest.mark.parametrize(
    "changes",
    [
        {"output": "object"},
        {"extent": "all"},
        {"background": 0},
    ],
    ids=str,
)
def test_slips_of_the_programmer_are_value_errors(changes):
    with pytest.raises(ValueError, match=str(next(iter(changes.values())))):
        correction(**changes)


FINE = {
    "whole": {},
    "no objects in a checked image": {"labels": EMPTY},
    "all that was predicted is wrong": {
        "labels": EMPTY,
        "prediction": DOT,
    },
    "untouched prediction around an empty region": {
        "extent": "regions",
        "regions": CORNER,
        "prediction": correction().labels,
    },
    "uint8": {"labels": correction().labels.astype(np.uint8)},
    "uint64": {"labels": correction().labels.astype(np.uint64)},
}


@pytest.mark.parametrize("changes", FINE.values(), ids=FINE)
def test_what_is_fine_passes(changes):
    if changes.get("prediction") is DOT:
        changes = changes | {"prediction": DOT + np.roll(DOT, 1)}
    correction(**changes).check()


def test_what_can_be_painted_over_time_is_counted_before_it_is_enough():
    count = correction(labels=EMPTY, extent="painted").count()
    assert (count.known, count.objects, count.changed, count.total) == (0, 0, 0, 1200)
    assert count.pixels == {}


def test_objects_are_counted_with_their_pixels():
    regions = NOWHERE.copy()
    regions[:10, :20] = True
    count = correction(extent="regions", regions=regions).count()
    assert count.objects == 2
    assert count.pixels == {0: 150, 1: 50}
    assert (count.known, count.total) == (200, 1200)


def test_classes_are_counted_each_by_its_pixels():
    labels = correction().labels % 3
    count = correction(labels=labels, output="classes").count()
    assert count.pixels == {0: 1200 - 150, 1: 75, 2: 75}
    assert count.objects == 0


def test_the_brush_counts_as_background():
    labels = correction().labels % 3
    count = correction(
        labels=labels, output="classes", extent="painted", background=2
    ).count()
    assert count.pixels == {0: 75, 1: 75}


def test_changes_are_counted_where_they_count():
    was = correction()
    labels = np.where(np.isin(was.labels, (1, 9)), 0, was.labels)
    regions = NOWHERE.copy()
    regions[:10] = True
    count = correction(
        labels=labels, prediction=was.labels, extent="regions", regions=regions
    ).count()
    assert count.changed == 25
    assert count.warnings == (
        "25 corrected pixels lie outside the regions and don't count.",
    )


WARNED = {
    "outside": (
        {"extent": "regions", "regions": np.arange(40) < np.full((30, 1), 10)},
        "150 labelled pixels lie outside",
    ),
    "empty": ({"labels": EMPTY}, "Nothing is labelled"),
    "the brush is an object": (
        {
            "labels": np.array([0, 254, 253, *range(3, 10)], np.uint8)[
                correction().labels
            ],
            "extent": "painted",
        },
        "The number 254 counts as any other, not as background",
    ),
    "classes as objects": (
        {"labels": (correction().labels > 0).astype(int)},
        "look like classes",
    ),
    "objects as classes": ({"output": "classes"}, "look like objects"),
    "one class": (
        {"labels": DOT + np.roll(DOT, 1), "output": "classes", "extent": "painted"},
        "All that is painted is class 1",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WARNED.values(), ids=WARNED)
def test_what_may_not_be_meant_is_warned_of(changes, message):
    doubtful = correction(**changes)
    doubtful.check()
    (warning,) = doubtful.count().warnings
    assert message in warning
    assert warning.endswith(".")


def test_a_correction_without_doubt_has_no_warnings():
    assert correction().count().warnings == ()


def test_a_brush_of_many_strokes_does_not_look_like_classes():
    labels = np.where(correction().labels < 3, correction().labels, 0)
    labels[::10, ::10] = 99
    painted = correction(labels=labels, extent="painted", background=99)
    assert painted.kind() == "objects"
    assert painted.count().warnings == ()


@pytest.mark.parametrize(
    ("axes", "shape", "ndim", "walked"),
    [
        ("TYX", (3, 30, 40), 2, 0),
        ("YXZ", (30, 40, 3), 2, 2),
        ("YTX", (30, 3, 40), 2, 1),
    ],
)
def test_what_is_said_of_one_frame_does_not_reach_the_next(axes, shape, ndim, walked):
    one = correction(extent="painted")
    labels = np.zeros(shape, np.int32)
    labels[(slice(None),) * walked + (1,)] = one.labels
    stack = correction(
        image=np.zeros(shape), axes=axes, labels=labels, extent="painted", ndim=ndim
    )
    weight = np.moveaxis(stack.truth().weight, walked, 0)
    assert np.array_equal(weight[1], one.truth().weight)
    assert not weight[[0, 2]].any()
    assert stack.count().objects == 9


def test_a_volume_is_one_frame():
    labels = np.zeros((9, 30, 40), np.int32)
    labels[4, 10:15, 10:15] = 1
    volume = correction(
        image=np.zeros(labels.shape), axes="ZYX", labels=labels, extent="painted"
    )
    flat = volume.truth().weight.any(axis=(1, 2))
    assert flat.tolist() == [i == 4 for i in range(9)]
    deep = dataclasses.replace(volume, ndim=3).truth().weight.any(axis=(1, 2))
    assert deep.tolist() == [abs(i - 4) <= 3 for i in range(9)]
