"""What a network says, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from napari_attunet.networks.parts import Parts

__all__ = ["Edits", "Encoded", "Explained"]

#: α to use instead of what gates find, by level of the skip: (N or 1, G or 1, *spatial
#: of what is wanted, on the gate's own grid), NaN where it is to stay; or one number
#: for everywhere.
Edits = Mapping[int, Tensor | float]


class Encoded(NamedTuple):
    """What the encoder makes of an image; all that `AttentionUNet.decode` needs.

    Attributes
    ----------
    skips : list of Tensor
        Features of the levels, fine to coarse.
    bottleneck : Tensor
        Of the coarsest.
    coefficients : tuple of Tensor
        Of the input and the encoder, in the order of `AttentionUNet.mechanisms`.
    matrix : Tensor, optional
        Of the spatial transformer.
    parts : Parts
        What of each level is here, and what of the output is wanted.
    """

    skips: list[Tensor]
    bottleneck: Tensor
    coefficients: tuple[Tensor, ...]
    matrix: Tensor | None
    parts: Parts


class Explained(NamedTuple):
    """Logits, and how they came about; of a part where only that is wanted.

    Attributes
    ----------
    logits : Tensor, (N, out_channels, *spatial)
    attention : tuple of Tensor
        The coefficients of every mechanism, in the order of
        `AttentionUNet.mechanisms`: ``"gate"`` (N, G, *spatial / scale) and
        ``"spatial"`` (N, 1, *spatial / scale), in [0, 1]; ``"channel"`` (N, C), in
        [0, 1]; ``"pairwise"`` queries and keys (N, 2, D, *positions);
        ``"transform"`` (N, ndim, ndim + 1).
    auxiliary : tuple of Tensor, (N, out_channels, *spatial / scale of the level)
        Logits of the deep-supervision heads, fine to coarse; only in training mode.
    """

    logits: Tensor
    attention: tuple[Tensor, ...]
    auxiliary: tuple[Tensor, ...]
