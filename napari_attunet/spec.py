"""What a model is, said in full and in plain data: frozen, validated, JSON.

A specification is the header of every model file. It is standard library only, so
that listing models never waits for torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from napari_attunet.schema import check, check_choices

__all__ = [
    "FORMAT_VERSION",
    "GateSpec",
    "ModelSpec",
    "NetworkSpec",
    "Normalization",
    "ObjectSettings",
]

#: Raised whenever an older program could no longer read a newer file rightly.
FORMAT_VERSION = 1

Activation = Literal["relu", "leaky_relu", "softplus", "elu"]
Norm = Literal["batch", "instance", "group"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSpec:
    """The attention gate on every skip connection.

    Attributes
    ----------
    kind : str
        Name of a registered gate, such as ``"additive"`` or ``"multiplicative"``.
    signal : {"fine", "coarse"}
        Where the gating signal g is taken: the up-sampled decoder feature at the
        skip's own resolution, or the decoder feature one level coarser (grid gating:
        x is strided down to it, α is interpolated back up).
    activation : str
        σ₁ between the sum (or product) and ψ.
    channels : tuple of int, optional
        Intermediate channels, one for each gate from fine to coarse; by default half
        of the skip's channels.
    norm : {"batch", "instance", "group"}, optional
        Normalisation behind W_x and W_g; behind ψ, batch normalisation only.
    """

    kind: str = "additive"
    signal: Literal["fine", "coarse"] = "fine"
    activation: Activation = "relu"
    channels: tuple[int, ...] | None = None
    norm: Norm | None = "batch"

    def __post_init__(self) -> None:
        check_choices(self)
        check(
            self.channels is None or all(c > 0 for c in self.channels),
            f"Gate channels must be positive, got {self.channels}.",
        )


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

    @property
    def is_local(self) -> bool:
        """Whether each output depends on its receptive field only.

        Instance and group normalisation pool over the whole input, so the result
        then depends on how an image is cut into tiles.
        """
        norms = {self.norm, self.gate.norm if self.gate else None}
        return not norms & {"instance", "group"}

    @property
    def halo(self) -> tuple[int, ...]:
        """Margin around a grid-aligned region that holds all it depends on.

        Found by carrying an interval of one coarsest cell backwards through every
        layer, along each axis; a multiple of `divisor`.
        """
        return tuple(self._halo(axis) for axis in range(self.ndim))

    def _halo(self, axis: int) -> int:
        strides = [s[axis] for s in self.strides]
        coarse_gate = self.gate is not None and self.gate.signal == "coarse"
        cell = self.divisor[axis]
        low, high = 0, cell - 1
        needs: list[tuple[int, int]] = []  # of every encoder level, fine to coarse
        for stride in strides:
            low, high = low - 2, high + 2  # the decoder's two 3x3 convolutions
            need = (low, high)
            grow = 1 if self.upsampling == "nearest" else 0  # its 3x3 convolution
            up = ((low - grow) // stride, (high + grow) // stride)
            if coarse_gate:  # α is interpolated between neighbouring coarse cells
                cells = (
                    (2 * low + 1 - stride) // (2 * stride),
                    -((stride - 2 * high - 1) // (2 * stride)),
                )
                need = (
                    min(low, cells[0] * stride),
                    max(high, cells[1] * stride + stride - 1),
                )
                up = (min(up[0], cells[0]), max(up[1], cells[1]))
            needs.append(need)
            low, high = up
        needs.append((low, high))
        low, high = needs[-1]
        for level in reversed(range(self.levels)):
            low, high = low - 2, high + 2  # the encoder's two 3x3 convolutions
            if level:
                stride = strides[level - 1]
                low, high = low * stride, high * stride + stride - 1
                low, high = (
                    min(low, needs[level - 1][0]),
                    max(high, needs[level - 1][1]),
                )
        reach = max(-low, high - (cell - 1))
        return math.ceil(reach / cell) * cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalization:
    """How pixel values become what the network sees; computed once for an image.

    Attributes
    ----------
    kind : {"percentile", "transmission", "zscore", "none"}
        Map two percentiles to 0 and 1; divide by the high one, the light that nothing
        absorbed, so that how dark something is does not depend on what lies beside it
        in a bright-field image; subtract the mean and divide by the standard
        deviation; or leave the values alone.
    low, high : float
        The percentiles.
    per_channel : bool
        Treat each channel by itself, or keep their proportions (colours).
    clip : tuple of float, optional
        Limits of the result.
    """

    kind: Literal["percentile", "transmission", "zscore", "none"] = "percentile"
    low: float = 1.0
    high: float = 99.8
    per_channel: bool = True
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        check(
            0 <= self.low < self.high <= 100,
            f"Percentiles need 0 <= low < high <= 100, got {self.low} and {self.high}.",
        )
        check(
            self.clip is None or self.clip[0] < self.clip[1],
            f"Limits must rise, got {self.clip}.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectSettings:
    """How interior and boundary probabilities become numbered objects.

    Attributes
    ----------
    interior, boundary : int
        Which class is which.
    seed_threshold : float
        Interior probability above which connected pixels seed one object.
    foreground_threshold : float
        Probability of interior plus boundary above which a pixel belongs to an object.
    split_depth : float
        Divide round objects that the network left joined: a seed is parted at a neck
        if on both sides of it the distance to the edge rises by more than so many
        pixels. 0 leaves seeds as they are, which is right for branched shapes.
    min_size : int
        Objects with fewer pixels are dropped.
    fill_holes : bool
        Fill holes inside objects.
    """

    interior: int = 1
    boundary: int = 2
    seed_threshold: float = 0.5
    foreground_threshold: float = 0.5
    split_depth: float = 0.0
    min_size: int = 16
    fill_holes: bool = True

    def __post_init__(self) -> None:
        check_choices(self)
        check(
            self.interior != self.boundary and min(self.interior, self.boundary) >= 1,
            "Interior and boundary must be two different classes from 1, got "
            f"{self.interior} and {self.boundary}.",
        )
        for name in ("seed_threshold", "foreground_threshold"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"{name} must lie between 0 and 1, got {value}.")
        check(
            self.split_depth >= 0,
            f"split_depth must not be negative, got {self.split_depth}.",
        )
        check(
            self.min_size >= 0, f"min_size must not be negative, got {self.min_size}."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A network together with all that is needed to use it rightly.

    Attributes
    ----------
    name : str
        Short name, unique in a library together with `version`.
    version : int
        Counts up from 1; a version never changes once stored.
    parent : str, optional
        ``"name@version"`` of the model this one was trained from.
    network : NetworkSpec
        The architecture.
    channels : tuple of str
        What the input channels are, such as ``("grey",)`` or
        ``("red", "green", "blue")``.
    classes : tuple of str
        Names of the classes, background first; a sigmoid network names two.
    colors : tuple of str
        A colour for each class, as ``#rrggbb``; empty for the viewer's own.
    normalization : Normalization
        From pixel values to network input.
    output : {"classes", "objects"}
        What probabilities become: one label for a class, or one for each object.
    objects : ObjectSettings
        Used where `output` is ``"objects"``.
    pixel_size : tuple of float, optional
        Micrometres in a pixel of the training images, for each spatial axis.
    description : str
        One sentence for people.
    training : dict
        Record of the training: data hash, settings, seed, scores.
    origin : dict
        Source, licence and citation.
    """

    name: str
    network: NetworkSpec
    version: int = 1
    parent: str | None = None
    channels: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()
    normalization: Normalization = field(default_factory=Normalization)
    output: Literal["classes", "objects"] = "classes"
    objects: ObjectSettings = field(default_factory=ObjectSettings)
    pixel_size: tuple[float, ...] | None = None
    description: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choices(self)
        check(
            bool(self.name)
            and not set(self.name) & set('/\\@:*?"<>|')
            and self.name[0] != ".",
            f"{self.name!r} cannot name a model: use letters, digits, dashes and dots.",
        )
        check(self.version >= 1, f"Versions count from 1, got {self.version}.")
        if not self.channels:
            names = tuple(f"channel {i}" for i in range(self.network.in_channels))
            object.__setattr__(self, "channels", names)
        if not self.classes:
            names = ("background", *(f"class {i}" for i in range(1, self.n_classes)))
            object.__setattr__(self, "classes", names)
        check(
            len(self.channels) == self.network.in_channels,
            f"{self.network.in_channels} input channels need as many names, got "
            f"{self.channels}.",
        )
        check(
            len(self.classes) == self.n_classes,
            f"{self.n_classes} classes need as many names, got {self.classes}.",
        )
        check(
            self.output == "classes"
            or max(self.objects.interior, self.objects.boundary) < self.n_classes,
            f"Objects need interior and boundary among the {self.n_classes} classes.",
        )

    @property
    def n_classes(self) -> int:
        """Number of classes, the background included; a single logit makes two."""
        return max(2, self.network.out_channels)

    @property
    def key(self) -> str:
        """``"name@version"``."""
        return f"{self.name}@{self.version}"
