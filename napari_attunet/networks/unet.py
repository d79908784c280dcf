"""The Attention U-Net, in two and three dimensions from one code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from napari_attunet.architecture import Mechanism, NetworkSpec, Part
from napari_attunet.errors import DataError
from napari_attunet.networks.blocks import BlockAttention, ConvBlock
from napari_attunet.networks.explained import Edits, Encoded, Explained
from napari_attunet.networks.gates import Gate, MultiGate, Ports
from napari_attunet.networks.layers import Up, channels_last, conv, max_pool, norm
from napari_attunet.networks.parts import Parts, cut, laid
from napari_attunet.networks.transformer import SpatialTransformer, inverse, sample

__all__ = ["AttentionUNet", "Entering"]

#: What a block of the decoder takes: one tensor, or those that it would be joined of,
#: where the block can do with that.
Entering = Tensor | list[Tensor]


class AttentionUNet(nn.Module):
    """U-Net whose skip connections pass through attention gates.

    Oktay et al. 2018, "Attention U-Net: Learning Where to Look for the Pancreas",
    https://arxiv.org/abs/1804.03999; the U-Net itself is Ronneberger et al. 2015,
    https://arxiv.org/abs/1505.04597. With ``spec.gate`` None it is the plain U-Net.

    Parameters
    ----------
    spec : NetworkSpec
        The architecture.

    Attributes
    ----------
    mechanisms : tuple of Mechanism
        What attends to something: input, encoder (fine to coarse), skips (fine to
        coarse), decoder (fine to coarse).
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        ndim, features = spec.ndim, spec.features
        self.transformer = (
            SpatialTransformer(spec.transformer, ndim, spec.in_channels)
            if spec.transformer
            else None
        )
        inputs = (spec.in_channels, *features[:-1])
        self.encoder = nn.ModuleList(
            self._block("encoder", level, *channels)
            for level, channels in enumerate(zip(inputs, features, strict=True))
        )
        self.pools = nn.ModuleList(max_pool(ndim, s) for s in spec.strides)
        self.ups = nn.ModuleList(
            Up(ndim, coarse, fine, stride, spec.norm, spec.upsampling)
            for fine, coarse, stride in zip(
                features[:-1], features[1:], spec.strides, strict=True
            )
        )
        self.signal: nn.Module | None = None
        if spec.gate is not None and spec.gate.signal == "bottleneck":
            self.signal = nn.Sequential(
                conv(ndim, features[-1], features[-1]),
                norm(ndim, spec.gate.norm, features[-1]),
                nn.ReLU(),
            )
        self.gates = nn.ModuleList(
            self._gate(level) for level in range(spec.levels - 1) if spec.gate
        )
        self.decoder = nn.ModuleList(
            self._block("decoder", level, 2 * f, f)
            for level, f in enumerate(features[:-1])
        )
        self.head = conv(ndim, features[0], spec.out_channels)
        self.auxiliary_heads = nn.ModuleList(
            conv(ndim, f, spec.out_channels)
            for f in features[1:-1]
            if spec.deep_supervision
        )
        self.mechanisms = self._mechanisms()

    def _block(
        self, part: str, level: int, in_channels: int, out_channels: int
    ) -> ConvBlock:
        spec = self.spec
        attention = spec.attention_in(part, level)
        return ConvBlock(
            *(spec.ndim, in_channels, out_channels, spec.norm, attention),
            residual=spec.residual,
        )

    def _gate(self, level: int) -> Gate:
        spec, gate = self.spec, self.spec.gate
        if gate is None:
            raise TypeError("A plain U-Net has no gates.")
        skip = spec.features[level]
        signals = {
            "fine": skip,
            "coarse": spec.features[level + 1],
            "bottleneck": spec.features[-1],
        }
        ports = Ports(
            ndim=spec.ndim,
            skip=skip,
            signal=signals[str(gate.signal)],
            inner=gate.channels[level] if gate.channels else max(1, skip // 2),
            stride=tuple(
                coarse // fine
                for coarse, fine in zip(
                    spec.gate_scale(level), spec.scale(level), strict=True
                )
            ),
        )
        kind = Gate.named(gate.kind) if gate.count == 1 else MultiGate
        return kind(gate, ports)

    def _mechanisms(self) -> tuple[Mechanism, ...]:
        spec = self.spec
        found: list[Mechanism] = []
        if self.transformer is not None:
            ones = (1,) * spec.ndim
            found.append(Mechanism("transformer", "transform", "input", 0, ones))
        for level in range(spec.levels):
            found += self._in_block("encoder", level)
        gate = spec.gate
        for level in range(spec.levels - 1):
            if gate is not None:
                scale = spec.gate_scale(level)
                found.append(
                    Mechanism(gate.kind, "gate", "skip", level, scale, gate.count)
                )
        for level in range(spec.levels - 1):
            found += self._in_block("decoder", level)
        return tuple(found)

    def _in_block(self, part: Part, level: int) -> Iterator[Mechanism]:
        spec = self.spec
        scale = spec.scale(level)
        for a in spec.attention_in(part, level):
            for kind in BlockAttention.named(a.kind).emits:
                yield Mechanism(
                    *(a.kind, kind, part, level),
                    scale=tuple(s * a.pool for s in scale)
                    if kind == "pairwise"
                    else scale,
                    channels=spec.features[level] if kind == "channel" else 1,
                )

    def channels_last(self) -> AttentionUNet:
        """Lay the weights out channels last, which is faster in 2D, and return self."""
        if self.spec.ndim == 2:
            for parameter in self.parameters():
                if parameter.ndim == 4:
                    parameter.data = channels_last(parameter.data)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, out_channels, *spatial); see `explain`."""
        return self.explain(x).logits

    def explain(
        self,
        x: Tensor,
        edits: Edits | None = None,
        *,
        wanted: Sequence[slice] | None = None,
    ) -> Explained:
        """Return the logits and everything that was attended to on the way.

        Parameters
        ----------
        x : Tensor, (N, in_channels, *spatial)
            Sizes must be multiples of ``spec.divisor``.
        edits : mapping of int to Tensor or float, optional
            As in `decode`.
        wanted : sequence of slice, optional
            A part of x along each spatial axis, from and to multiples of
            ``spec.divisor``: only that is returned, as it is of all of x, but for
            rounding; and only what it needs is decoded.

        Raises
        ------
        DataError
            If the channels or sizes don't fit the network.
        """
        return self._decode(self.encode(x, wanted=wanted), edits or {})

    def encode(self, x: Tensor, *, wanted: Sequence[slice] | None = None) -> Encoded:
        """Run the encoder alone; see `explain`."""
        self._check(x)
        parts = Parts(self.spec, x.shape[2:], wanted)
        matrix: Tensor | None = None
        coefficients: tuple[Tensor, ...] = ()
        if self.transformer is not None:
            x, matrix = self.transformer(x)
            coefficients = (matrix,)
        skips = []
        last = self.spec.levels - 1
        for level in range(last):
            skip, x, found = self._down(level, x, parts)
            skips.append(skip)
            coefficients += found
        x, found = self.encoder[last](x)
        bottleneck = cut(x, parts.needed(last))
        return Encoded(skips, bottleneck, coefficients + found, matrix, parts)

    def _down(
        self, level: int, x: Tensor, parts: Parts
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return a level's skip, what the next one gets, and what it attended to."""
        x, found = self.encoder[level](x)
        return cut(x, parts.joined(level)), self.pools[level](x), found

    def decode(self, encoded: Encoded, edits: Edits | None = None) -> Explained:
        """Run the decoder alone, as often as you like.

        Parameters
        ----------
        encoded : Encoded
        edits : mapping of int to Tensor or float, optional
            α to use instead of what the gates find, by level of the skip, 0 the
            finest: 1.0 opens a gate, 0.0 shuts it, NaN leaves it as it is. Around what
            is wanted, only one number for everywhere changes anything.

        Raises
        ------
        DataError
            If there is no gate at a level.
        """
        return self._decode(encoded._replace(skips=list(encoded.skips)), edits or {})

    def _decode(self, encoded: Encoded, edits: Edits) -> Explained:
        """Run the decoder and take the skips away, which frees their memory."""
        skips, x, coefficients, matrix, parts = encoded
        del encoded
        unknown = set(edits) - set(range(len(self.gates)))
        if unknown:
            raise DataError(
                f"There are {len(self.gates)} gates, at levels from 0; there is none "
                f"to edit at {sorted(unknown)}."
            )
        deep = None if self.signal is None else self.signal(x)
        of_gates: list[Tensor] = []
        of_blocks: list[tuple[Tensor, ...]] = []
        auxiliary: list[Tensor] = []
        for level in reversed(range(self.spec.levels - 1)):
            edited = functools.partial(self._edited, level, edits.get(level), matrix)
            x, alpha, found = self._up(level, skips, x, parts, deep=deep, edited=edited)
            of_gates += alpha
            of_blocks.append(found)
            if self.training and self.spec.deep_supervision and level:
                auxiliary.append(self.auxiliary_heads[level - 1](x))
        heads = [x, *reversed(auxiliary)]
        if matrix is not None:
            heads = [SpatialTransformer.restore(logits, matrix) for logits in heads]
        logits, *auxiliary = (
            cut(logits, parts.wanted(self.spec.scale(level)), parts.needed(level))
            for level, logits in enumerate(heads)
        )
        attention = (*coefficients, *reversed(of_gates))
        attention += tuple(c for found in reversed(of_blocks) for c in found)
        shown = []
        for mechanism, values in zip(self.mechanisms, attention, strict=True):
            if mechanism.kind in ("gate", "spatial"):
                if matrix is not None:
                    values = SpatialTransformer.restore(values, matrix)
                place = parts.wanted(mechanism.scale)
                values = cut(values, place, parts.of(mechanism))
            shown.append(values)
        return Explained(logits, tuple(shown), tuple(auxiliary))

    def _up(
        self,
        level: int,
        skips: list[Tensor],
        x: Tensor,
        parts: Parts,
        *,
        deep: Tensor | None,
        edited: Callable[[Parts, Tensor], Tensor],
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return what a level decodes, α of its gate, and of its block.

        Those are its features, but the finest level makes logits of them at once.
        Arguments as of `_joined`, but ``edited`` is told the parts first; α lies on
        ``parts.gated(level)``, if there is a gate.
        """
        alphas: list[Tensor] = []
        if self.spec.gate is None:
            entering = self._together(level, skips.pop(), self.ups[level](x))
        else:
            here = functools.partial(edited, parts)
            entering, *alphas = self._joined(level, skips, x, deep, here)
        x, found = self.decoder[level](entering)
        if not level:
            x = self.head(x)  # before it is cut: then it lies in one piece
        return cut(x, parts.needed(level), parts.joined(level)), tuple(alphas), found

    def _together(self, level: int, skip: Tensor, up: Tensor) -> Entering:
        """Return what a block takes of a skip and of what comes from below."""
        return torch.cat((skip, up), dim=1)

    def _joined(
        self,
        level: int,
        skips: list[Tensor],
        x: Tensor,
        deep: Tensor | None,
        edited: Callable[[Tensor], Tensor],
    ) -> tuple[Entering, Tensor]:
        """Return what a gate lets through together with what comes from below, and α.

        Parameters
        ----------
        level : int
        skips : list of Tensor
            The last one is taken away, so that its memory is free once it is used.
        x : Tensor
            From the level below.
        deep : Tensor, optional
            The signal, where it comes from the bottleneck.
        edited : callable
            From the α that the gate finds to the one to use.
        """
        skip, up = skips.pop(), self.ups[level](x)
        signal = x if deep is None else deep
        if self.spec.gate is not None and self.spec.gate.signal == "fine":
            signal = up
        gate: Gate = self.gates[level]  # type: ignore[assignment]
        alpha = edited(gate.coefficients(skip, signal))
        skip = gate.passed(skip, alpha)  # what came in is free now
        return self._together(level, skip, up), alpha

    def _edited(
        self,
        level: int,
        edit: Tensor | float | None,
        matrix: Tensor | None,
        parts: Parts,
        alpha: Tensor,
    ) -> Tensor:
        """Return α, which lies on these parts, as an edit wants it; see `decode`."""
        if edit is None:
            return alpha
        drawn = torch.as_tensor(edit, dtype=alpha.dtype, device=alpha.device)
        if drawn.ndim:
            place = parts.wanted(self.spec.gate_scale(level))
            sizes = (p.stop - p.start for p in place)
            drawn = drawn.expand(*alpha.shape[:2], *sizes)
            drawn = laid(drawn, parts.gated(level), place, torch.nan)
        drawn = drawn.expand(alpha.shape)
        told = ~drawn.isnan()
        if matrix is None:
            return torch.where(told, drawn, alpha)
        # It was drawn on the image.
        share = sample(told.to(alpha.dtype), matrix)
        return alpha * (1 - share) + sample(torch.where(told, drawn, 0), matrix)

    @staticmethod
    def in_frame(place: Tensor, matrix: Tensor | None) -> Tensor:
        """Return where a place of the image lies in what the encoder saw.

        Parameters
        ----------
        place : Tensor, (ndim,)
            From 0 to 1 along each spatial axis.
        matrix : Tensor, (1, ndim, ndim + 1), optional
            Of `Encoded`.
        """
        if matrix is None:
            return place
        back = inverse(matrix)[0]
        unit = (2 * place.to(back) - 1).flip(0)  # the last axis first
        return ((back[:, :-1] @ unit + back[:, -1]).flip(0) + 1) / 2

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
