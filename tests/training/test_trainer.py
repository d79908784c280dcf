"""Training learns, repeats itself, and goes on where it was stopped."""

import dataclasses

import numpy as np
import pytest
import torch

from napari_attunet.devices import choose_dtype
from napari_attunet.errors import DataError, ModelError
from napari_attunet.model import Model
from napari_attunet.progress import Enough, Progress, drain
from napari_attunet.samples import synthetic_nuclei
from napari_attunet.spec import ModelSpec, NetworkSpec
from napari_attunet.training.distributed import Team
from napari_attunet.training.samples import Pair
from napari_attunet.training.settings import Augmentation, TrainingSettings
from napari_attunet.training.trainer import train
from napari_attunet.training.validation import validate

PAIRS = [Pair(*synthetic_nuclei((64, 64), seed=s)) for s in (0, 1)]
HELD_OUT = [Pair(*synthetic_nuclei((64, 64), seed=2))]
SETTINGS = TrainingSettings(
    steps=6, crop=(32, 32), batch_size=2, validate_every=2, warmup=1
)


def make_spec(**network):
    options = {"features": (4, 8), "out_channels": 3} | network
    return ModelSpec(name="m", network=NetworkSpec(**options), output="objects")


def same(a, b):
    a, b = a.network.state_dict(), b.network.state_dict()
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="oneDNN has no bfloat16 on this processor, not even emulated",
)
def test_it_learns_as_much_in_half_the_bits(monkeypatch):
    spec = make_spec(features=(8, 16, 32))
    settings = dataclasses.replace(
        SETTINGS, steps=40, crop=(64, 64), learning_rate=1e-2, validate_every=40
    )
    losses = {}
    for half in (False, True):
        monkeypatch.setattr(
            "napari_attunet.training.state.has_bfloat16", lambda device, half=half: half
        )
        told = [
            progress.values["loss"]
            for progress in train(spec, PAIRS, [], settings)
            if "loss" in (progress.values or {})
        ]
        losses[half] = told
    assert losses[True] != losses[False]  # it did compute in another type
    parts = slice(5), slice(-10, None)
    early, late = (np.mean([told[p] for told in losses.values()], 1) for p in parts)
    assert (late < 0.7 * early).all()
    assert abs(late[1] - late[0]) < 0.05 * late[0]


def test_it_learns():
    spec = make_spec(features=(8, 16, 32))
    settings = dataclasses.replace(
        SETTINGS,
        steps=60,
        crop=(64, 64),
        validate_every=30,
        learning_rate=1e-2,
        average=0.9,
        augmentation=Augmentation(intensity=0.3),
    )
    before = validate(Model.fresh(spec), HELD_OUT)
    model = drain(train(spec, PAIRS, HELD_OUT, settings))
    after = validate(model, HELD_OUT)
    assert after["dice"] > max(0.75, before["dice"] + 0.2)
    assert model.spec.training["scores"] == pytest.approx(after)
    assert not model.network.training


@pytest.mark.parametrize(
    "network",
    [
        {"ndim": 3, "features": (2, 3)},
        {"deep_supervision": True, "features": (2, 3, 4)},
        {"gate": None},
    ],
    ids=["3d", "deep supervision", "plain"],
)
def test_every_network_trains(network):
    spec = make_spec(**network)
    three = spec.network.ndim == 3
    pairs = [Pair(*synthetic_nuclei((8, 32, 32), seed=0))] if three else PAIRS
    crop = (8, 16, 16) if three else (32, 32)
    settings = dataclasses.replace(SETTINGS, steps=2, crop=crop)
    model = drain(train(spec, pairs, [], settings))
    assert not same(model, Model.fresh(spec))


def test_the_same_training_gives_the_same_model():
    a, b = (drain(train(make_spec(), PAIRS, HELD_OUT, SETTINGS)) for _ in range(2))
    assert same(a, b)
    other = dataclasses.replace(SETTINGS, seed=1)
    assert not same(a, drain(train(make_spec(), PAIRS, HELD_OUT, other)))


