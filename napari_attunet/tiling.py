"""Where to read, what to keep, where to write: an image cut into tiles on a grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Region", "Tile", "Tiling"]

#: One slice for each spatial axis.
Region = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile: what to read, what of it is wanted, and where that belongs.

    Attributes
    ----------
    read : tuple of slice
        In pixels of the image; may reach beyond it to the right, up to the padded size.
    part : tuple of slice
        What of it is wanted, counted from its start; may reach as far.
    write : tuple of slice
        Where that lies in the image, nothing beyond it.
    """

    read: Region
    part: Region
    write: Region

    def on_grid(self, scale: int | Sequence[int]) -> Region:
        """Return where it is written, in pixels of a coarser grid.

        Parameters
        ----------
        scale : int or sequence of int
            Pixels of the image in one of the coarse grid, along each axis; divides the
            tiling's divisor. A coarse pixel that the image covers in part is written.

        Raises
        ------
        ValueError
            If the tile doesn't lie on the coarse grid.
        """
        writes = []
        scales = _per_axis(scale, len(self.read), "scale")
        for part, write, factor in zip(self.part, self.write, scales, strict=True):
            if part.start % factor or part.stop % factor or write.start % factor:
                raise ValueError(
                    f"A tile of which {part.start}:{part.stop} is wanted, and written "
                    f"from {write.start}, does not lie on a grid of {factor} pixels."
                )
            writes.append(slice(write.start // factor, -(-write.stop // factor)))
        return tuple(writes)


class Tiling:
    """Tiles that write each pixel of an image exactly once.

    They start on multiples of the divisor, so what a network computes on its coarser
    grids stitches as exactly as its output. Along one axis::

        divisor       |···|···|···|···|···|···|···|···|···|···|
        image         [-----------------------------------]      size 37
        padded        [--------------------------------------]   40, a multiple of 4

        first  read   [----------------------]                   clamped to 0
               write  [==============]
        second read           [------------------------------]
               part           ········[==============]           counted from read
               write                  [==============]
        last   read                           [--------------]   clamped to padded
               part                           ········[======]   as well
               write                                  [===]      clipped to the image
                                      <---- tile ----><-halo->

    Iterating yields the `Tile` objects, the last axis fastest; ``len`` counts them.

    Parameters
    ----------
    shape : sequence of int
        Spatial shape of the image, none of it zero.
    tile : int or sequence of int
        Edge of what a tile writes, rounded up to the divisor.
    halo : int or sequence of int
        Margin that is read around it where there is image, rounded up to the divisor.
    divisor : int or sequence of int
        What the network's input must be a multiple of.

    Attributes
    ----------
    shape, tile, halo, divisor : tuple of int
        As used, one number for each axis.
    padded_shape : tuple of int
        The shape rounded up to the divisor.
    counts : tuple of int
        Number of tiles along each axis.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        tile: int | Sequence[int],
        halo: int | Sequence[int],
        divisor: int | Sequence[int],
    ) -> None:
        self.shape = _per_axis(shape, len(shape), "shape")
        ndim = len(self.shape)
        self.divisor = _per_axis(divisor, ndim, "divisor")
        self.tile = _round_up(_per_axis(tile, ndim, "tile"), self.divisor)
        self.halo = _round_up(_per_axis(halo, ndim, "halo", least=0), self.divisor)
        self.padded_shape = _round_up(self.shape, self.divisor)
        self.counts = self.coarse_shape(self.tile)

    def __repr__(self) -> str:
        """Say the sizes as used."""
        return (
            f"Tiling({self.shape}, tile={self.tile}, halo={self.halo}, "
            f"divisor={self.divisor})"
        )

    def __len__(self) -> int:
        """Count the tiles."""
        return math.prod(self.counts)

    def __iter__(self) -> Iterator[Tile]:
        """Walk the tiles, the last axis fastest."""
        lines = [self._along(axis) for axis in range(len(self.shape))]
        for parts in itertools.product(*lines):
            reads, wanted, writes = zip(*parts, strict=True)
            yield Tile(reads, wanted, writes)

    def coarse_shape(self, scale: int | Sequence[int]) -> tuple[int, ...]:
        """Shape of a grid coarser by `scale` that covers the whole image."""
        scales = _per_axis(scale, len(self.shape), "scale")
        sizes = zip(self.shape, scales, strict=True)
        return tuple(-(-size // factor) for size, factor in sizes)

    def _along(self, axis: int) -> list[tuple[slice, slice, slice]]:
        """Read, part and write of every tile along one axis."""
        size, padded = self.shape[axis], self.padded_shape[axis]
        edge, halo = self.tile[axis], self.halo[axis]
        parts = []
        for start in range(0, size, edge):
            stop = min(start + edge, padded)
            first = max(start - halo, 0)
            last = min(start + edge + halo, padded)
            part = slice(start - first, stop - first)
            parts.append((slice(first, last), part, slice(start, min(stop, size))))
        return parts


def _per_axis(
    value: int | Sequence[int], ndim: int, name: str, *, least: int = 1
) -> tuple[int, ...]:
    """One number for each axis, checked."""
    given = tuple(value) if isinstance(value, Sequence) else (value,) * ndim
    if len(given) != ndim or any(v < least for v in given):
        raise ValueError(
            f"{name} must be one number of at least {least}, or {ndim} such numbers, "
            f"got {value}."
        )
    return tuple(int(v) for v in given)


def _round_up(values: Sequence[int], divisor: Sequence[int]) -> tuple[int, ...]:
    """Round each number up to a multiple of its divisor."""
    return tuple(-(-v // d) * d for v, d in zip(values, divisor, strict=True))
