"""Attention inside blocks, each mechanism one class; defining it registers it.

They weigh what a block has computed: its channels (what), its pixels (where), or each
position by all others.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_attunet.architecture import AttentionSpec, Kind, Norm
from napari_attunet.networks.layers import (
    LAYERS,
    OPEN_BIAS,
    conv,
    for_channels,
    norm,
)
from napari_attunet.networks.registry import Registered

__all__ = [
    "CBAM",
    "ECA",
    "Attended",
    "BlockAttention",
    "ChannelAttention",
    "ConvBlock",
    "SelfAttention",
    "SpatialAttention",
    "SqueezeExcitation",
    "look",
]


class Attended(NamedTuple):
    """What attention inside a block returns.

    Attributes
    ----------
    features : Tensor, (N, C, *spatial)
    coefficients : tuple of Tensor
        One for each of ``emits``: ``"channel"``: (N, C) in [0, 1]; ``"spatial"``:
        (N, 1, *spatial) in [0, 1]; ``"pairwise"``: queries and keys,
        (N, 2, D, *positions), see `look`.
    """

    features: Tensor
    coefficients: tuple[Tensor, ...]


class BlockAttention(Registered, nn.Module, ABC, noun="attention"):
    """Base of all attention inside blocks, made from an `AttentionSpec`.

    Attributes
    ----------
    emits : tuple of str
        Which coefficients it returns.
    """

    emits: ClassVar[tuple[Kind, ...]]

    @abstractmethod
    def __init__(self, spec: AttentionSpec, ndim: int, channels: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, x: Tensor) -> Attended:
        """Weigh features.

        Parameters
        ----------
        x : Tensor, (N, C, *spatial)
        """

    def __call__(self, x: Tensor) -> Attended:
        """Weigh features; see `forward`."""
        attended: Attended = super().__call__(x)
        return attended


def _each_channel(alpha: Tensor, x: Tensor) -> Tensor:
    """Multiply each channel of x, (N, C, *spatial), by its α, (N, C)."""
    return x * alpha.reshape(*alpha.shape, *(1,) * (x.ndim - 2))


class ConvBlock(nn.Module):
    """Twice: 3x3 convolution, normalisation, ReLU; then attention.

    With a residual connection attention comes before it, on its branch, and the last
    ReLU behind it.

    Parameters
    ----------
    ndim : {2, 3}
    in_channels, out_channels : int
    norm_kind : str, optional
    attention : sequence of AttentionSpec
    residual : bool
    """

    def __init__(
        self,
        ndim: int,
        in_channels: int,
        out_channels: int,
        norm_kind: Norm | None,
        attention: Sequence[AttentionSpec] = (),
        *,
        residual: bool = False,
    ) -> None:
        super().__init__()
        layers = [
            conv(ndim, in_channels, out_channels, kernel=3, padding=1),
            norm(ndim, norm_kind, out_channels),
            nn.ReLU(inplace=True),
            conv(ndim, out_channels, out_channels, kernel=3, padding=1),
            norm(ndim, norm_kind, out_channels),
        ]
        for index, layer in enumerate(layers):
            self.add_module(str(index), layer)
        self._layers = [str(index) for index in range(len(layers))]
        self.activation = nn.ReLU(inplace=True)
        self.attention = nn.ModuleList(
            BlockAttention.named(a.kind)(a, ndim, out_channels) for a in attention
        )
        self.shortcut: nn.Module | None = None
        if residual:
            self.shortcut = nn.Identity()
            if in_channels != out_channels:
                self.shortcut = nn.Sequential(
                    conv(ndim, in_channels, out_channels),
                    norm(ndim, norm_kind, out_channels),
                )

    @property
    def chain(self) -> tuple[str, ...]:
        """Names of the modules that are applied one after another, from the first."""
        last = ("activation",) if self.shortcut is None else ()
        return (*self._layers, *last)

    def forward(self, x: Tensor) -> Attended:
        """Compute features, (N, C, *spatial), and weigh them."""
        entered = x
        for name in self.chain:
            x = self.get_submodule(name)(x)
        coefficients: tuple[Tensor, ...] = ()
        for attention in self.attention:
            x, found = attention(x)
            coefficients += found
        if self.shortcut is not None:
            x = self.activation(x + self.shortcut(entered))
        return Attended(x, coefficients)

    def __call__(self, x: Tensor) -> Attended:
        """Compute and weigh features; see `forward`."""
        attended: Attended = super().__call__(x)
        return attended


class SqueezeExcitation(BlockAttention, name="se"):
    """Squeeze-and-excitation: α = sigmoid(W₂ ReLU(W₁ avg(x))), features x·α.

    Hu et al. 2018, "Squeeze-and-Excitation Networks", https://arxiv.org/abs/1709.01507.
    The average is over all pixels, W₁ has C/r outputs, α one number for each channel.
    Costs 2·C²/r multiplications for an image, next to nothing.
    """

    emits = ("channel",)

    def __init__(self, spec: AttentionSpec, ndim: int, channels: int) -> None:
        super().__init__(spec, ndim, channels)
        inner = max(1, channels // spec.reduction)
        self.squeeze = nn.Linear(channels, inner)
        self.excite = nn.Linear(inner, channels)
        nn.init.constant_(self.excite.bias, OPEN_BIAS)

    def forward(self, x: Tensor) -> Attended:
        """Weigh channels; see `BlockAttention.forward`."""
        alpha = torch.sigmoid(self.excite(F.relu(self.squeeze(x.flatten(2).mean(2)))))
        return Attended(_each_channel(alpha, x), (alpha,))


class ECA(BlockAttention, name="eca"):
    """Efficient channel attention: α = sigmoid(conv1d(avg(x))), features x·α.

    Wang et al. 2020, "ECA-Net: Efficient Channel Attention for Deep Convolutional
    Neural Networks", https://arxiv.org/abs/1910.03151. One kernel without bias runs
    over the channels' averages; it has |log₂(C)/γ + b/γ| elements, rounded up to the
    next odd number, with γ = 2 and b = 1. Costs k·C multiplications for an image.
    """

    emits = ("channel",)

    GAMMA, B = 2, 1

    def __init__(self, spec: AttentionSpec, ndim: int, channels: int) -> None:
        super().__init__(spec, ndim, channels)
        size = int(abs((math.log2(channels) + self.B) / self.GAMMA))
        size += 1 - size % 2
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)
        # Averages behind a ReLU are positive: with such a kernel α begins above 0.5.
        nn.init.uniform_(self.conv.weight, 0, 2 * OPEN_BIAS / size)

    def forward(self, x: Tensor) -> Attended:
        """Weigh channels; see `BlockAttention.forward`."""
        average = x.flatten(2).mean(2)
        alpha = torch.sigmoid(self.conv(average.unsqueeze(1)).squeeze(1))
        return Attended(_each_channel(alpha, x), (alpha,))


class ChannelAttention(BlockAttention, name="cbam-channel"):
    """Channel attention of CBAM: α = sigmoid(MLP(avg(x)) + MLP(max(x))).

    Woo et al. 2018, "CBAM: Convolutional Block Attention Module",
    https://arxiv.org/abs/1807.06521. One MLP with C/r hidden channels and a ReLU for
    both. Costs 4·C²/r multiplications for an image.
    """

    emits = ("channel",)

    def __init__(self, spec: AttentionSpec, ndim: int, channels: int) -> None:
        super().__init__(spec, ndim, channels)
        inner = max(1, channels // spec.reduction)
        last = nn.Linear(inner, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, inner), nn.ReLU(), last)
        nn.init.constant_(last.bias, OPEN_BIAS / 2)  # it counts twice

    def forward(self, x: Tensor) -> Attended:
        """Weigh channels; see `BlockAttention.forward`."""
        pixels = x.flatten(2)
        alpha = torch.sigmoid(self.mlp(pixels.mean(2)) + self.mlp(pixels.amax(2)))
        return Attended(_each_channel(alpha, x), (alpha,))


class SpatialAttention(BlockAttention, name="cbam-spatial"):
    """Spatial attention of CBAM: α = sigmoid(conv₇(mean and max over channels)).

    Woo et al. 2018, "CBAM: Convolutional Block Attention Module",
    https://arxiv.org/abs/1807.06521. A 7x7 (in 3D 7x7x7) convolution without bias; α is
    one number for each pixel. Costs 98 multiplications for a pixel in 2D, 686 in 3D.
    """

    emits = ("spatial",)

    KERNEL = 7

    def __init__(self, spec: AttentionSpec, ndim: int, channels: int) -> None:
        super().__init__(spec, ndim, channels)
        size = self.KERNEL
        self.conv = LAYERS[ndim].conv(2, 1, size, padding=size // 2, bias=False)
        # Mean and maximum behind a ReLU are positive: α begins above 0.5.
        for weight in self.conv.parameters():
            nn.init.uniform_(weight, 0, OPEN_BIAS / size**ndim)

    def forward(self, x: Tensor) -> Attended:
        """Weigh pixels; see `BlockAttention.forward`."""
        described = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)
        alpha = torch.sigmoid(self.conv(described))
        return Attended(x * for_channels(alpha, x), (alpha,))


class CBAM(BlockAttention, name="cbam"):
    """Convolutional block attention: channels first, then pixels.

    Woo et al. 2018, "CBAM: Convolutional Block Attention Module",
    https://arxiv.org/abs/1807.06521. `ChannelAttention`, then `SpatialAttention` of
    what it lets through.
    """

    emits = ("channel", "spatial")

    def __init__(self, spec: AttentionSpec, ndim: int, channels: int) -> None:
        super().__init__(spec, ndim, channels)
        self.channel = ChannelAttention(spec, ndim, channels)
        self.spatial = SpatialAttention(spec, ndim, channels)

    def forward(self, x: Tensor) -> Attended:
        """Weigh channels, then pixels; see `BlockAttention.forward`."""
        x, of_channels = self.channel(x)
        x, of_pixels = self.spatial(x)
        return Attended(x, of_channels + of_pixels)


class SelfAttention(BlockAttention, name="self"):
    """Self-attention over pooled positions: x + γ·up(softmax(q·kᵀ/√d)·v).

    Wang et al. 2018, "Non-local Neural Networks", https://arxiv.org/abs/1711.07971,
    with the learnt γ, 0 at the start, of Zhang et al. 2019, "Self-Attention Generative
    Adversarial Networks", https://arxiv.org/abs/1805.08318. x is averaged over windows
    of ``pool`` pixels; q and k are 1x1 convolutions to d = C/r channels, v one to C;
    the result is interpolated back. Costs 2·P²·C multiplications for P positions: at
    fine levels, pool.
    """

    emits = ("pairwise",)

    def __init__(self, spec: AttentionSpec, ndim: int, channels: int) -> None:
        super().__init__(spec, ndim, channels)
        inner = max(1, channels // spec.reduction)
        self.query = conv(ndim, channels, inner)
        self.key = conv(ndim, channels, inner)
        self.value = conv(ndim, channels, channels)
        self.gamma = nn.Parameter(torch.zeros(()))
        self._ndim, self._pool = ndim, spec.pool

    def forward(self, x: Tensor) -> Attended:
        """Add to each position what it finds elsewhere."""
        layers, pool = LAYERS[self._ndim], self._pool
        pooled = x
        if pool > 1:  # windows at the far edge may be smaller
            window = tuple(min(pool, n) for n in x.shape[2:])
            pooled = layers.average_pool(window, ceil_mode=True)(x)
        q, k, v = self.query(pooled), self.key(pooled), self.value(pooled)
        # Zeros change no product; kernels that never hold all pairs at once need equal
        # channels.
        more = v.shape[1] - q.shape[1]
        keys, queries = (
            F.pad(t.flatten(2).transpose(1, 2).unsqueeze(1), (0, more)) for t in (k, q)
        )
        values = v.flatten(2).transpose(1, 2).unsqueeze(1)
        found = F.scaled_dot_product_attention(
            queries, keys, values, scale=q.shape[1] ** -0.5
        )
        found = found.squeeze(1).transpose(1, 2).reshape(v.shape)
        if found.shape != x.shape:
            found = F.interpolate(
                found, x.shape[2:], mode=layers.interpolation, align_corners=False
            )
        return Attended(x + self.gamma * found, (torch.stack((q, k), dim=1),))


def look(pairwise: Tensor, position: tuple[int, ...]) -> Tensor:
    """Return where a position looks: softmax(q·kᵀ/√d), of one q only.

    Parameters
    ----------
    pairwise : Tensor, (2, D, *positions)
        Queries and keys, of one image.
    position : tuple of int
        On the grid of positions.

    Returns
    -------
    Tensor, (*positions)
        They sum to 1.
    """
    queries, keys = pairwise
    query = queries[(slice(None), *position)]
    weights = torch.einsum("d,dp->p", query, keys.flatten(1)) / math.sqrt(len(query))
    return weights.softmax(0).reshape(keys.shape[1:])
