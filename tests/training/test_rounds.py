"""A round learns, compares, proposes the best, and changes nothing by itself."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import ndimage

from napari_attunet.corrections import Correction, TrainingSet
from napari_attunet.errors import Cancelled, DataError, ModelError, TrainingError
from napari_attunet.library import Library
from napari_attunet.model import Model, load_model, save_model
from napari_attunet.progress import Enough, drain
from napari_attunet.samples import synthetic_nuclei
from napari_attunet.segmenter import Segmenter
from napari_attunet.spec import ModelSpec, NetworkSpec
from napari_attunet.training import judging, rounds
from napari_attunet.training.judging import merit, propose
from napari_attunet.training.lessons import (
    AROUND,
    LIMITS,
    OWN_TRUST,
    REACH,
    SURE,
    anchored,
    read_lessons,
)
from napari_attunet.training.record import Contender, claimed, read_record, unfinished
from napari_attunet.training.rounds import accept, run_round
from napari_attunet.training.settings import RoundSettings
from napari_attunet.training.tuning import SHARE, SHARE_OF_FEW

SETTINGS = RoundSettings(steps=4)
NETWORK = NetworkSpec(features=(4, 8), out_channels=3)


@pytest.fixture
def parent(tmp_path):
    spec = ModelSpec(name="mother", network=NETWORK, output="objects")
    return str(save_model(Model.fresh(spec), tmp_path / "mother.safetensors"))


@pytest.fixture
def training_set(tmp_path):
    found = TrainingSet(tmp_path / "set")
    for seed in (0, 1):
        image, labels = synthetic_nuclei((256, 256), seed=seed)
        found.add(correction(image, labels))
    return found


def correction(image, labels, **options):
    return Correction(
        **{"image": image, "axes": "YX", "labels": labels, "output": "objects"}
        | options
    )


def weights(model):
    return model.network.state_dict()


def same(a, b):
    a, b = weights(a), weights(b)
    return all(torch.equal(a[k], b[k]) for k in a)


def test_a_round_trains_compares_and_keeps_all_in_its_folder(
    training_set, parent, tmp_path
):
    before = load_model(parent)
    folder = tmp_path / "round"
    outcome = drain(run_round(training_set, parent, SETTINGS, folder))
    assert [c.name for c in outcome.contenders] == ["parent", "tuned", "scratch"]
    assert read_record(folder).outcome == outcome
    for contender in outcome.contenders[1:]:
        model = load_model(folder / contender.file)
        assert model.spec.parent == "mother@1"
        assert model.spec.training["data"]["images"] == 2
        assert contender.scores["validation"].keys() >= {"dice", "ap50"}
    assert same(load_model(parent), before)
    assert not same(load_model(folder / "tuned.safetensors"), before)
    merits = {c.name: c.merit for c in outcome.contenders}
    assert merits[outcome.proposed] >= merits["parent"]


def test_a_model_knows_how_it_fared_and_not_what_lies_beyond_it(
    training_set, parent, tmp_path
):
    outcome = drain(run_round(training_set, parent, SETTINGS, tmp_path / "round"))
    for contender in outcome.contenders[1:]:
        told = load_model(tmp_path / "round" / contender.file).spec.training
        assert told["scores"] == contender.scores["validation"]
        assert told["corrections"] == contender.scores["corrections"]


def test_a_full_disk_ends_no_training(training_set, parent, tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos")

    def locked(*_, **__):
        raise PermissionError("in use")

    wanted = drain(run_round(training_set, parent, SETTINGS, tmp_path / "wanted"))
    monkeypatch.setattr("napari_attunet.training.state.torch.save", full)
    monkeypatch.setattr("napari_attunet.training.trainer.PREVIEW_SECONDS", 0)
    save = rounds.save_model

    def saved(model, path):
        return locked() if "preview" in str(path) else save(model, path)

    monkeypatch.setattr(rounds, "save_model", saved)
    preview = tmp_path / "preview.safetensors"
    steps = run_round(
        training_set, parent, SETTINGS, tmp_path / "round", preview=preview
    )
    assert drain(steps) == wanted


def test_the_same_round_gives_the_same_models(training_set, parent, tmp_path):
    for name in "ab":
        drain(run_round(training_set, parent, SETTINGS, tmp_path / name))
    for file in ("tuned.safetensors", "scratch.safetensors"):
        assert same(
            load_model(tmp_path / "a" / file), load_model(tmp_path / "b" / file)
        )


@pytest.mark.parametrize("at", [1, 4, 6, 9])
def test_an_interrupted_round_goes_on(training_set, parent, tmp_path, at):
    whole = drain(run_round(training_set, parent, SETTINGS, tmp_path / "whole"))
    steps = run_round(training_set, parent, SETTINGS, tmp_path / "cut")
    for _ in range(at):
        next(steps)
    steps.close()
    seen = []
    again = run_round(training_set, parent, SETTINGS, tmp_path / "cut")
    outcome = drain(again, lambda p: seen.append(p.done))
    assert outcome == whole
    assert same(
        load_model(tmp_path / "cut" / "tuned.safetensors"),
        load_model(tmp_path / "whole" / "tuned.safetensors"),
    )


def test_other_settings_begin_anew(training_set, parent, tmp_path):
    drain(run_round(training_set, parent, SETTINGS, tmp_path / "round"))
    other = dataclasses.replace(SETTINGS, seed=1, starts=("parent",))
    outcome = drain(run_round(training_set, parent, other, tmp_path / "round"))
    assert [c.name for c in outcome.contenders] == ["parent", "tuned"]
    fresh = drain(run_round(training_set, parent, other, tmp_path / "fresh"))
    assert outcome == fresh


@pytest.mark.parametrize("at", range(1, 24, 3))
def test_enough_keeps_what_there_is_and_compares(training_set, parent, tmp_path, at):
    steps = run_round(training_set, parent, SETTINGS, tmp_path / "round")
    try:
        for _ in range(at):
            last = next(steps)
        learnt = last.done > 0
        steps.throw(Enough())
        while True:
            last = next(steps)
            assert "Training" not in last.message
    except Cancelled:  # at once
        assert not learnt
        return
    except StopIteration as end:
        outcome = end.value
    assert learnt
    assert outcome.contenders[0].name == "parent"
    for contender in outcome.contenders[1:]:
        load_model(tmp_path / "round" / contender.file)


def test_stopped_at_once_there_is_nothing_to_go_on_from(training_set, parent, tmp_path):
    steps = run_round(training_set, parent, SETTINGS, tmp_path / "round")
    while not read_record(tmp_path / "round").total:
        next(steps)
    with pytest.raises(Cancelled):
        steps.throw(Enough())
    assert read_record(tmp_path / "round").total == 0


def test_stopped_after_it_was_resumed_what_was_learnt_is_compared(
    training_set, parent, tmp_path
):
    folder = tmp_path / "round"
    steps = run_round(training_set, parent, SETTINGS, folder)
    while not (folder / "tuned.safetensors").exists():
        next(steps)
    steps.close()
    (folder / "scratch.checkpoint").unlink(missing_ok=True)
    steps = run_round(training_set, parent, SETTINGS, folder)
    next(steps)  # it reads the training set
    steps.throw(Enough())
    outcome = drain(steps)
    assert [c.name for c in outcome.contenders] == ["parent", "tuned"]


def test_stopped_after_it_was_resumed_in_the_middle_it_goes_on_and_compares(
    training_set, parent, tmp_path
):
    folder = tmp_path / "round"
    steps = run_round(training_set, parent, SETTINGS, folder)
    next(s for s in steps if s.done > 2)
    steps.close()
    assert (folder / "tuned.checkpoint").exists()
    steps = run_round(training_set, parent, SETTINGS, folder)
    next(steps)  # it reads the training set
    steps.throw(Enough())
    outcome = drain(steps)
    assert [c.name for c in outcome.contenders] == ["parent", "tuned"]


def test_stopped_at_once_another_round_is_left_as_it_was(
    training_set, parent, tmp_path
):
    folder = tmp_path / "round"
    drain(run_round(training_set, parent, SETTINGS, folder))
    before = read_record(folder)
    other = dataclasses.replace(SETTINGS, seed=1)
    steps = run_round(training_set, parent, other, folder)
    next(steps)
    with pytest.raises(Cancelled):  # noqa: PT012
        steps.throw(Enough())
        drain(steps)
    assert read_record(folder) == before
    assert (folder / "tuned.safetensors").exists()


def test_stopped_after_the_set_has_changed(training_set, parent, tmp_path):
    drain(run_round(training_set, parent, SETTINGS, tmp_path / "round"))
    other = dataclasses.replace(SETTINGS, seed=1)
    steps = run_round(training_set, parent, other, tmp_path / "round")
    told = next(s for s in steps if "changed" in s.message)
    assert "beginning anew" in told.message
    with pytest.raises(Cancelled):
        steps.throw(Enough())


def test_enough_before_there_is_any_model(training_set, tmp_path):
    steps = run_round(training_set, None, SETTINGS, tmp_path / "round")
    next(steps)
    with pytest.raises(Cancelled, match="before anything"):  # noqa: PT012
        steps.throw(Enough())
        drain(steps)


def test_what_is_held_out_is_never_learnt(training_set, parent, tmp_path, monkeypatch):
    """Labels that are held out may be anything: the trained weights are the same."""
    seen = []
    real = rounds.train

    def spy(start, pairs, validation, *args, **options):
        seen.append((pairs, validation))
        return real(start, pairs, validation, *args, **options)

    monkeypatch.setattr(rounds, "train", spy)
    drain(run_round(training_set, parent, SETTINGS, tmp_path / "round"))
    for learn, validation in seen:
        for one in learn:
            for other in validation:
                if np.array_equal(one.image, other.image):
                    assert not ((one.weight > 0) & (other.weight > 0)).any()
        assert validation


def test_colour_is_kept(parent, tmp_path):
    image, labels = synthetic_nuclei((256, 256), seed=0)
    grey = (image - image.min()) / np.ptp(image)
    colour = np.stack([grey, grey**2, 1 - grey], -1).astype(np.float32)
    found = TrainingSet(tmp_path / "set")
    found.add(correction(colour, labels, axes="YXC"))
    drain(run_round(found, parent, SETTINGS, tmp_path / "round"))
    spec = load_model(tmp_path / "round" / "tuned.safetensors").spec
    assert spec.network.in_channels == 3


@pytest.mark.parametrize("axis", [0, -1])
def test_channels_that_the_parent_does_not_take_are_learnt(parent, tmp_path, axis):
    image, labels = synthetic_nuclei((256, 256), seed=0)
    found = TrainingSet(tmp_path / "set")
    both = np.stack([image, image[::-1]], axis)
    found.add(correction(both, labels, axes="YXC" if axis else "CYX"))
    outcome = drain(run_round(found, parent, SETTINGS, tmp_path / "round"))
    scores = {c.name: c.scores for c in outcome.contenders}
    assert scores["parent"] == {"validation": {}, "corrections": {}}
    assert scores["tuned"]["corrections"]["dice"] > 0
    assert "scratch" in scores
    spec = load_model(tmp_path / "round" / "tuned.safetensors").spec
    assert spec.channels == ("channel 0", "channel 1")


def test_new_label_values_become_classes(tmp_path):
    network = dataclasses.replace(NETWORK, out_channels=2)
    spec = ModelSpec(name="two", network=network)
    path = save_model(Model.fresh(spec), tmp_path / "two.safetensors")
    image, labels = synthetic_nuclei((256, 256), seed=0)
    found = TrainingSet(tmp_path / "set")
    three = np.where(labels > 0, 1 + labels % 3, 0)
    found.add(correction(image, three, output="classes"))
    drain(run_round(found, str(path), SETTINGS, tmp_path / "round"))
    tuned = load_model(tmp_path / "round" / "tuned.safetensors").spec
    assert tuned.classes == ("background", "class 1", "class 2", "class 3")


@pytest.mark.parametrize("bright", [True, False])
def test_bright_field_that_no_parent_knows_is_light_that_passed(
    parent, tmp_path, bright
):
    image, labels = synthetic_nuclei((256, 256), seed=0)
    image = image.astype(np.float32)
    image = np.uint8(230 - 200 * image / image.max() if bright else image)
    found = TrainingSet(tmp_path / "set")
    found.add(correction(image, labels))
    drain(run_round(found, parent, SETTINGS, tmp_path / "round"))
    for name in ("tuned", "scratch"):
        spec = load_model(tmp_path / "round" / f"{name}.safetensors").spec
        kind = "transmission" if bright else "percentile"
        assert spec.normalization.kind == kind
        assert spec.training["settings"]["augmentation"]["intensity"] == 0.5


def test_what_a_parent_knows_it_sees_as_before(parent, tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "KNOWN", 0.0)
    image, labels = synthetic_nuclei((256, 256), seed=0)
    found = TrainingSet(tmp_path / "set")
    found.add(correction(np.uint8(230 - 200 * (image / image.max())), labels))
    drain(run_round(found, parent, SETTINGS, tmp_path / "round"))
    spec = load_model(tmp_path / "round" / "tuned.safetensors").spec
    assert spec.normalization.kind == "percentile"
    assert spec.training["settings"]["augmentation"]["intensity"] == 1.0


@pytest.mark.parametrize("effort", ["quick", "thorough"])
def test_what_no_parent_knows_is_learnt_for_longer(effort):
    settings = RoundSettings(effort=effort)
    known, unknown = (settings.training(2, known=k) for k in (True, False))
    assert unknown.steps == 1.5 * known.steps
    assert dataclasses.replace(settings, steps=7).training(2, known=False).steps == 7


def test_a_new_model_needs_no_parent(training_set, tmp_path):
    settings = dataclasses.replace(SETTINGS, name="mine", network=NETWORK)
    outcome = drain(run_round(training_set, None, settings, tmp_path / "round"))
    assert outcome.proposed == "scratch"
    spec = load_model(tmp_path / "round" / "scratch.safetensors").spec
    assert (spec.name, spec.parent, spec.output) == ("mine", None, "objects")


def test_preview_shows_the_weights(training_set, parent, tmp_path, monkeypatch):
    monkeypatch.setattr("napari_attunet.training.trainer.PREVIEW_SECONDS", 0.0)
    preview = tmp_path / "preview.safetensors"
    drain(run_round(training_set, parent, SETTINGS, tmp_path / "r", preview=preview))
    assert not same(load_model(preview), load_model(parent))


def test_accepting_stores_the_next_version(training_set, parent, tmp_path):
    library = Library(tmp_path / "shelf")
    save_model(load_model(parent), library.path_for(load_model(parent).spec))
    folder = tmp_path / "round"
    drain(run_round(training_set, parent, SETTINGS, folder))
    entry = accept(folder, "tuned", library)
    assert (entry.spec.key, entry.spec.parent) == ("mother@2", "mother@1")
    assert same(load_model(entry.path), load_model(folder / "tuned.safetensors"))
    assert library.current("mother").spec.version == 2
    with pytest.raises(ModelError, match="no model 'parent' to accept"):
        accept(folder, "parent", library)


def test_nothing_to_learn_from_is_said(parent, tmp_path, training_set):
    empty = TrainingSet(tmp_path / "empty")
    with pytest.raises(DataError, match="is empty: add an image"):
        drain(run_round(empty, parent, SETTINGS, tmp_path / "round"))
    image, labels = synthetic_nuclei((256, 256), seed=3)
    training_set.add(correction(image, labels % 3, output="classes", name="odd one"))
    with pytest.raises(DataError, match="odd one: classes"):
        drain(run_round(training_set, parent, SETTINGS, tmp_path / "round"))


def contender(name, dice, ap50=0.5):
    found = {"dice": dice, "ap50": ap50, "ap50_pooled": ap50}
    scores = {"validation": found, "corrections": found}
    return scores, Contender(name=name, model="m@1", scores=scores, merit=0, file=name)


@pytest.mark.parametrize(
    ("dices", "trusted", "proposed"),
    [
        ({"parent": 0.8, "tuned": 0.9, "scratch": 0.85}, True, "tuned"),
        ({"parent": 0.8, "tuned": 0.9, "scratch": 0.91}, True, "scratch"),
        ({"parent": 0.8, "tuned": 0.9, "scratch": 0.91}, False, "tuned"),
        ({"parent": 0.8, "tuned": 0.9, "scratch": 0.95}, False, "scratch"),
        ({"parent": 0.8, "tuned": 0.8, "scratch": 0.8}, True, "parent"),
        ({"parent": 0.8, "tuned": 0.7, "scratch": 0.75}, False, "parent"),
    ],
)
def test_nothing_worse_is_proposed(dices, trusted, proposed):
    contenders = []
    for name, dice in dices.items():
        scores, one = contender(name, dice)
        worth = merit(scores, trusted=trusted)
        contenders.append(dataclasses.replace(one, merit=worth))
    outcome = propose(contenders, trusted=trusted)
    assert outcome.proposed == proposed
    assert ("keep it" in outcome.reason) == (proposed == "parent")
    assert ("Too little" in outcome.reason) != trusted


def test_samples_of_another_kind_than_asked_for(training_set, tmp_path):
    settings = dataclasses.replace(SETTINGS, output="classes", starts=("scratch",))
    with pytest.raises(DataError, match="show objects, but classes were asked for"):
        drain(run_round(training_set, None, settings, tmp_path / "round"))


def test_what_is_open_is_found(training_set):
    assert unfinished(training_set) == []
    folder = training_set.folder / ".rounds" / "one"
    folder.mkdir(parents=True)
    assert unfinished(training_set) == [folder]
    assert read_record(folder).outcome is None
    newer = folder.with_name("two")
    newer.mkdir()
    os.utime(folder, (1, 1))
    assert unfinished(training_set) == [newer, folder]
    (folder / "round.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(DataError, match="format 99"):
        read_record(folder)


@pytest.fixture
def sparse(tmp_path):
    """A set in which a few objects of an image were painted."""
    image, labels = synthetic_nuclei((256, 256), seed=0)
    found = TrainingSet(tmp_path / "sparse")
    found.add(correction(image, np.where(labels <= 3, labels, 0), extent="painted"))
    return found


def test_one_process_at_a_time_is_at_work_in_a_folder(training_set, parent):
    folder = training_set.folder / ".rounds" / "shared"
    steps = run_round(training_set, parent, SETTINGS, folder)
    next(steps)  # from its first step on
    assert unfinished(training_set) == []  # somebody is at it
    with pytest.raises(TrainingError, match="Another process"):
        drain(run_round(training_set, parent, SETTINGS, folder))
    steps.close()
    assert unfinished(training_set) == [folder]
    drain(run_round(training_set, parent, SETTINGS, folder))


def test_a_checkpoint_of_another_recipe_is_not_gone_on_with(
    training_set, parent, tmp_path, monkeypatch
):
    folder = tmp_path / "cut"
    steps = run_round(training_set, parent, SETTINGS, folder)
    for progress in steps:
        if progress.done == 2:
            break
    steps.close()
    assert list(folder.glob("*.checkpoint"))
    monkeypatch.setattr("napari_attunet.training.trainer.RECIPE", 99)
    drain(run_round(training_set, parent, SETTINGS, folder))
    drain(run_round(training_set, parent, SETTINGS, tmp_path / "whole"))
    assert same(
        *(load_model(tmp_path / f / "tuned.safetensors") for f in ("cut", "whole"))
    )


def test_a_killed_process_claims_nothing(tmp_path):
    code = (
        "import sys, pathlib; from napari_attunet.training.record import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1])): print('mine', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout.readline().strip() == b"mine"
        with pytest.raises(TrainingError), claimed(tmp_path):
            pass
        child.kill()
        child.wait()
    with claimed(tmp_path):
        pass


def test_strokes_on_mistakes_do_not_tell_that_a_parent_knows_nothing(
    tmp_path, monkeypatch
):
    image, labels = synthetic_nuclei((256, 256), seed=0)
    found = TrainingSet(tmp_path / "set")
    prediction = np.where(labels <= 2, 0, labels)  # two were missed
    found.add(correction(image, labels, extent="painted", prediction=prediction))
    asked = []

    def spy(lessons, model, *args):
        asked.append((model, args[2:]))
        return (yield from anchored(lessons, model, *args))

    monkeypatch.setattr(rounds, "anchored", spy)
    outcome = drain(
        run_round(found, "nuclei-fluorescence", SETTINGS, tmp_path / "round")
    )
    assert [c.name for c in outcome.contenders] == ["parent", "tuned"]
    # of so few strokes all the rest is told by the parent, then by what it has become
    parent = load_model("nuclei-fluorescence")
    assert [trust for _, trust in asked] == [(), (OWN_TRUST,)]
    one, other = (model.network.state_dict() for model, _ in asked)
    same = {k: torch.equal(v, one[k]) for k, v in parent.network.state_dict().items()}
    assert all(same.values())
    assert any((value != one[k]).any() for k, value in other.items())


def test_what_the_parent_is_sure_of_counts_a_little(sparse):
    lessons = read_lessons(sparse, SETTINGS)
    (before,), (unknown,), (near,) = lessons.learn, lessons.unknown, lessons.near
    model = load_model("nuclei-fluorescence")
    (after,) = drain(anchored(lessons, model, "cpu", None))
    known = before.weight > 0
    np.testing.assert_array_equal(after.labels[known], before.labels[known])
    np.testing.assert_array_equal(
        after.weight[known & ~near], before.weight[known & ~near]
    )
    background, objects = (
        set(np.unique(after.weight[~known & ~near & there]))
        for there in (after.labels == 0, after.labels > 0)
    )
    assert background == {0, np.float32(0.3)}
    assert objects == {0, np.float32(0.1)}
    assert (after.weight[unknown] > 0).any()
    assert not (after.weight[~unknown & ~known] > 0).any()
    # the objects are whole, or boundaries would be looked for inside of them
    found = Segmenter(model).segment(before.image, probabilities=True)
    said, foreground = found.labels, 1 - found.probabilities[0]
    left = ~np.isin(said, np.unique(said[known]))
    np.testing.assert_array_equal((after.labels > 0)[unknown & left], True)
    sure = after.weight[unknown & left & ~near] > 0
    np.testing.assert_array_equal(sure, (foreground > SURE)[unknown & left & ~near])
    assert not sure.all()


def test_objects_are_not_cut_where_what_is_held_out_begins(tmp_path):
    """Nor does what a model says take their place there, where nothing counts."""
    image, labels = synthetic_nuclei((256, 256), seed=0)
    painted = TrainingSet(tmp_path / "set")
    painted.add(correction(image, labels, extent="painted"))
    lessons = read_lessons(painted, SETTINGS)
    ((before,), (told,)) = lessons.learn, lessons.told
    held = told & (before.weight == 0)
    assert (before.labels > 0)[held].any()
    model = load_model("nuclei-fluorescence")
    (after,) = drain(anchored(lessons, model, "cpu", None))
    np.testing.assert_array_equal(after.labels[told], before.labels[told])
    assert not after.weight[held].any()


@pytest.mark.parametrize(
    ("learnt", "model", "share"),
    [
        ("sparse", "nuclei-fluorescence", SHARE_OF_FEW),
        ("training_set", "nuclei-fluorescence", SHARE),
        ("training_set", "parent", 1.0),  # it knows nothing
    ],
)
def test_the_less_is_known_the_more_is_kept(
    tmp_path, monkeypatch, request, learnt, model, share
):
    asked = []

    def spy(*args, share, **options):
        asked.append(share)
        raise DataError("seen enough")
        yield

    monkeypatch.setattr(rounds, "tuning_steps", spy)
    start = request.getfixturevalue(model) if model == "parent" else model
    steps = run_round(
        request.getfixturevalue(learnt), start, SETTINGS, tmp_path / "round"
    )
    with pytest.raises(DataError, match="seen enough"):
        drain(steps)
    assert asked == [share]


def test_painted_objects_weigh_as_in_a_whole_image_against_what_is_around(sparse):
    lessons = read_lessons(sparse, SETTINGS)
    (before,), (near,), (unknown,) = lessons.learn, lessons.near, lessons.unknown
    model = load_model("nuclei-fluorescence")
    (after,) = drain(anchored(lessons, model, "cpu", None))
    known, painted = before.weight > 0, (before.weight > 0) & (before.labels > 0)
    said = Segmenter(model).segment(before.image).labels
    # What the parent saw there may be another object that nobody painted.
    around = near & (known | (unknown & (said == 0)))
    assert not after.labels[around].any()
    assert ndimage.distance_transform_cdt(~painted)[around].max() == REACH
    low, high = LIMITS
    assert low < after.weight[around].min() <= after.weight[around].max() < high
    weighed = after.weight[around].sum() / np.count_nonzero(painted)
    assert weighed == pytest.approx(AROUND, rel=1e-4)


@pytest.mark.parametrize("extent", ["whole", "regions"])
def test_where_all_is_checked_nothing_more_is_said_around_objects(tmp_path, extent):
    image, labels = synthetic_nuclei((256, 256), seed=0)
    found = TrainingSet(tmp_path / "set")
    regions = labels * 0
    regions[:128] = 1
    found.add(correction(image, labels, extent=extent, regions=regions))
    assert not any(near.any() for near in read_lessons(found, SETTINGS).near)


def test_what_is_held_out_is_no_anchor_either(training_set, parent):
    lessons = read_lessons(training_set, SETTINGS)
    for pair, held in zip(lessons.learn, lessons.validation, strict=True):
        assert not ((pair.weight > 0) & (held.weight > 0)).any()
    for pair in drain(anchored(lessons, load_model(parent), "cpu", None)):
        for held in lessons.validation:
            if np.array_equal(pair.image, held.image):
                assert not ((pair.weight > 0) & (held.weight > 0)).any()
