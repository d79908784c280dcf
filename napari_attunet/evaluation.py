"""How well labels agree with the truth: Dice of the foreground, AP of the objects.

Objects are scored as in the 2018 Data Science Bowl and by StarDist: a predicted object
is right if its intersection over union (IoU) with a true one reaches a threshold, and
the average precision at that threshold is TP / (TP + FP + FN).

    Caicedo et al. 2019, "Nucleus segmentation across imaging experiments: the 2018
    Data Science Bowl", https://doi.org/10.1038/s41592-019-0612-7
    Schmidt et al. 2018, "Cell Detection with Star-convex Polygons",
    https://arxiv.org/abs/1806.03535
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from napari_attunet.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ImageScore",
    "Matches",
    "Scores",
    "class_dice",
    "dice",
    "match_objects",
    "score",
    "score_image",
]

LabelArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Matches:
    """Counts of matched and unmatched objects; counts of several images add up.

    Attributes
    ----------
    tp : int
        True objects that were found.
    fp : int
        Predicted objects that match no true one.
    fn : int
        True objects that were missed.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: Matches) -> Matches:
        return Matches(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def ap(self) -> float:
        """Average precision TP / (TP + FP + FN); 1.0 where there are no objects."""
        everything = self.tp + self.fp + self.fn
        return self.tp / everything if everything else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageScore:
    """Scores of one image.

    Attributes
    ----------
    dice : float
        Dice of the foreground.
    at50, at70 : Matches
        Objects matched at an IoU of 0.5 and of 0.7.
    """

    dice: float
    at50: Matches
    at70: Matches

    def to_dict(self) -> dict[str, float | int]:
        """Return the scores and the counts at an IoU of 0.5 as plain numbers."""
        return {
            "dice": self.dice,
            "ap50": self.at50.ap,
            "ap70": self.at70.ap,
            "objects": self.at50.tp + self.at50.fn,
            "found": self.at50.tp,
            "missed": self.at50.fn,
            "invented": self.at50.fp,
        }


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of a set of images.

    Means give every image the same weight; pooled scores count the objects of all
    images together, so that crowded images weigh more.

    Attributes
    ----------
    images : tuple of ImageScore
        At least one, in the order in which they were scored.
    """

    images: tuple[ImageScore, ...]

    def __post_init__(self) -> None:
        if not self.images:
            raise DataError(
                "There are no images to score. Give at least one pair of a prediction "
                "and its true labels."
            )

    @property
    def dice(self) -> float:
        """Mean Dice of the foreground."""
        return _mean(image.dice for image in self.images)

    @property
    def ap50(self) -> float:
        """Mean over images of the average precision at an IoU of 0.5."""
        return _mean(image.at50.ap for image in self.images)

    @property
    def ap70(self) -> float:
        """Mean over images of the average precision at an IoU of 0.7."""
        return _mean(image.at70.ap for image in self.images)

    @property
    def ap50_pooled(self) -> float:
        """Average precision of all objects together at an IoU of 0.5."""
        return sum((image.at50 for image in self.images), Matches()).ap

    @property
    def ap70_pooled(self) -> float:
        """Average precision of all objects together at an IoU of 0.7."""
        return sum((image.at70 for image in self.images), Matches()).ap

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, ready for JSON."""
        return {
            "dice": self.dice,
            "ap50": self.ap50,
            "ap50_pooled": self.ap50_pooled,
            "ap70": self.ap70,
            "ap70_pooled": self.ap70_pooled,
            "images": [image.to_dict() for image in self.images],
        }


def dice(prediction: LabelArray, truth: LabelArray) -> float:
    """Return the Dice coefficient of the foreground, that is, of all labels above 0.

    Parameters
    ----------
    prediction, truth : array of int or bool
        Labels of one shape.

    Returns
    -------
    float
        From 0 to 1; 1.0 where both are empty.

    Raises
    ------
    DataError
        If the shapes differ or the labels are no whole numbers.
    """
    _check(prediction, truth)
    return _dice(prediction > 0, truth > 0)


def class_dice(
    prediction: LabelArray, truth: LabelArray, n_classes: int
) -> tuple[float, ...]:
    """Return the Dice coefficient of every class.

    Parameters
    ----------
    prediction, truth : array of int or bool
        Class labels of one shape.
    n_classes : int
        Number of classes, the background included.

    Returns
    -------
    tuple of float
        One number for each class, the background first; 1.0 for a class that is in
        neither of the two.

    Raises
    ------
    DataError
        If the shapes differ or the labels are no whole numbers.
    """
    _check(prediction, truth)
    return tuple(_dice(prediction == c, truth == c) for c in range(n_classes))


def match_objects(
    prediction: LabelArray, truth: LabelArray, iou: float = 0.5
) -> Matches:
    """Match predicted to true objects and count.

    A pair may match if its IoU is at least `iou`, the limit included, and each object
    is in one pair at most. Above 0.5 there is no choice; at 0.5 and below, as many
    pairs are made as can be (of two halves of one object only one counts). These are
    StarDist's rules.

    Parameters
    ----------
    prediction, truth : array of int
        Labels of one shape, one number for each object; 0 and below is background.
    iou : float
        Threshold, above 0 and at most 1.

    Returns
    -------
    Matches

    Raises
    ------
    DataError
        If the shapes differ or the labels are no whole numbers.
    """
    if not 0 < iou <= 1:
        raise ValueError(f"An IoU threshold lies above 0 and at most at 1, not {iou}.")
    _check(prediction, truth)
    return _Overlap.measure(prediction, truth).matches(iou)


def score_image(prediction: LabelArray, truth: LabelArray) -> ImageScore:
    """Return all scores of one image; see `dice` and `match_objects`."""
    _check(prediction, truth)
    overlap = _Overlap.measure(prediction, truth)
    return ImageScore(
        dice=_dice(prediction > 0, truth > 0),
        at50=overlap.matches(0.5),
        at70=overlap.matches(0.7),
    )


def score(pairs: Iterable[tuple[LabelArray, LabelArray]]) -> Scores:
    """Return the scores of a set of images.

    Parameters
    ----------
    pairs : iterable of (prediction, truth)
        Label images; only one pair is held at a time.

    Returns
    -------
    Scores

    Raises
    ------
    DataError
        If there is no pair, or the two of a pair cannot be compared.
    """
    return Scores(tuple(score_image(prediction, truth) for prediction, truth in pairs))


@dataclass(frozen=True, slots=True)
class _Overlap:
    """Which predicted object meets which true one: a row for each pair that does."""

    predicted: npt.NDArray[np.intp]
    true: npt.NDArray[np.intp]
    iou: npt.NDArray[np.float64]
    n_predicted: int
    n_true: int

    @classmethod
    def measure(cls, prediction: LabelArray, truth: LabelArray) -> _Overlap:
        predicted, predicted_sizes = _compact(prediction)
        true, true_sizes = _compact(truth)
        both = (predicted > 0) & (true > 0)
        # Equal pairs are summed up on the way from one to the other; a dense table
        # would be as large as the product of the object counts.
        table = sparse.coo_array(
            (np.ones(np.count_nonzero(both), np.int64), (predicted[both], true[both])),
            shape=(predicted_sizes.size, true_sizes.size),
        )
        table.sum_duplicates()
        rows, columns = table.coords
        union = predicted_sizes[rows] + true_sizes[columns] - table.data
        return cls(
            rows.astype(np.intp),
            columns.astype(np.intp),
            table.data / union,
            int(np.count_nonzero(predicted_sizes[1:])),
            int(np.count_nonzero(true_sizes[1:])),
        )

    def matches(self, iou: float) -> Matches:
        good = self.iou >= iou
        predicted, true = self.predicted[good], self.true[good]
        if predicted.size == 0:
            return Matches(0, self.n_predicted, self.n_true)
        graph = sparse.csr_array(
            (np.ones(predicted.size, np.int8), (predicted, true)),
        )
        # takes longer to import than a dock to open
        from scipy.sparse.csgraph import maximum_bipartite_matching

        partner = maximum_bipartite_matching(graph, perm_type="column")
        tp = int(np.count_nonzero(partner >= 0))
        return Matches(tp, self.n_predicted - tp, self.n_true - tp)


def _compact(labels: LabelArray) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return flat object numbers of the image's own magnitude, and their sizes."""
    flat = labels.ravel()
    if flat.size and flat.max() > flat.size:
        values, flat = np.unique(flat, return_inverse=True)
        # Below the first positive value all is background.
        flat = flat.ravel() - (int(np.searchsorted(values, 0, side="right")) - 1)
    numbers = np.maximum(flat.astype(np.intp), 0)
    sizes = np.bincount(numbers, minlength=1)
    return numbers, sizes


def _dice(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2 * int(np.count_nonzero(a & b)) / total if total else 1.0


def _mean(values: Iterable[float]) -> float:
    found = tuple(values)
    return math.fsum(found) / len(found)


def _check(prediction: LabelArray, truth: LabelArray) -> None:
    if prediction.shape != truth.shape:
        raise DataError(
            f"The prediction has shape {prediction.shape}, but the truth "
            f"{truth.shape}. Compare label images of the same image."
        )
    for name, labels in (("prediction", prediction), ("truth", truth)):
        if labels.dtype.kind not in "biu":
            raise DataError(
                f"Labels must be whole numbers, but the {name} is {labels.dtype}. "
                "Convert it to an integer type."
            )
