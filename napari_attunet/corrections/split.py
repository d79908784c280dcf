"""Which pixels are held out for validation: by content, once and for all.

Whole images are held out where there are several, else blocks of each, chosen by a
hash, so that the same image fares the same wherever and whenever it is added. Frames of
a stack are images of their own: they come alone, or with others beside them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from napari_attunet.axes import AXES, frame_axes
from napari_attunet.corrections.truth import grow

__all__ = [
    "FEW_PIXELS",
    "GUARD",
    "Frame",
    "Split",
    "Validation",
    "apart",
    "block_shape",
    "frames_of",
    "guarded",
    "hash_image",
    "in_axes",
    "joined",
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


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """An image, or one of a stack.

    Attributes
    ----------
    sha256 : str
        Of its content, as of `hash_image`.
    axes : str
        Of its labels.
    known : array of bool
        Pixels that something is known of, along these axes.
    block : tuple of int
        Shape of a cell along these axes.
    place : dict of str to int
        Where along the walked axes it lies.
    """

    sha256: str
    axes: str
    known: Mask
    block: tuple[int, ...]
    place: dict[str, int]


def frames_of(
    image: npt.NDArray[Any], axes: str, known: Mask, ndim: int
) -> list[Frame]:
    """Return the frames of an image.

    Parameters
    ----------
    image : array
    axes : str
        Of the image.
    known : array of bool
        Of the labels, whose axes are the image's without channels.
    ndim : int
        Spatial dimensions of a frame.
    """
    label_axes = axes.replace("C", "")
    within = frame_axes(label_axes, ndim)
    walked = [a for i, a in enumerate(label_axes) if i not in within]
    sizes = dict(zip(label_axes, known.shape, strict=True))
    frames = []
    for index in np.ndindex(*(sizes[a] for a in walked)):
        place = dict(zip(walked, index, strict=True))
        part = known[tuple(place.get(a, slice(None)) for a in label_axes)]
        pixels = image[tuple(place.get(a, slice(None)) for a in axes)]
        rest = "".join(a for a in axes if a not in place)
        frames.append(
            Frame(
                hash_image(pixels, rest),
                rest.replace("C", ""),
                part,
                block_shape(part.shape),
                place,
            )
        )
    return frames


def joined(frames: Sequence[Frame], splits: Sequence[Split], axes: str) -> Split:
    """Return what is held out of a stack, from what is of its frames.

    Parameters
    ----------
    frames : sequence of Frame
        All of it.
    splits : sequence of Split
        Of each.
    axes : str
        Of the labels.
    """
    if len(frames) == 1:
        return in_axes(splits[0], frames[0].axes, axes)
    held = []
    for frame, split in zip(frames, splits, strict=True):
        cells = split.held
        if split.validation == "all":
            cut = zip(frame.known.shape, frame.block, strict=True)
            cells = tuple(np.ndindex(*(-(-n // b) for n, b in cut)))
        for cell in cells:
            by_axis = frame.place | dict(zip(frame.axes, cell, strict=True))
            held.append(tuple(int(by_axis[a]) for a in axes))
    if not held:
        return Split()
    lengths = dict(zip(frames[0].axes, frames[0].block, strict=True))
    return Split("blocks", tuple(lengths.get(a, 1) for a in axes), tuple(sorted(held)))


def apart(split: Split, axes: str, frames: Sequence[Frame]) -> list[Split]:
    """Return what is held out of each frame of a stack; undoes `joined`."""
    if split.validation != "blocks":
        return [split] * len(frames)
    within, walked = frames[0].axes, sorted(frames[0].place)
    lengths = dict(zip(axes, split.block, strict=True))
    block = tuple(lengths[a] for a in within)
    cells: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for cell in split.held:
        by_axis = dict(zip(axes, cell, strict=True))
        place = tuple(by_axis[a] for a in walked)
        cells.setdefault(place, []).append(tuple(by_axis[a] for a in within))
    held = (cells.get(tuple(f.place[a] for a in walked)) for f in frames)
    return [Split("blocks", block, tuple(sorted(h))) if h else Split() for h in held]


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
    image_sha256: str,
    known: Mask,
    block: Sequence[int],
    *,
    images: int,
    few: bool,
) -> Split:
    """Decide what of a new frame is held out.

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
    few : bool
        Whether too little is known, in the whole stack, to hold any of it out.
    """
    if images >= FEW_IMAGES:
        return Split("none" if few or int(image_sha256, 16) % ONE_OF else "all")
    # Of few, none may be lost to the distance that training keeps.
    cells = grow(known, GUARD, range(known.ndim)) if few else known
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


def block_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a frame's cells: all are about `BLOCK` long."""
    return tuple(math.ceil(n / max(1, round(n / BLOCK))) for n in shape)


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
