"""What a chain of modules can become in inference, the fastest first."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_attunet.networks.chains import CONVOLUTIONS, Chain, is_plain
from napari_attunet.networks.layers import (
    channels_last,
    repeated,
    repeated_kernel,
)
from napari_attunet.networks.winograd import winograd_convolution, winograd_weight

__all__ = ["Entrance", "MaxPool", "OneDNN", "Operation", "Winograd", "onednn"]

#: As many channels are few: they become planes.
FEW = 4

#: Channels on both sides from which Winograd's algorithm is faster, on a CPU with
#: AVX-512: 1.2 times with so many, 1.8 with twice as many, 2.5 with four times, 0.9
#: with half. Its weights take four times the memory. Where pixels are repeated it is
#: 1.1, 1.4, 1.9 and 0.8 times as fast, and takes six times the memory of the transposed
#: convolution's.
MANY = 128


class Operation(nn.Module, ABC):
    """What can take a chain's place; defining one adds it, the fastest ones first."""

    kinds: ClassVar[list[type[Operation]]] = []

    #: Whether rounding errors grow on the way, too much for half precision.
    delicate: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.kinds.append(cls)

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self._relu = chain.relu

    @classmethod
    @abstractmethod
    def suits(cls, chain: Chain) -> bool:
        """Return whether the chain is of the right form for it."""

    def _hold(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias: nn.Parameter | None = None
        if bias is not None:
            self.bias = nn.Parameter(bias.detach(), requires_grad=False)

    def _activated(self, x: Tensor) -> Tensor:
        return x.relu_() if self._relu else x


def onednn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: list[int],
    stride: list[int],
    *,
    relu: bool,
    onto: Tensor | None = None,
) -> Tensor:
    """Convolve x, (N, C, *spatial), with oneDNN.

    Parameters
    ----------
    relu : bool
        Whether to apply a ReLU at last.
    onto : Tensor, optional
        What the result is added to before that, in its place.
    """
    ones = [1] * (x.ndim - 2)
    where = (padding, stride, ones, 1)
    # What PyTorch's own compiler calls: no public name has it.
    ops = torch.ops.mkldnn
    if onto is None:
        kind = "relu" if relu else "none"
        y = ops._convolution_pointwise(x, weight, bias, *where, kind, [], "")
    else:
        last = "relu" if relu else None
        y = ops._convolution_pointwise_.binary(
            *(onto, x, weight, bias, *where, "add", 1.0, last, [], None)
        )
    return y  # type: ignore[no-any-return]


class Matrix(Operation):
    """A 1x1 convolution as a product of all pixels with one matrix.

    Of few channels, such as logits, it makes planes: these are what classes are found
    from, and the product takes a third of the time.
    """

    def __init__(self, chain: Chain) -> None:
        super().__init__(chain)
        convolution = chain.convolution
        weight = convolution.get_parameter("weight").flatten(1).contiguous()
        self._hold(weight, convolution.bias)  # type: ignore[arg-type]

    @classmethod
    def suits(cls, chain: Chain) -> bool:
        """Return whether that is what it is; products have no ReLU of their own."""
        plain = is_plain(chain.convolution, kernel=1)
        return plain and chain.repeats is None and not chain.relu

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of x, (N, C, *spatial)."""
        if len(self.weight) > FEW:
            return F.linear(x.movedim(1, -1), self.weight, self.bias).movedim(-1, 1)
        planes = torch.bmm(self.weight.expand(len(x), -1, -1), x.flatten(2))
        if self.bias is not None:
            planes += self.bias[:, None]
        return planes.reshape(len(x), len(self.weight), *x.shape[2:])


class Winograd(Operation):
    """A 3x3 convolution of many channels, in fewer multiplications (on the CPU).

    Of pixels as they are, or repeated twice.
    """

    delicate = True

    def __init__(self, chain: Chain) -> None:
        super().__init__(chain)
        convolution = chain.convolution
        weight = convolution.get_parameter("weight")
        transformed = winograd_weight(weight, chain.repeats or (1, 1))
        self._hold(transformed, convolution.bias)  # type: ignore[arg-type]

    @classmethod
    def suits(cls, chain: Chain) -> bool:
        """Return whether that is what it is."""
        weight = chain.convolution.get_parameter("weight")
        return (
            is_plain(chain.convolution, kernel=3)
            and weight.ndim == 4
            and set(chain.repeats or (1,)) <= {1, 2}
            and min(weight.shape[:2]) >= MANY
            and weight.device.type == "cpu"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x, (N, C, H, W)."""
        return winograd_convolution(x, self.weight, self.bias, relu=self._relu)


