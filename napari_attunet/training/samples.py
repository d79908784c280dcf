"""From images with labels to batches: crops, augmentation, targets, weights.

Every batch is a pure function of the settings and the step's number, so a resumed
training sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from napari_attunet.axes import guess_axes
from napari_attunet.channels import ChannelMixer, choose_channels
from napari_attunet.errors import DataError
from napari_attunet.intensity import measure_scaling
from napari_attunet.plan import SAMPLE_VALUES
from napari_attunet.progress import ahead
from napari_attunet.spec import ModelSpec
from napari_attunet.training.augmentation import (
    counterstain,
    intensity_transform,
    random_matrix,
    vary_stain,
)
from napari_attunet.training.settings import TrainingSettings
from napari_attunet.training.targets import object_targets
from napari_attunet.view import ImageView

__all__ = [
    "Batch",
    "CropSampler",
    "Pair",
    "check_labels",
    "data_hash",
    "mixer_for",
    "view_of",
]

#: So many of the crops hold something labelled for sure, which may be rare (Isensee et
#: al. 2021, nnU-Net, https://doi.org/10.1038/s41592-020-01008-z).
LABELLED = 1 / 3

#: From this weight a pixel's label is sure; what counts less was only guessed.
SURE = 1.0


@dataclass(frozen=True, eq=False)
class Pair:
    """An image and its labels.

    Attributes
    ----------
    image : array
        Any shape that the model takes.
    labels : array of int
        The image's shape without its channels; objects or classes as the model says.
    axes : str, optional
        Names of the image's axes, such as ``"YXC"``; guessed where missing.
    name : str
        For messages.
    weight : array of float32, optional
        How much each pixel of the labels counts; 0 where nothing is known.
    """

    image: Any
    labels: npt.NDArray[np.integer[Any]]
    axes: str | None = None
    name: str = "image"
    weight: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """One step's worth.

    Attributes
    ----------
    images : Tensor of float32, (N, C, *spatial)
    targets : Tensor of int64, (N, *spatial)
        Class of each pixel.
    weights : Tensor of float32, (N, *spatial)
    """

    images: Tensor
    targets: Tensor
    weights: Tensor


def data_hash(pairs: Sequence[Pair]) -> str:
    """Return a SHA-256 over what is learnt from, whatever its order and names."""
    digests = []
    for pair in pairs:
        digest = hashlib.sha256()
        arrays = (pair.image, pair.labels, pair.weight)
        for array in (np.asarray(a) for a in arrays if a is not None):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        digests.append(digest.hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


class CropSampler:
    """Draws augmented batches from images held in memory.

    Parameters
    ----------
    pairs : sequence of Pair
    spec : ModelSpec
        Says how pixels and labels are to be read.
    settings : TrainingSettings

    Raises
    ------
    DataError
        If there are no images, shapes differ, or labels are out of range.
    """

    def __init__(
        self, pairs: Sequence[Pair], spec: ModelSpec, settings: TrainingSettings
    ) -> None:
        if not pairs:
            raise DataError("Training needs at least one image with labels, got none.")
        self._spec = spec
        self._settings = settings
        self._frames = [f for pair in pairs for f in _frames(pair, spec)]
        if not self._frames:
            raise DataError(
                "Nothing is known of any pixel: label something to learn from."
            )
        # Rich images teach more, but not in proportion: neighbours repeat each other.
        wealth = [np.sqrt(max(1, f.count)) for f in self._frames]
        self._chance = np.asarray(wealth) / np.sum(wealth)
        self._crop = _usable_crop(settings, spec)
        self._vary = intensity_transform(settings.augmentation)

    def batch(self, step: int, part: Sequence[int] | None = None) -> Batch:
        """Return the batch of that step, or the crops of it that are asked for."""
        seed, size = self._settings.seed, self._settings.batch_size
        crops = [
            self._draw(np.random.default_rng((seed, step, i)))
            for i in (range(size) if part is None else part)
        ]
        images, targets, weights = zip(*crops, strict=True)
        return Batch(torch.stack(images), torch.stack(targets), torch.stack(weights))

    def batches(
        self, first: int, part: Sequence[int] | None = None
    ) -> Generator[Batch]:
        """Yield the batches from a step on; the next is drawn while you use one.

        Nothing else must be drawn meanwhile. The thread that draws keeps one core busy
        for a small part of the time.
        """

        def drawn() -> Iterator[Batch]:
            torch.set_num_threads(1)  # of the thread that draws
            for step in itertools.count(first):
                yield self.batch(step, part)

        with contextlib.closing(ahead(drawn())) as batches:
            for batch in batches:
                # Else threads yet to come would have one, as the last that was told.
                torch.set_num_threads(torch.get_num_threads())
                yield batch

    def _draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        frame = self._frames[rng.choice(len(self._frames), p=self._chance)]
        augmentation = self._settings.augmentation
        matrix = random_matrix(rng, self._spec.network.ndim, augmentation)
        pixels, drawn, known = _warp(frame, matrix, self._crop, rng)
        if pixels.shape[0] == 3:
            if augmentation.counterstain and rng.random() < augmentation.counterstain:
                pixels = counterstain(pixels, drawn > 0, rng)
            if augmentation.stain:
                pixels = vary_stain(pixels, rng, augmentation.stain)
        if augmentation.intensity:
            self._vary.set_random_state(int(rng.integers(2**31)))
            pixels = torch.as_tensor(np.asarray(self._vary(pixels)))
        if rng.random() < augmentation.invert:
            pixels = 1 - pixels
        target, weight = self._target(drawn)
        return (
            pixels.float(),
            torch.from_numpy(target.astype(np.int64)),
            torch.from_numpy(weight) * known,
        )

    def _target(
        self, labels: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.float32]]:
        weight = np.ones(labels.shape, np.float32)
        if self._spec.output == "classes":
            return labels, weight
        width = self._settings.boundary_width
        weight += np.float32(self._settings.contact_weight) * contacts(labels)
        objects = self._spec.objects
        classes = np.array([0, objects.interior, objects.boundary], np.uint8)
        return classes[object_targets(labels, boundary_width=width)], weight


def contacts(labels: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
    """Return the object pixels that have another object within two pixels."""
    size = (5,) * labels.ndim
    highest = ndimage.maximum_filter(labels, size)
    unlabelled = labels.max(initial=0) + 1
    lowest = ndimage.minimum_filter(np.where(labels > 0, labels, unlabelled), size)
    found: npt.NDArray[np.bool_] = (labels > 0) & (highest != lowest)
    return found


def view_of(pair: Pair, spec: ModelSpec) -> ImageView:
    """Return a pair's image as the model sees its axes."""
    ndim, channels = spec.network.ndim, spec.network.in_channels
    axes = pair.axes or guess_axes(
        tuple(pair.image.shape), ndim=ndim, in_channels=channels
    )
    return ImageView(pair.image, axes, ndim=ndim)


