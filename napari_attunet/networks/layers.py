"""The one table of 2D and 3D layers, and what every U-Net is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from napari_attunet.architecture import Activation, Norm

__all__ = [
    "LAYERS",
    "OPEN_BIAS",
    "Up",
    "activation",
    "channels_last",
    "conv",
    "max_pool",
    "norm",
]


class _Layers(NamedTuple):
    conv: type[nn.Module]
    conv_transpose: type[nn.Module]
    max_pool: type[nn.Module]
    average_pool: type[nn.Module]
    adaptive_pool: type[nn.Module]
    batch_norm: type[nn.Module]
    instance_norm: type[nn.Module]
    interpolation: str
    layout: torch.memory_format


LAYERS = {
    2: _Layers(
        nn.Conv2d,
        nn.ConvTranspose2d,
        nn.MaxPool2d,
        nn.AvgPool2d,
        nn.AdaptiveAvgPool2d,
        nn.BatchNorm2d,
        nn.InstanceNorm2d,
        "bilinear",
        torch.channels_last,
    ),
    3: _Layers(
        nn.Conv3d,
        nn.ConvTranspose3d,
        nn.MaxPool3d,
        nn.AvgPool3d,
        nn.AdaptiveAvgPool3d,
        nn.BatchNorm3d,
        nn.InstanceNorm3d,
        "trilinear",
        torch.channels_last_3d,
    ),
}

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
}

#: Coefficients at the start of training are about sigmoid(2) = 0.88: attention that
#: begins shut starves what is behind it (Oktay et al. let theirs pass everything).
OPEN_BIAS = 2.0

#: Channels that share their statistics in group normalisation (Wu and He 2018).
GROUP_SIZE = 8


def activation(name: Activation) -> nn.Module:
    """Return a new activation layer."""
    return _ACTIVATIONS[name]()


def channels_last(x: Tensor) -> Tensor:
    """Return the same, (N, C, *spatial) or a kernel, with its channels last in memory.

    Convolutions pass on the layout of their weights. A single channel lies in either
    layout as it is, and PyTorch then takes the first: its strides have to say it.
    """
    layout = LAYERS[x.ndim - 2].layout
    return torch.empty_like(x, memory_format=layout).copy_(x)


def conv(
    ndim: int,
    in_channels: int,
    out_channels: int,
    kernel: int | Sequence[int] = 1,
    stride: int | Sequence[int] = 1,
    padding: int = 0,
) -> nn.Module:
    """Return a convolution with bias."""
    kernel, stride = (k if isinstance(k, int) else tuple(k) for k in (kernel, stride))
    return LAYERS[ndim].conv(in_channels, out_channels, kernel, stride, padding)


def max_pool(ndim: int, stride: Sequence[int]) -> nn.Module:
    """Return max pooling whose window is its stride."""
    return LAYERS[ndim].max_pool(tuple(stride), tuple(stride))


def norm(ndim: int, kind: Norm | None, channels: int) -> nn.Module:
    """Return a normalisation with learnt scale and shift, or the identity."""
    if kind == "batch":
        return LAYERS[ndim].batch_norm(channels)
    if kind == "instance":
        return LAYERS[ndim].instance_norm(channels, affine=True)
    if kind == "group":
        size = math.gcd(channels, GROUP_SIZE)
        return nn.GroupNorm(channels // size, channels)
    return nn.Identity()


class Up(nn.Sequential):
    """From one level to the next finer: up-sample, convolve, normalise, ReLU.

    ``"nearest"`` repeats pixels and convolves 3x3; ``"transposed"`` is a transposed
    convolution whose kernel is its stride.
    """

    def __init__(
        self,
        ndim: int,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int],
        norm_kind: Norm | None,
        upsampling: str,
    ) -> None:
        stride = tuple(stride)
        steps: list[nn.Module]
        if upsampling == "transposed":
            transposed = LAYERS[ndim].conv_transpose
            steps = [transposed(in_channels, out_channels, stride, stride)]
        else:
            steps = [
                nn.Upsample(scale_factor=tuple(float(s) for s in stride)),
                conv(ndim, in_channels, out_channels, kernel=3, padding=1),
            ]
        super().__init__(
            *steps, norm(ndim, norm_kind, out_channels), nn.ReLU(inplace=True)
        )
