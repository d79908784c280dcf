"""How good a model is on labelled images, and the one number that ranks models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from napari_attunet import evaluation
from napari_attunet.model import Model
from napari_attunet.progress import Progress, Steps, drain
from napari_attunet.segmenter import Segmenter
from napari_attunet.training.samples import Pair

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
    """
    # What weights are chosen by is the same on every device.
    segmenter = Segmenter(model, device=device, threads=threads, precision="exact")
    results = []
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
        truth = np.asarray(pair.labels)
        if pair.weight is not None:
            part = (...,) if region is None else tuple(region)
            counts = pair.weight[part] > 0
            found, truth = found * counts, truth[part] * counts
        results.append((found, truth))
    if model.spec.output == "classes":
        return {"dice": _mean_class_dice(results, model.spec.n_classes)}
    scores = evaluation.score(results)
    return {
        "dice": scores.dice,
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


def _mean_class_dice(
    results: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]], n_classes: int
) -> float:
    """Return the mean over images and foreground classes that are there or found."""
    values = [
        dice
        for found, truth in results
        for c, dice in enumerate(evaluation.class_dice(found, truth, n_classes))
        if c > 0 and ((found == c).any() or (truth == c).any())
    ]
    return float(np.mean(values)) if values else 1.0


def merit_of(scores: dict[str, float]) -> float:
    """Return the one number that the best weights are chosen by."""
    names = ("dice", "ap50", "ap50_pooled")
    return float(np.mean([scores[n] for n in names if n in scores]))
