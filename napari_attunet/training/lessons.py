"""What a round learns from: samples in use, and a specification that suits them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_attunet.architecture import FEATURES
from napari_attunet.axes import frame_axes
from napari_attunet.corrections import (
    FEW_PIXELS,
    Correction,
    Sample,
    TrainingSet,
    Truth,
    grow,
)
from napari_attunet.errors import DataError
from napari_attunet.frames import number_objects
from napari_attunet.model import Model
from napari_attunet.progress import Progress, Steps
from napari_attunet.segmenter import Segmenter
from napari_attunet.spec import ModelSpec, NetworkSpec, Normalization
from napari_attunet.training.samples import Pair, mixer_for, view_of
from napari_attunet.training.settings import RoundSettings
from napari_attunet.training.transfer import adapted_spec, with_classes

__all__ = [
    "OWN_TRUST",
    "Lessons",
    "anchored",
    "fresh_spec",
    "read_lessons",
    "spec_for",
]

#: Fewer objects, or pixels of classes, make no meaningful number.
MEANINGFUL_OBJECTS, MEANINGFUL_PIXELS = 20, 20_000

#: How much it counts what a model is sure of where nobody has said anything: that there
#: is background, of which painted objects bring hardly any, and what else there is. Of
#: the parent; and of what it has become halfway, which has seen how the painted objects
#: end. And how probable it must find that.
PARENTS_TRUST, OWN_TRUST, SURE = (0.3, 0.1), (0.5, 0.5), 0.9

#: Pixels around a painted object that are background too where the parent says so: the
#: ring that is certain is thinner than what a network mistakes for the edge. Together
#: they weigh so many times what painted objects do, about as in a whole image, but each
#: pixel within limits: of few objects it is where they end that has to be learned.
REACH, AROUND, LIMITS = 9, 2.5, (1.0, 6.0)

#: How far up from the darkest to the brightest the middle of a bright-field image lies
#: at least, and by how many pixels that is judged.
BRIGHT, PIXELS = 0.75, 100_000


@dataclass(frozen=True, eq=False)
class Lessons:
    """What a round learns from and judges by.

    Attributes
    ----------
    learn, validation, everything : list of Pair
        To learn from; held out; and all that was corrected.
    accepted : list of Pair
        The images with all their labels, those of a prediction included that the user
        left standing: strokes alone are where a model was wrong, and would tell that
        it knows nothing. The same objects as in ``everything`` where that is no other.
    told : list of array of bool
        For each pair to learn from, where somebody has said something, be it held out.
    unknown : list of array of bool
        For each pair to learn from, where nobody has; never what is held out.
    near : list of array of bool
        For each pair to learn from, where it is near to painted objects.
    output : {"objects", "classes"}
    ndim : int
        Spatial dimensions of the network.
    classes : int
        So many numbers the labels of classes need, background included.
    trusted : bool
        Whether enough is held out for a meaningful number.
    few : bool
        Whether there is only little to learn from.
    """

    learn: list[Pair]
    told: list[npt.NDArray[np.bool_]]
    unknown: list[npt.NDArray[np.bool_]]
    near: list[npt.NDArray[np.bool_]]
    validation: list[Pair]
    everything: list[Pair]
    accepted: list[Pair]
    output: str
    ndim: int
    classes: int
    trusted: bool
    few: bool


def read_lessons(training_set: TrainingSet, settings: RoundSettings) -> Lessons:
    """Return the samples in use as pairs: to learn from, held out, and both."""
    samples = [s for s in training_set.samples() if s.used]
    if not samples:
        raise DataError(
            "The training set is empty: add an image with its corrected labels first."
        )
    output = _the_one(samples, "output", "show", settings.output)
    ndim = _the_one(samples, "ndim", "are for networks of dimensions", None)
    learn: list[Pair] = []
    told: list[npt.NDArray[np.bool_]] = []
    unknown: list[npt.NDArray[np.bool_]] = []
    near: list[npt.NDArray[np.bool_]] = []
    validation: list[Pair] = []
    everything: list[Pair] = []
    accepted: list[Pair] = []
    top = held_pixels = held_objects = learnt_pixels = 0
    for sample in samples:
        correction = training_set.read(sample)
        truth = correction.truth()
        held = sample.validation_mask()
        top = max(top, int(truth.labels.max(initial=0)))

        def pair(weight: Any, correction: Any = correction, truth: Any = truth) -> Pair:
            return Pair(
                np.asarray(correction.image),
                truth.labels,
                correction.axes,
                correction.name,
                np.asarray(weight, np.float32),
            )

        known = truth.weight > 0
        held_pixels += int(np.count_nonzero(known & held))
        if (known & held).any():
            within = frame_axes(sample.label_axes, ndim)
            numbers = number_objects(truth.labels, within)
            held_objects += int(np.count_nonzero(np.unique(numbers[known & held])))
        free = sample.training_mask()
        learnt_pixels += int(np.count_nonzero(known & free))
        for pairs, weight in (
            (learn, truth.weight * free),
            (validation, known & held),
            (everything, known),
        ):
            if weight.any():
                pairs.append(pair(weight))
                if pairs is learn:
                    told.append(known)
                    unknown.append(~known & free)
                    near.append(_surroundings(correction, truth, sample))
        if correction.extent == "painted" and correction.prediction is not None:
            labels = np.asarray(correction.labels, np.int32)
            brush = correction.background
            seen = np.ones(labels.shape)
            accepted.append(
                dataclasses.replace(pair(seen), labels=labels * (labels != brush))
            )
        elif known.any():
            accepted.append(everything[-1])
    if not learn:
        raise DataError(
            "All of the training set is held out for validation: add another image."
        )
    return Lessons(
        learn,
        told,
        unknown,
        near,
        validation,
        everything,
        accepted,
        output,
        ndim,
        top + 1,
        held_pixels >= MEANINGFUL_PIXELS
        if output == "classes"
        else held_objects >= MEANINGFUL_OBJECTS,
        learnt_pixels < FEW_PIXELS,
    )


def _the_one(samples: Sequence[Sample], field: str, verb: str, wanted: Any) -> Any:
    """Return what all samples agree in."""
    values = {getattr(s, field) for s in samples}
    if len(values) == 1 and wanted is not None and {wanted} != values:
        raise DataError(
            f"The samples in use {verb} {min(values)}, but {wanted} were asked for: "
            "choose what the samples are, or other samples."
        )
    if len(values) > 1:
        kinds = "; ".join(
            f"{', '.join(s.name for s in samples if getattr(s, field) == v)}: {v}"
            for v in sorted(values, key=str)
        )
        raise DataError(
            f"The samples in use {verb} different things ({kinds}): switch some of "
            "them off, and train on one kind at a time."
        )
    return values.pop()


def spec_for(old: Model | None, lessons: Lessons, settings: RoundSettings) -> ModelSpec:
    """Return what is built: like the parent, for these channels and classes."""
    objects = lessons.output == "objects"
    if old is not None and settings.network is None:
        spec = dataclasses.replace(old.spec, parent=old.spec.key, training={})
    else:
        network = settings.network or NetworkSpec(
            ndim=3 if lessons.ndim == 3 else 2, features=FEATURES
        )
        spec = ModelSpec(
            name=settings.name or (old.spec.name if old else "my-model"),
            parent=old.spec.key if old else None,
            network=dataclasses.replace(network, in_channels=1, out_channels=3),
            channels=("grey",),
            classes=("background", "interior", "boundary"),
            output="objects",
        )
    if spec.network.ndim != lessons.ndim:
        raise DataError(
            f"The samples are for {lessons.ndim}D networks, but {spec.name} has "
            f"{spec.network.ndim} dimensions: choose another model to start from."
        )
    if objects != (spec.output == "objects"):
        count = 3 if objects else max(2, lessons.classes)
        spec = dataclasses.replace(
            spec,
            network=dataclasses.replace(spec.network, out_channels=count),
            classes=("background", "interior", "boundary") if objects else (),
            colors=(),
            output=lessons.output,  # type: ignore[arg-type]
        )
    # Also classes that are in what is held out alone.
    numbers = [np.arange(lessons.classes)]
    return adapted_spec(with_classes(spec, numbers), lessons.learn)


def fresh_spec(spec: ModelSpec, lessons: Lessons) -> ModelSpec:
    """Return what suits images that no parent knows: its habits bind nobody.

    Bright-field images are taken as the light that passed.
    """
    if not all(_is_bright_field(pair, spec) for pair in lessons.learn):
        return spec
    kind = Normalization(kind="transmission", high=spec.normalization.high)
    return dataclasses.replace(spec, normalization=kind)


def _is_bright_field(pair: Pair, spec: ModelSpec) -> bool:
    """Return whether most of an image is nearly as bright as its brightest."""
    view = view_of(pair, spec)
    sample = view.sample(PIXELS)
    values = mixer_for(pair, view, spec, sample)(sample)
    low, middle, high = np.nanpercentile(values, (1, 50, 99.8), axis=1)
    return bool((low >= 0).all() and (middle - low > BRIGHT * (high - low)).all())


def anchored(
    lessons: Lessons,
    model: Model,
    device: str,
    thread_count: int | None,
    trust: tuple[float, float] = PARENTS_TRUST,
) -> Steps[list[Pair]]:
    """Let what a model says count a little where nobody has said anything.

    It is no truth; but where few objects were painted, what was known of the others
    would be forgotten. Objects that the user knows better are left out. Around those
    that were painted, what it takes for background counts in full.

    To learn from what a model, half taught, says of the same images is self-training:

        Xie et al. 2020, "Self-training with Noisy Student improves ImageNet
        classification", https://arxiv.org/abs/1911.04252

    Parameters
    ----------
    lessons : Lessons
        Without any model's opinion.
    model : Model
        The parent, or what it has become.
    device, thread_count
        As in `Segmenter`.
    trust : tuple of float
        How much it counts where it says background, and where it says something else.
    """
    segmenter = Segmenter(model, device=device, threads=thread_count, precision="exact")
    found = []
    for pair, told, unknown, near in zip(
        lessons.learn, lessons.told, lessons.unknown, lessons.near, strict=True
    ):
        if pair.weight is None or not unknown.any():
            found.append(pair)
            continue
        steps = segmenter.steps(pair.image, axes=pair.axes, probabilities=True)
        try:
            while True:
                progress = next(steps)
                yield Progress(0, 0, progress.message)
        except StopIteration as end:
            said, probabilities = end.value.labels, end.value.probabilities
        known = pair.weight > 0
        near = near & (known | (unknown & (said == 0)))
        inside = int(np.count_nonzero(known & (pair.labels > 0)))
        around = AROUND * inside / max(1, int(np.count_nonzero(near)))
        output = model.spec.output
        sure = _probability(said, probabilities, output) > SURE
        silent = ~told
        if output == "objects":
            better = np.unique(said[told])
            silent &= ~np.isin(said, better[better > 0])
            said = np.where(said > 0, said + pair.labels.max(), 0)
        background, something = trust
        opinion = np.where(said > 0, np.float32(something), np.float32(background))
        weight = np.where(unknown & silent & sure, opinion, pair.weight)
        weight[near] = np.maximum(weight[near], np.float32(np.clip(around, *LIMITS)))
        # Objects are whole, though only what is sure of them counts: cut down to that,
        # they would end too early, and the network would learn to end them there.
        labels = np.where(silent, said, pair.labels).astype(np.int32)
        found.append(dataclasses.replace(pair, labels=labels, weight=weight))
    return found


def _surroundings(
    correction: Correction, truth: Truth, sample: Sample
) -> npt.NDArray[np.bool_]:
    """Return where it is near to painted objects, and nothing else is labelled."""
    if (correction.extent, correction.output) != ("painted", "objects"):
        return np.zeros(sample.shape, bool)
    painted = (truth.labels > 0) & (truth.weight > 0)
    axes = frame_axes(sample.label_axes, sample.ndim)
    found: npt.NDArray[np.bool_] = grow(painted, REACH, axes) & (truth.labels == 0)
    return found


def _probability(
    said: npt.NDArray[Any], probabilities: npt.NDArray[Any], output: str
) -> npt.NDArray[Any]:
    """Return how probable what a model said was to it, (*labels.shape)."""
    found: npt.NDArray[Any]
    if output == "objects":  # those that were left out as too small were not said
        found = np.where(said > 0, 1 - probabilities[0], probabilities[0])
    else:
        found = np.take_along_axis(probabilities, said[None], axis=0)[0]
    return found
