"""A model is fine-tuned in one call."""

import numpy as np
import pytest
import torch

from napari_attunet import fine_tune
from napari_attunet.errors import DataError
from napari_attunet.model import Model
from napari_attunet.progress import drain
from napari_attunet.samples import synthetic_nuclei
from napari_attunet.spec import ModelSpec, NetworkSpec
from napari_attunet.training.samples import Pair
from napari_attunet.training.settings import RoundSettings
from napari_attunet.training.transfer import blend
from napari_attunet.training.tuning import SHARE, tuning_steps
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


@pytest.mark.parametrize(("known", "share"), [(True, SHARE), (False, 1.0)])
def test_something_is_kept_of_a_model_that_knows_such_images(monkeypatch, known, share):
    asked = []

    def spy(start, end, share):
        asked.append(share)
        return blend(start, end, share)

    monkeypatch.setattr("napari_attunet.training.tuning.blend", spy)
    pair = Pair(*synthetic_nuclei((96, 96), seed=0))
    plan = RoundSettings(steps=1).training(2)
    drain(tuning_steps(MODEL, MODEL.spec, [pair], [], plan, known=known))
    assert set(asked) == {share}


def test_shapes_that_dont_fit_are_told():
    with pytest.raises(DataError, match="labels of shape"):
        fine_tune(MODEL, [(np.zeros((64, 64)), np.zeros((32, 64), int))], steps=1)