def mixer_for(
    pair: Pair, view: ImageView, spec: ModelSpec, sample: npt.NDArray[Any]
) -> ChannelMixer:
    """Return how a pair's channels become the model's, judged by a sample of pixels."""
    return choose_channels(
        "auto",
        n_channels=view.n_channels,
        axes=view.axes,
        spec_channels=spec.channels,
        sample=sample,
        dtype=pair.image.dtype,
    )


def check_labels(
    pair: Pair, view: ImageView, spec: ModelSpec
) -> npt.NDArray[np.integer[Any]]:
    """Return a pair's labels if they can be learnt from or compared with.

    Raises
    ------
    DataError
        If shape, type or range don't fit the image and the model.
    """
    labels = np.asarray(pair.labels)
    if labels.shape != view.label_shape:
        raise DataError(
            f"{pair.name}: labels of shape {labels.shape} don't fit an image with "
            f"axes {view.axes}; {view.label_shape} is needed."
        )
    if labels.dtype.kind not in "iub":
        raise DataError(
            f"{pair.name}: labels must be whole numbers, not {labels.dtype}."
        )
    least, most = int(labels.min()), int(labels.max())
    if least < 0:
        raise DataError(f"{pair.name}: labels must not be negative, got {least}.")
    if spec.output == "classes" and most >= spec.n_classes:
        raise DataError(
            f"{pair.name}: labels go up to {most}, but {spec.key} has classes 0 to "
            f"{spec.n_classes - 1}. If they number objects, take a model of objects, "
            "or make them 0 and 1."
        )
    return labels


