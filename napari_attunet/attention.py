"""What attention does, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_attunet.canvas import AttentionMap
from napari_attunet.errors import DataError
from napari_attunet.progress import Progress, Steps, drain

__all__ = [
    "GateStatistics",
    "alpha_on",
    "cell_coverage",
    "describe_transform",
    "frame_corners",
    "gate_statistics",
    "gate_statistics_steps",
]

#: Pixels that are counted at a time, so that memory doesn't follow the image.
SLAB = 1 << 22

#: α from which a gate counts as open, and below which as closed.
OPEN, CLOSED = 0.9, 0.1

#: A gate whose α differs by less (standard deviation) does the same everywhere.
STILL = 0.02

#: Mean α on objects over that beside them: below it a gate opens on background, above
#: it on objects.
AGAINST, FOR = 0.9, 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class GateStatistics:
    """What one map of coefficients does.

    Attributes
    ----------
    name : str
        Of the `AttentionMap`.
    level : int
        1 is the finest.
    shape : tuple of int
        Of its own grid.
    mean : float
        Of α over the image.
    inside, outside : float
        Mean α on the mask and beside it; NaN where there is no such place.
    contrast : float
        Inside over outside; NaN where either is missing, infinite where nothing
        passes outside.
    open, closed : float
        Share of the image where α is above 0.9, and below 0.1.
    entropy : float
        Mean binary entropy of α in bits: 0 where a gate is either open or closed, 1
        where it is half open everywhere.
    remark : str
        What is worth knowing, in words; empty if nothing is.
    """

    name: str
    level: int
    shape: tuple[int, ...]
    mean: float
    inside: float
    outside: float
    contrast: float
    open: float
    closed: float
    entropy: float
    remark: str


def gate_statistics(
    attention: AttentionMap, mask: npt.NDArray[np.bool_]
) -> GateStatistics:
    """Return what a map does on a mask and beside it; see `gate_statistics_steps`."""
    return drain(gate_statistics_steps(attention, mask))


def gate_statistics_steps(
    attention: AttentionMap, mask: npt.NDArray[Any]
) -> Steps[GateStatistics]:
    """Measure what a map does on a mask and beside it, a slab at a time.

    Parameters
    ----------
    attention : AttentionMap
    mask : array of bool or int
        Of the image's pixels, in the shape of the labels of the same run; what is
        above 0 is inside. A cell counts by how much of it the mask covers.

    Returns
    -------
    generator
        Yields `Progress`, returns `GateStatistics`.

    Raises
    ------
    DataError
        If the mask doesn't have the shape of the image.
    """
    shape = attention.values.shape
    cells: tuple[int, ...] = ()
    if mask.ndim == len(shape):
        sizes = zip(mask.shape, attention.scale, strict=True)
        cells = tuple(-(-size // factor) for size, factor in sizes)
    if cells != shape:
        raise DataError(
            f"The mask has the shape {mask.shape}, which is not that of the image "
            f"under {attention.name}: choose labels of this image."
        )
    sums = _Sums()
    factor = attention.scale[0]
    rows = max(1, SLAB * shape[0] // max(1, mask.size))
    for first in range(0, shape[0], rows):
        yield Progress(first, shape[0], f"Measuring {attention.name}")
        part = slice(first, min(first + rows, shape[0]))
        pixels = slice(part.start * factor, part.stop * factor)
        on_mask = np.asarray(mask[pixels]) > 0
        sums.add(attention.values[part], on_mask, attention.scale)
    inside, outside = sums.inside, sums.outside
    contrast = inside / outside if outside else math.nan
    if outside == 0 and inside > 0:
        contrast = math.inf
    return GateStatistics(
        name=attention.name,
        level=attention.level,
        shape=shape,
        mean=sums.mean,
        inside=inside,
        outside=outside,
        contrast=contrast,
        open=sums.open / sums.total,
        closed=sums.closed / sums.total,
        entropy=sums.entropy / sums.total,
        remark=_remark(sums.mean, sums.spread, contrast),
    )


class _Sums:
    """What is counted of a map, in pixels of the image."""

    def __init__(self) -> None:
        self.total = self.covered = 0.0
        self._all = self._on = self._squares = 0.0
        self.open = self.closed = self.entropy = 0.0

    def add(
        self,
        values: npt.NDArray[np.float32],
        inside: npt.NDArray[np.bool_],
        scale: Sequence[int],
    ) -> None:
        """Count a slab."""
        alpha = values.astype(np.float64)
        weight = cell_coverage(np.ones_like(inside), scale)
        covered = cell_coverage(inside, scale)
        self.total += float(weight.sum())
        self.covered += float(covered.sum())
        self._all += float((alpha * weight).sum())
        self._on += float((alpha * covered).sum())
        self._squares += float((alpha * alpha * weight).sum())
        self.open += float(weight[alpha > OPEN].sum())
        self.closed += float(weight[alpha < CLOSED].sum())
        self.entropy += float((_entropy(alpha) * weight).sum())

    @property
    def mean(self) -> float:
        """Mean of α."""
        return self._all / self.total

    @property
    def spread(self) -> float:
        """Standard deviation of α."""
        return math.sqrt(max(0.0, self._squares / self.total - self.mean**2))

    @property
    def inside(self) -> float:
        """Mean of α on the mask; NaN where there is none."""
        return self._on / self.covered if self.covered else math.nan

    @property
    def outside(self) -> float:
        """Mean of α beside the mask; NaN where there is no such place."""
        left = self.total - self.covered
        return (self._all - self._on) / left if left else math.nan


def cell_coverage(
    mask: npt.NDArray[np.bool_], scale: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Return how many pixels of each cell of a coarser grid a mask covers.

    Parameters
    ----------
    mask : array of bool
    scale : sequence of int
        Pixels in a cell along each axis. Cells at the far end may be cut.
    """
    counted: npt.NDArray[np.float64] = np.asarray(mask, np.float64)
    for axis, factor in enumerate(scale):
        if factor > 1:
            starts = np.arange(0, counted.shape[axis], factor)
            counted = np.add.reduceat(counted, starts, axis=axis)
    return counted


