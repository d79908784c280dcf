"""The Attention U-Net, in two and three dimensions from one code."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from napari_attunet.errors import DataError
from napari_attunet.networks.gates import Gate, Ports
from napari_attunet.networks.layers import ConvBlock, Up, conv, max_pool
from napari_attunet.spec import NetworkSpec

__all__ = ["Attention", "AttentionUNet", "Explained"]


class Attention(NamedTuple):
    """What one gate attended to.

    Attributes
    ----------
    level : int
        Level of the gated skip, 0 the finest.
    scale : tuple of int
        Input pixels in one cell of `alpha`, for each spatial axis.
    alpha : Tensor, (N, 1, *spatial / scale)
        Coefficients in [0, 1].
    """

    level: int
    scale: tuple[int, ...]
    alpha: Tensor


class Explained(NamedTuple):
    """Logits, and how they came about.

    Attributes
    ----------
    logits : Tensor, (N, out_channels, *spatial)
    attention : tuple of Attention
        Of every gate, fine to coarse.
    auxiliary : tuple of Tensor, (N, out_channels, *spatial / scale of the level)
        Logits of the deep-supervision heads, fine to coarse; only in training mode.
    """

    logits: Tensor
    attention: tuple[Attention, ...]
    auxiliary: tuple[Tensor, ...]


class AttentionUNet(nn.Module):
    """U-Net whose skip connections pass through attention gates.

    Oktay et al. 2018, "Attention U-Net: Learning Where to Look for the Pancreas",
    https://arxiv.org/abs/1804.03999; the U-Net itself is Ronneberger et al. 2015,
    https://arxiv.org/abs/1505.04597. With ``spec.gate`` None it is the plain U-Net.

    Parameters
    ----------
    spec : NetworkSpec
        The architecture.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        ndim, features = spec.ndim, spec.features
        inputs = (spec.in_channels, *features[:-1])
        self.encoder = nn.ModuleList(
            ConvBlock(ndim, i, o, spec.norm)
            for i, o in zip(inputs, features, strict=True)
        )
        self.pools = nn.ModuleList(max_pool(ndim, s) for s in spec.strides)
        self.ups = nn.ModuleList(
            Up(ndim, coarse, fine, stride, spec.norm, spec.upsampling)
            for fine, coarse, stride in zip(
                features[:-1], features[1:], spec.strides, strict=True
            )
        )
        self.gates = nn.ModuleList(
            self._gate(level) for level in range(spec.levels - 1) if spec.gate
        )
        self.decoder = nn.ModuleList(
            ConvBlock(ndim, 2 * f, f, spec.norm) for f in features[:-1]
        )
        self.head = conv(ndim, features[0], spec.out_channels)
        self.auxiliary_heads = nn.ModuleList(
            conv(ndim, f, spec.out_channels)
            for f in features[1:-1]
            if spec.deep_supervision
        )

    def _gate(self, level: int) -> Gate:
        spec, gate = self.spec, self.spec.gate
        if gate is None:
            raise TypeError("A plain U-Net has no gates.")
        skip = spec.features[level]
        coarse = gate.signal == "coarse"
        ports = Ports(
            ndim=spec.ndim,
            skip=skip,
            signal=spec.features[level + 1] if coarse else skip,
            inner=gate.channels[level] if gate.channels else max(1, skip // 2),
            stride=spec.strides[level] if coarse else (1,) * spec.ndim,
        )
        return Gate.named(gate.kind)(gate, ports)

    def channels_last(self) -> AttentionUNet:
        """Lay the weights out channels last, which is faster in 2D, and return self.

        Convolutions pass the layout of their weights on to what they compute.
        """
        if self.spec.ndim == 2:
            for parameter in self.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(
                        memory_format=torch.channels_last
                    )
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, out_channels, *spatial); see `explain`."""
        return self.explain(x).logits

    def explain(self, x: Tensor) -> Explained:
        """Return the logits and everything that was attended to on the way.

        Parameters
        ----------
        x : Tensor, (N, in_channels, *spatial)
            Sizes must be multiples of ``spec.divisor``.

        Raises
        ------
        DataError
            If the channels or sizes don't fit the network.
        """
        self._check(x)
        coarse_signal = self.spec.gate is not None and self.spec.gate.signal == "coarse"
        skips = []
        for level, block in enumerate(self.encoder):
            if level:
                x = self.pools[level - 1](x)
            x = block(x)
            skips.append(x)
        skips.pop()  # the bottleneck is no skip

        attention: list[Attention] = []
        auxiliary: list[Tensor] = []
        for level in reversed(range(self.spec.levels - 1)):
            # popped, so that in inference a skip's memory is free once it is used
            skip, up = skips.pop(), self.ups[level](x)
            if self.spec.gate is not None:
                skip, alpha = self.gates[level](skip, x if coarse_signal else up)
                scale = self.spec.scale(level + 1 if coarse_signal else level)
                attention.append(Attention(level, scale, alpha))
            x = torch.cat((skip, up), dim=1)
            del skip, up
            x = self.decoder[level](x)
            if self.training and self.spec.deep_supervision and level:
                auxiliary.append(self.auxiliary_heads[level - 1](x))
        return Explained(
            self.head(x), tuple(reversed(attention)), tuple(reversed(auxiliary))
        )

    def _check(self, x: Tensor) -> None:
        spec = self.spec
        if x.ndim != spec.ndim + 2 or x.shape[1] != spec.in_channels:
            raise DataError(
                f"The network takes (N, {spec.in_channels}, *{spec.ndim} spatial "
                f"axes), got {tuple(x.shape)}."
            )
        if any(n % d for n, d in zip(x.shape[2:], spec.divisor, strict=True)):
            raise DataError(
                f"Sizes must be multiples of {spec.divisor}, got {tuple(x.shape[2:])}: "
                "pad the image, or let the Segmenter do it."
            )
