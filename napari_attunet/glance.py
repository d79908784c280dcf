"""Where an image is empty: a glance at a quarter of its resolution.

Localise, then look closely, as cascades of networks do (Christ et al. 2016, "Automatic
Liver and Lesion Segmentation in CT Using Cascaded Fully Convolutional Neural Networks
and 3D Conditional Random Fields", https://arxiv.org/abs/1610.02177), but with one
network: whoever knows an object of 20 pixels makes out that there is something where it
has 5. That costs a sixteenth of the work, and what it overlooks is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from napari_attunet.plan import Prepared
from napari_attunet.progress import Progress, Steps
from napari_attunet.tiling import Tile, Tiling

__all__ = ["CLOSE_LOOK", "occupied"]

#: Edge of the tiles that are looked at closely: of smaller ones the halo is too large a
#: part, and larger ones are hardly ever empty.
CLOSE_LOOK = 512

#: Pixels in one of the glance, along each axis.
REDUCTION = 4

#: Edge of what is reduced at a time, in pixels of the image.
BLOCK = 1024

#: Of the probability at which something is labelled, so much deserves a close look. See
#: docs/performance.md for what is overlooked.
SEEN = 0.2

#: So many pixels of the glance around it are looked at, too.
MARGIN = 4

#: Returns the probabilities of the classes, (K, *part), of what a tile reads.
Look = Callable[[torch.Tensor, Tile], npt.NDArray[np.float32]]


def occupied(
    prepared: Prepared,
    frame: Sequence[int],
    tiling: Tiling,
    look: Look,
    *,
    channels: int,
    least: float,
) -> Steps[list[Tile]]:
    """Return the tiles of a frame in which there may be something.

    Parameters
    ----------
    prepared : Prepared
    frame : sequence of int
    tiling : Tiling
        Of the frame.
    look : callable
        Runs the network on (1, C, *spatial).
    channels : int
        That the network takes.
    least : float
        How probable something must be to be labelled.
    """
    shape = [-(-n // REDUCTION) for n in tiling.shape]
    coarse = Tiling(shape, tile=tiling.tile, halo=tiling.halo, divisor=tiling.divisor)
    small = np.empty((channels, *coarse.padded_shape), np.float32)
    yield from _reduce(prepared, frame, coarse, small)
    seen = np.zeros(shape, bool)
    for number, tile in enumerate(coarse):
        yield Progress(number, len(coarse), "Looking for what is not empty")
        x = torch.from_numpy(small[(slice(None), *tile.read)])[None]
        kept = tuple(slice(0, w.stop - w.start) for w in tile.write)
        seen[tile.write] = 1 - look(x, tile)[0][kept] >= SEEN * least
    return [tile for tile in tiling if seen[_around(tile)].any()]


def _reduce(
    prepared: Prepared,
    frame: Sequence[int],
    coarse: Tiling,
    small: npt.NDArray[np.float32],
) -> Steps[None]:
    """Fill in what the network sees of a frame, in means over pixels, (C, *padded)."""
    blocks = Tiling(
        coarse.shape, tile=BLOCK // REDUCTION, halo=0, divisor=coarse.divisor
    )
    for number, tile in enumerate(blocks):
        yield Progress(number, len(blocks), "Looking for what is not empty")
        # The last ones reach to the padded size: the image is mirrored there.
        starts = [w.start for w in tile.write]
        stops = [s + p.stop - p.start for s, p in zip(starts, tile.part, strict=True)]
        pixels = prepared.read(
            frame, [s * REDUCTION for s in starts], [s * REDUCTION for s in stops]
        )
        sizes = [stop - start for start, stop in zip(starts, stops, strict=True)]
        folded = pixels.reshape(
            len(pixels), *(n for size in sizes for n in (size, REDUCTION))
        )
        at = (slice(None), *map(slice, starts, stops))
        folded.mean(tuple(range(2, folded.ndim, 2)), out=small[at])


def _around(tile: Tile) -> tuple[slice, ...]:
    """Return where a tile and its margin lie in the glance."""
    return tuple(
        slice(max(0, w.start // REDUCTION - MARGIN), -(-w.stop // REDUCTION) + MARGIN)
        for w in tile.write
    )