def alpha_on(
    mask: npt.NDArray[np.bool_], scale: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Return α that is 1 on a mask and 0 beside it, in between in cells on its rim.

    Parameters
    ----------
    mask : array of bool
    scale : sequence of int
        Pixels in a cell along each axis.
    """
    covered = cell_coverage(mask, scale)
    whole = cell_coverage(np.ones_like(mask), scale)
    return (covered / whole).astype(np.float32)


def frame_corners(
    matrix: npt.NDArray[np.floating[Any]], region: Sequence[slice]
) -> npt.NDArray[np.float64]:
    """Return where the corners of what a transformer sampled lie in the image.

    Parameters
    ----------
    matrix : (n + 1, n + 1)
        From pixels of the frame to pixels of the image.
    region : sequence of slice
        What the network saw, for each of the n axes.

    Returns
    -------
    array, (4, n)
        In order around the frame; of a volume, around its middle plane.
    """
    sizes = [r.stop - r.start for r in region]
    low, (high, wide) = [(n - 1) / 2 for n in sizes[:-2]], sizes[-2:]
    corners = [(-0.5, -0.5), (-0.5, wide - 0.5), (high - 0.5, wide - 0.5)]
    corners.append((high - 0.5, -0.5))
    points = np.array([(*low, *corner, 1.0) for corner in corners])
    found: npt.NDArray[np.float64] = (points @ matrix.T)[:, :-1]
    return found


def describe_transform(matrix: npt.NDArray[np.floating[Any]]) -> str:
    """Return what a spatial transformer does in the YX plane, in words.

    Parameters
    ----------
    matrix : (n + 1, n + 1)
        From pixels of the frame to pixels of the image; Y downwards, X to the right.
    """
    plane = np.asarray(matrix, float)[-3:-1, -3:-1]
    angle = math.degrees(math.atan2(plane[1, 0] - plane[0, 1], np.trace(plane)))
    way = "clockwise" if angle < 0 else "counter-clockwise"
    zoom = math.sqrt(abs(np.linalg.det(plane)))
    return (
        f"The frame is turned {way} by {abs(angle):.1f}° and {zoom:.2f} times as large "
        "as what the network saw; zoom out if it lies beyond the view."
    )


def _entropy(alpha: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    bits = np.zeros_like(alpha)
    for share in (alpha, 1 - alpha):
        some = share > 0
        bits[some] -= share[some] * np.log2(share[some])
    return bits


def _remark(mean: float, spread: float, contrast: float) -> str:
    """Say what a biologist should know of a gate."""
    if spread < STILL:
        state = "open" if mean > OPEN else "closed" if mean < CLOSED else f"{mean:.2f}"
        return f"Does nothing: {state} everywhere."
    if math.isnan(contrast):
        return "There is nothing to compare: all or none of this is mask."
    if contrast < AGAINST:
        return "Opens on the background rather than on the objects."
    if contrast <= FOR:
        return "Does not tell objects from background."
    return ""
