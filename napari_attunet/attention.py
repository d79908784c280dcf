"""What gates do, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from napari_attunet.canvas import AttentionMap
from napari_attunet.errors import DataError

__all__ = ["GateStatistics", "cell_coverage", "gate_statistics"]

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
    """Return what a map does on a mask and beside it.

    Parameters
    ----------
    attention : AttentionMap
    mask : array of bool
        Of the image's pixels, in the shape of the labels of the same run. A cell counts
        by how much of it the mask covers.

    Raises
    ------
    DataError
        If the mask doesn't have the shape of the image.
    """
    alpha = attention.values.astype(np.float64)
    cells: tuple[int, ...] = ()
    if mask.ndim == alpha.ndim:
        sizes = zip(mask.shape, attention.scale, strict=True)
        cells = tuple(-(-size // factor) for size, factor in sizes)
    if cells != alpha.shape:
        raise DataError(
            f"The mask has the shape {mask.shape}, which is not that of the image "
            f"under {attention.name}: choose labels of this image."
        )
    total = cell_coverage(np.ones_like(mask), attention.scale)
    covered = cell_coverage(mask, attention.scale)

    def mean(values: npt.NDArray[np.float64], weight: npt.NDArray[np.float64]) -> float:
        whole = float(weight.sum())
        return float((values * weight).sum()) / whole if whole else math.nan

    inside, outside = mean(alpha, covered), mean(alpha, total - covered)
    contrast = inside / outside if outside else math.nan
    if outside == 0 and inside > 0:
        contrast = math.inf
    average = mean(alpha, total)
    spread = math.sqrt(max(0.0, mean((alpha - average) ** 2, total)))
    return GateStatistics(
        name=attention.name,
        level=attention.level,
        shape=alpha.shape,
        mean=average,
        inside=inside,
        outside=outside,
        contrast=contrast,
        open=mean((alpha > OPEN).astype(float), total),
        closed=mean((alpha < CLOSED).astype(float), total),
        entropy=mean(_entropy(alpha), total),
        remark=_remark(average, spread, contrast),
    )


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


def _entropy(alpha: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    bits = np.zeros_like(alpha)
    for share in (alpha, 1 - alpha):
        some = share > 0
        bits[some] -= share[some] * np.log2(share[some])
    return bits


def _remark(mean: float, spread: float, contrast: float) -> str:
    """Say what a biologist should know of a gate."""
    if spread < STILL:
        state = "open" if mean > OPEN else "closed" if mean < CLOSED else "half open"
        return f"Does nothing: {state} everywhere."
    if contrast < AGAINST:
        return "Opens on the background rather than on the objects."
    if contrast <= FOR:
        return "Does not tell objects from background."
    return ""
