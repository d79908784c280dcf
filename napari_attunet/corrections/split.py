"""Which pixels are held out for validation: by content, once and for all.

Whole images are held out where there are several, else blocks of each, chosen by a
hash, so that the same image fares the same wherever and whenever it is added.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from napari_attunet.axes import AXES
from napari_attunet.corrections.truth import grow

__all__ = [
    "FEW_PIXELS",
    "GUARD",
    "Split",
    "Validation",
    "block_shape",
    "frame_axes",
    "guarded",
    "hash_image",
    "in_axes",
    "split_image",
    "split_mask",
]

#: What of a sample is held out: nothing, all of it, or blocks.
Validation = Literal["none", "all", "blocks"]

#: Up to so many pixels from what is held out nothing is trained on: an object at the
#: edge would otherwise be known from its other half.
GUARD = 8
#: Of so many images (or cells of one) one is held out.
ONE_OF = 5
#: With fewer other images than this, blocks of each are held out.
FEW_IMAGES = 4
#: With fewer cells than this that hold known pixels none is held out.
FEW_CELLS = 4
#: With fewer known pixels than this all of them are needed: a fifth of them would tell
#: nothing. What is held out then is what nothing is known of yet.
FEW_PIXELS = 10_000
#: About the length of a block: several objects fit in, and few lie on an edge.
BLOCK = 128

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Split:
    """What of an image is held out.

    Attributes
    ----------
    validation : {"none", "all", "blocks"}
    block : tuple of int
        Pixels of a cell along each axis of the labels; 1 along walked axes. Empty
        unless blocks are held out.
    held : tuple of tuple of int
        The cells held out, by their index along each axis.
    """

    validation: Validation = "none"
    block: tuple[int, ...] = ()
    held: tuple[tuple[int, ...], ...] = ()


def hash_image(image: npt.NDArray[Any], axes: str) -> str:
    """Return a SHA-256 of the pixels, whatever the order of axes and bytes.

    Axes of length 1 don't count: the same picture as a stack of one is the same.
    """
    order = sorted(range(image.ndim), key=lambda i: AXES.index(axes[i]))
    kept = [(axes[i], image.shape[i]) for i in order if image.shape[i] > 1]
    image = image.transpose(order).astype(image.dtype.newbyteorder("<"), copy=False)
    digest = hashlib.sha256(f"{image.dtype.str}{kept}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def split_image(
    image_sha256: str, known: Mask, block: Sequence[int], *, images: int
) -> Split:
    """Decide what of a new image is held out.

    Parameters
    ----------
    image_sha256 : str
        Hash of its content.
    known : array of bool
        Pixels that something is known of.
    block : sequence of int
        As of `block_shape`.
    images : int
        How many other images there are.
    """
    few = np.count_nonzero(known) < FEW_PIXELS
    if images >= FEW_IMAGES:
        return Split("none" if few or int(image_sha256, 16) % ONE_OF else "all")
    # Of few, none may be lost to the distance that training keeps.
    cells = (
        grow(known, GUARD, [i for i, b in enumerate(block) if b > 1]) if few else known
    )
    for axis, length in enumerate(block):
        starts = np.arange(0, cells.shape[axis], length)
        cells = np.logical_or.reduceat(cells, starts, axis=axis)
    candidates = [
        tuple(int(i) for i in cell) for cell in np.argwhere(~cells if few else cells)
    ]
    if cells.size < FEW_CELLS or len(candidates) < (1 if few else FEW_CELLS):
        return Split()

    def lot(cell: tuple[int, ...]) -> str:
        return hashlib.sha256(f"{image_sha256}{cell}".encode()).hexdigest()

    count = max(1, round(len(candidates) / ONE_OF))
    held = sorted(sorted(candidates, key=lot)[:count])
    return Split("blocks", tuple(block), tuple(held))


def frame_axes(label_axes: str, ndim: int) -> list[int]:
    """Return which of the labels' axes lie within one frame."""
    return [i for i, axis in enumerate(label_axes) if axis in "ZYX"[3 - ndim :]]


def block_shape(shape: Sequence[int], spatial: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a cell: about `BLOCK` along spatial axes, 1 along others."""
    return tuple(
        math.ceil(n / max(1, round(n / BLOCK))) if axis in spatial else 1
        for axis, n in enumerate(shape)
    )


def split_mask(split: Split, shape: Sequence[int]) -> Mask:
    """Return the pixels that are held out."""
    mask = np.full(tuple(shape), split.validation == "all")
    for cell in split.held:
        mask[
            tuple(
                slice(i * b, (i + 1) * b)
                for i, b in zip(cell, split.block, strict=True)
            )
        ] = True
    return mask


def guarded(held: Mask, spatial: Sequence[int]) -> Mask:
    """Return the pixels held out and those too near to them, within each frame."""
    return grow(held, GUARD, spatial)


def in_axes(split: Split, axes: str, wanted: str) -> Split:
    """Bring a split into another order of the labels' axes.

    Axes that only one of them has are of length 1.
    """

    def reordered(cell: tuple[int, ...], missing: int) -> tuple[int, ...]:
        by_axis = dict(zip(axes, cell, strict=True))
        return tuple(by_axis.get(a, missing) for a in wanted)

    if split.validation != "blocks":
        return split
    held = (reordered(cell, 0) for cell in split.held)
    return Split("blocks", reordered(split.block, 1), tuple(sorted(held)))
