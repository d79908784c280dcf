"""What a run is decided to be: input, halo, tile size, kind of labels."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_attunet.axes import guess_axes
from napari_attunet.canvas import ClassLabeller, Labeller, ObjectLabeller
from napari_attunet.channels import ChannelChoice, ChannelMixer, choose_channels
from napari_attunet.errors import DataError
from napari_attunet.intensity import Scaling, measure_scaling
from napari_attunet.receptive import cuts_in_strips, decoded
from napari_attunet.spec import ModelSpec, NetworkSpec, ObjectSettings
from napari_attunet.view import ImageView

__all__ = [
    "Prepared",
    "Window",
    "activation_bytes",
    "choose_labeller",
    "default_halo",
    "default_tile",
    "per_axis",
    "pixels_together",
    "prepare",
]

#: What normalisation is measured on.
SAMPLE_VALUES = 4_000_000

#: What a tile's activations may take wherever there is so much memory.
ACTIVATION_BYTES = 448 * 2**20

#: Edge of a tile, in halos, by spatial dimensions: above it larger tiles save little
#: work any more; below it the halo soon costs more than the image.
WIDE = {2: 12, 3: 4}

#: Tensors of the finest level that are alive at the same time: of all that is read, as
#: the encoder makes them, and of what is decoded of it.
LIVE = (3.0, 6.0)

#: The same where the finest levels are worked on in strips.
LIVE_IN_STRIPS = (3.1, 3.4)

#: Halo in 3D, in pixels of the finest level: an exact one would multiply the work by
#: more than ten. See docs/tiling.md for the error.
HALO_3D = 32

#: Pixels of small tiles that are worked on together, where there is room: with more,
#: nothing is gained.
TOGETHER = 512 * 512

#: No tile is made smaller than this by the retreat from a full memory.
SMALLEST_TILE = 32


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image that is ready to enter a network, part by part.

    Attributes
    ----------
    view : ImageView
    mix : ChannelMixer
    scale : Scaling
    """

    view: ImageView
    mix: ChannelMixer
    scale: Scaling

    def read(
        self, frame: Sequence[int], start: Sequence[int], stop: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Return what the network sees of a part, (channels, *spatial).

        It is mirrored where it reaches beyond the image.
        """
        pixels = self.view.read_reflected(frame, start, stop)
        return self.scale(self.mix(pixels))


def prepare(
    spec: ModelSpec,
    image: Any,
    *,
    axes: str | None = None,
    rgb: bool = False,
    region: Sequence[slice] | None = None,
    channels: ChannelChoice = "auto",
) -> Prepared:
    """Decide how an image enters a model; arguments as of `Segmenter.steps`.

    Raises
    ------
    DataError
        If the image cannot be used.
    """
    if not (hasattr(image, "shape") and hasattr(image, "dtype")):
        what = "one of its arrays" if hasattr(image, "keys") else "numpy.asarray of it"
        raise DataError(
            "An image is an array of NumPy, Dask, Zarr or the like; this is a "
            f"{type(image).__name__}. Give {what}."
        )
    network = spec.network
    axes = axes or guess_axes(
        tuple(image.shape),
        ndim=network.ndim,
        in_channels=network.in_channels,
        rgb=rgb,
    )
    view = ImageView(image, axes, ndim=network.ndim)
    if region is not None:
        view = Window(view, region)
    sample = view.sample(SAMPLE_VALUES // view.n_channels)
    mix = choose_channels(
        channels,
        n_channels=view.n_channels,
        axes=view.axes,
        spec_channels=spec.channels,
        sample=sample,
        dtype=np.dtype(image.dtype),
    )
    return Prepared(view, mix, measure_scaling(spec.normalization, mix(sample)))


def default_halo(network: NetworkSpec) -> tuple[int, ...]:
    """Return the margin read around each tile, in pixels of each spatial axis.

    In 2D all that an output depends on, so that tiles give the whole image's result.
    In 3D at most `HALO_3D`, rounded up to the network's grid: not exact.
    """
    if network.ndim == 2:
        return network.halo
    return tuple(
        min(halo, -(-HALO_3D // d) * d)
        for halo, d in zip(network.halo, network.divisor, strict=True)
    )


def activation_bytes(
    network: NetworkSpec, halo: Sequence[int], free: int, *, strips: bool = True
) -> int:
    """Return what a tile's activations may take.

    Wide networks get more than `ACTIVATION_BYTES`, up to a quarter of what is free,
    for their tiles would else be mostly halo. What is free is rounded down to a power
    of two, so that the same machine takes the same tiles most of the time.

    Parameters
    ----------
    network : NetworkSpec
    halo : sequence of int
        Around each tile, in pixels of each spatial axis.
    free : int
        Bytes of memory.
    strips : bool
        Whether the device works on the finest levels in strips, where it can.
    """
    free = 1 << max(0, int(free).bit_length() - 1)
    edge = WIDE[network.ndim]
    tile, read = [edge * h for h in halo], [(edge + 2) * h for h in halo]
    wide = _bytes_of(tile, read, network, strips)
    return min(free // 2, max(ACTIVATION_BYTES, min(int(wide), free // 4)))


def _bytes_of(
    tile: Sequence[int], read: Sequence[int], network: NetworkSpec, strips: bool
) -> float:
    """Return what the activations take at most, of a tile of which so much is read."""
    joined = read
    if network.is_local:
        needs = [decoded(network, a, (0, t - 1))[1] for a, t in enumerate(tile)]
        joined = [
            min((last + 1 - first) * stride, n)
            for (first, last), stride, n in zip(
                needs, network.strides[0], read, strict=True
            )
        ]
    of_read, of_tile = LIVE
    if strips and cuts_in_strips(network, "encoder", 0, read[0]):
        of_read = LIVE_IN_STRIPS[0]
    if strips and cuts_in_strips(network, "decoder", 0, tile[0]):
        of_tile = LIVE_IN_STRIPS[1]
    values = max(of_read * math.prod(read), of_tile * math.prod(joined))
    return 4 * network.features[0] * values


def default_tile(
    network: NetworkSpec,
    shape: Sequence[int],
    halo: Sequence[int],
    room: int,
    *,
    strips: bool = True,
) -> tuple[int, ...]:
    """Return the largest tile whose activations find room, evenly cut.

    Parameters
    ----------
    network : NetworkSpec
    shape, halo : sequence of int
        Of the image and around each tile, in pixels of each spatial axis.
    room : int
        Bytes, as of `activation_bytes`.
    strips : bool
        As there.
    """
    padded = [-(-n // d) * d for n, d in zip(shape, network.divisor, strict=True)]
    # The longest axes are cut first, until what is read around a tile fits.
    parts = [1] * network.ndim
    while True:
        tile = [
            -(-n // (p * d)) * d
            for n, p, d in zip(padded, parts, network.divisor, strict=True)
        ]
        read = [  # where there are two parts, each has a halo on one side only
            min(t + min(p - 1, 2) * h, n)
            for t, p, h, n in zip(tile, parts, halo, padded, strict=True)
        ]
        if _bytes_of(tile, read, network, strips) <= room:
            return tuple(tile)
        # Smaller than its halo, a tile saves hardly any memory and costs a lot.
        can = [
            t if t > max(SMALLEST_TILE, h, d) else 0
            for t, h, d in zip(tile, halo, network.divisor, strict=True)
        ]
        if not any(can):
            return tuple(tile)
        parts[can.index(max(can))] += 1


def pixels_together(network: NetworkSpec, room: int) -> int:
    """Return how many pixels of small tiles a network works on together.

    Parameters
    ----------
    network : NetworkSpec
    room : int
        Bytes, as of `activation_bytes`.
    """
    return min(TOGETHER, room // int(4 * network.features[0] * LIVE[1]))


def choose_labeller(
    spec: ModelSpec,
    output: str,
    objects: ObjectSettings | None,
    threshold: float | None,
) -> Labeller:
    """Return what makes labels of probabilities.

    Raises
    ------
    DataError
        If an option is out of range or doesn't apply to this output.
    """
    if output not in ("classes", "objects"):
        raise DataError(f"The output is 'classes' or 'objects', got {output!r}.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise DataError(f"The threshold lies between 0 and 1, got {threshold}.")
    if output == "classes":
        if objects is not None:
            raise DataError("Object settings were given, but the output is classes.")
        return ClassLabeller(spec.threshold if threshold is None else threshold)
    if threshold is not None:
        raise DataError(
            "A threshold was given, but the output is objects: set the seed_threshold "
            "or foreground_threshold of the object settings instead."
        )
    chosen = objects or spec.objects
    if spec.output == "objects" and max(chosen.interior, chosen.boundary) > (
        spec.n_classes - 1
    ):
        raise DataError(
            f"Interior and boundary must be among the {spec.n_classes} classes, got "
            f"{chosen.interior} and {chosen.boundary}."
        )
    return ObjectLabeller(
        objects or spec.objects, has_boundary=spec.output == "objects"
    )


def per_axis(
    value: int | Sequence[int] | None, network: NetworkSpec, name: str, least: int
) -> tuple[int, ...] | None:
    """Return a size for each axis of the network, from one or as many; None stays.

    Raises
    ------
    DataError
        If there are more or fewer, or one is below the least.
    """
    if value is None:
        return None
    given = (value,) * network.ndim if np.ndim(value) == 0 else tuple(value)  # type: ignore[arg-type]
    values = tuple(operator.index(v) for v in given)  # type: ignore[arg-type]
    if len(values) != network.ndim or min(values) < least:
        raise DataError(
            f"The {name} is one number or {network.ndim} numbers from {least}, "
            f"got {value}."
        )
    return values


class Window(ImageView):
    """A part of an image, on which statistics are those of the whole.

    Parameters
    ----------
    whole : ImageView
    region : sequence of slice
        For each of `whole.label_axes`, within the image.

    Raises
    ------
    DataError
        If the region doesn't lie in the image.
    """

    def __init__(self, whole: ImageView, region: Sequence[slice]) -> None:
        if len(region) != len(whole.label_shape):
            raise DataError(
                f"A region needs a part of each of the axes {whole.label_axes}, got "
                f"{len(region)}."
            )
        parts = {}
        for axis, part, size in zip(
            whole.label_axes, region, whole.label_shape, strict=True
        ):
            start = 0 if part.start is None else part.start
            stop = size if part.stop is None else part.stop
            if not 0 <= start < stop <= size or part.step not in (None, 1):
                raise DataError(
                    f"The region {part} doesn't lie within the {size} pixels of axis "
                    f"{axis}: choose a part of the image."
                )
            parts[axis] = (start, stop - start)
        vars(self).update(vars(whole))
        self._whole = whole
        self._first = tuple(parts[a][0] for a in whole.leading_axes)
        self._origin = tuple(parts[a][0] for a in whole.spatial_axes)
        self.label_shape = tuple(parts[a][1] for a in whole.label_axes)
        self.leading_shape = tuple(parts[a][1] for a in whole.leading_axes)
        self.spatial_shape = tuple(parts[a][1] for a in whole.spatial_axes)

    def read(self, frame: Sequence[int], region: Sequence[slice]) -> npt.NDArray[Any]:
        """Read as `ImageView.read`; the region counts from the window's corner."""
        moved = [
            slice((r.start or 0) + o, (n if r.stop is None else r.stop) + o)
            for r, o, n in zip(region, self._origin, self.spatial_shape, strict=True)
        ]
        return self._whole.read(self._frame(frame), moved)

    def read_reflected(
        self, frame: Sequence[int], start: Sequence[int], stop: Sequence[int]
    ) -> npt.NDArray[Any]:
        """Read as `ImageView.read_reflected`; mirrored where the whole image ends."""
        moved = [
            [p + o for p, o in zip(points, self._origin, strict=True)]
            for points in (start, stop)
        ]
        return self._whole.read_reflected(self._frame(frame), *moved)

    def sample(self, max_pixels: int = 4_000_000, seed: int = 0) -> npt.NDArray[Any]:
        """Take pixels from all over the whole image."""
        return self._whole.sample(max_pixels, seed)

    def _frame(self, frame: Sequence[int]) -> tuple[int, ...]:
        return tuple(i + f for i, f in zip(frame, self._first, strict=True))
