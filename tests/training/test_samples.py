"""Crops: image and labels move together, and a batch depends on its step alone."""

import contextlib
import dataclasses
import threading

import numpy as np
import pytest
import torch

from napari_attunet import devices
from napari_attunet.errors import DataError
from napari_attunet.samples import synthetic_nuclei
from napari_attunet.spec import (
    ModelSpec,
    NetworkSpec,
    Normalization,
    ObjectSettings,
)
from napari_attunet.training.samples import CropSampler, Pair, contacts, data_hash
from napari_attunet.training.settings import Augmentation, TrainingSettings

PLAIN = Augmentation(intensity=0)
SETTINGS = TrainingSettings(crop=(32, 32), batch_size=3, augmentation=PLAIN)


def make_spec(output="objects", ndim=2, channels=1, classes=3):
    network = NetworkSpec(
        ndim=ndim, features=(2, 3), in_channels=channels, out_channels=classes
    )
    raw = Normalization(kind="none")
    names = ("red", "green", "blue") if channels == 3 else ()
    return ModelSpec(
        name="m", network=network, output=output, normalization=raw, channels=names
    )


def make_pair(ndim=2):
    shape = (80, 72) if ndim == 2 else (16, 48, 40)
    return Pair(*synthetic_nuclei(shape, seed=1))


@pytest.mark.parametrize("ndim", [2, 3])
def test_image_and_labels_move_together(ndim):
    """An image that shows its own labels still does after augmentation."""
    labels = make_pair(ndim).labels
    image = (labels > 0).astype(np.float32)
    crop = (32, 32) if ndim == 2 else (16, 32, 32)
    settings = dataclasses.replace(SETTINGS, crop=crop)
    sampler = CropSampler([Pair(image, labels)], make_spec(ndim=ndim), settings)
    agree = [
        ((batch.images[:, 0] > 0.5) == (batch.targets > 0)).float().mean()
        for batch in map(sampler.batch, range(5))
    ]
    assert min(agree) > 0.97  # linear and nearest interpolation differ at edges
    assert {int(c) for c in sampler.batch(0).targets.unique()} == {0, 1, 2}


def test_batches_drawn_ahead_are_those_of_their_steps():
    settings = dataclasses.replace(SETTINGS, augmentation=Augmentation())
    ahead, plain = (CropSampler([make_pair()], make_spec(), settings) for _ in range(2))
    with contextlib.closing(ahead.batches(3, [0, 2])) as batches:
        for step in range(3, 7):
            ours, theirs = next(batches), plain.batch(step, [0, 2])
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.targets, theirs.targets)
        assert "ahead_0" in {t.name for t in threading.enumerate()}
    assert "ahead_0" not in {t.name for t in threading.enumerate()}


def test_drawing_ahead_takes_one_thread_and_leaves_the_others(monkeypatch):
    sampler, seen = CropSampler([make_pair()], make_spec(), SETTINGS), []
    batch = sampler.batch

    def watched(step, part):
        seen.append(torch.get_num_threads())
        return batch(step, part)

    monkeypatch.setattr(sampler, "batch", watched)
    with devices.threads(3), contextlib.closing(sampler.batches(0)) as batches:
        next(batches)
        assert torch.get_num_threads() == 3
        next(batches)
    assert set(seen) == {1}


def test_a_batch_depends_on_seed_and_step_alone():
    settings = dataclasses.replace(SETTINGS, augmentation=Augmentation(invert=0.5))
    a, b = (CropSampler([make_pair()], make_spec(), settings) for _ in range(2))
    a.batch(0)
    first, again = a.batch(7), b.batch(7)
    for name in ("images", "targets", "weights"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.images, a.batch(8).images)
    assert torch.isfinite(first.images).all()


def test_zoom_makes_objects_larger():
    def largest(zoom):
        augmentation = dataclasses.replace(PLAIN, zoom=(zoom, zoom), stretch=0.0)
        settings = dataclasses.replace(SETTINGS, augmentation=augmentation)
        image = np.zeros((64, 64), np.float32)
        image[28:36, 28:36] = 1
        pair = Pair(image, image.astype(int))
        sampler = CropSampler([pair], make_spec(), settings)
        sums = [sampler.batch(i).images.sum(dim=(1, 2, 3)).max() for i in range(20)]
        return max(map(float, sums))

    # the largest over many crops shows the whole object
    assert largest(1.0) == pytest.approx(64, rel=0.1)
    assert largest(2.0) == pytest.approx(256, rel=0.1)
    assert largest(0.5) == pytest.approx(16, rel=0.2)


