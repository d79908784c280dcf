"""A model is fine-tuned in one call."""

import dataclasses

import numpy as np
import pytest
import torch

from napari_attunet import fine_tune
from napari_attunet.errors import DataError
from napari_attunet.model import Model
from napari_attunet.progress import Progress, drain
from napari_attunet.samples import synthetic_nuclei
from napari_attunet.spec import ModelSpec, NetworkSpec
from napari_attunet.training.samples import Pair
from napari_attunet.training.settings import RoundSettings
from napari_attunet.training.transfer import blend
from napari_attunet.training.tuning import tuning_steps
from napari_attunet.training.validation import validate

NETWORK = NetworkSpec(features=(8, 16, 32), out_channels=3)
MODEL = Model.fresh(ModelSpec(name="mother", network=NETWORK, output="objects"))


def test_it_learns_from_image_and_labels(monkeypatch):
    # An untrained model is no start that is worth keeping some of.
    monkeypatch.setattr("napari_attunet.training.tuning.SHARE", 1.0)
    pairs = [synthetic_nuclei((96, 96), seed=s) for s in (0, 1)]
    held = [Pair(*synthetic_nuclei((96, 96), seed=2))]
    before = {k: v.clone() for k, v in MODEL.network.state_dict().items()}
    better = fine_tune(MODEL, pairs, steps=100)
    assert validate(better, held)["dice"] > validate(MODEL, held)["dice"] + 0.1
    assert (better.spec.parent, better.spec.version) == ("mother@1", 2)
    assert all(torch.equal(v, before[k]) for k, v in MODEL.network.state_dict().items())


def test_new_label_values_become_classes():
    network = dataclasses.replace(NETWORK, out_channels=2)
    two = Model.fresh(ModelSpec(name="two", network=network))
    image, labels = synthetic_nuclei((96, 96), seed=0)
    better = fine_tune(two, [(image, labels % 4)], steps=1)
    assert better.spec.classes == ("background", "class 1", "class 2", "class 3")
    with pytest.raises(DataError, match="labels"):
        fine_tune(two, [(image, labels * np.nan)], steps=1)


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_a_share_of_the_way_is_gone(monkeypatch, share):
    asked = []

    def spy(start, end, share):
        asked.append(share)
        return blend(start, end, share)

    monkeypatch.setattr("napari_attunet.training.tuning.blend", spy)
    pair = Pair(*synthetic_nuclei((96, 96), seed=0))
    plan = RoundSettings(steps=1).training(2)
    drain(tuning_steps(MODEL, MODEL.spec, [pair], [], plan, share=share))
    assert set(asked) == {share}
    asked.clear()
    network = dataclasses.replace(MODEL.spec.network, out_channels=4)
    more = dataclasses.replace(MODEL.spec, network=network, classes=())
    drain(tuning_steps(MODEL, more, [pair], [], plan, share=share))
    assert set(asked) == {1.0}  # the new class begins at random


def test_what_is_asked_halfway_has_gone_that_share_too():
    pair = Pair(*synthetic_nuclei((96, 96), seed=0))
    asked = []

    def revise(model):
        asked.append(model)
        yield Progress(0, 0)
        return [pair]

    plan = RoundSettings(steps=2).training(2)
    options = {"share": 0.0, "revise": revise}
    drain(tuning_steps(MODEL, MODEL.spec, [pair], [], plan, **options))
    (halfway,) = asked
    found = halfway.network.state_dict()
    for name, weight in MODEL.network.state_dict().items():
        if weight.is_floating_point():  # of the start, upright or inverted
            assert torch.equal(found[name].abs(), weight.abs()), name


def test_shapes_that_dont_fit_are_told():
    with pytest.raises(DataError, match="labels of shape"):
        fine_tune(MODEL, [(np.zeros((64, 64)), np.zeros((32, 64), int))], steps=1)
