"""Fine-tuning: a model goes some of the way to where a few images lead it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from napari_attunet.model import Model
from napari_attunet.progress import Progress, Steps, drain
from napari_attunet.spec import ModelSpec
from napari_attunet.training.samples import Pair
from napari_attunet.training.settings import RoundSettings, TrainingSettings
from napari_attunet.training.trainer import train
from napari_attunet.training.transfer import (
    adapted_spec,
    best_adapted,
    blend,
    with_classes,
)

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["SHARE", "SHARE_OF_FEW", "fine_tune", "tuning_steps"]

T = TypeVar("T")

#: How far a model that knows such images goes from its start to where training led it;
#: and where so few pixels are known that it would learn them by heart.
SHARE, SHARE_OF_FEW = 0.75, 0.4


def fine_tune(
    model: Model,
    pairs: Sequence[tuple[Any, npt.NDArray[Any]] | Pair],
    *,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Model:
    """Return a new model that learnt from images with labels.

    As a quick round of learning does it, but without comparing old and new.

    Parameters
    ----------
    model : Model
        Left as it is. Grey models learn colour where the images have it.
    pairs : sequence of (image, labels) or Pair
        Labels have the image's shape without its channels: objects or classes, as the
        model tells them. With `Pair`, axes can be named and pixels weighed.
    steps : int, optional
        Of the optimiser; by default those of a quick round.
    seed : int
    device : str
        As in `Segmenter`.

    Returns
    -------
    Model
        Its ``spec.parent`` is the given one. A model of classes has more of them, if
        labels have.

    Raises
    ------
    DataError
        If images and labels don't fit each other or the model.

    Examples
    --------
    >>> better = fine_tune(model, [(image, labels)])  # doctest: +SKIP
    >>> save_model(better, "better.safetensors")  # doctest: +SKIP
    """
    data = [p if isinstance(p, Pair) else Pair(*p) for p in pairs]
    labels = [np.asarray(pair.labels) for pair in data]
    whole = [array for array in labels if array.dtype.kind in "iu"]
    spec = dataclasses.replace(
        with_classes(adapted_spec(model.spec, data), whole),
        parent=model.spec.key,
        version=model.spec.version + 1,
    )
    plan = RoundSettings(steps=steps, seed=seed).training(spec.network.ndim)
    return drain(tuning_steps(model, spec, data, [], plan, share=SHARE, device=device))


def tuning_steps(
    model: Model,
    spec: ModelSpec,
    pairs: Sequence[Pair],
    validation: Sequence[Pair],
    settings: TrainingSettings,
    *,
    share: float,
    device: str = "auto",
    thread_count: int | None = None,
    checkpoint: Path | None = None,
    preview: Callable[[Model], object] | None = None,
    revise: Callable[[Model], Steps[Sequence[Pair]]] | None = None,
) -> Steps[Model]:
    """Fine-tune step by step; parameters as in `best_adapted` and `train`.

    The result lies that ``share`` of the way from the model to where training led it,
    and so does what is shown and asked on the way.
    """
    yield Progress(0, settings.steps, "Preparing")
    start = best_adapted(model, spec, pairs, settings)
    # Nor are classes that begin at random anything to keep some of.
    same = (spec.output, spec.n_classes) == (model.spec.output, model.spec.n_classes)
    share = share if same else 1.0

    def so_far(ask: Callable[[Model], T]) -> Callable[[Model], T]:
        return lambda trained: ask(blend(start, trained, share))

    trained = yield from train(
        start,
        pairs,
        validation,
        settings,
        device=device,
        thread_count=thread_count,
        checkpoint=checkpoint,
        preview=so_far(preview) if preview else None,
        revise=so_far(revise) if revise else None,
    )
    return blend(start, trained, share)
