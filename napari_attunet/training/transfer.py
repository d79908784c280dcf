"""From the weights of one model to the start of another, of other channels or classes.

Colour is not thrown away when a grey model learns on colour images: its first
convolution is spread over the new channels, so that it begins by seeing grey.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_attunet.channels import STAINS, ChannelMixer, Luminance, Stains
from napari_attunet.corrections import MOST_CLASSES
from napari_attunet.errors import DataError, ModelError
from napari_attunet.model import Model
from napari_attunet.spec import ModelSpec
from napari_attunet.training.losses import segmentation_loss
from napari_attunet.training.samples import CropSampler, Pair, mixer_for, view_of
from napari_attunet.training.settings import TrainingSettings

__all__ = ["adapt", "adapted_spec", "best_adapted", "blend", "with_classes"]

#: Layers that see the image: of the blocks, of a residual one, of a transformer.
FIRST = ("encoder.0.0", "encoder.0.shortcut.0", "transformer.localisation.0")

COLOURS = ("red", "green", "blue")

#: Batches on which an upright and an inverted start are compared.
TRIAL_BATCHES = 4

#: Pixels by which stained tissue is told from other colour.
CHANNEL_SAMPLE = 100_000


def adapted_spec(spec: ModelSpec, pairs: Sequence[Pair]) -> ModelSpec:
    """Return the specification of a model that takes all of these images' channels.

    Colour is kept where the model knew grey only: stained tissue, which enters a grey
    model as its haematoxylin, as all its stains, other colour as it is. Beside stained
    tissue, other colour on a bright ground is taken for a slide with little on it.

    Raises
    ------
    DataError
        If the images have different channels.
    """
    wanted: dict[tuple[str, ...], list[Pair]] = {}
    for pair in pairs:
        wanted.setdefault(_channels_for(spec, pair), []).append(pair)
    # Nobody sees the stain on a slide with hardly anything on it.
    if STAINS in wanted and all(_is_bright(spec, p) for p in wanted.get(COLOURS, ())):
        wanted.pop(COLOURS, None)
    if len(wanted) > 1:
        kinds = "; ".join(sorted(", ".join(names) for names in wanted))
        raise DataError(
            f"The images have different channels ({kinds}): train on images of one "
            "kind at a time."
        )
    channels = next(iter(wanted), spec.channels)
    network = dataclasses.replace(spec.network, in_channels=len(channels))
    return dataclasses.replace(spec, network=network, channels=channels)


def with_classes(
    spec: ModelSpec, labels: Iterable[npt.NDArray[np.integer[Any]]]
) -> ModelSpec:
    """Return the specification of a model that tells the classes in labels as well.

    Models of objects stay as they are; and all do if numbers are left out, as in a mask
    of 0 and 255, which is no image of 256 classes.
    """
    if spec.output != "classes":
        return spec
    found: set[int] = set()
    for array in labels:
        found.update(int(n) for n in np.unique(array) if n >= spec.n_classes)
    count = max(found, default=-1) + 1
    if len(found) != count - spec.n_classes or count - 1 > MOST_CLASSES:
        return spec
    new = tuple(f"class {i}" for i in range(spec.n_classes, count))
    network = dataclasses.replace(spec.network, out_channels=count)
    return dataclasses.replace(
        spec, network=network, classes=spec.classes + new, colors=()
    )


def _channels_for(spec: ModelSpec, pair: Pair) -> tuple[str, ...]:
    network, view = spec.network, view_of(pair, spec)
    count = view.n_channels
    colour = view.axes.endswith("C") and count in (3, 4)
    if colour and network.in_channels == 1:
        return STAINS if isinstance(_mixer(spec, pair), Stains) else COLOURS
    if count == network.in_channels or (count == 1 and network.in_channels == 3):
        return spec.channels
    if colour and network.in_channels == 3:
        return spec.channels
    return tuple(f"channel {i}" for i in range(count))


def _mixer(spec: ModelSpec, pair: Pair) -> ChannelMixer:
    view = view_of(pair, spec)
    return mixer_for(pair, view, spec, view.sample(CHANNEL_SAMPLE))


def _is_bright(spec: ModelSpec, pair: Pair) -> bool:
    """Return whether a grey model takes a colour image for dark on a bright ground."""
    mixer = _mixer(spec, pair)
    return isinstance(mixer, Luminance) and mixer.inverted_from is not None


def adapt(
    model: Model, spec: ModelSpec, *, inverted: bool = False, seed: int = 0
) -> Model:
    """Return a model of another specification that starts from these weights.

    Parameters
    ----------
    model : Model
        Left as it is.
    spec : ModelSpec
        May differ from the model's in input channels, in classes that are added at
        the end, and in what its classes mean; not in the rest of the network. New
        classes, and all where they mean something else, begin at random.
    inverted : bool
        Begin as if the image had been turned from bright to dark in [0, 1]: right for
        dark objects where the model knows bright ones.
    seed : int
        Of what begins at random.

    Raises
    ------
    ModelError
        If the networks differ in more than that.
    """
    old = model.spec.network
    same = dataclasses.replace(
        spec.network, in_channels=old.in_channels, out_channels=old.out_channels
    )
    keeps_classes = spec.output == model.spec.output
    fewer = keeps_classes and spec.network.out_channels < old.out_channels
    if same != old or fewer:
        raise ModelError(
            f"{model.spec.key} cannot start {spec.key}: only input channels may differ "
            "and classes be added. Train from scratch, or describe the same network."
        )
    theirs = model.network.state_dict()
    weights = Model.fresh(spec, seed=seed).network.state_dict()
    for name, fresh in weights.items():
        layer, _, kind = name.rpartition(".")
        known = theirs.get(name)
        if known is None:  # channels that fit needed no shortcut
            weights[name] = fresh
        elif layer in FIRST and kind == "weight":
            weights[name] = _spread(known, spec.channels, inverted)
        elif layer in FIRST and inverted:
            # w(1 - x) + b = -wx + (b + Σw), but for the image's border
            weights[name] = known + theirs[f"{layer}.weight"].flatten(1).sum(1)
        elif name.split(".")[0] in ("head", "auxiliary_heads"):
            if keeps_classes:
                weights[name] = _more_classes(known, fresh)
        else:
            weights[name] = known
    return Model.from_weights(spec, weights)


def _more_classes(known: Tensor, fresh: Tensor) -> Tensor:
    """Return a head's tensor for more classes, which keeps those that it knew."""
    if known.shape[0] == 1 < fresh.shape[0]:  # a sigmoid is a softmax over (0, logit)
        known = torch.cat((torch.zeros_like(known), known))
    return torch.cat((known, fresh[known.shape[0] :]))


