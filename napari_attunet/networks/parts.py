"""What a network computes of each level where only a part of its output is wanted.

The encoder has to see all that the bottleneck depends on. The decoder does not: each
level needs what is wanted and a few pixels around it, which is much less::

    level 0   |----------------- encoder ------------------|
                              ├ wanted ┤
                            ├── decoder ──┤
    level 1   |---------------------------|
                        ├ decoder ┤
    level 2   |-------------|
                  ├ up ┤
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch.nn import functional as F

from napari_attunet.architecture import Mechanism, NetworkSpec
from napari_attunet.errors import DataError
from napari_attunet.receptive import below, decoded
from napari_attunet.tiling import Region

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Parts", "cut", "laid", "seen"]


class Parts:
    """Parts of every level's grid; all of them where the network is not local.

    Parameters
    ----------
    spec : NetworkSpec
    shape : sequence of int
        Of the input, along its spatial axes.
    wanted : sequence of slice, optional
        Of the output, from and to the grid of ``spec.divisor``; by default all of it.

    Raises
    ------
    DataError
        If that is not a part of the output, or not on the grid.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        shape: Sequence[int],
        wanted: Sequence[slice] | None = None,
    ) -> None:
        self._spec = spec
        whole = tuple(slice(0, n) for n in shape)
        self._wanted = whole if wanted is None else tuple(wanted)
        if len(self._wanted) != len(whole) or not all(
            0 <= w.start < w.stop <= n and w.start % d == w.stop % d == 0
            for w, n, d in zip(self._wanted, shape, spec.divisor, strict=True)
        ):
            raise DataError(
                f"The part that is wanted has to lie within {tuple(shape)} pixels, "
                f"from and to multiples of {spec.divisor}, got {self._wanted}."
            )
        self._needed = [self._whole(level, shape) for level in range(spec.levels)]
        if spec.is_local and self._wanted != whole:
            self._needed = [
                tuple(
                    slice(max(first, 0), min(last + 1, n.stop))
                    for (first, last), n in zip(needs, all_of_it, strict=True)
                )
                for needs, all_of_it in zip(self._carried(), self._needed, strict=True)
            ]

    def _whole(self, level: int, shape: Sequence[int]) -> Region:
        scale = self._spec.scale(level)
        return tuple(slice(0, n // s) for n, s in zip(shape, scale, strict=True))

    def _carried(self) -> list[tuple[tuple[int, int], ...]]:
        """Return what is needed of each level along all axes."""
        along = [
            decoded(self._spec, axis, (w.start, w.stop - 1))
            for axis, w in enumerate(self._wanted)
        ]
        return list(zip(*along, strict=True))

    def wanted(self, scale: Sequence[int]) -> Region:
        """Return what is wanted, on a coarser grid."""
        return _coarser(self._wanted, scale)

    def needed(self, level: int) -> Region:
        """Return what the next finer level needs of a level's features."""
        return self._needed[level]

    def joined(self, level: int) -> Region:
        """Return where a level's skip meets what comes from below, and is decoded."""
        strides = self._spec.strides[level]
        below = zip(self._needed[level + 1], strides, strict=True)
        return tuple(slice(r.start * s, r.stop * s) for r, s in below)

    def gated(self, level: int) -> Region:
        """Return the same on the grid of the level's gates."""
        scales = zip(self._spec.gate_scale(level), self._spec.scale(level), strict=True)
        return _coarser(self.joined(level), [g // s for g, s in scales])

    def strips(self, level: int, rows: int) -> Iterator[Parts]:
        """Yield the same for strips of about so many rows of a level's features.

        Each has what it needs of the next coarser level, and no other level's parts.
        """
        (begin, end), *_ = ((r.start, r.stop) for r in self._needed[level])
        count = max(1, (end - begin) // rows)
        align = self._spec.strides[level][0]
        cuts = [(begin + i * (end - begin) // count) // align for i in range(1, count)]
        for first, last in itertools.pairwise([begin, *(c * align for c in cuts), end]):
            low, high = below(self._spec, 0, level, (first, last - 1))
            there, *across = self._needed[level + 1]
            low, high = max(low, there.start), min(high + 1, there.stop)
            strip = copy.copy(self)
            strip._needed = list(self._needed)
            strip._needed[level] = (slice(first, last), *self._needed[level][1:])
            strip._needed[level + 1] = (slice(low, high), *across)
            yield strip

    def of(self, mechanism: Mechanism) -> Region | None:
        """Return what coefficients cover of their grid; None if all of it."""
        if mechanism.part == "encoder":
            return None
        gate = mechanism.part == "skip"
        return (self.gated if gate else self.joined)(mechanism.level)


def cut(x: Tensor, to: Region, of: Region | None = None) -> Tensor:
    """Return a part of what lies on a grid; a copy, so that the rest can be freed.

    Parameters
    ----------
    x : Tensor, (N, C, *spatial)
    to : tuple of slice
        What to return.
    of : tuple of slice, optional
        What x covers of the same grid; by default it begins where the grid does.
    """
    part = seen(x, to, of)
    return x if part.shape == x.shape else part.clone()


def seen(x: Tensor, to: Region, of: Region | None = None) -> Tensor:
    """Return the same as `cut` without copying it."""
    starts = [r.start for r in of] if of else [0] * len(to)
    moved = tuple(
        slice(r.start - first, r.stop - first)
        for r, first in zip(to, starts, strict=True)
    )
    return x[(slice(None), slice(None), *moved)]


def laid(x: Tensor, to: Region, of: Region, around: float) -> Tensor:
    """Return what lies on a part of a grid as it lies on another part.

    Parameters
    ----------
    x : Tensor, (..., *spatial)
    to : tuple of slice
        What to cover.
    of : tuple of slice
        What x covers.
    around : float
        What is there where x is not.
    """
    pads: list[int] = []
    for inner, outer in zip(reversed(of), reversed(to), strict=True):
        pads += [inner.start - outer.start, outer.stop - inner.stop]
    return F.pad(x, pads, value=around) if any(pads) else x


def _coarser(region: Region, scale: Sequence[int]) -> Region:
    return tuple(
        slice(r.start // s, r.stop // s) for r, s in zip(region, scale, strict=True)
    )