def test_crops_fit_the_network_and_small_images_are_mirrored():
    settings = dataclasses.replace(SETTINGS, crop=(33, 17))
    pair = Pair(np.ones((5, 4), np.float32), np.ones((5, 4), int))
    batch = CropSampler([pair], make_spec(), settings).batch(0)
    assert batch.images.shape == (3, 1, 34, 18)
    assert torch.all(batch.targets > 0)


def test_stacks_give_all_their_slices():
    labels = np.zeros((2, 40, 40), int)
    labels[0, 10:30, 10:30] = 1
    labels[1, 10:30, 10:30] = 2
    pair = Pair(labels.astype(np.float32), labels, axes="ZYX")
    sampler = CropSampler([pair], make_spec(), SETTINGS)
    peaks = {
        round(float(image.max()))
        for step in range(10)
        for image in sampler.batch(step).images
    }
    assert {1, 2} <= peaks


def test_stain_moves_colours_and_stays_an_image(rng):
    image = rng.random((40, 40, 3)).astype(np.float32)
    pair = Pair(image, np.zeros((40, 40), int), axes="YXC")
    stained = dataclasses.replace(PLAIN, stain=0.3)
    spec = make_spec(channels=3)
    plain = CropSampler([pair], spec, SETTINGS).batch(0).images
    settings = dataclasses.replace(SETTINGS, augmentation=stained)
    varied = CropSampler([pair], spec, settings).batch(0).images
    assert varied.shape == plain.shape == (3, 3, 32, 32)
    assert 0 <= varied.min() <= varied.max() <= 1
    assert (varied - plain).abs().mean() > 0.005


def test_counterstain_is_brown_and_spares_objects(rng):
    """Patches lose blue light first, as DAB does, and objects keep their colour."""
    labels = np.zeros((64, 64), int)
    labels[16:48, 16:48] = 1
    image = np.full((64, 64, 3), 0.9, np.float32)
    pair = Pair(image, labels, axes="YXC")
    still = dataclasses.replace(
        PLAIN, zoom=(1.0, 1.0), stretch=0.0, rotate=False, flip=False, counterstain=1.0
    )
    settings = dataclasses.replace(
        SETTINGS, crop=(64, 64), batch_size=16, augmentation=still
    )
    batch = CropSampler([pair], make_spec(channels=3), settings).batch(0)
    red, blue = batch.images[:, 0], batch.images[:, 2]
    inner = np.zeros((64, 64), bool)
    inner[24:40, 24:40] = True
    outer = labels == 0
    assert (red >= blue - 1e-3).all()
    lost = 0.9 - blue
    assert lost[:, outer].mean() > 0.1
    assert lost[:, inner].mean() < 0.6 * lost[:, outer].mean()


def test_contacts_are_where_objects_touch():
    labels = np.zeros((9, 12), int)
    labels[2:7, 1:5] = 1
    labels[2:7, 5:9] = 2
    found = contacts(labels)
    assert found[4, 3:7].all()
    assert not found[4, :3].any()
    assert not found[labels == 0].any()
    assert not contacts((labels > 0).astype(int)).any()


def test_classes_stay_classes():
    labels = np.zeros((40, 40), int)
    labels[:, 20:] = 2
    pair = Pair(labels.astype(np.float32), labels)
    batch = CropSampler([pair], make_spec(output="classes"), SETTINGS).batch(0)
    assert {int(c) for c in batch.targets.unique()} <= {0, 2}
    assert torch.all(batch.weights == 1)


@pytest.mark.parametrize(
    ("pair", "output", "message"),
    [
        (Pair(np.zeros((9, 9)), np.zeros((9, 8), int)), "objects", "don't fit"),
        (Pair(np.zeros((9, 9)), np.zeros((9, 9))), "objects", "whole numbers"),
        (Pair(np.zeros((9, 9)), np.full((9, 9), -1)), "objects", "negative"),
        (Pair(np.zeros((9, 9)), np.full((9, 9), 3)), "classes", "classes 0 to 2"),
    ],
)
def test_wrong_labels_are_refused(pair, output, message):
    with pytest.raises(DataError, match=message):
        CropSampler([pair], make_spec(output=output), SETTINGS)


