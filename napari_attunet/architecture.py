"""What a network is, said in full and in plain data: frozen, validated, JSON.

Standard library only, so that listing models never waits for torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from napari_attunet.receptive import REACH, halo
from napari_attunet.schema import check, check_choices

__all__ = [
    "ATTENTION",
    "FEATURES",
    "GATES",
    "PRECISIONS",
    "SIGNALS",
    "WHERE",
    "AttentionSpec",
    "GateSpec",
    "Kind",
    "Mechanism",
    "NetworkSpec",
    "Part",
    "TransformerSpec",
]

Activation = Literal["relu", "leaky_relu", "softplus", "elu"]
Norm = Literal["batch", "instance", "group"]

#: What coefficients are: of a skip connection's pixels, of a block's pixels, of its
#: channels, of pairs of positions, and where the image is looked at.
Kind = Literal["gate", "spatial", "channel", "pairwise", "transform"]
#: Where in a network something attends.
Part = Literal["input", "encoder", "skip", "decoder"]

Signal = Literal["fine", "coarse", "bottleneck"]
Where = Literal["all", "encoder", "decoder", "bottleneck"]

#: Channels of each level of a network that nobody described: small and quick.
FEATURES = (16, 32, 64, 128, 256)

#: What is registered, for choices that cannot wait for PyTorch.
GATES = ("additive", "grid", "multiplicative")
ATTENTION = ("cbam", "cbam-channel", "cbam-spatial", "eca", "se", "self")
#: How a network may compute: exactly, in half the bits, or as suits the device.
PRECISIONS = ("auto", "exact", "fast")
SIGNALS: tuple[str, ...] = get_args(Signal)
WHERE: tuple[str, ...] = get_args(Where)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSpec:
    """The attention gate on every skip connection.

    Attributes
    ----------
    kind : str
        Name of a registered gate, such as ``"additive"``, ``"multiplicative"`` or
        ``"grid"``.
    signal : {"fine", "coarse", "bottleneck"}, optional
        Where the gating signal g is taken: the up-sampled decoder feature at the
        skip's own resolution; the decoder feature one level coarser (grid gating: x is
        strided down to it, α is interpolated back up); or the bottleneck, through a
        1x1 convolution. By default fine, for ``"grid"`` coarse.
    activation : str
        σ₁ between the sum (or product) and ψ.
    channels : tuple of int, optional
        Intermediate channels, one for each gate from fine to coarse; by default half
        of the skip's channels.
    norm : {"batch", "instance", "group"}, optional
        Normalisation behind W_x and W_g; behind ψ, batch normalisation only. Of grid
        gates, behind W.
    count : int
        Gates on each skip. What several let through is combined by a 1x1 convolution,
        normalisation and ReLU.
    """

    kind: str = "additive"
    signal: Signal | None = None
    activation: Activation = "relu"
    channels: tuple[int, ...] | None = None
    norm: Norm | None = "batch"
    count: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        if self.signal is None:
            signal = "coarse" if self.kind == "grid" else "fine"
            object.__setattr__(self, "signal", signal)
        check(
            self.kind != "grid" or self.signal != "fine",
            "A grid gate takes a coarse signal or the bottleneck's, not a fine one.",
        )
        check(
            self.channels is None or all(c > 0 for c in self.channels),
            f"Gate channels must be positive, got {self.channels}.",
        )
        check(self.count >= 1, f"A skip has one gate or more, got {self.count}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Attention inside the blocks, behind their convolutions.

    Attributes
    ----------
    kind : str
        Name of a registered mechanism, such as ``"se"``, ``"eca"``, ``"cbam"`` or
        ``"self"``.
    where : {"all", "encoder", "decoder", "bottleneck"}
        In which blocks; the bottleneck, the coarsest of the encoder, belongs to both
        ``"all"`` and ``"encoder"``.
    reduction : int
        Channels in one of the channels in between (r of the papers).
    pool : int
        Of self-attention: pixels along each axis that are pooled into one position.
    """

    kind: str = "se"
    where: Where = "all"
    reduction: int = 8
    pool: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        check(
            self.reduction >= 1 and self.pool >= 1,
            "Reduction and pool are numbers from 1, got "
            f"{self.reduction} and {self.pool}.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerSpec:
    """A spatial transformer at the input.

    Attributes
    ----------
    features : tuple of int
        Channels of the convolutions of its localisation network, each followed by
        pooling.
    """

    features: tuple[int, ...] = (8, 16)

    def __post_init__(self) -> None:
        check(
            len(self.features) >= 1 and all(f > 0 for f in self.features),
            f"Localisation needs positive features, got {self.features}.",
        )


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A part of a network that attends to something.

    Attributes
    ----------
    name : str
        Registered name, such as ``"additive"`` or ``"se"``.
    kind : {"gate", "spatial", "channel", "pairwise", "transform"}
        What its coefficients are.
    part : {"input", "encoder", "skip", "decoder"}
        Where in the network it is.
    level : int
        0 is the finest.
    scale : tuple of int
        Input pixels in one cell of its grid, for each spatial axis; for channels and
        transforms, which have none, those of its level.
    channels : int
        Gates on this skip; of channel attention, weights.
    """

    name: str
    kind: Kind
    part: Part
    level: int
    scale: tuple[int, ...]
    channels: int = 1

    @property
    def label(self) -> str:
        """How it is called, such as ``"α level 1"`` or ``"CBAM encoder level 2"``."""
        if self.kind == "gate":
            return f"α level {self.level + 1}"
        if self.kind == "transform":
            return "spatial transformer"
        name = "self-attention" if self.name == "self" else self.name.upper()
        return f"{name} {self.part} level {self.level + 1}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """An Attention U-Net, or with ``gate=None`` a plain U-Net.

    Attributes
    ----------
    ndim : {2, 3}
        Spatial dimensions.
    in_channels, out_channels : int
        Channels of the image; classes (one output channel is a binary sigmoid).
    features : tuple of int
        Channels of each level from fine to coarse; its length is the number of levels.
    strides : tuple of tuple of int, optional
        Down-sampling between levels, fine to coarse, one number for each axis; by
        default 2 everywhere. ``(1, 2, 2)`` spares a thin z axis.
    gate : GateSpec, optional
        The gate on the skips; None leaves them open.
    attention : tuple of AttentionSpec
        Attention inside the blocks, one behind the other.
    transformer : TransformerSpec, optional
        Turns, shifts and scales the image before the network sees it.
    residual : bool
        Whether blocks add what came in to what they make of it (He et al. 2016,
        https://arxiv.org/abs/1512.03385); attention is then on the residual branch.
    norm : {"batch", "instance", "group"}, optional
        Normalisation behind every convolution of the blocks.
    upsampling : {"nearest", "transposed"}
        Nearest-neighbour followed by a 3x3 convolution, or a transposed convolution.
    deep_supervision : bool
        Auxiliary heads at the coarser decoder levels, used in training only.
    """

    ndim: Literal[2, 3] = 2
    in_channels: int = 1
    out_channels: int = 1
    features: tuple[int, ...] = (64, 128, 256, 512, 1024)
    strides: tuple[tuple[int, ...], ...] = ()
    gate: GateSpec | None = field(default_factory=GateSpec)
    attention: tuple[AttentionSpec, ...] = ()
    transformer: TransformerSpec | None = None
    residual: bool = False
    norm: Norm | None = "batch"
    upsampling: Literal["nearest", "transposed"] = "nearest"
    deep_supervision: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        check(self.ndim in (2, 3), f"A network has 2 or 3 dimensions, not {self.ndim}.")
        check(
            self.in_channels > 0 and self.out_channels > 0,
            "A network needs at least one input and one output channel, got "
            f"{self.in_channels} and {self.out_channels}.",
        )
        check(
            len(self.features) >= 2 and all(f > 0 for f in self.features),
            "At least two levels of positive features are needed, got "
            f"{self.features}.",
        )
        if not self.strides:
            default = ((2,) * self.ndim,) * (len(self.features) - 1)
            object.__setattr__(self, "strides", default)
        check(
            len(self.strides) == len(self.features) - 1
            and all(len(s) == self.ndim and min(s) >= 1 for s in self.strides),
            f"{len(self.features)} levels in {self.ndim}D need "
            f"{len(self.features) - 1} strides of {self.ndim} positive numbers, got "
            f"{self.strides}.",
        )
        for part, levels in (("encoder", self.levels), ("decoder", self.levels - 1)):
            for level in range(levels):
                kinds = [a.kind for a in self.attention_in(part, level)]
                check(
                    len(set(kinds)) == len(kinds),
                    f"A block has each kind of attention once, got {kinds} at level "
                    f"{level + 1} of the {part}.",
                )
        channels = self.gate.channels if self.gate else None
        check(
            channels is None or len(channels) == len(self.strides),
            f"{len(self.strides)} skips need as many gate channels, got {channels}.",
        )

    @property
    def levels(self) -> int:
        """Number of levels, the bottleneck included."""
        return len(self.features)

    def scale(self, level: int) -> tuple[int, ...]:
        """Input pixels in one pixel of a level, for each axis; level 0 is finest."""
        return tuple(
            math.prod(s[axis] for s in self.strides[:level])
            for axis in range(self.ndim)
        )

    @property
    def divisor(self) -> tuple[int, ...]:
        """What the input's size must be a multiple of, for each axis."""
        return self.scale(self.levels - 1)

    def gate_scale(self, level: int) -> tuple[int, ...]:
        """Input pixels in one cell of α of the gates on a level's skip."""
        gate = self.gate or GateSpec()
        if gate.signal == "fine":
            return self.scale(level)
        if gate.signal == "coarse" or gate.kind == "grid":
            return self.scale(level + 1)
        return self.divisor

    @property
    def is_local(self) -> bool:
        """Whether each output depends on its receptive field only.

        Instance and group normalisation pool over the whole input, and so does most
        attention inside blocks: the result then depends on how an image is cut into
        tiles.
        """
        norms = {self.norm, self.gate.norm if self.gate else None}
        return (
            not norms & {"instance", "group"}
            and self.transformer is None
            and all(a.kind in REACH for a in self.attention)
        )

    @property
    def halo(self) -> tuple[int, ...]:
        """Margin around a grid-aligned region that holds all it depends on.

        A multiple of `divisor`, for each axis.
        """
        return tuple(halo(self, axis) for axis in range(self.ndim))

    def attention_in(self, part: str, level: int) -> tuple[AttentionSpec, ...]:
        """Return the attention in a block of the encoder or decoder."""
        places = {"all", part}
        if part == "encoder" and level == self.levels - 1:
            places.add("bottleneck")
        return tuple(a for a in self.attention if a.where in places)
