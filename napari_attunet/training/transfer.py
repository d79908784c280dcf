"""From the weights of one model to the start of another, of other channels or classes.

Colour is not thrown away when a grey model learns on colour images: its first
convolution is spread over the new channels, so that it begins by seeing grey.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from napari_attunet.errors import ModelError
from napari_attunet.model import Model
from napari_attunet.spec import ModelSpec
from napari_attunet.training.losses import segmentation_loss
from napari_attunet.training.samples import CropSampler, Pair
from napari_attunet.training.settings import TrainingSettings

__all__ = ["adapt", "best_adapted"]

#: Batches on which an upright and an inverted start are compared.
TRIAL_BATCHES = 4


def adapt(
    model: Model, spec: ModelSpec, *, inverted: bool = False, seed: int = 0
) -> Model:
    """Return a model of another specification that starts from these weights.

    Parameters
    ----------
    model : Model
        Left as it is.
    spec : ModelSpec
        May differ from the model's in input channels and in classes that are added at
        the end, not in the rest of the network. New classes begin at random.
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
    if same != old or spec.network.out_channels < old.out_channels:
        raise ModelError(
            f"{model.spec.key} cannot start {spec.key}: only input channels may differ "
            "and classes be added. Train from scratch, or describe the same network."
        )
    theirs = model.network.state_dict()
    weights = Model.fresh(spec, seed=seed).network.state_dict()
    first = "encoder.0.0"
    for name, fresh in weights.items():
        known = theirs[name]
        if name == f"{first}.weight":
            weights[name] = _spread(known, fresh.shape[1], inverted)
        elif name == f"{first}.bias" and inverted:
            # w(1 - x) + b = -wx + (b + Σw), but for the image's border
            total = theirs[f"{first}.weight"].flatten(1).sum(1)
            weights[name] = known + total
        elif known.shape == fresh.shape:
            weights[name] = known
        else:  # a head
            weights[name] = torch.cat((known, fresh[known.shape[0] :]))
    return Model.from_weights(spec, weights)


def _spread(weight: Tensor, channels: int, inverted: bool) -> Tensor:
    """Return first-layer weights over other channels, with the same sum."""
    sign = -1 if inverted else 1
    if weight.shape[1] == channels:
        return sign * weight
    mean = weight.sum(1, keepdim=True) / channels
    return sign * mean.expand(-1, channels, *weight.shape[2:])


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
