"""Attention gates on skip connections, each one class; defining it registers it.

Oktay et al. 2018, "Attention U-Net: Learning Where to Look for the Pancreas",
https://arxiv.org/abs/1804.03999. For every pixel of a skip connection a gate
computes a coefficient α between 0 (shut) and 1 (open) from the skip x and the
gating signal g, and passes on x·α::

    skip x ──────────── W_x ─┐
                             ⊕ ── σ₁ ── ψ ── sigmoid ── α (one channel)
    decoder g ───────── W_g ─┘                          │
    skip x ─────────────────────────────────────────────⊗──── features out

x comes from the encoder and is what is gated; g comes from the decoder and knows
more of the context. With a fine signal both lie on the skip's grid. With a coarse
one (grid gating) W_x strides down to the grid of g, where α lives, and α is
interpolated linearly back up to the skip.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_attunet.architecture import GateSpec
from napari_attunet.networks.layers import (
    LAYERS,
    OPEN_BIAS,
    activation,
    conv,
    for_channels,
    norm,
)
from napari_attunet.networks.registry import Registered

__all__ = [
    "AdditiveGate",
    "Gate",
    "Gated",
    "GridGate",
    "MultiGate",
    "MultiplicativeGate",
    "Ports",
]


class Gated(NamedTuple):
    """What a gate returns.

    Attributes
    ----------
    features : Tensor, (N, C, *spatial of the skip)
    alpha : Tensor, (N, G, *spatial of the gate's own grid), in [0, 1]
        One channel for each of G gates on the same skip.
    """

    features: Tensor
    alpha: Tensor


class Ports(NamedTuple):
    """What a gate is connected to.

    Attributes
    ----------
    ndim : {2, 3}
    skip, signal, inner : int
        Channels of x, of g, and in between.
    stride : tuple of int
        Skip pixels in one cell of the gate's own grid, for each axis; ones where the
        signal is fine.
    """

    ndim: int
    skip: int
    signal: int
    inner: int
    stride: tuple[int, ...]


class Gate(Registered, nn.Module, ABC, noun="gate"):
    """Base of all gates, made from a `GateSpec` and `Ports`."""

    @abstractmethod
    def __init__(self, spec: GateSpec, ports: Ports) -> None:
        super().__init__()

    @abstractmethod
    def coefficients(self, skip: Tensor, signal: Tensor) -> Tensor:
        """Return α, (N, 1, *spatial of the gate's own grid).

        Parameters
        ----------
        skip : Tensor, (N, C, *spatial)
            x, from the encoder.
        signal : Tensor, (N, C', *spatial of the signal)
            g, from the decoder.
        """

    def passed(self, skip: Tensor, alpha: Tensor) -> Tensor:
        """Return what passes with these coefficients, (N, C, *spatial)."""
        return skip * _spread(alpha, skip)

    def forward(self, skip: Tensor, signal: Tensor) -> Gated:
        """Gate the skip; arguments as of `coefficients`."""
        alpha = self.coefficients(skip, signal)
        return Gated(self.passed(skip, alpha), alpha)

    def __call__(self, skip: Tensor, signal: Tensor) -> Gated:
        """Gate the skip; see `forward`."""
        gated: Gated = super().__call__(skip, signal)
        return gated


def _spread(alpha: Tensor, skip: Tensor) -> Tensor:
    """Interpolate α linearly up to the skip's grid."""
    if alpha.shape[2:] != skip.shape[2:]:
        alpha = _resized(alpha, skip.shape[2:])
    return for_channels(alpha, skip)


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    mode = LAYERS[x.ndim - 2].interpolation
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=False)


class _ProjectedGate(Gate):
    """α = sigmoid(ψ(σ₁(combine(W_x x, W_g g)))), features x·α."""

    def __init__(self, spec: GateSpec, ports: Ports) -> None:
        super().__init__(spec, ports)
        ndim, inner, stride = ports.ndim, ports.inner, ports.stride
        self.w_x = nn.Sequential(
            conv(ndim, ports.skip, inner, kernel=stride, stride=stride),
            norm(ndim, spec.norm, inner),
        )
        self.w_g = nn.Sequential(
            conv(ndim, ports.signal, inner), norm(ndim, spec.norm, inner)
        )
        self.activation = activation(spec.activation)
        # ψ has one channel; pooled over a whole image it could not mark a place,
        # so where the others are normalised by instance or group it is left alone.
        psi_norm = spec.norm if spec.norm == "batch" else None
        self.psi = nn.Sequential(conv(ndim, inner, 1), norm(ndim, psi_norm, 1))
        _open(self.psi[1 if psi_norm else 0])

    @abstractmethod
    def combine(self, x: Tensor, g: Tensor) -> Tensor:
        """Bring the projected skip and signal together."""

    def coefficients(self, skip: Tensor, signal: Tensor) -> Tensor:
        """Return α; see `Gate.coefficients`."""
        joint = self.combine(self.w_x(skip), self.w_g(signal))
        return torch.sigmoid(self.psi(self.activation(joint)))


def _open(layer: nn.Module) -> None:
    for name, parameter in layer.named_parameters():
        if name == "bias":
            nn.init.constant_(parameter, OPEN_BIAS)


class AdditiveGate(_ProjectedGate, name="additive"):
    """Additive attention gate: α = sigmoid(ψ(σ₁(W_x x + W_g g))).

    Oktay et al. 2018, https://arxiv.org/abs/1804.03999, equations 1 and 2; found
    more accurate than the multiplicative form by its authors. Costs
    (C_x + C_g + 1)·C_int multiplications for each pixel of the gate's grid.
    """

    def combine(self, x: Tensor, g: Tensor) -> Tensor:
        """Add."""
        return x + g


class MultiplicativeGate(_ProjectedGate, name="multiplicative"):
    """Multiplicative attention gate: α = sigmoid(ψ(σ₁(W_x x ⊙ W_g g))).

    The product form that Oktay et al. 2018, https://arxiv.org/abs/1804.03999, set
    against their additive gate, after Luong et al. 2015,
    "Effective Approaches to Attention-based Neural Machine Translation",
    https://arxiv.org/abs/1508.04025. Costs as much as the additive gate.
    """

    def combine(self, x: Tensor, g: Tensor) -> Tensor:
        """Multiply element by element."""
        return x * g


class GridGate(Gate, name="grid"):
    """Grid attention gate: α = sigmoid(ψ(σ₁(θx + up(φg)))), features W(x·up(α)).

    As in the code that Oktay et al. published with https://arxiv.org/abs/1804.03999
    (github.com/ozan-oktay/Attention-Gated-Networks): θ is a strided convolution
    without bias, whose kernel is its stride; φ a 1x1 convolution of the signal,
    interpolated linearly to the grid of θx, as α is up to x; and W a 1x1 convolution
    with normalisation. Costs (C_x + 1)·C_int multiplications for each pixel of θ's
    grid, C_g·C_int for each of the signal's, and C_x² for each of the skip's.
    """

    def __init__(self, spec: GateSpec, ports: Ports) -> None:
        super().__init__(spec, ports)
        ndim, inner, stride = ports.ndim, ports.inner, ports.stride
        convolution = LAYERS[ndim].conv
        self.theta = convolution(ports.skip, inner, stride, stride, bias=False)
        self.phi = conv(ndim, ports.signal, inner)
        self.activation = activation(spec.activation)
        self.psi = conv(ndim, inner, 1)
        self.w = nn.Sequential(
            conv(ndim, ports.skip, ports.skip), norm(ndim, spec.norm, ports.skip)
        )
        _open(self.psi)

    def coefficients(self, skip: Tensor, signal: Tensor) -> Tensor:
        """Return α; see `Gate.coefficients`."""
        x, g = self.theta(skip), self.phi(signal)
        if g.shape[2:] != x.shape[2:]:
            g = _resized(g, x.shape[2:])
        return torch.sigmoid(self.psi(self.activation(x + g)))

    def passed(self, skip: Tensor, alpha: Tensor) -> Tensor:
        """Return what passes; see `Gate.passed`."""
        passed: Tensor = self.w(super().passed(skip, alpha))
        return passed


class MultiGate(Gate):
    """Several gates on one skip: what they let through is joined and combined.

    By a 1x1 convolution, normalisation and ReLU, as in the published code of Oktay et
    al. 2018, https://arxiv.org/abs/1804.03999. Costs what its gates cost, and
    G·C_x² multiplications for each pixel of the skip.
    """

    def __init__(self, spec: GateSpec, ports: Ports) -> None:
        super().__init__(spec, ports)
        kind = Gate.named(spec.kind)
        gates = [kind(spec, ports) for _ in range(spec.count)]
        self.gates: Sequence[Gate] = nn.ModuleList(gates)  # type: ignore[assignment]
        self.combined = nn.Sequential(
            conv(ports.ndim, spec.count * ports.skip, ports.skip),
            norm(ports.ndim, spec.norm, ports.skip),
            nn.ReLU(),
        )

    def coefficients(self, skip: Tensor, signal: Tensor) -> Tensor:
        """Return α of every gate, (N, G, *spatial of the gates' own grid)."""
        return torch.cat([g.coefficients(skip, signal) for g in self.gates], dim=1)

    def passed(self, skip: Tensor, alpha: Tensor) -> Tensor:
        """Return what passes; see `Gate.passed`."""
        parts = [
            gate.passed(skip, alpha[:, i : i + 1]) for i, gate in enumerate(self.gates)
        ]
        combined: Tensor = self.combined(torch.cat(parts, dim=1))
        return combined
