"""What of each level a part of a network's output depends on, along one axis.

Found by carrying an interval of pixels, both its ends included, backwards through
every layer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_attunet.architecture import NetworkSpec

__all__ = [
    "REACH",
    "STRIP",
    "Interval",
    "below",
    "cuts_in_strips",
    "decoded",
    "halo",
    "reach",
]

#: Attention inside blocks that looks at neighbours only, and how far. All other kinds
#: are taken to pool over the whole input.
REACH = {"cbam-spatial": 3}

#: Rows of a strip, or some more: few enough for the processor's cache, and enough for
#: the four or so beyond it not to matter.
STRIP = 128

#: So many of the finest levels are worked on in strips; of coarser ones, nothing is
#: large any more.
STRIPED = 2

#: First and last pixel.
Interval = tuple[int, int]


def decoded(spec: NetworkSpec, axis: int, wanted: Interval) -> list[Interval]:
    """Return what of each level's features a part of the output needs.

    Parameters
    ----------
    spec : NetworkSpec
        A local one, see `NetworkSpec.is_local`.
    axis : int
    wanted : tuple of int
        Of the output; from and to the grid of ``spec.divisor``.

    Returns
    -------
    list of tuple of int
        In pixels of each level, fine to coarse: what is wanted; what the decoder's
        coarser levels must compute; last, of the bottleneck.
    """
    needs = [wanted]
    deep: Interval | None = None  # of the bottleneck, as the gating signal
    for level in range(spec.levels - 1):
        if spec.gate is not None and spec.gate.signal == "bottleneck":
            alpha = _gated(spec, axis, level, needs[-1])
            scale = spec.gate_scale(level)[axis]
            signal = _interpolated(alpha, spec.divisor[axis] // scale)
            deep = _hull(deep or signal, signal)
        needs.append(below(spec, axis, level, needs[-1]))
    if deep is not None:
        # It is spread over every level: they all have to lie on its grid.
        deep = _hull(needs[-1], deep)
        for level in range(1, spec.levels):
            ratio = spec.divisor[axis] // spec.scale(level)[axis]
            needs[level] = _pixels(deep, ratio)
    return needs


def below(spec: NetworkSpec, axis: int, level: int, needed: Interval) -> Interval:
    """Return what a part of a level's decoded features needs of the next coarser one.

    Not what gates need whose signal is the bottleneck.
    """
    grow = 1 if spec.upsampling == "nearest" else 0  # its 3x3 convolution
    joined = _wider(needed, reach(spec, "decoder", level))
    found = _cells(_wider(joined, grow), spec.strides[level][axis])
    if spec.gate is not None and spec.gate.signal == "coarse":
        found = _hull(found, _gated(spec, axis, level, needed))
    return found


def cuts_in_strips(spec: NetworkSpec, part: str, level: int, rows: int) -> bool:
    """Return whether so many rows of a level are worked on some at a time.

    Strips of volumes would have too much in common.
    """
    return (
        level < STRIPED
        and rows >= 2 * STRIP
        and spec.ndim == 2
        and spec.is_local
        and not spec.attention_in(part, level)
        and (spec.gate is None or spec.gate.signal != "bottleneck")
    )


def reach(spec: NetworkSpec, part: str, level: int) -> int:
    """Return how far a block looks: two 3x3 convolutions, and its attention."""
    return 2 + sum(REACH.get(a.kind, 0) for a in spec.attention_in(part, level))


def halo(spec: NetworkSpec, axis: int) -> int:
    """Return the margin around a grid-aligned region that holds all it depends on.

    A multiple of ``spec.divisor``.
    """
    cell = spec.divisor[axis]
    interval = decoded(spec, axis, (0, cell - 1))[-1]
    # Of each skip, the decoder needs less than the levels below it.
    for level in reversed(range(spec.levels)):
        interval = _wider(interval, reach(spec, "encoder", level))
        if level:
            interval = _pixels(interval, spec.strides[level - 1][axis])
    low, high = interval
    return math.ceil(max(-low, high - (cell - 1)) / cell) * cell


def _gated(spec: NetworkSpec, axis: int, level: int, needed: Interval) -> Interval:
    """Return the cells of a gate's α that a part of a level's features needs."""
    joined = _wider(needed, reach(spec, "decoder", level))
    ratio = spec.gate_scale(level)[axis] // spec.scale(level)[axis]
    return _interpolated(joined, ratio)


def _wider(interval: Interval, by: int) -> Interval:
    return interval[0] - by, interval[1] + by


def _hull(one: Interval, other: Interval) -> Interval:
    return min(one[0], other[0]), max(one[1], other[1])


def _pixels(cells: Interval, stride: int) -> Interval:
    """Return the pixels in coarser cells."""
    return cells[0] * stride, cells[1] * stride + stride - 1


def _cells(pixels: Interval, stride: int) -> Interval:
    """Return the coarser cells that pixels lie in."""
    return pixels[0] // stride, pixels[1] // stride


def _interpolated(pixels: Interval, stride: int) -> Interval:
    """Return the coarser cells between which pixels are interpolated linearly."""
    low, high = pixels
    return (
        (2 * low + 1 - stride) // (2 * stride),
        -((stride - 2 * high - 1) // (2 * stride)),
    )