@pytest.mark.parametrize(
    ("crop", "message"), [((32, 32, 32), "3 axes"), ((1, 2), "one pixel")]
)
def test_crops_that_cannot_be_trained_on(crop, message):
    settings = dataclasses.replace(SETTINGS, crop=crop, batch_size=1)
    with pytest.raises(DataError, match=message):
        CropSampler([make_pair()], make_spec(), settings)


def test_large_numbers_stay_apart():
    labels = np.zeros((40, 40), int)
    labels[8:32, 8:20] = 2**24
    labels[8:32, 20:32] = 2**24 + 1
    pairs = [
        Pair(np.zeros((40, 40), np.float32), n) for n in (labels, labels % 2**24 + 1)
    ]
    pairs[1] = Pair(pairs[1].image, np.where(labels > 0, pairs[1].labels, 0))
    a, b = (CropSampler([p], make_spec(), SETTINGS).batch(0).targets for p in pairs)
    assert torch.equal(a, b)


def test_classes_stand_where_the_model_decodes_them():
    swapped = ObjectSettings(interior=2, boundary=1)
    spec = dataclasses.replace(make_spec(), objects=swapped)
    a, b = (
        CropSampler([make_pair()], s, SETTINGS).batch(0).targets
        for s in (make_spec(), spec)
    )
    assert torch.equal(a, torch.tensor([0, 2, 1])[b])


def test_no_images_are_refused():
    with pytest.raises(DataError, match="at least one"):
        CropSampler([], make_spec(), SETTINGS)


def test_the_hash_knows_the_data_not_its_order():
    a, b = make_pair(), Pair(np.zeros((4, 4)), np.zeros((4, 4), int))
    assert data_hash([a, b]) == data_hash([b, a])
    changed = Pair(b.image, np.eye(4, dtype=int))
    assert data_hash([a, b]) != data_hash([a, changed])


def test_crops_hold_something_known_and_weigh_nothing_else():
    image, labels = synthetic_nuclei((128, 128), seed=1)
    weight = np.zeros(labels.shape, np.float32)
    weight[100:110, 20:30] = 3.0
    sampler = CropSampler([Pair(image, labels, weight=weight)], make_spec(), SETTINGS)
    # With a raw normalisation the image is the weight itself, and so must the crop be.
    shown = CropSampler(
        [Pair(weight, labels, weight=weight)],
        make_spec(),
        dataclasses.replace(SETTINGS, contact_weight=0),
    )
    for step in range(10):
        batch = sampler.batch(step)
        assert (batch.weights.flatten(1).amax(1) > 0).all()
        told = shown.batch(step)
        agree = ((told.images[:, 0] > 1.5) == (told.weights > 0)).float().mean()
        assert agree > 0.97
        assert set(told.weights.unique().tolist()) <= {0.0, 3.0}


def test_a_third_of_the_crops_holds_something_labelled():
    labels = np.zeros((512, 512), np.int32)
    labels[40:44, 40:44] = 1  # hardly ever met by chance
    labels[400:404, 400:404] = 2
    weight = np.ones(labels.shape, np.float32)
    weight[300:, 300:] = 0  # nobody has said that this is one
    image = np.random.default_rng(0).random(labels.shape, np.float32)
    for known in (None, weight):
        sampler = CropSampler(
            [Pair(image, labels, weight=known)], make_spec(), SETTINGS
        )
        batches = [sampler.batch(step) for step in range(40)]
        met = [((b.targets > 0) & (b.weights > 0)).flatten(1).any(1) for b in batches]
        assert 0.2 < torch.cat(met).float().mean() < 0.55


def test_frames_of_which_nothing_is_known_are_never_drawn():
    image, labels = synthetic_nuclei((64, 64), seed=1)
    stack = np.stack([np.full_like(image, 60_000), image])
    weight = np.stack([np.zeros_like(image), np.ones_like(image)]).astype(np.float32)
    pair = Pair(stack, np.stack([labels, labels]), "TYX", weight=weight)
    sampler = CropSampler([pair], make_spec(), SETTINGS)
    assert all(sampler.batch(step).images.max() < 50_000 for step in range(5))
    nothing = dataclasses.replace(pair, weight=np.zeros_like(weight))
    with pytest.raises(DataError, match="Nothing is known"):
        CropSampler([nothing], make_spec(), SETTINGS)


def test_what_counts_is_part_of_the_data():
    pair = make_pair()
    weight = np.ones(pair.labels.shape, np.float32)
    weight[0, 0] = 0
    assert data_hash([pair]) != data_hash([dataclasses.replace(pair, weight=weight)])