def _spread(weight: Tensor, channels: Sequence[str], inverted: bool) -> Tensor:
    """Return first-layer weights over other channels.

    They have the same sum; of stains, the nuclei's gets all of it.
    """
    sign = -1 if inverted else 1
    count = len(channels)
    if weight.shape[1] == count:
        return sign * weight
    if tuple(channels) == STAINS and weight.shape[1] == 1:
        others = weight.new_zeros(weight.shape[0], count - 1, *weight.shape[2:])
        return sign * torch.cat((weight, others), dim=1)
    mean = weight.sum(1, keepdim=True) / count
    return sign * mean.expand(-1, count, *weight.shape[2:])


def blend(start: Model, end: Model, share: float) -> Model:
    """Return the model on the straight way between two, `share` of the way from start.

    What was learnt from few images generalises better when some of the start is kept:

        Wortsman et al. 2022, "Robust fine-tuning of zero-shot models",
        https://arxiv.org/abs/2109.01903

    The record tells the share.
    """
    ends = end.network.state_dict()
    weights = {
        name: torch.lerp(value, ends[name], share)
        if value.is_floating_point()
        else ends[name]
        for name, value in start.network.state_dict().items()
    }
    record = end.spec.training | {"share": share}
    spec = dataclasses.replace(end.spec, training=record)
    return Model.from_weights(spec, weights)


def best_adapted(
    model: Model, spec: ModelSpec, pairs: Sequence[Pair], settings: TrainingSettings
) -> Model:
    """Return the start, upright or inverted, that errs less on the images.

    Parameters
    ----------
    model, spec
        As in `adapt`.
    pairs : sequence of Pair
        Images to learn from.
    settings : TrainingSettings
        Of the training to come.
    """
    if spec.channels == STAINS != model.spec.channels:  # bright nuclei, as it knows
        return adapt(model, spec, seed=settings.seed)
    sampler = CropSampler(pairs, spec, settings)
    batches = [sampler.batch(step) for step in range(TRIAL_BATCHES)]
    starts = [
        adapt(model, spec, inverted=inverted, seed=settings.seed)
        for inverted in (False, True)
    ]

    def error(start: Model) -> float:
        with torch.inference_mode():
            losses = [
                segmentation_loss(start.network(b.images), b.targets, b.weights)
                for b in batches
            ]
        return float(torch.stack(losses).mean())

    return min(starts, key=error)
