"""What a model is, said in full and in plain data: frozen, validated, JSON.

A specification is the header of every model file. It is standard library only, so
that listing models never waits for torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from napari_attunet.architecture import (
    Activation,
    AttentionSpec,
    GateSpec,
    NetworkSpec,
    Norm,
    TransformerSpec,
)
from napari_attunet.schema import check, check_choices

__all__ = [
    "FORMAT_VERSION",
    "Activation",
    "AttentionSpec",
    "GateSpec",
    "ModelSpec",
    "NetworkSpec",
    "Norm",
    "Normalization",
    "ObjectSettings",
    "TransformerSpec",
]

#: Raised whenever an older program could no longer read a newer file rightly.
FORMAT_VERSION = 1


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
    threshold : float, optional
        Used where `output` is ``"classes"``: how probable a class must be to stand
        against the background. By default the most probable class stands.
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
    threshold: float | None = None
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
        check(
            self.threshold is None or 0 <= self.threshold <= 1,
            f"The threshold lies between 0 and 1, got {self.threshold}.",
        )

    @property
    def n_classes(self) -> int:
        """Number of classes, the background included; a single logit makes two."""
        return max(2, self.network.out_channels)

    @property
    def key(self) -> str:
        """``"name@version"``."""
        return f"{self.name}@{self.version}"
