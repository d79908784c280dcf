"""The one table of 2D and 3D layers, and what every U-Net is made of."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_attunet.architecture import Activation, Norm

__all__ = [
    "LAYERS",
    "OPEN_BIAS",
    "Up",
    "activation",
    "channels_last",
    "conv",
    "for_channels",
    "max_pool",
    "norm",
    "repeated",
    "repeated_kernel",
]


#: Numbers in a line of the processor's cache.
LINE = 16


class _Laid(torch.autograd.Function):
    """The same numbers in one layout, and their gradients in another."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layout: torch.memory_format, back: torch.memory_format
    ) -> Tensor:
        ctx.back = back
        return x.clone(memory_format=layout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.contiguous(memory_format=ctx.back), None, None


def _laid(x: Tensor, layout: torch.memory_format, back: torch.memory_format) -> Tensor:
    found: Tensor = _Laid.apply(x, layout, back)  # type: ignore[no-untyped-call]
    return found


class _BatchNorm(nn.Module):
    """Batch normalisation whose threads stay out of each other's way.

    On the CPU, each of PyTorch's threads adds up gradients of channels that lie last in
    a row of its own. Rows that are no whole cache lines share one, over which the
    threads then quarrel: two of them took up to four times as long as one, and ten
    times as long for 15 channels as for 16. Those are laid out as planes on the way.
    """

    training: bool
    num_features: int

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, (N, C, *spatial), and leave its layout."""
        plainly = super().forward
        whole = self.num_features == 1 or self.num_features % LINE == 0
        if whole or not self.training:
            return plainly(x)  # type: ignore[no-any-return]
        alone = x.device.type != "cpu" or torch.get_num_threads() == 1
        if alone or x.is_contiguous():
            return plainly(x)  # type: ignore[no-any-return]
        last, planes = LAYERS[x.ndim - 2].layout, torch.contiguous_format
        return _laid(plainly(_laid(x, planes, last)), last, planes)


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """Of (N, C, H, W)."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """Of (N, C, D, H, W)."""


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
        BatchNorm2d,
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
        BatchNorm3d,
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
    laid_out = torch.empty_like(x, memory_format=layout)
    return x if x.stride() == laid_out.stride() else laid_out.copy_(x)


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


def for_channels(alpha: Tensor, x: Tensor) -> Tensor:
    """Return α, (N, 1, *spatial), as x, (N, C, *spatial), is to be multiplied by it.

    In 16 bits, and channels last, processors multiply 32 numbers at once if all of them
    have an α of their own. Where channels are no multiple of that, tensors of one shape
    are multiplied three times as fast as one by another that is repeated on the way.
    """
    slow = x.device.type == "cpu" and x.dtype.itemsize == 2 and x.shape[1] % 32
    if not slow or x.is_contiguous():
        return alpha
    return alpha.expand_as(x).contiguous(memory_format=LAYERS[x.ndim - 2].layout)


def repeated_kernel(weight: Tensor, repeats: Sequence[int]) -> Tensor:
    """Return the kernel of the transposed convolution that needs no repeated pixels.

    A pixel repeated s times meets, in the output pixel that lies j - 1 beyond its
    first copy, those taps of the 3x3 kernel that fall on any of its copies::

        copies of the pixel      0   1            s = 2
        output at j = 0  w0 w1  w2                K0 = w2
        output at j = 1      w0 w1  w2            K1 = w1 + w2
        output at j = 2         w0  w1 w2         K2 = w0 + w1
        output at j = 3             w0 w1 w2      K3 = w0

    Parameters
    ----------
    weight : Tensor, (out, in, 3, 3) or (out, in, 3, 3, 3)
    repeats : sequence of int
        s, along each spatial axis.

    Returns
    -------
    Tensor, (in, out, *(s + 2))
        For a stride of s and a padding of 1.
    """
    for axis, count in enumerate(repeats, start=2):
        taps = weight.unbind(axis)
        sums = [
            functools.reduce(torch.add, taps[max(0, 2 - j) : min(2, count + 1 - j) + 1])
            for j in range(count + 2)
        ]
        weight = torch.stack(sums, axis)
    return weight.transpose(0, 1)


def repeated(
    x: Tensor, kernel: Tensor, bias: Tensor | None, repeats: Sequence[int]
) -> Tensor:
    """Return x, (N, C, *spatial), its pixels repeated, under a 3x3 convolution.

    Parameters
    ----------
    x : Tensor
    kernel : Tensor
        As of `repeated_kernel`.
    bias : Tensor, (out,), optional
    repeats : sequence of int
    """
    transposed = F.conv_transpose2d if x.ndim == 4 else F.conv_transpose3d
    return transposed(x, kernel, bias, tuple(repeats), padding=1)


class _RepeatedConv(nn.Module):
    """A convolution of repeated pixels, none of which is ever repeated.

    Of the nine multiplications for a pixel, four are left in 2D, eight of 27 in 3D.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, in_channels: int, out_channels: int, repeats: Sequence[int]
    ) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.repeats = tuple(repeats)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge and convolve x, (N, C, *spatial)."""
        kernel = repeated_kernel(self.weight, self.repeats)
        return repeated(x, kernel, self.bias, self.repeats)


class RepeatedConv2d(_RepeatedConv, nn.Conv2d):
    """Pixels repeated along each axis, and a 3x3 convolution with bias."""


class RepeatedConv3d(_RepeatedConv, nn.Conv3d):
    """The same in three dimensions."""


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
        return _GroupNorm(channels // size, channels)
    return nn.Identity()


class _GroupNorm(nn.GroupNorm):
    """Group normalisation that is as exact with channels last.

    On the CPU PyTorch then takes the variance from sums of squares: with a mean of 20
    times the deviation it was wrong by 3e-3, instead of 2e-6.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, (N, C, *spatial), and leave its layout."""
        if x.device.type != "cpu" or x.is_contiguous():
            return super().forward(x)
        normalised = super().forward(x.contiguous())
        return normalised.contiguous(memory_format=LAYERS[x.ndim - 2].layout)


class Up(nn.Sequential):
    """From one level to the next finer: up-sample, convolve, normalise, ReLU.

    ``"nearest"`` repeats pixels and convolves 3x3 (`RepeatedConv2d`); ``"transposed"``
    is a transposed convolution whose kernel is its stride.
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
        super().__init__()
        stride = tuple(stride)
        if upsampling == "transposed":
            enlarge = LAYERS[ndim].conv_transpose(
                in_channels, out_channels, stride, stride
            )
            first = 0
        else:
            repeated_conv = {2: RepeatedConv2d, 3: RepeatedConv3d}[ndim]
            enlarge = repeated_conv(in_channels, out_channels, stride)
            first = 1  # as where repeating is a step of its own
        then = (enlarge, norm(ndim, norm_kind, out_channels), nn.ReLU(inplace=True))
        for index, layer in enumerate(then, start=first):
            self.add_module(str(index), layer)