def _usable_crop(settings: TrainingSettings, spec: ModelSpec) -> tuple[int, ...]:
    """Return the crop, rounded up to what the network can take."""
    network = spec.network
    if len(settings.crop) != network.ndim:
        raise DataError(
            f"The crop {settings.crop} has {len(settings.crop)} axes, but the network "
            f"{network.ndim}: give one size for each."
        )
    cells = [-(-c // d) for c, d in zip(settings.crop, network.divisor, strict=True)]
    crop = tuple(c * d for c, d in zip(cells, network.divisor, strict=True))
    pooled = math.prod(cells)
    values = {"batch": pooled * settings.batch_size, "instance": pooled}
    if network.norm and values.get(network.norm) == 1:
        raise DataError(
            f"A crop of {crop} leaves one pixel at the coarsest level, from which "
            "nothing can be normalised: take a larger crop or batch."
        )
    return crop


@dataclass(frozen=True, eq=False)
class _Frame:
    """One picture or volume of a pair, in memory.

    Attributes
    ----------
    image : array of float32, (C, *spatial)
        As the network takes it.
    drawn : array of float32, (2, *spatial)
        Numbers of objects or classes, and how much they count.
    count : int
        Objects or classes that it teaches.
    known : array of int, (n,)
        Flat indices of what is known; empty if that is everything.
    labelled : array of int, (n,)
        Flat indices of what is surely more than background.
    """

    image: npt.NDArray[np.float32]
    drawn: npt.NDArray[np.float32]
    count: int
    known: npt.NDArray[np.intp]
    labelled: npt.NDArray[np.intp]

    def one_of(
        self, indices: npt.NDArray[np.intp], rng: np.random.Generator
    ) -> npt.NDArray[np.float64]:
        """Return the centre of a random pixel of those."""
        index = indices[rng.integers(indices.size)]
        return np.asarray(np.unravel_index(index, self.drawn.shape[1:]), float) + 0.5


def _frames(pair: Pair, spec: ModelSpec) -> list[_Frame]:
    """Return every frame of a pair of which something is known."""
    ndim, view = spec.network.ndim, view_of(pair, spec)
    labels = check_labels(pair, view, spec)
    sample = view.sample(SAMPLE_VALUES // view.n_channels)
    mix = mixer_for(pair, view, spec, sample)
    scale = measure_scaling(spec.normalization, mix(sample))
    whole = tuple(slice(0, n) for n in view.spatial_shape)
    if spec.output == "objects":  # small numbers, which float32 holds exactly
        numbers, small = np.unique(labels, return_inverse=True)
        labels = small.reshape(labels.shape) + int(numbers[0] > 0)
    label_view = ImageView(labels, view.label_axes, ndim=ndim)
    weights = None
    if pair.weight is not None and not (pair.weight == 1).all():
        weights = ImageView(pair.weight, view.label_axes, ndim=ndim)
    found = []
    for frame in view.frames():
        labels = label_view.read(frame, whole)[0].astype(np.int32)
        weight, known = np.ones(labels.shape, np.float32), np.empty(0, np.intp)
        if weights is not None:
            weight = np.ascontiguousarray(weights.read(frame, whole)[0], np.float32)
            known = np.flatnonzero(weight)
            if not known.size:
                continue
        image = scale(mix(view.read(frame, whole)))
        if known.size == labels.size:
            known = known[:0]
        taught = np.bincount(labels.ravel()[known] if known.size else labels.ravel())
        found.append(
            _Frame(
                image=image,
                drawn=np.stack((labels.astype(np.float32), weight)),
                count=int(np.count_nonzero(taught[1:])),
                known=known,
                labelled=np.flatnonzero(labels * (weight >= SURE)),
            )
        )
    return found


def _warp(
    frame: _Frame,
    matrix: npt.NDArray[np.float64],
    crop: tuple[int, ...],
    rng: np.random.Generator,
) -> tuple[Tensor, npt.NDArray[np.int32], Tensor]:
    """Return a random crop under a linear map; what lies outside is mirrored in.

    Pixels (C, *crop), labels and weight (*crop).
    """
    size = np.asarray(frame.drawn.shape[1:], float)
    reach = np.abs(matrix) @ np.asarray(crop) / 2  # half the crop's box in the source
    room = np.maximum(size / 2 - reach, 0)
    shown = frame.known
    if frame.labelled.size and rng.random() < LABELLED:
        shown = frame.labelled
    if not shown.size:
        centre = size / 2 + rng.uniform(-1, 1, size.shape) * room
    else:  # such a pixel is in the crop, anywhere in it
        near = frame.one_of(shown, rng) + rng.uniform(-0.5, 0.5, size.shape) * reach
        centre = np.clip(near, size / 2 - room, size / 2 + room)
    # torch wants x first, and both grids from -1 to 1 across the pixels' outer edges.
    to_unit = (matrix * np.asarray(crop)) / size[:, None]
    shift = 2 * centre / size - 1
    theta = np.concatenate((to_unit[::-1, ::-1], shift[::-1, None]), axis=1)
    grid = F.affine_grid(
        torch.from_numpy(theta).float()[None], [1, 1, *crop], align_corners=False
    )
    source = torch.from_numpy(frame.image)[None]
    pixels = F.grid_sample(
        source, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    drawn = F.grid_sample(
        torch.from_numpy(frame.drawn)[None],
        grid,
        mode="nearest",
        padding_mode="reflection",
        align_corners=False,
    )[0]
    return pixels[0], drawn[0].numpy().astype(np.int32), drawn[1]