@pytest.mark.parametrize(("stop", "killed"), [(3, False), (5, False), (5, True)])
def test_a_stopped_training_goes_on_as_if_it_had_not_been(tmp_path, stop, killed):
    # without validation the last weights are taken, which all of the state goes into
    whole = drain(train(make_spec(), PAIRS, [], SETTINGS))
    checkpoint = tmp_path / "deeper" / "c.checkpoint"

    def begin():
        return train(make_spec(), PAIRS, [], SETTINGS, checkpoint=checkpoint)

    steps = begin()
    for progress in steps:
        if progress.done == stop:
            break
    if killed:  # only what was written before is left
        kept = checkpoint.read_bytes()
        steps.close()
        checkpoint.write_bytes(kept)
    steps.close()
    resumed = begin()
    # killed, it goes on from the validation of step 4
    assert next(p.done for p in resumed if p.done) == (5 if killed else stop + 1)
    assert same(drain(resumed), whole)


def told(model):
    """Say that there is nothing, step by step."""
    yield Progress(0, 0, "Telling")
    return [dataclasses.replace(p, labels=np.zeros_like(p.labels)) for p in PAIRS]


def test_halfway_a_model_revises_what_it_learns_from():
    asked = []

    def revise(model):
        asked.append(model)
        return (yield from told(model))

    steps = train(make_spec(), PAIRS, [], SETTINGS, revise=revise)
    done = []
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            revised = end.value
            break
        done.append((progress.done, progress.message))
    training = [(n, "Training") for n in range(1, 7)]
    looking = (3, "Looking at the rest")
    assert done[1:] == [*training[:3], looking, *training[3:]]
    plain = drain(train(make_spec(), PAIRS, [], SETTINGS))
    assert not same(revised, plain)
    (halfway,) = asked
    assert not same(halfway, Model.fresh(make_spec()))

    def unrevised(model):
        yield Progress(0, 0, "Telling")
        return PAIRS

    kept = drain(train(make_spec(), PAIRS, [], SETTINGS, revise=unrevised))
    assert same(kept, plain)


@pytest.mark.parametrize("stop", [2, 3, "Looking at the rest", 4, 5])
def test_a_stopped_training_remembers_what_it_was_halfway(tmp_path, stop):
    asked = []

    def revise(model):
        asked.append(model)
        return (yield from told(model))

    options = {"revise": revise, "checkpoint": tmp_path / "c.checkpoint"}
    whole = drain(train(make_spec(), PAIRS, [], SETTINGS, revise=revise))
    begun = train(make_spec(), PAIRS, [], SETTINGS, **options)
    for progress in begun:
        if stop in (progress.done, progress.message):
            break
    begun.close()
    before = len(asked)
    resumed = drain(train(make_spec(), PAIRS, [], SETTINGS, **options))
    assert same(resumed, whole)
    assert len(asked) == before + 1  # again, since what it said is not kept
    assert all(same(model, asked[0]) for model in asked)


def test_what_is_stopped_while_it_validates_is_validated_again(tmp_path):
    def begin():
        checkpoint = tmp_path / "c.checkpoint"
        return train(make_spec(), PAIRS, HELD_OUT, SETTINGS, checkpoint=checkpoint)

    begun = begin()
    next(p for p in begun if (p.done, p.message) == (4, "Validating"))
    begun.close()
    assert {p.done for p in begin() if p.message == "Validating"} == {4, 6}


def test_enough_is_enough_while_revising():
    steps = train(make_spec(), PAIRS, [], SETTINGS, revise=told)
    while next(steps).message != "Looking at the rest":
        pass
    with pytest.raises(StopIteration) as end:
        steps.throw(Enough())
    assert end.value.value.spec.training["best_step"] == SETTINGS.steps // 2


def test_processes_that_share_a_training_revise_nothing():
    team = Team()
    team.size = 2
    with pytest.raises(ValueError, match="alone"):
        next(train(make_spec(), PAIRS, [], SETTINGS, revise=told, team=team))


