"""How good a model is on labelled images, and the one number that ranks models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from napari_attunet import evaluation
from napari_attunet.axes import frame_axes
from napari_attunet.frames import number_objects
from napari_attunet.model import Model
from napari_attunet.progress import Progress, Steps, drain
from napari_attunet.segmenter import Segmenter
from napari_attunet.training.samples import Pair, view_of

__all__ = ["merit_of", "validate", "validation_steps"]

#: Pixels around what is validated that the network gets to see.
CONTEXT = 48


def validate(
    model: Model,
    pairs: Sequence[Pair],
    *,
    device: str = "auto",
    threads: int | None = None,
) -> dict[str, float]:
    """Return the scores of a model on labelled images; see `validation_steps`."""
    return drain(validation_steps(model, pairs, device=device, threads=threads))


def validation_steps(
    model: Model,
    pairs: Sequence[Pair],
    *,
    device: str = "auto",
    threads: int | None = None,
) -> Steps[dict[str, float]]:
    """Score a model on labelled images, where their weight is above 0.

    ``dice`` for classes is the mean over foreground classes that occur; objects have
    ``dice`` of the foreground, ``ap50`` (mean over images), ``ap50_pooled`` and
    ``ap70``. Of an image of which little counts only that part is segmented.

    Where an object begins and ends is known if all of it counts, as of one that was
    painted. What is found of it is then compared in full, wherever it reaches: else
    who finds too much would be right nearly everywhere, since of what was painted
    there is hardly any background. Ends of other objects that reach in from where
    nothing counts are right or wrong as pixels, but no objects.
    """
    # What weights are chosen by is the same on every device.
    segmenter = Segmenter(model, device=device, threads=threads, precision="exact")
    results: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
    objects: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
    for number, pair in enumerate(pairs):
        region = _region_of(pair)
        steps = segmenter.steps(pair.image, axes=pair.axes, region=region)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                found = end.value.labels
                break
            yield Progress(number, len(pairs), f"Validating {pair.name}")
        part = (...,) if region is None else tuple(region)
        truth = np.asarray(pair.labels)[part]
        if model.spec.output == "objects":  # they end where their frame does
            axes = view_of(pair, model.spec).label_axes
            truth = number_objects(truth, frame_axes(axes, model.spec.network.ndim))
        if pair.weight is None:
            results.append((found, truth))
            objects.append((found, truth))
            continue
        counts = pair.weight[part] > 0
        if model.spec.output == "objects":
            told, whole = truth * counts, found
            found = found * (counts | _found_of_known(found, truth, counts))
            objects.append((_without_ends(found, whole, told), told))
        else:
            found = found * counts
        results.append((found, truth * counts))
    if model.spec.output == "classes":
        return {"dice": _mean_class_dice(results)}
    scores = evaluation.score(objects)
    return {
        "dice": float(np.mean([evaluation.dice(*result) for result in results])),
        "ap50": scores.ap50,
        "ap50_pooled": scores.ap50_pooled,
        "ap70": scores.ap70,
    }


def _region_of(pair: Pair) -> list[slice] | None:
    """Return the box around all that counts, with some context; None if it is all."""
    if pair.weight is None or not (pair.weight == 0).any():
        return None
    boxes = ndimage.find_objects((pair.weight > 0).astype(np.int8))
    if not boxes:
        return None
    # Walked axes get context too, which costs little where it is anything.
    axes = pair.axes or "TZYX"[-pair.weight.ndim :]
    reach = [CONTEXT if a in "YX" else 0 for a in axes.replace("C", "")]
    return [
        slice(max(0, b.start - r), min(n, b.stop + r))
        for b, r, n in zip(boxes[0], reach, pair.weight.shape, strict=True)
    ]


def _found_of_known(
    found: npt.NDArray[Any], truth: npt.NDArray[Any], counts: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Return where there are found objects that hold half of one that is known in full.

    Parameters
    ----------
    found, truth : array of int
        Found and labelled objects.
    counts : array of bool
        Where labels count.
    """
    sizes = np.bincount(truth.ravel())
    known = sizes == np.bincount(truth[counts], minlength=len(sizes))
    known[0] = False
    both = known[truth] & (found > 0)
    names = np.stack((truth[both], found[both]))
    (of, by), common = np.unique(names, axis=1, return_counts=True)
    held = np.zeros(int(found.max(initial=0)) + 1, bool)
    held[by[2 * common >= sizes[of]]] = True
    where: npt.NDArray[np.bool_] = held[found]
    return where


def _without_ends(
    found: npt.NDArray[Any], whole: npt.NDArray[Any], truth: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Return found objects without those that lie mostly where nothing counts.

    Unless they touch one that is labelled, they may well be right.

    Parameters
    ----------
    found, truth : array of int
        Found and true objects that are compared, 0 elsewhere.
    whole : array of int
        Found objects in full.
    """
    sizes = np.bincount(whole.ravel())
    within = np.bincount(found.ravel(), minlength=len(sizes))
    ends = 2 * within < sizes
    ends[np.unique(found[truth > 0])] = False
    kept: npt.NDArray[Any] = np.where(ends[found], 0, found)
    return kept


def _mean_class_dice(
    results: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]],
) -> float:
    """Return the mean over images and foreground classes that are there or found.

    Among them those that a model does not know.
    """
    tops = (int(labels.max(initial=1)) for pair in results for labels in pair)
    count = 1 + max(tops, default=1)
    values = [
        dice
        for found, truth in results
        for c, dice in enumerate(evaluation.class_dice(found, truth, count))
        if c > 0 and ((found == c).any() or (truth == c).any())
    ]
    return float(np.mean(values)) if values else 1.0


def merit_of(scores: dict[str, float]) -> float:
    """Return the one number that the best weights are chosen by."""
    names = ("dice", "ap50", "ap50_pooled")
    return float(np.mean([scores[n] for n in names if n in scores]))
