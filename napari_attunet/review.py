"""Where to look next: the places where a model is most in doubt.

Two things tell of doubt. The entropy of a pixel's probabilities says how undecided the
network is. And a network should give the same answer if the image is flipped; where it
does not, it has not learnt what it sees. Both add up: the entropy of the mean answer is
the mean entropy plus the disagreement (the Jensen-Shannon divergence) of the answers.

    Lakshminarayanan et al. 2017, "Simple and scalable predictive uncertainty
    estimation using deep ensembles", https://arxiv.org/abs/1612.01474
    Wang et al. 2019, "Aleatoric uncertainty estimation with test-time augmentation
    for medical image segmentation", https://doi.org/10.1016/j.neucom.2019.01.103
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from napari_attunet.channels import ChannelChoice
from napari_attunet.progress import Steps
from napari_attunet.spec import ModelSpec

__all__ = [
    "Doubt",
    "Place",
    "disagreement",
    "doubt_of",
    "doubt_steps",
    "places_to_check",
]

Floats = npt.NDArray[np.float32]

#: Smoothed doubt below which a place is not worth a look.
LEAST_DOUBT = 0.01

#: The reason that stands beside the pairs of classes.
FLIPS = "changes when the image is flipped"


class _Described(Protocol):
    @property
    def spec(self) -> ModelSpec: ...


class _Segmenter(Protocol):
    """What is needed of `napari_attunet.segmenter.Segmenter`."""

    @property
    def model(self) -> _Described: ...

    def steps(
        self,
        image: Any,
        *,
        axes: str,
        channels: ChannelChoice,
        probabilities: bool,
        output: Literal["classes"],
    ) -> Steps[Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place worth a look.

    Attributes
    ----------
    position : tuple of float
        In pixels, one number for each axis of the labels.
    size : float
        Longest edge of the doubtful spot, in pixels.
    score : float
        Doubt there and right around, from 0 to 1.
    reason : str
        Why, for people; empty if only the doubt is known.
    """

    position: tuple[float, ...]
    size: float
    score: float
    reason: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Doubt:
    """How much a model is in doubt over an image, and between what.

    Attributes
    ----------
    values : array of float32
        From 0 to 1, with the axes of the labels.
    causes : array of uint16
        For each pixel, which of the reasons it is.
    reasons : tuple of str
    ndim : int
        Spatial dimensions of the model; axes before these are walked.
    """

    values: Floats
    causes: npt.NDArray[np.uint16]
    reasons: tuple[str, ...]
    ndim: int = 2

    def places(self, *, count: int = 20, radius: float = 16) -> tuple[Place, ...]:
        """Return the places to check, as `places_to_check` does, with their reasons."""
        found = places_to_check(self.values, count=count, radius=radius, ndim=self.ndim)
        return tuple(replace(p, reason=self._reason(p, radius)) for p in found)

    def _reason(self, place: Place, radius: float) -> str:
        """Return the reason for most of the doubt around a place."""
        around = _window(place.position, radius, self.ndim, self.values.shape)
        doubt = np.bincount(
            self.causes[around].ravel(),
            self.values[around].ravel(),
            len(self.reasons),
        )
        return self.reasons[int(doubt.argmax())]


def doubt_of(probabilities: npt.NDArray[Any]) -> Floats:
    """Return the entropy of probabilities, from 0 (sure) to 1 (all classes alike).

    Parameters
    ----------
    probabilities : (K, ...) array
        Of each class, the classes first.
    """
    k = len(probabilities)
    if k < 2:
        raise ValueError(f"Probabilities of at least two classes are needed, got {k}.")
    entropy = np.zeros(probabilities.shape[1:], np.float32)
    for p in probabilities:  # one class at a time needs less memory
        p = np.asarray(p, np.float32)
        entropy -= p * np.log(np.maximum(p, np.finfo(np.float32).tiny))
    doubt: Floats = np.clip(entropy / np.float32(math.log(k)), 0, 1)
    return doubt


def disagreement(answers: Sequence[npt.NDArray[Any]]) -> Floats:
    """Return how much several answers differ, from 0 (not at all) to 1.

    This is their Jensen-Shannon divergence in units of the largest entropy, so that
    the doubt of the mean answer is the mean doubt plus this.

    Parameters
    ----------
    answers : sequence of (K, ...) array
        Probabilities of the same pixels.
    """
    together = _Together(len(answers))
    for answer in answers:
        together.add(answer)
    found: Floats = np.maximum(doubt_of(together.mean) - together.doubt, 0)
    return found


class _Together:
    """Adds up answers, so that no two of them need to be in memory.

    Attributes
    ----------
    mean : array of float32
        Their mean, classes first.
    doubt : array of float32
        Their mean doubt.
    """

    def __init__(self, count: int) -> None:
        self._share = np.float32(1 / count)
        self.mean: Floats = np.zeros((), np.float32)
        self.doubt: Floats = np.zeros((), np.float32)

    def add(self, answer: npt.NDArray[Any]) -> None:
        self.mean = self.mean + self._share * np.asarray(answer, np.float32)
        self.doubt = self.doubt + self._share * doubt_of(answer)


