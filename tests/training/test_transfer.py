"""A model of other channels or classes begins as what it starts from."""

import dataclasses

import numpy as np
import pytest
import torch
from skimage import data

from napari_attunet.channels import STAINS
from napari_attunet.errors import DataError, ModelError
from napari_attunet.model import Model
from napari_attunet.progress import drain
from napari_attunet.samples import synthetic_nuclei
from napari_attunet.segmenter import segment
from napari_attunet.spec import ModelSpec, NetworkSpec, Normalization, TransformerSpec
from napari_attunet.training.samples import Pair
from napari_attunet.training.settings import TrainingSettings
from napari_attunet.training.trainer import train
from napari_attunet.training.transfer import (
    adapt,
    adapted_spec,
    best_adapted,
    blend,
)


def make_spec(channels=1, classes=3, ndim=2, features=(3, 4), **options):
    network = NetworkSpec(
        ndim=ndim,
        in_channels=channels,
        out_channels=classes,
        features=features,
        **options,
    )
    return ModelSpec(name="m", network=network)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_more_channels_begin_as_grey(ndim, channels):
    model = Model.fresh(make_spec(ndim=ndim))
    wider = adapt(model, make_spec(channels, ndim=ndim))
    grey = torch.rand(1, 1, *(8,) * ndim)
    repeated = grey.expand(-1, channels, *grey.shape[2:])
    torch.testing.assert_close(wider.network(repeated), model.network(grey))


EVERYWHERE = {
    "residual": {"residual": True},
    "transformer": {"transformer": TransformerSpec(features=(4,))},
}


@pytest.mark.parametrize("options", EVERYWHERE.values(), ids=EVERYWHERE)
def test_all_that_sees_the_image_sees_more_channels(options):
    options = {"features": (4, 6), **options}
    model = Model.fresh(make_spec(**options))
    with torch.no_grad():  # a transformer that looks at the image
        for parameter in model.network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    grey = torch.rand(2, 1, 16, 16)
    wider = adapt(model, make_spec(3, **options))
    repeated = grey.expand(-1, 3, -1, -1)
    torch.testing.assert_close(wider.network(repeated), model.network(grey))


def test_a_shortcut_that_was_none_begins_at_random():
    options = {"features": (3, 4), "residual": True}
    model = Model.fresh(make_spec(3, **options))
    other = adapt(model, make_spec(5, **options))
    assert other.network(torch.rand(1, 5, 8, 8)).isfinite().all()


@pytest.mark.parametrize("residual", [False, True])
def test_inverted_begins_as_on_the_inverted_image(residual):
    options = {"features": (4, 5), "residual": residual}
    model = Model.fresh(make_spec(**options))
    inverted = adapt(model, make_spec(3, **options), inverted=True)
    # a constant border, which zero padding sees otherwise, is kept out of the way
    grey = torch.rand(1, 1, 64, 64)
    got = inverted.network(grey.expand(-1, 3, -1, -1))
    expected = model.network(1 - grey)
    inner = (..., slice(28, 36), slice(28, 36))
    torch.testing.assert_close(got[inner], expected[inner])


def test_old_classes_keep_their_weights():
    model = Model.fresh(make_spec(classes=2))
    more = adapt(model, make_spec(classes=4))
    x = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(more.network(x)[:, :2], model.network(x))


def test_the_start_is_left_alone():
    model = Model.fresh(make_spec())
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    with torch.no_grad():
        for p in adapt(model, make_spec(3)).network.parameters():
            p.zero_()
    after = model.network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize(
    "spec", [make_spec(classes=2), make_spec(features=(3, 5)), make_spec(ndim=3)]
)
def test_other_networks_are_refused(spec):
    with pytest.raises(ModelError, match="cannot start"):
        adapt(Model.fresh(make_spec()), spec)


def test_a_slide_with_nothing_on_it_is_learnt_with_stained_ones():
    tissue = data.immunohistochemistry()[:128, :128]
    blank = np.full_like(tissue, 240)
    pairs = [Pair(p, np.zeros((128, 128), int), "YXC") for p in (blank, tissue)]
    assert adapted_spec(make_spec(), pairs).channels == STAINS
    assert adapted_spec(make_spec(), pairs[:1]).channels == ("red", "green", "blue")
    glowing = np.zeros_like(tissue)
    glowing[..., 2] = data.cell()[100:228, 100:228]
    pairs.append(Pair(glowing, np.zeros((128, 128), int), "YXC"))
    with pytest.raises(DataError, match="different channels"):
        adapted_spec(make_spec(), pairs)


