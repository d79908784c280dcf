"""3x3 convolutions by Winograd's algorithm, from nothing but matrix products.

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks",
https://arxiv.org/abs/1509.09308, their F(4x4, 3x3). Patches of 6x6 pixels overlap by
two; transformed, each of their 36 numbers is a sum over channels of its own, and 36
multiplications give the 4x4 outputs for which the convolution itself needs 144::

    patches ── BᵀdB ──> 36 x (patches, in) ── · 36 x (in, out) ──> AᵀmA ──> 4x4 outputs

The transforms are worth it where there are many channels: they are as many, whatever
the number of channels on the other side.

Pixels repeated before the convolution need not be. Each of the s² outputs that a pixel
becomes is a 3x3 convolution of the pixels as they were, with a kernel of its own, and
all share the transformed patches. Of a pixel repeated twice along an axis, each kernel
looks to one side only, so that one of six numbers meets a zero and is left out: 100
multiplications for 64 outputs, where the transposed convolution needs 256.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["winograd_convolution", "winograd_weight"]

#: Outputs of a patch, and its pixels, along each axis.
OUTPUTS, PIXELS = 4, 6

#: About so many patches go through at a time: few enough for the processor's cache.
PATCHES = 72

_A = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
_B = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


def winograd_weight(weight: Tensor, repeats: Sequence[int] = (1, 1)) -> Tensor:
    """Return a 3x3 kernel transformed, four times as large, or 11 where repeated twice.

    Parameters
    ----------
    weight : Tensor, (out, in, 3, 3)
    repeats : sequence of {1, 2}
        How often pixels are repeated along each axis before.

    Returns
    -------
    Tensor, (*repeats, kept, kept, in, out)
        For each output of a pixel; of the six numbers along an axis, those kept.
    """
    down, across = (_of_outputs(count).to(weight.device) for count in repeats)
    out, into = weight.shape[:2]
    places = (len(down), len(across), down.shape[1], across.shape[1])
    transformed = weight.new_empty(*places, into, out)
    exact = weight.double()
    for p, q in itertools.product(*map(range, places[:2])):  # each takes memory
        transformed[p, q] = torch.einsum("ai,ocij,bj->abco", down[p], exact, across[q])
    return transformed


def _of_outputs(count: int) -> Tensor:
    """Return what makes of three taps the kernel of each output along an axis.

    Of output p of a pixel, tap i falls on the pixel that is (p + i - 1) // count away.

    Returns
    -------
    Tensor, (count, kept, 3)
    """
    taps = torch.zeros(count, 3, 3, dtype=torch.float64)
    for output in range(count):
        for tap in range(3):
            taps[output, (output + tap - 1) // count + 1, tap] = 1
    transformed = torch.tensor(_G, dtype=torch.float64) @ taps
    if count == 1:
        return transformed
    # The first output sees nothing behind the pixel, of which the last number tells;
    # the second nothing before it.
    return torch.stack((transformed[0, :-1], transformed[1, 1:]))


def winograd_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool = False
) -> Tensor:
    """Return a 3x3 convolution with a padding of 1; for inference, without gradients.

    Parameters
    ----------
    x : Tensor, (N, in, H, W)
        Fast where its channels lie last in memory.
    weight : Tensor, (*repeats, kept, kept, in, out)
        As of `winograd_weight`.
    bias : Tensor, (out,), optional
    relu : bool
        Whether to apply a ReLU at last.

    Returns
    -------
    Tensor, (N, out, H, W), repeated, its channels last in memory
    """
    count, channels, height, width = x.shape
    tall, wide, *kept, _, outputs = weight.shape
    down, across = -(-height // OUTPUTS), -(-width // OUTPUTS)
    parts = -(-down // max(1, PATCHES // across))
    rows = -(-down // parts)
    enter = torch.kron(*(torch.tensor(_B, dtype=x.dtype, device=x.device),) * 2)
    leave = torch.kron(*(torch.tensor(_A, dtype=x.dtype, device=x.device),) * 2)
    found = x.new_empty(count, height, tall, width, wide, outputs)
    # What some rows of patches need is in the processor's cache when it is used again.
    lines = x.new_zeros(rows * OUTPUTS + 2, across * OUTPUTS + 2, channels)
    patches = x.new_empty(PIXELS**2, rows * across * channels)
    entered = torch.empty_like(patches)
    n_kept = math.prod(kept)
    sums = x.new_empty(n_kept, rows * across * outputs)
    left = x.new_empty(OUTPUTS**2, rows * across * outputs)
    room = x.new_empty(rows * OUTPUTS, across * OUTPUTS, outputs)
    line, column, one = lines.stride()
    windows = lines.as_strided(
        (PIXELS, PIXELS, rows, across, channels),
        (line, column, OUTPUTS * line, OUTPUTS * column, one),
    )
    for image, result in zip(x.permute(0, 2, 3, 1), found, strict=True):
        for first in range(0, height, rows * OUTPUTS):
            low, high = max(first - 1, 0), min(first + rows * OUTPUTS + 1, height)
            top, bottom = low - (first - 1), high - (first - 1)
            lines[:top].zero_()
            lines[top:bottom, 1 : width + 1] = image[low:high]
            lines[bottom:].zero_()
            patches.view(windows.shape).copy_(windows)
            torch.mm(enter, patches, out=entered)
            lasts = min(rows * OUTPUTS, height - first)
            for place in itertools.product(range(tall), range(wide)):
                some = [
                    slice(p * (PIXELS - n), p * (PIXELS - n) + n)
                    for p, n in zip(place, kept, strict=True)
                ]
                meets = entered.view(PIXELS, PIXELS, -1, channels)[*some]
                torch.bmm(
                    meets.reshape(n_kept, -1, channels),
                    weight[place].flatten(0, 1),
                    out=sums.view(n_kept, -1, outputs),
                )
                back = leave.view(-1, PIXELS, PIXELS)[:, *some].reshape(-1, n_kept)
                torch.mm(back, sums, out=left)
                blocks = left.view(OUTPUTS, OUTPUTS, rows, across, outputs)
                blocks = blocks.permute(2, 0, 3, 1, 4)
                mosaic = room.view(blocks.shape)
                if bias is None:
                    mosaic.copy_(blocks)
                else:
                    torch.add(blocks, bias, out=mosaic)
                if relu:
                    room.relu_()
                of_place = result[first : first + lasts, place[0], :, place[1]]
                of_place.copy_(room[:lasts, :width])
    return found.view(count, tall * height, wide * width, outputs).permute(0, 3, 1, 2)