def doubt_steps(
    segmenter: _Segmenter,
    image: Any,
    *,
    axes: str,
    channels: ChannelChoice = "auto",
    flips: bool = True,
) -> Steps[Doubt]:
    """Find out where a model is in doubt, step by step.

    Parameters
    ----------
    segmenter : Segmenter
    image : array
        NumPy, Dask or Zarr; it is read once and held in memory.
    axes : str
        Names of its axes, as the segmenter takes them.
    channels
        As the segmenter takes them.
    flips : bool
        Also segment the image upside down and mirrored, which takes three times as
        long and finds what the network is wrongly sure of.

    Returns
    -------
    generator
        Yields `Progress`, returns `Doubt`.

    Raises
    ------
    DataError, DeviceError
        As the segmenter does.
    """
    spec = segmenter.model.spec
    image = np.asarray(image)
    ways: tuple[str, ...] = ("", "Y", "X") if flips else ("",)
    together = _Together(len(ways))
    for number, way in enumerate(ways):
        steps = segmenter.steps(
            np.flip(image, axes.index(way)) if way else image,
            axes=axes,
            channels=channels,
            probabilities=True,
            output="classes",  # quick to find, and not looked at
        )
        found = yield from _one_of(steps, number, len(ways))
        answer = found.probabilities
        if way:
            answer = np.flip(answer, 1 + found.axes.index(way))
        together.add(answer)
    total = doubt_of(together.mean)
    reasons = [f"{a} or {b}" for a, b in combinations(spec.classes, 2)]
    causes = _pair_of(together.mean)
    if flips:
        causes[total > 2 * together.doubt] = len(reasons)
        reasons.append(FLIPS)
    return Doubt(
        values=total,
        causes=causes,
        reasons=tuple(reasons),
        ndim=spec.network.ndim,
    )


def _one_of(steps: Steps[Any], number: int, count: int) -> Steps[Any]:
    """Tell of steps as a part of several ones that take equally long."""
    try:
        while True:
            now = next(steps)
            done = number * now.total + now.done
            yield replace(now, done=done, total=count * now.total)
    except StopIteration as end:
        return end.value
    finally:
        steps.close()


def _pair_of(probabilities: Floats) -> npt.NDArray[np.uint16]:
    """Return which pair of classes is the most probable, as `combinations` counts."""
    k = len(probabilities)
    number = np.zeros((k, k), np.uint16)
    for index, (a, b) in enumerate(combinations(range(k), 2)):
        number[a, b] = number[b, a] = index
    best = probabilities.argmax(0)
    rest = np.array(probabilities)
    np.put_along_axis(rest, best[None], -1, 0)
    pairs: npt.NDArray[np.uint16] = number[best, rest.argmax(0)]
    return pairs


def places_to_check(
    doubt: npt.NDArray[Any], *, count: int = 20, radius: float = 16, ndim: int = 2
) -> tuple[Place, ...]:
    """Return the most doubtful places, the worst first.

    A place is where the doubt, smoothed over about its surroundings, is highest; in
    one frame no two are within `radius` of each other.

    Parameters
    ----------
    doubt : array
        From 0 to 1, with the axes of the labels.
    count : int
        How many places at most.
    radius : float
        Of the surroundings, in pixels.
    ndim : int
        How many of the last axes are space; along the others each frame is for
        itself.
    """
    leading = max(0, doubt.ndim - ndim)
    found: list[Place] = []
    for frame in np.ndindex(doubt.shape[:leading]):
        smooth = ndimage.gaussian_filter(
            np.asarray(doubt[frame], np.float32), radius / 2
        )
        found += _peaks(smooth, frame, count, radius)
    found.sort(key=lambda place: (-place.score, place.position))
    return tuple(found[:count])


def _peaks(
    smooth: Floats, frame: tuple[int, ...], count: int, radius: float
) -> Iterator[Place]:
    """Take the highest peak, then the highest that is not near it, and so on."""
    peaks = (smooth == ndimage.maximum_filter(smooth, 3)) & (smooth >= LEAST_DOUBT)
    where = np.argwhere(peaks)
    height = smooth[peaks]
    for _ in range(count):
        if not len(where):
            return
        top = height.argmax()
        position = where[top]
        yield Place(
            position=(*map(float, frame), *map(float, position)),
            size=_size(smooth, position, radius),
            score=min(1.0, float(height[top])),
        )
        far = ((where - position) ** 2).sum(1) > radius**2
        where, height = where[far], height[far]


def _size(smooth: Floats, position: npt.NDArray[np.intp], radius: float) -> float:
    """Return the longest edge of what is at least half as high around a peak."""
    around = _window(position, 2 * radius, smooth.ndim, smooth.shape)
    high = smooth[around] >= smooth[tuple(position)] / 2
    spots, _ = ndimage.label(high)
    own = spots[tuple(p - s.start for p, s in zip(position, around, strict=True))]
    box = ndimage.find_objects(spots)[own - 1]
    return float(max(edge.stop - edge.start for edge in box))


def _window(
    position: Sequence[float] | npt.NDArray[Any],
    reach: float,
    ndim: int,
    shape: tuple[int, ...],
) -> tuple[slice, ...]:
    """Return the box around a position, in its own frame and within the array."""
    leading = len(shape) - ndim
    box = []
    for axis, (at, size) in enumerate(zip(position, shape, strict=True)):
        margin = 0 if axis < leading else math.ceil(reach)
        box.append(slice(max(0, int(at) - margin), min(size, int(at) + margin + 1)))
    return tuple(box)
