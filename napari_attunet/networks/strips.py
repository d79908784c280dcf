"""The finest levels worked on some rows at a time: less memory, and sooner.

On large images most of the memory, and half of the time, goes into the features of the
finest levels. Of those, only the skip and what the next level gets have to be whole::

    image ──> strip of rows ──> features of the strip ──┬──> skip
                                                        └──> pooled ──> next level

The same on the way up: a strip of the skip and the coarser rows that it needs become a
strip of decoded features, at the finest level of logits. Strips overlap by the few rows
that blocks look further.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from napari_attunet import receptive
from napari_attunet.architecture import NetworkSpec
from napari_attunet.networks.parts import Parts, seen
from napari_attunet.networks.unet import AttentionUNet

__all__ = ["StripedUNet"]


class StripedUNet(AttentionUNet):
    """Works in strips where that changes nothing, for inference only."""

    #: In which features come out.
    dtype = torch.float32

    def _room(
        self,
        x: Tensor,
        channels: int,
        shape: Sequence[int],
        layout: torch.memory_format = torch.channels_last,
    ) -> Tensor:
        """Return room for what strips become."""
        sizes = (len(x), channels, *shape)
        return torch.empty(
            sizes, dtype=self.dtype, device=x.device, memory_format=layout
        )

    def _down(
        self, level: int, x: Tensor, parts: Parts
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        if not _in_strips(self.spec, "encoder", level, x, x.shape[2]):
            return super()._down(level, x, parts)
        height, width = x.shape[2:]
        down, across = self.spec.strides[level]
        margin = receptive.reach(self.spec, "encoder", level)
        rows, columns = parts.joined(level)
        channels = self.spec.features[level]
        skip = self._room(x, channels, _sizes((rows, columns)))
        pooled = self._room(x, channels, (height // down, width // across))
        step = -(-receptive.STRIP // down) * down
        for first in range(0, height, step):
            last = min(first + step, height)
            low, high = max(first - margin, 0), min(last + margin, height)
            features, _ = self.encoder[level](x[:, :, low:high])
            features = features[:, :, first - low : last - low]
            pooled[:, :, first // down : last // down] = self.pools[level](features)
            begin, end = max(first, rows.start), min(last, rows.stop)
            if begin < end:
                kept = features[:, :, begin - first : end - first, columns]
                skip[:, :, begin - rows.start : end - rows.start] = kept
        return skip, pooled, ()

    def _up(
        self, level: int, skips: list[Tensor], x: Tensor, parts: Parts, **gating: Any
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        plainly = super()._up
        needed, gated = parts.needed(level), parts.gated(level)
        height = needed[0].stop - needed[0].start
        if not _in_strips(self.spec, "decoder", level, x, height):
            return plainly(level, skips, x, parts, **gating)
        skip, spec = skips.pop(), self.spec
        if level:
            found = self._room(x, spec.features[level], _sizes(needed))
        else:  # logits, as planes: classes are found from these
            planes = torch.contiguous_format
            found = self._room(x, spec.out_channels, _sizes(needed), planes)
        count = spec.gate.count if spec.gate else 0
        alphas = x.new_zeros(len(x), count, *_sizes(gated))
        ratio = spec.gate_scale(level)[0] // spec.scale(level)[0]
        for strip in parts.strips(level, receptive.STRIP):
            features, alpha, _ = plainly(
                level,
                [seen(skip, strip.joined(level), parts.joined(level))],
                seen(x, strip.needed(level + 1), parts.needed(level + 1)),
                strip,
                **gating,
            )
            rows = strip.needed(level)[0]
            begin = needed[0].start
            found[:, :, rows.start - begin : rows.stop - begin] = features
            cells = slice(rows.start // ratio, rows.stop // ratio)
            for values in alpha:  # of the gate, if there is one
                first = strip.gated(level)[0].start
                values = values[:, :, cells.start - first : cells.stop - first]
                first = gated[0].start
                alphas[:, :, cells.start - first : cells.stop - first] = values
        return found, (alphas,) * bool(count), ()


def _in_strips(spec: NetworkSpec, part: str, level: int, x: Tensor, rows: int) -> bool:
    """Return whether a level is worked on in strips; a card has no use for it."""
    return x.device.type == "cpu" and receptive.cuts_in_strips(spec, part, level, rows)


def _sizes(region: Sequence[slice]) -> tuple[int, ...]:
    return tuple(r.stop - r.start for r in region)