class Repeated(Operation):
    """Repeated pixels under a 3x3 convolution, as one transposed convolution."""

    def __init__(self, chain: Chain) -> None:
        super().__init__(chain)
        convolution = chain.convolution
        self._repeats = chain.repeats or ()
        weight = repeated_kernel(convolution.get_parameter("weight"), self._repeats)
        self._hold(channels_last(weight), convolution.bias)  # type: ignore[arg-type]

    @classmethod
    def suits(cls, chain: Chain) -> bool:
        """Return whether pixels are repeated before a 3x3 convolution."""
        return chain.repeats is not None and is_plain(chain.convolution, kernel=3)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge and convolve x, (N, C, *spatial)."""
        return self._activated(repeated(x, self.weight, self.bias, self._repeats))


class OneDNN(Operation):
    """A convolution that applies its ReLU itself (oneDNN, on the CPU)."""

    def __init__(self, chain: Chain) -> None:
        super().__init__(chain)
        convolution = chain.convolution
        self._padding: list[int] = list(convolution.padding)  # type: ignore[arg-type]
        self._stride: list[int] = list(convolution.stride)  # type: ignore[arg-type]
        weight = channels_last(convolution.get_parameter("weight"))
        self._hold(weight, convolution.bias)  # type: ignore[arg-type]

    @classmethod
    def suits(cls, chain: Chain) -> bool:
        """Return whether it is one plain convolution on the CPU."""
        convolution = chain.convolution
        return (
            chain.repeats is None
            and isinstance(convolution, CONVOLUTIONS)
            and (convolution.groups, set(convolution.dilation)) == (1, {1})
            and convolution.padding_mode == "zeros"
            and not isinstance(convolution.padding, str)
            and convolution.weight.device.type == "cpu"
            and torch.backends.mkldnn.is_available()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x, (N, C, *spatial)."""
        return onednn(
            *(x, self.weight, self.bias, self._padding, self._stride),
            relu=self._relu,
        )


class Folded(Operation):
    """What is left of a chain once its normalisation is in the weights."""

    def __init__(self, chain: Chain) -> None:
        super().__init__(chain)
        self.convolution = chain.convolution.requires_grad_(False)
        weight = self.convolution.get_parameter("weight")
        weight.data = channels_last(weight)

    @classmethod
    def suits(cls, chain: Chain) -> bool:
        """Return whether that saves anything."""
        return len(chain.modules) > 1

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x, (N, C, *spatial)."""
        return self._activated(self.convolution(x))


class Entrance(nn.Module):
    """What first meets the image: in float32, while all behind it has fewer bits.

    Parameters
    ----------
    first : Module
    dtype : torch.dtype
        Of what comes out.
    """

    def __init__(self, first: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.dtype = first, dtype

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x, (N, C, *spatial) float32."""
        y: Tensor = self.first(x).to(self.dtype)
        return y


class MaxPool(nn.Module):
    """Max pooling that finds no indices, which PyTorch's own does as well (on the CPU).

    Parameters
    ----------
    pool : Module
        Whose window is its stride.
    """

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self._stride = tuple(pool.stride)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Pool x, (N, C, *spatial), whose sizes are multiples of the stride."""
        for axis, stride in enumerate(self._stride, 2):
            every = [slice(None)] * axis
            of_each = (x[(*every, slice(i, None, stride))] for i in range(stride))
            x = functools.reduce(torch.maximum, of_each)
        return x
