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
from torch.nn import functional as F

__all__ = ["winograd_convolution", "winograd_weight"]

#: Outputs of a patch, and its pixels, along each axis.
OUTPUTS, PIXELS = 4, 6

#: So many patches go through at a time: few enough for the processor's cache.
PATCHES = 128

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


def winograd_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a 3x3 convolution with a padding of 1.

    Parameters
    ----------
    x : Tensor, (N, in, H, W)
        Fast where its channels lie last in memory.
    weight : Tensor, (36, in, out)
        As of `winograd_weight`.
    bias : Tensor, (out,), optional

    Returns
    -------
    Tensor, (N, out, H, W), its channels last in memory
    """
    count, channels, height, width = x.shape
    outputs = weight.shape[2]
    down, across = -(-height // OUTPUTS), -(-width // OUTPUTS)
    margins = (1, 1 + across * OUTPUTS - width, 1, 1 + down * OUTPUTS - height)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, *margins)).contiguous()
    enter = torch.kron(*(torch.tensor(_B, dtype=x.dtype, device=x.device),) * 2)
    leave = torch.kron(*(torch.tensor(_A, dtype=x.dtype, device=x.device),) * 2)
    found = x.new_empty(count, down * OUTPUTS, across * OUTPUTS, outputs)
    rows = max(1, PATCHES // across)
    for image, result in zip(padded, found, strict=True):
        line, column, one = image.stride()
        for first in range(0, down, rows):
            some = min(rows, down - first)
            patches = image.as_strided(
                (PIXELS, PIXELS, some, across, channels),
                (line, column, OUTPUTS * line, OUTPUTS * column, one),
                image.storage_offset() + first * OUTPUTS * line,
            )
            entered = enter @ patches.reshape(PIXELS**2, -1)
            sums = entered.view(PIXELS**2, some * across, channels) @ weight
            left = leave @ sums.view(PIXELS**2, -1)
            left = left.view(OUTPUTS, OUTPUTS, some, across, outputs)
            lines = slice(first * OUTPUTS, (first + some) * OUTPUTS)
            room = result[lines].view(some, OUTPUTS, across, OUTPUTS, outputs)
            left = left.permute(2, 0, 3, 1, 4)
            if bias is None:
                room.copy_(left)
            else:
                torch.add(left, bias, out=room)
    return found[:, :height, :width].permute(0, 3, 1, 2)
