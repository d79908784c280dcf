"""3x3 convolutions by Winograd's algorithm, from nothing but matrix products.

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks",
https://arxiv.org/abs/1509.09308, their F(4x4, 3x3). Patches of 6x6 pixels overlap by
two; transformed, each of their 36 numbers is a sum over channels of its own, and 36
multiplications give the 4x4 outputs for which the convolution itself needs 144::

    patches ── BᵀdB ──> 36 x (patches, in) ── · 36 x (in, out) ──> AᵀmA ──> 4x4 outputs

The transforms are worth it where there are many channels: they are as many, whatever
the number of channels on the other side.
"""

from __future__ import annotations

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


def winograd_weight(weight: Tensor) -> Tensor:
    """Return a 3x3 kernel transformed, four times as large.

    Parameters
    ----------
    weight : Tensor, (out, in, 3, 3)

    Returns
    -------
    Tensor, (36, in, out)
    """
    g = torch.tensor(_G, dtype=torch.float64, device=weight.device)
    transformed = torch.einsum("ai,ocij,bj->abco", g, weight.double(), g)
    return transformed.flatten(0, 1).to(weight.dtype).contiguous()


def winograd_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool = False
) -> Tensor:
    """Return a 3x3 convolution with a padding of 1; for inference, without gradients.

    Parameters
    ----------
    x : Tensor, (N, in, H, W)
        Fast where its channels lie last in memory.
    weight : Tensor, (36, in, out)
        As of `winograd_weight`.
    bias : Tensor, (out,), optional
    relu : bool
        Whether to apply a ReLU at last.

    Returns
    -------
    Tensor, (N, out, H, W), its channels last in memory
    """
    count, channels, height, width = x.shape
    outputs = weight.shape[2]
    down, across = -(-height // OUTPUTS), -(-width // OUTPUTS)
    parts = -(-down // max(1, PATCHES // across))
    rows = -(-down // parts)
    enter = torch.kron(*(torch.tensor(_B, dtype=x.dtype, device=x.device),) * 2)
    leave = torch.kron(*(torch.tensor(_A, dtype=x.dtype, device=x.device),) * 2)
    found = x.new_empty(count, height, width, outputs)
    # What some rows of patches need is in the processor's cache when it is used again.
    lines = x.new_zeros(rows * OUTPUTS + 2, across * OUTPUTS + 2, channels)
    patches = x.new_empty(PIXELS**2, rows * across * channels)
    entered = torch.empty_like(patches)
    sums = x.new_empty(PIXELS**2, rows * across * outputs)
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
            torch.bmm(
                entered.view(PIXELS**2, -1, channels),
                weight,
                out=sums.view(PIXELS**2, -1, outputs),
            )
            torch.mm(leave, sums, out=left)
            blocks = left.view(OUTPUTS, OUTPUTS, rows, across, outputs)
            blocks = blocks.permute(2, 0, 3, 1, 4)
            mosaic = room.view(blocks.shape)
            if bias is None:
                mosaic.copy_(blocks)
            else:
                torch.add(blocks, bias, out=mosaic)
            if relu:
                room.relu_()
            some = min(rows * OUTPUTS, height - first)
            result[first : first + some] = room[:some, :width]
    return found.permute(0, 3, 1, 2)
