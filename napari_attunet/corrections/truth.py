"""What counts: from painted labels to what is known of each pixel, and how firmly.

Objects are compared by the pixels they have, never by their numbers, and nothing
reaches from one frame of a stack into the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse
from skimage.measure import label as connected_pieces

from napari_attunet.frames import number_objects

__all__ = [
    "BACKGROUND_BRUSH",
    "CHANGED_WEIGHT",
    "RING",
    "SURROUNDINGS",
    "Extent",
    "Output",
    "Truth",
    "background_brush",
    "brush_in",
    "grow",
    "kind_of",
    "truth",
]

#: What of a labelled image is true: all of it, what is unlabelled being background;
#: the same inside regions only; or what was painted, all else being unknown.
Extent = Literal["whole", "regions", "painted"]
#: What label numbers mean: one class each, or one object each.
Output = Literal["objects", "classes"]

#: The number that says "background" where 0 says "unknown": the largest that every
#: integer type of 16 bits or more holds, so far up that no object gets it by counting.
BACKGROUND_BRUSH = 32767
#: How much more a pixel weighs where the user corrected us than where we were right.
CHANGED_WEIGHT = 3.0
#: Pixels around a change, along each axis, that weigh as much: edges are learned there.
SURROUNDINGS = 5
#: Pixels around a painted object that are background: a painted outline is a statement.
RING = 3
#: Up to so many values with one piece each may as well be classes as objects.
FEW_VALUES = 3
#: Share of the values with one piece each from which they are objects.
MOSTLY = 0.8

Labels = npt.NDArray[np.integer[Any]]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False, kw_only=True)
class Truth:
    """What is known of each pixel.

    Attributes
    ----------
    labels : array of int32
        Objects or classes; 0 is background, also where it was said with a brush.
    weight : array of float32
        0 where nothing is known, 1 where the label is true, `CHANGED_WEIGHT` where the
        user changed what a model had said.
    changed : array of bool
        Where labels and prediction differ, whether it counts or not; False everywhere
        without a prediction.
    """

    labels: npt.NDArray[np.int32]
    weight: npt.NDArray[np.float32]
    changed: Mask


def background_brush(dtype: npt.DTypeLike) -> int:
    """Return the label number that says "background" in labels of that integer type.

    Of 8 bits the last but one, since masks of 0 and 255 are common.
    """
    most = int(np.iinfo(np.dtype(dtype)).max)
    return BACKGROUND_BRUSH if most >= BACKGROUND_BRUSH else most - 1


def brush_in(labels: Labels) -> int | None:
    """Return the number that says "background" in labels, if there is any.

    Objects are counted upwards: where the number below is there as well, both are
    objects.
    """
    brush = background_brush(labels.dtype)
    painted = bool((labels == brush).any()) and not (labels == brush - 1).any()
    return brush if painted else None


def truth(
    labels: Labels,
    *,
    extent: Extent,
    output: Output,
    regions: npt.NDArray[Any] | None = None,
    prediction: Labels | None = None,
    background: int | None = None,
    ndim: int | None = None,
) -> Truth:
    """Say what painted labels tell about each pixel.

    Parameters
    ----------
    labels : array of int
        Numbers from 0, none above that of an int32.
    extent : {"whole", "regions", "painted"}
        What counts, see `Extent`.
    output : {"objects", "classes"}
        What the numbers mean.
    regions : array of bool, optional
        Where labels count, for ``"regions"``.
    prediction : array of int, optional
        What a model had said before the user painted. Its pixels then count, where not
        all is checked, only as far as the user changed them: those, and the whole of
        each object touched.
    background : int, optional
        The brush's number that says "background".
    ndim : int, optional
        So many last axes are one frame; by default all of them.

    Returns
    -------
    Truth
    """
    ndim = labels.ndim if ndim is None else ndim
    said = labels != 0
    if background is not None:
        labels = np.where(labels == background, 0, labels)
    frame_axes = range(labels.ndim - ndim, labels.ndim)
    touched = labels != 0
    changed = np.zeros(labels.shape, bool)
    if prediction is not None and output == "classes":
        changed = touched = labels != prediction
    elif prediction is not None:
        changed, touched = _compare_objects(labels, prediction, ndim)
    weight = np.zeros(labels.shape, np.float32)
    if extent == "painted":
        brushed = said & (labels == 0)
        weight[touched | brushed] = 1
        if output == "objects":
            weight[grow(touched, RING, frame_axes) & ~said] = 1
        weight[changed] = CHANGED_WEIGHT
    else:
        weight[...] = 1
        if prediction is not None:
            weight[grow(changed, SURROUNDINGS, frame_axes)] = CHANGED_WEIGHT
        if extent == "regions":
            if regions is None:
                raise ValueError("What counts are regions, but there are none.")
            weight[~np.asarray(regions, bool)] = 0
    return Truth(labels=labels.astype(np.int32), weight=weight, changed=changed)


def kind_of(
    labels: Labels, *, likely: Output = "classes", ndim: int | None = None
) -> Output:
    """Tell what labels look like: numbered objects, or classes in many pieces.

    Parameters
    ----------
    labels : array of int
        Without a background brush.
    likely : {"objects", "classes"}
        The answer where labels fit both, as a few numbers with one piece each do.
    ndim : int, optional
        So many last axes are one frame; by default all of them.
    """
    ndim = labels.ndim if ndim is None else ndim
    values: set[int] = set()
    numbers = pieces = single = 0  # the same number in two frames counts twice
    for frame in labels.reshape(-1, *labels.shape[labels.ndim - ndim :]):
        connected, count = connected_pieces(frame, return_num=True)
        value_of = np.zeros(count + 1, labels.dtype)
        value_of[connected] = frame
        found, each = np.unique(value_of[1:], return_counts=True)
        values.update(found.tolist())
        numbers += len(found)
        pieces += int(each.sum())
        single += int((each == 1).sum())
    if len(values) > FEW_VALUES and single >= MOSTLY * numbers:
        return "objects"
    if pieces > 2 * numbers:
        return "classes"
    return likely


def grow(mask: Mask, reach: int, axes: Sequence[int]) -> Mask:
    """Return the pixels at most so far from the mask along each of the given axes."""
    size = [2 * reach + 1 if axis in axes else 1 for axis in range(mask.ndim)]
    grown: Mask = ndimage.maximum_filter(mask, size=size, mode="constant", cval=False)
    return grown


def _compare_objects(
    labels: Labels, prediction: Labels, ndim: int
) -> tuple[Mask, Mask]:
    """Compare two images of objects, whatever their numbers.

    Returns
    -------
    changed : array of bool
        Pixels that left an object or came to one. Of an object that was parted, the
        largest part is the one that stayed; of joined ones, the largest.
    touched : array of bool
        All pixels of those objects of `labels` that no predicted object equals.
    """
    within = range(labels.ndim - ndim, labels.ndim)
    new, old = (number_objects(a, within).ravel() for a in (labels, prediction))
    new_size, old_size = np.bincount(new), np.bincount(old)
    both = (new > 0) & (old > 0)
    shape = (new_size.size, old_size.size)
    ones = np.ones(np.count_nonzero(both), np.int64)
    common = sparse.csr_array((ones, (new[both], old[both])), shape=shape).tocoo()
    (rows, columns), counts = common.coords, common.data
    is_same = (counts == new_size[rows]) & (counts == old_size[columns])
    is_touched = np.ones(new_size.size, bool)
    is_touched[rows[is_same]] = False
    is_touched[0] = False
    # Each object's counterpart is the one it has most pixels in common with, if that
    # is so for both; of equals the first in the image, since numbers mean nothing.
    order = np.lexsort((_first_pixel(old)[columns], _first_pixel(new)[rows], -counts))
    _, best_of_new = np.unique(rows[order], return_index=True)
    _, best_of_old = np.unique(columns[order], return_index=True)
    mutual = order[np.intersect1d(best_of_new, best_of_old)]
    counterpart = np.full(new_size.size, -1)
    counterpart[rows[mutual]] = columns[mutual]
    counterpart[0] = 0
    changed = counterpart[new] != old
    return changed.reshape(labels.shape), is_touched[new].reshape(labels.shape)


def _first_pixel(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return for each number where it comes first."""
    first = np.zeros(int(numbers.max(initial=0)) + 1, np.int64)
    first[numbers[::-1]] = np.arange(numbers.size)[::-1]  # the last one written stays
    return first
