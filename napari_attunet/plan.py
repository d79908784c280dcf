"""What a run is decided to be: halo, tile size, grids of the gates, kind of labels."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_attunet.axes import ImageView
from napari_attunet.canvas import ClassLabeller, Labeller, ObjectLabeller
from napari_attunet.errors import DataError
from napari_attunet.spec import ModelSpec, NetworkSpec, ObjectSettings

__all__ = [
    "Window",
    "choose_labeller",
    "default_halo",
    "default_tile",
    "gate_grids",
    "per_axis",
]

#: What a tile's activations may take. Above it larger tiles hardly save work any
#: more, and below it the halo costs more than the image.
ACTIVATION_BYTES = 512 * 2**20

#: Tensors of the finest level that are alive at the same time, in inference.
LIVE_TENSORS = 6

#: Halo in 3D, in pixels of the finest level: an exact one would multiply the work by
#: more than ten. See docs/tiling.md for the error.
HALO_3D = 32

#: No tile is made smaller than this by the retreat from a full memory.
SMALLEST_TILE = 32


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


def default_tile(
    network: NetworkSpec, shape: Sequence[int], halo: Sequence[int]
) -> tuple[int, ...]:
    """Return the largest tile that fits into `ACTIVATION_BYTES`, evenly cut.

    Parameters
    ----------
    network : NetworkSpec
    shape, halo : sequence of int
        Of the image and around each tile, in pixels of each spatial axis.
    """
    pixels = ACTIVATION_BYTES / (4 * LIVE_TENSORS * network.features[0])
    padded = [-(-n // d) * d for n, d in zip(shape, network.divisor, strict=True)]
    if math.prod(padded) <= pixels:
        return tuple(padded)
    # The longest axes are cut first, until what is read around a tile fits.
    parts = [1] * network.ndim
    while True:
        tile = [
            -(-n // (p * d)) * d
            for n, p, d in zip(padded, parts, network.divisor, strict=True)
        ]
        read = [min(t + 2 * h, n) for t, h, n in zip(tile, halo, padded, strict=True)]
        if math.prod(read) <= pixels:
            return tuple(tile)
        can = [
            t if t > max(SMALLEST_TILE, d) else 0
            for t, d in zip(tile, network.divisor, strict=True)
        ]
        if not any(can):
            return tuple(tile)
        parts[can.index(max(can))] += 1


def gate_grids(network: NetworkSpec) -> tuple[tuple[int, ...], ...]:
    """Return the scale of every gate's own grid, fine to coarse."""
    if network.gate is None:
        return ()
    coarser = network.gate.signal == "coarse"
    return tuple(network.scale(i + coarser) for i in range(network.levels - 1))


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
        return ClassLabeller(threshold)
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