@pytest.mark.parametrize("change", ["settings", "data", "damage"])
def test_a_checkpoint_of_another_training_is_refused(tmp_path, change):
    checkpoint = tmp_path / "c.checkpoint"
    drain(train(make_spec(), PAIRS, HELD_OUT, SETTINGS, checkpoint=checkpoint))
    settings, pairs = SETTINGS, PAIRS
    if change == "settings":
        settings = dataclasses.replace(settings, seed=9)
    elif change == "data":
        pairs = PAIRS[:1]
    else:
        checkpoint.write_bytes(b"junk")
    with pytest.raises(ModelError, match="Delete it"):
        drain(train(make_spec(), pairs, HELD_OUT, settings, checkpoint=checkpoint))


def test_training_further_leaves_the_start_alone():
    start = Model.fresh(make_spec())
    before = Model.from_weights(start.spec, start.network.state_dict())
    trained = drain(train(start, PAIRS, HELD_OUT, SETTINGS))
    assert same(start, before)
    assert not same(start, trained)
    assert trained.spec.training["started_from"] == "m@1"


@pytest.mark.parametrize("freeze", ["nothing", "encoder"])
def test_what_is_frozen_stays(freeze):
    start = Model.fresh(make_spec())
    settings = dataclasses.replace(SETTINGS, freeze=freeze)
    model = drain(train(start, PAIRS, [], settings))
    before, after = (m.network.state_dict() for m in (start, model))
    for name, value in before.items():  # statistics of normalisation, too
        still = freeze == "encoder" and name.startswith("encoder.")
        assert torch.equal(value, after[name]) == still, name


def test_the_record_tells_how_to_repeat_it():
    record = drain(train(make_spec(), PAIRS, HELD_OUT, SETTINGS)).spec.training
    assert record["settings"]["steps"] == 6
    assert record["data"]["images"] == 2
    assert len(record["data"]["sha256"]) == 64
    assert [h["step"] for h in record["history"]] == [2, 4, 6]
    assert set(record["scores"]) == {"dice", "ap50", "ap50_pooled", "ap70"}


def test_the_best_weights_are_kept_not_the_last(monkeypatch):
    from napari_attunet.training import trainer

    dice = iter([0.2, 0.9, 0.1])

    def scored(*args, **options):
        yield Progress(0, 1)
        return {"dice": next(dice)}

    monkeypatch.setattr(trainer, "validation_steps", scored)
    model = drain(train(make_spec(), PAIRS, HELD_OUT, SETTINGS))
    assert model.spec.training["best_step"] == 4
    assert model.spec.training["scores"] == {"dice": 0.9}


def test_a_loss_that_is_no_number_ends_the_training(monkeypatch):
    def broken(logits, *args, **options):
        return logits.sum() * np.nan

    monkeypatch.setattr("napari_attunet.training.state.segmentation_loss", broken)
    with pytest.raises(DataError, match="learning rate"):
        drain(train(make_spec(), PAIRS, HELD_OUT, SETTINGS))


def test_absent_classes_don_t_flatter():
    """An untrained model of many classes, of which one occurs, is not half right."""
    spec = dataclasses.replace(make_spec(out_channels=6), output="classes")
    pairs = [Pair(p.image, (p.labels > 0) * 5) for p in HELD_OUT]
    assert validate(Model.fresh(spec), pairs)["dice"] < 0.4


def test_validation_images_are_checked_before_the_first_step():
    bad = [Pair(HELD_OUT[0].image, np.zeros((3, 3), int))]
    steps = train(make_spec(), PAIRS, bad, SETTINGS)
    next(steps)
    with pytest.raises(DataError, match="don't fit"):
        next(steps)


def test_what_is_chosen_by_is_exact(monkeypatch):
    asked = []

    def noted(precision, device):
        asked.append(precision)
        return choose_dtype(precision, device)

    monkeypatch.setattr("napari_attunet.segmenter.choose_dtype", noted)
    validate(Model.fresh(make_spec()), HELD_OUT)
    assert set(asked) == {"exact"}


def test_class_models_are_scored_by_class():
    spec = dataclasses.replace(make_spec(), output="classes")
    pairs = [Pair(p.image, (p.labels > 0).astype(int)) for p in HELD_OUT]
    assert set(validate(Model.fresh(spec), pairs)) == {"dice"}