def test_dark_objects_are_begun_inverted():
    """A model of bright nuclei starts one of dark ones in colour."""
    scale = Normalization(kind="percentile")
    spec = dataclasses.replace(
        make_spec(features=(8, 16)), output="objects", normalization=scale
    )
    settings = TrainingSettings(
        steps=40, crop=(32, 32), validate_every=40, learning_rate=1e-2, average=0.9
    )
    image, labels = synthetic_nuclei((64, 64), seed=0)
    model = drain(train(spec, [Pair(image, labels)], [], settings))
    dark = np.repeat((image.max() - image)[..., None], 3, axis=-1)
    colour = dataclasses.replace(
        spec,
        network=dataclasses.replace(spec.network, in_channels=3),
        channels=("red", "green", "blue"),
    )
    found = best_adapted(model, colour, [Pair(dark, labels, "YXC")], settings)
    expected = adapt(model, colour, inverted=True)
    bias = "encoder.0.0.bias"
    assert torch.equal(
        found.network.state_dict()[bias], expected.network.state_dict()[bias]
    )


def test_stains_begin_as_what_the_grey_model_saw():
    """Tissue looks to the wider model just as its haematoxylin to the grey one."""
    tissue = data.immunohistochemistry()[:64, :64]
    spec = dataclasses.replace(make_spec(), channels=("grey",))
    model = Model.fresh(spec)
    pair = Pair(tissue, np.zeros((64, 64), int), "YXC")
    wider = adapted_spec(spec, [pair])
    assert wider.channels == STAINS
    adapted = adapt(model, wider)
    grey = segment(tissue, model, axes="YXC", probabilities=True)
    colour = segment(tissue, adapted, axes="YXC", probabilities=True)
    np.testing.assert_allclose(grey.probabilities, colour.probabilities, atol=1e-5)
    assert "eosin" in colour.record["channels"]


@pytest.mark.parametrize(
    ("shape", "axes", "channels"),
    [
        ((32, 32), "YX", ("grey",)),
        ((32, 32, 3), "YXC", ("red", "green", "blue")),
        ((5, 32, 32), "CYX", tuple(f"channel {i}" for i in range(5))),
    ],
)
def test_no_channel_is_lost(shape, axes, channels, rng):
    spec = dataclasses.replace(make_spec(), channels=("grey",))
    image = (rng.random(shape) * 60).astype(np.uint8)
    pair = Pair(image, np.zeros((32, 32), int), axes)
    assert adapted_spec(spec, [pair]).channels == channels


def test_images_of_different_channels_are_refused():
    pairs = [
        Pair(np.zeros((n, 16, 16), np.uint8), np.zeros((16, 16), int), "CYX")
        for n in (2, 5)
    ]
    with pytest.raises(DataError, match="one kind at a time"):
        adapted_spec(make_spec(), pairs)


def test_classes_that_mean_something_else_begin_at_random():
    model = Model.fresh(make_spec(classes=3))
    spec = make_spec(classes=2)
    objects = dataclasses.replace(model.spec, output="objects")
    other = adapt(Model(objects, model.network), spec)
    assert other.network.head.weight.shape[0] == 2
    ours, theirs = other.network.state_dict(), model.network.state_dict()
    assert torch.equal(ours["encoder.0.0.weight"], theirs["encoder.0.0.weight"])


def test_a_sigmoid_becomes_a_softmax_that_says_the_same():
    model = Model.fresh(make_spec(classes=1))
    more = adapt(model, make_spec(classes=2))
    x = torch.rand(1, 1, 8, 8)
    expected = torch.sigmoid(model.network(x))[:, 0]
    torch.testing.assert_close(more.network(x).softmax(1)[:, 1], expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_blend_lies_between(share):
    a, b = (Model.fresh(make_spec(), seed=s) for s in (0, 1))
    model = blend(a, b, share)
    assert model.spec.training == b.spec.training | {"share": share}
    mixed = model.network.state_dict()
    for name, value in a.network.state_dict().items():
        if value.is_floating_point():
            expected = (1 - share) * value + share * b.network.state_dict()[name]
            torch.testing.assert_close(mixed[name], expected)
