"""What trainings and rounds are told: frozen, validated, JSON; kept in the record."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from napari_attunet.schema import check, check_choices
from napari_attunet.spec import NetworkSpec

__all__ = ["Augmentation", "RoundSettings", "TrainingSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How a crop is varied each time it is drawn.

    Attributes
    ----------
    zoom : tuple of float
        Limits of the magnification of all axes; on a logarithmic scale, the nearer
        to 1 the likelier.
    rotate, flip : bool
        Any angle in the YX plane; mirror each axis (in 3D never Z into Y or X).
    stretch : float
        Largest relative difference of magnification between axes.
    intensity : float
        Strength of brightness, contrast, gamma, uneven light, noise and blur; 1 is
        strong, 0 is off.
    stain : float
        Spread of the stain concentrations and of the background in RGB images
        (Tellez et al. 2019, https://arxiv.org/abs/1902.06543); 0 is off.
    counterstain : float
        Probability of staining patches of an RGB image brown, but for the objects, as
        immunohistochemistry (DAB) does.
    invert : float
        Probability of turning bright into dark.
    """

    zoom: tuple[float, float] = (0.5, 2.0)
    rotate: bool = True
    flip: bool = True
    stretch: float = 0.15
    intensity: float = 1.0
    stain: float = 0.0
    counterstain: float = 0.0
    invert: float = 0.0

    def __post_init__(self) -> None:
        check(
            0 < self.zoom[0] <= self.zoom[1],
            f"Zoom limits must rise from above 0, got {self.zoom}.",
        )
        for name in ("counterstain", "invert"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"{name} is a probability, got {value}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """How a network is trained.

    Attributes
    ----------
    steps : int
        Optimiser steps.
    batch_size : int
        Crops in a step.
    crop : tuple of int
        Pixels of a crop; rounded up to what the network can take.
    learning_rate, weight_decay : float
        Peak of warm-up and cosine decay, and decay, of AdamW (Loshchilov and Hutter
        2019, https://arxiv.org/abs/1711.05101).
    warmup : int
        Steps of linear warm-up.
    average : float
        Decay of the exponential moving average of the weights, which is what is
        validated and kept; 0 is off.
    contact_weight : float
        Extra weight of pixels where objects touch (Ronneberger et al. 2015,
        https://arxiv.org/abs/1505.04597, in a simpler form).
    class_weights : tuple of float
        Weight of each class in the cross-entropy; empty for equal ones.
    dice_weight : float
        Weight of the Dice loss beside the cross-entropy.
    boundary_width : float
        Width in pixels of the boundary class inside objects.
    validate_every : int
        Steps between validations and checkpoints.
    freeze : {"nothing", "encoder"}
        What keeps the weights it starts with.
    half_precision : bool
        bfloat16 autocast where the device computes in it; where it only emulates it,
        that would be slower, not faster.
    seed : int
        Of initial weights, crops and augmentation.
    augmentation : Augmentation
        How crops are varied.
    """

    steps: int = 2000
    batch_size: int = 4
    crop: tuple[int, ...] = (256, 256)
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warmup: int = 100
    average: float = 0.998
    contact_weight: float = 3.0
    class_weights: tuple[float, ...] = ()
    dice_weight: float = 1.0
    boundary_width: float = 2.0
    validate_every: int = 500
    freeze: Literal["nothing", "encoder"] = "nothing"
    half_precision: bool = True
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("steps", "batch_size", "validate_every"):
            value = getattr(self, name)
            check(value >= 1, f"{name} must be at least 1, got {value}.")
        check(0 <= self.average < 1, f"average must lie in [0, 1), got {self.average}.")
        check(
            bool(self.crop) and min(self.crop) >= 1,
            f"A crop has at least one pixel, got {self.crop}.",
        )
        check(
            0 < self.learning_rate < math.inf,
            f"The learning rate must be above 0, got {self.learning_rate}.",
        )
        check(self.seed >= 0, f"A seed must not be negative, got {self.seed}.")

    def fitting(self, ndim: int) -> TrainingSettings:
        """Return the same with crops for so many dimensions, if nobody chose any."""
        usual = {f.name: f.default for f in dataclasses.fields(self)}
        if len(self.crop) == ndim or self.crop != usual["crop"]:
            return self
        same = self.batch_size == usual["batch_size"]
        return dataclasses.replace(
            self,
            crop=CROPS[ndim],
            batch_size=BATCHES[ndim] if same else self.batch_size,
        )


#: What the efforts stand for. Quick: about a minute on two cores, with the network of
#: the bundled models; see benchmarks/learning.py.
EFFORTS: dict[str, dict[str, Any]] = {
    "quick": {
        "steps": 150,
        "learning_rate": 3e-3,
        "warmup": 10,
        "average": 0.95,
        "validate_every": 75,
    },
    "thorough": {
        "steps": 1000,
        "learning_rate": 2e-3,
        "warmup": 50,
        "average": 0.99,
        "validate_every": 100,
    },
}

#: So many times as many steps where there is no model that knows such images.
MORE_STEPS = 1.5

#: Crops and how many of them make a step, by spatial dimensions.
CROPS = {2: (128, 128), 3: (16, 64, 64)}
BATCHES = {2: 4, 3: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSettings:
    """How a round of learning from corrections is run.

    Attributes
    ----------
    effort : {"quick", "thorough"}
        About a minute, or several. Three times as long where no model knows such
        images: then the steps are half as many again, and by default a new network is
        trained as well.
    starts : tuple of str
        What is tried: ``"parent"`` trains the model further, ``"scratch"`` a new one.
        By default both, unless the model does well already.
    freeze : {"nothing", "encoder"}
        What keeps the parent's weights.
    steps, learning_rate : optional
        By default those of the effort.
    augmentation : float, optional
        Strength of the variation of images; 0 is off. By default 1, or half of it
        where the model to start from does not know such images: how they look is then
        the first thing to learn.
    network : NetworkSpec, optional
        Of a new model; by default the parent's, or a small one. Channels and classes
        follow the images.
    output : {"objects", "classes"}, optional
        Of the model; by default what the corrections are.
    name : str, optional
        Of a new model.
    seed : int
    """

    effort: Literal["quick", "thorough"] = "quick"
    starts: tuple[Literal["parent", "scratch"], ...] = ()
    freeze: Literal["nothing", "encoder"] = "nothing"
    steps: int | None = None
    learning_rate: float | None = None
    augmentation: float | None = None
    network: NetworkSpec | None = None
    output: Literal["objects", "classes"] | None = None
    name: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        check(
            self.augmentation is None or 0 <= self.augmentation <= 2,
            f"Augmentation lies in [0, 2], got {self.augmentation}.",
        )

    def training(self, ndim: int, *, known: bool = True) -> TrainingSettings:
        """Return how a network of so many dimensions is trained.

        Parameters
        ----------
        ndim : int
        known : bool
            Whether the model to start from knows such images.
        """
        usual = EFFORTS[self.effort]
        asked = {"steps": self.steps, "learning_rate": self.learning_rate}
        strength = self.augmentation
        if strength is None:
            strength = 1.0 if known else 0.5
        if not known:
            usual = usual | {"steps": round(MORE_STEPS * usual["steps"])}
        return TrainingSettings(
            **usual | {k: v for k, v in asked.items() if v is not None},
            crop=CROPS[ndim],
            batch_size=BATCHES[ndim],
            freeze=self.freeze,
            seed=self.seed,
            augmentation=Augmentation(
                zoom=(2.0**-strength, 2.0**strength),
                stretch=0.15 * strength,
                intensity=strength,
                rotate=strength > 0,
                flip=strength > 0,
            ),
        )
