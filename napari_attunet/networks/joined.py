"""Skips and what comes from below them: as one tensor, or side by side.

A decoder's block convolves both together, and so does an additive gate. To join them
is a copy of both, through memory; where a convolution can add to the result of another,
they need not be joined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from napari_attunet.architecture import NetworkSpec
from napari_attunet.networks.chains import Chain, folded, is_plain
from napari_attunet.networks.gates import AdditiveGate
from napari_attunet.networks.layers import channels_last, conv, for_channels
from napari_attunet.networks.operations import onednn

__all__ = ["Beside", "Joint", "Paired", "gates_suit", "unmerged"]


class Paired(nn.Module):
    """A convolution of two tensors as if they were joined (oneDNN, on the CPU).

    Parameters
    ----------
    weights : sequence of two Tensor
        Of the first tensor and of the second.
    bias : Tensor, optional
    relu : bool
        Whether to apply a ReLU at last.
    """

    def __init__(
        self, weights: Sequence[Tensor], bias: Tensor | None, *, relu: bool
    ) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Parameter(channels_last(w.detach()), requires_grad=False)
            for w in weights
        )
        self.bias = bias if bias is None else nn.Parameter(bias, requires_grad=False)
        self._padding = [n // 2 for n in self.first.shape[2:]]
        self._relu = relu

    @classmethod
    def of(cls, chain: Chain) -> Paired:
        """Return what a convolution of as many channels of both amounts to."""
        weight = chain.convolution.get_parameter("weight")
        bias = chain.convolution.bias
        return cls(weight.chunk(2, dim=1), bias, relu=chain.relu)  # type: ignore[arg-type]

    @staticmethod
    def suits(chain: Chain) -> bool:
        """Return whether it is a plain convolution on the CPU."""
        return (
            chain.repeats is None
            and is_plain(chain.convolution, kernel=3)
            and chain.convolution.get_parameter("weight").device.type == "cpu"
            and torch.backends.mkldnn.is_available()
        )

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        """Convolve two tensors, (N, C, *spatial) each."""
        one, other = parts
        where = (self._padding, [1] * len(self._padding))
        y = onednn(one, self.first, self.bias, *where, relu=False)
        return onednn(other, self.second, None, *where, relu=self._relu, onto=y)


class Joint(nn.Module):
    """An additive gate with a fine signal, on skip and signal in one piece."""

    def __init__(self, gate: AdditiveGate) -> None:
        super().__init__()
        weights, bias = _weights(gate)
        weight = torch.cat(weights, dim=1)
        with torch.device("meta"):
            one = conv(weight.ndim - 2, weight.shape[1], weight.shape[0])
        one.load_state_dict({"weight": weight, "bias": bias}, assign=True)
        self.project = nn.Sequential(one, gate.activation).requires_grad_(False)
        self.psi = gate.psi

    def forward(
        self,
        parts: list[Tensor],
        edited: Callable[[Tensor], Tensor] = lambda alpha: alpha,
    ) -> tuple[Tensor, Tensor]:
        """Return x·α joined with what comes from below, and α.

        Parameters
        ----------
        parts : list of Tensor
            x, and what comes from below; taken away, which frees their memory.
        edited : callable
            From the α that is found to the one to use.
        """
        both, channels = torch.cat(parts, dim=1), parts[0].shape[1]
        parts.clear()
        alpha = edited(self.psi(self.project(both)).sigmoid())
        both[:, :channels] *= alpha
        return both, alpha


class Beside(nn.Module):
    """An additive gate with a fine signal, on skip and signal side by side."""

    def __init__(self, gate: AdditiveGate) -> None:
        super().__init__()
        relu = isinstance(gate.activation, nn.ReLU)
        self.project = Paired(*_weights(gate), relu=relu)
        self.activation = nn.Identity() if relu else gate.activation
        self.psi = gate.psi

    def forward(
        self,
        parts: list[Tensor],
        edited: Callable[[Tensor], Tensor] = lambda alpha: alpha,
    ) -> tuple[list[Tensor], Tensor]:
        """Return x·α and what comes from below, and α; see `Joint.forward`."""
        alpha = edited(self.psi(self.activation(self.project(parts))).sigmoid())
        skip, up = parts
        parts.clear()
        return [skip * for_channels(alpha, skip), up], alpha


def unmerged(gate: AdditiveGate) -> Callable[[list[Tensor]], tuple[Tensor, Tensor]]:
    """Return what does the same as both by way of the gate itself."""

    def joined(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
        passed, alpha = gate(*parts)
        return torch.cat((passed, parts[1]), dim=1), alpha

    return joined


def gates_suit(spec: NetworkSpec) -> bool:
    """Return whether gates are of that kind, and easily normalised."""
    gate = spec.gate
    return gate is not None and gate.signal == "fine" and gate.norm in ("batch", None)


def _weights(gate: AdditiveGate) -> tuple[list[Tensor], Tensor]:
    """Return those of x and of the signal, and the bias of both."""
    both = [folded(w) for w in (gate.w_x, gate.w_g)]
    bias = torch.stack([c.get_parameter("bias") for c in both]).sum(0)
    return [c.get_parameter("weight") for c in both], bias
