"""Samples come back as they were given, whatever is damaged, killed or done twice."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_attunet.corrections import (
    FEW_PIXELS,
    Correction,
    Sample,
    TrainingSet,
    default_folder,
    folder,
    last_folder,
    remember_folder,
)
from napari_attunet.errors import DataError

ARRAYS = ("image", "labels", "regions", "prediction")
DTYPES = [
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "float32", "float64", ">u2", ">f4"),
]


def correction(seed: int = 0, **changes: Any) -> Correction:
    """A noisy image with 36 objects."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(1, 37, dtype=np.int32).reshape(6, 6)
    labels = np.kron(numbers, np.pad(np.ones((30, 30), np.int32), 10))
    settings: dict[str, Any] = {
        "image": rng.integers(0, 255, labels.shape, dtype=np.uint8),
        "axes": "YX",
        "labels": labels,
        "output": "objects",
        "name": f"Leber {seed}",
    }
    return Correction(**settings | changes)


def assert_same(one: Correction, other: Correction) -> None:
    for field in dataclasses.fields(Correction):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name in ARRAYS and ours is not None:
            assert ours.dtype == theirs.dtype, field.name
            assert np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f")
        else:
            assert ours == theirs, field.name


@pytest.fixture
def training_set(tmp_path: Path) -> TrainingSet:
    return TrainingSet(tmp_path / "set")


# ---- there and back ---------------------------------------------------------------


@st.composite
def corrections(draw: st.DrawFn) -> Correction:
    """Any correction that can be learned from."""
    ndim = draw(st.sampled_from([2, 3]))
    letters = draw(st.sets(st.sampled_from("TCZ"))) | set("ZYX"[3 - ndim :])
    axes = "".join(draw(st.permutations(sorted(letters))))
    sizes = {a: draw(st.integers(1, 4)) for a in axes}
    sizes |= {"Y": draw(st.integers(2, 9)), "X": draw(st.integers(1, 9))}
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = [sizes[a] for a in axes]
    if dtype.kind in "iu":
        top = min(np.iinfo(dtype).max, 2**53)
        image = rng.integers(max(np.iinfo(dtype).min, -top), top, shape).astype(dtype)
    else:
        image = rng.normal(0.5, 1, shape).astype(dtype)
        if dtype.kind == "f":
            image.flat[0] = np.nan
    of_labels = [sizes[a] for a in axes if a != "C"]
    whole = st.sampled_from(["uint8", "int16", "uint32", "int32", "int64", "uint64"])
    labels = rng.integers(0, 100, of_labels).astype(draw(whole))
    labels.flat[0], labels.flat[-1] = 3, 4
    extent = draw(st.sampled_from(["whole", "regions", "painted"]))
    regions = np.zeros(of_labels, bool)
    regions.flat[0] = regions.flat[-1] = True
    predicted = rng.integers(5, 8, of_labels).astype(draw(whole))
    predicted.flat[0] = predicted.flat[-1] = 5  # one object, where there are two
    return Correction(
        image=image,
        axes=axes,
        labels=labels,
        output=draw(st.sampled_from(["objects", "classes"])),
        extent=extent,
        regions=regions if extent == "regions" else None,
        prediction=predicted if draw(st.booleans()) else None,
        background=draw(st.sampled_from([None, 99, 120])),
        ndim=ndim,
        name=draw(st.text(max_size=60)),
        source={"layer": draw(st.text()), "frames": [1, 2], "scale": 0.5},
        model=draw(st.none() | st.just("nuclei@2")),
    )


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(given_one=corrections())
def test_what_is_read_is_what_was_added(training_set, given_one):
    sample = training_set.add(given_one)
    assert_same(given_one, training_set.read(sample))
    assert sample in training_set.samples()
    assert sample.shape == given_one.labels.shape
    assert sample.validation_mask().shape == sample.shape
    assert not (sample.validation_mask() & sample.training_mask()).any()
    count = given_one.count()
    assert sample.count["known"] == count.known
    assert sample.pixels == {str(c): n for c, n in count.pixels.items()}
    training_set.remove(sample)
    assert training_set.samples() == ()


def test_others_can_read_a_sample(training_set):
    image = np.arange(24, dtype=np.int64).reshape(2, 3, 4) << 20
    labels = np.eye(3, 4, dtype=np.int64)
    regions = np.ones((3, 4), bool)
    sample = training_set.add(
        correction(
            image=image, axes="CYX", labels=labels, extent="regions", regions=regions
        )
    )
    assert sample.folder.parent == training_set.folder
    assert sorted(p.name for p in sample.folder.iterdir()) == [
        *("image.ome.tif", "labels.ome.tif", "regions.ome.tif", "sample.json")
    ]
    with tifffile.TiffFile(sample.folder / "image.ome.tif") as tif:
        assert tif.is_ome
        assert tif.series[0].axes == "CYX"
        assert np.array_equal(tif.asarray(), image)
    said = json.loads((sample.folder / "sample.json").read_text("utf-8"))
    assert said["format"] == 1
    assert said["extent"] == "regions"
    assert "folder" not in said


def test_a_sample_is_a_snapshot(training_set):
    ours = correction()
    before = ours.labels.copy()
    sample = training_set.add(ours)
    ours.labels[:] = 7
    assert np.array_equal(training_set.read(sample).labels, before)


def test_painting_goes_on_while_a_sample_is_kept(training_set):
    ours = correction()
    before = ours.labels.copy()

    class Slow(Lazy):
        def __getitem__(self, key: Any) -> Any:
            ours.labels[:] = 7
            return super().__getitem__(key)

    live = dataclasses.replace(ours, image=Slow(ours.image))
    assert np.array_equal(training_set.read(training_set.add(live)).labels, before)


class Lazy:
    """An array that tells when it is read."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array, self.reads = array, 0
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, key: Any) -> Any:
        self.reads += 1
        return self.array[key]


def test_a_lazy_image_is_read_once_and_only_when_it_is_kept(training_set):
    image = Lazy(correction().image)
    ours = correction(image=image)
    ours.check()
    ours.count()
    assert image.reads == 0
    sample = training_set.add(ours)
    assert image.reads == 1
    assert np.array_equal(training_set.read(sample).image, image.array)


def test_dask_and_zarr_are_made_dense(training_set):
    dask = pytest.importorskip("dask.array")
    zarr = pytest.importorskip("zarr")
    ours = correction()
    stored = zarr.array(ours.labels, chunks=(100, 100))
    lazy = correction(image=dask.from_array(ours.image, chunks=64), labels=stored)
    assert_same(ours, training_set.read(training_set.add(lazy)))


def test_a_bad_correction_leaves_nothing(training_set):
    with pytest.raises(DataError, match="float64"):
        training_set.add(correction(labels=correction().labels / 2))
    assert not training_set.folder.exists()


@pytest.mark.parametrize(
    ("name", "start"),
    [("Zelle ä/1", "zelle-a-1-"), ("../..", "image-"), ("细胞", "image-")],
)
def test_folders_have_names_that_every_system_takes(training_set, name, start):
    sample = training_set.add(correction(name=name))
    assert sample.id.startswith(start)
    assert sample.folder == training_set.folder / sample.id
    assert training_set.samples()[0].name == name


def test_where_the_set_lies_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("NAPARI_ATTUNET_TRAINING", str(tmp_path))
    assert default_folder() == TrainingSet().folder == tmp_path
    monkeypatch.delenv("NAPARI_ATTUNET_TRAINING")
    assert default_folder().parts[-2:] == ("training", "default")


def test_a_set_need_not_exist(training_set):
    assert training_set.samples() == ()
    assert training_set.damaged() == {}
    assert not training_set.folder.exists()


# ---- changes ----------------------------------------------------------------------


def test_samples_come_by_age_and_stay_where_they_are_updated(training_set):
    added = [training_set.add(correction(i)) for i in range(3)]
    assert training_set.samples() == tuple(added)
    labels = correction().labels.copy()
    labels[:50] = 0
    new = training_set.update(added[0], correction(0, labels=labels, name="other"))
    assert training_set.samples() == (new, *added[1:])
    assert (new.id, new.created) == (added[0].id, added[0].created)
    assert new.updated > new.created
    assert new.name == "other"
    assert new.held == added[0].held
    assert np.array_equal(training_set.read(added[0]).labels, labels)


def test_an_update_drops_what_is_no_longer_there(training_set):
    ours = correction(prediction=correction().labels)
    sample = training_set.add(ours)
    new = training_set.update(sample, correction())
    assert training_set.read(new).prediction is None
    assert not (new.folder / "prediction.ome.tif").exists()


def test_a_sample_can_be_left_out_and_that_survives_an_update(training_set):
    sample = training_set.set_used(training_set.add(correction()), False)
    assert training_set.samples() == (sample,)
    assert not sample.used
    assert not training_set.update(sample, correction()).used
    assert training_set.set_used(sample, True).used


def test_what_is_gone_cannot_be_changed_but_removed_again(training_set):
    sample = training_set.add(correction())
    training_set.remove(sample)
    training_set.remove(sample)
    for change in (
        lambda: training_set.update(sample, correction()),
        lambda: training_set.set_used(sample, False),
        lambda: training_set.read(sample),
    ):
        with pytest.raises(DataError, match="no sample"):
            change()
    left = sorted(p.name for p in training_set.folder.iterdir())
    assert left == [folder.NOTES, folder.LOCK]


# ---- what is held out -------------------------------------------------------------


def test_the_first_images_give_blocks_and_later_ones_all_or_nothing(training_set):
    samples = [training_set.add(correction(i)) for i in range(12)]
    kinds = [s.validation for s in samples]
    assert kinds[:4] == ["blocks"] * 4
    assert set(kinds[4:]) == {"none", "all"}
    for sample in samples[:4]:
        held = sample.validation_mask().mean()
        assert 0.05 < held < 0.4
        assert 0.3 < sample.training_mask().mean() < 1 - held
    assert all(s.validation_mask().all() == (s.validation == "all") for s in samples)


def test_the_same_image_is_always_held_out_alike(training_set, tmp_path):
    first = training_set.add(correction())
    for i in range(1, 6):
        training_set.add(correction(i))
    labels = np.zeros_like(correction().labels)
    labels[:20, :20] = 1
    again = training_set.add(correction(labels=labels, extent="painted"))
    assert (again.validation, again.held) == (first.validation, first.held)
    turned = correction()
    turned = training_set.add(
        correction(image=turned.image.T, labels=turned.labels.T, axes="XY")
    )
    assert np.array_equal(turned.validation_mask(), first.validation_mask().T)
    elsewhere = TrainingSet(tmp_path / "elsewhere").add(correction(name="renamed"))
    assert elsewhere.held == first.held


def stack(*seeds: int, axes: str = "ZYX") -> Correction:
    """Several of `correction` above each other, or beside along the last axis."""
    frames = [correction(seed) for seed in seeds]
    last = axes.index("Y") == 0
    image, labels = (
        np.stack([getattr(f, name) for f in frames], -1 if last else 0)
        for name in ("image", "labels")
    )
    return correction(image=image, labels=labels, axes=axes)


def held_of(sample: Sample) -> list[bytes]:
    """What is held out of each frame."""
    mask = sample.validation_mask()
    return [m.tobytes() for m in (mask if mask.ndim > 2 else [mask])]


@pytest.mark.parametrize("many", [False, True], ids=["few", "many"])
def test_slices_that_come_later_move_no_other_to_the_other_side(training_set, many):
    before = range(8) if many else (0, 1)
    sample = training_set.add(stack(*before))
    first = held_of(sample)
    assert any(map(any, first))
    after = (9, *before, 10)
    now = held_of(training_set.update(sample, stack(*after)))
    assert now[1:-1] == first
    assert held_of(training_set.add(stack(*reversed(after)))) == now[::-1]


def test_a_slice_alone_and_in_its_stack_is_held_out_alike(training_set, tmp_path):
    alone = training_set.add(correction(3))
    assert alone.validation_mask().any()
    whole = training_set.add(stack(2, 3, 4))
    assert held_of(whole)[1] == held_of(alone)[0]
    training_set.remove(whole)
    assert held_of(training_set.add(correction(4)))[0] == held_of(whole)[2]
    elsewhere = TrainingSet(tmp_path / "elsewhere")
    turned = elsewhere.add(stack(3, 2, axes="YXT")).validation_mask()
    assert turned[..., 0].tobytes() == held_of(alone)[0]


def test_of_large_stacks_of_small_slices_some_is_held_out(training_set):
    rng = np.random.default_rng(0)
    labels = np.kron(np.ones((40, 3, 3), np.int32), np.pad(np.ones((20, 20), int), 6))
    image = rng.integers(0, 255, labels.shape, np.uint8)
    many = correction(image=image, labels=labels.astype(np.int32), axes="ZYX")
    slices = training_set.add(many).validation_mask().all((1, 2))
    assert 3 <= slices.sum() <= 15


@pytest.mark.parametrize("count", [2, 6])
def test_slices_too_small_for_blocks_are_held_out_whole(tmp_path, count):
    """If there are enough, so that some are left to learn from."""

    def held(seed: int) -> list[bool]:
        rng = np.random.default_rng(seed)
        labels = np.tile(np.pad(np.ones((60, 60), np.int32), 20), (count, 1, 1))
        image = rng.integers(0, 255, labels.shape, np.uint8)
        few = correction(image=image, labels=labels, axes="ZYX")
        mask = TrainingSet(tmp_path / str(seed)).add(few).validation_mask()
        slices = mask.all((1, 2))
        assert slices.tolist() == mask.any((1, 2)).tolist()
        return list(slices)

    stacks = [held(seed) for seed in range(8)]
    assert any(map(any, stacks)) is (count == 6)
    assert any(first for first, *_ in stacks) is (count == 6)  # whatever its place
    assert not any(map(all, stacks))


def test_of_strokes_in_many_slices_some_are_held_out(training_set):
    frames = [correction(seed) for seed in range(8)]
    labels = np.stack([np.where(f.labels < 4, f.labels, 0) for f in frames])
    image = np.stack([f.image for f in frames])
    painted = correction(image=image, labels=labels, axes="ZYX", extent="painted")
    sample = training_set.add(painted)
    known = painted.truth().weight > 0
    assert known[0].sum() < FEW_PIXELS < known.sum()
    held = known[sample.validation_mask()].sum()
    assert 0.03 < held / known.sum() < 0.6
    assert sample.count["held"] == held


@pytest.mark.parametrize("others", [0, 4])
def test_what_becomes_known_of_an_unchanged_stack_is_held_out_as_elsewhere(
    training_set, others
):
    for seed in range(3, 3 + others):
        training_set.add(correction(seed))
    both = stack(0, 1)
    first = np.where(np.arange(2)[:, None, None] == 0, both.labels, 0)
    painted = dataclasses.replace(both, labels=first, extent="painted")
    sample = training_set.add(painted)
    alone = training_set.add(correction(1))
    now = training_set.update(sample, dataclasses.replace(both, extent="painted"))
    assert held_of(now)[1] == held_of(alone)[0]
    assert held_of(now)[0] == held_of(sample)[0]
    assert others or any(map(any, held_of(now)[1:]))  # blocks of each


def test_volumes_seen_as_slices_keep_what_is_held_out(training_set):
    volume = correction(
        ndim=3,
        **{
            name: np.stack([getattr(correction(seed), name) for seed in range(4)])
            for name in ("image", "labels")
        },
        axes="ZYX",
    )
    first = training_set.add(volume)
    again = training_set.add(dataclasses.replace(volume, ndim=2))
    np.testing.assert_array_equal(again.validation_mask(), first.validation_mask())


def test_a_slice_of_which_nothing_was_known_is_free_to_be_chosen(training_set):
    empty = correction(1)
    labels = np.stack([correction(0).labels, np.zeros_like(empty.labels)])
    image = np.stack([correction(0).image, empty.image])
    painted = correction(image=image, labels=labels, axes="ZYX", extent="painted")
    training_set.add(painted)
    assert training_set.add(empty).validation_mask().any()


def test_another_image_in_a_sample_is_decided_on_anew(training_set):
    sample = training_set.add(correction())
    new = training_set.update(sample, correction(5))
    fresh = training_set.add(correction(5))
    assert new.held == fresh.held != sample.held


def test_of_two_that_are_added_at_the_same_time_the_first_counts(
    training_set, monkeypatch
):
    for seed in range(1, 6):
        training_set.add(correction(seed))
    first = training_set.add(correction())
    assert first.validation != "blocks"
    monkeypatch.setattr(TrainingSet, "samples", lambda self: ())  # it saw no other
    second = training_set.add(correction())
    assert (second.validation, second.held) == (first.validation, first.held)


def test_of_two_samples_of_a_stack_each_slice_is_decided_on_once(training_set):
    """Be it by whoever came first with something to be known of that slice."""
    both = stack(0, 1, 2)
    early = np.arange(3)[:, None, None] == 0
    first = training_set.add(
        dataclasses.replace(both, labels=both.labels * early, extent="painted")
    )
    rest = dataclasses.replace(both, labels=both.labels * ~early, extent="painted")
    second = training_set.add(rest)
    assert any(map(any, held_of(second)[1:]))
    assert training_set.samples() == (first, second)
    known = rest.truth().weight > 0
    assert second.count["held"] == known[second.validation_mask()].sum()
    training_set.remove(first)
    assert held_of(training_set.update(second, both)) == held_of(second)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_sample_of_another_kind_of_network_keeps_what_is_held_out(training_set, ndim):
    slices = dataclasses.replace(stack(0, 1, 2, 3), ndim=ndim)
    sample = training_set.add(slices)
    assert sample.validation_mask().any()
    other = dataclasses.replace(slices, ndim=5 - ndim)
    for _ in range(2):
        now = training_set.update(sample, other)
        np.testing.assert_array_equal(now.validation_mask(), sample.validation_mask())


def test_what_is_held_out_does_not_hang_on_hidden_files(training_set):
    sample = training_set.add(stack(0, 1))
    for seed in range(2, 8):
        training_set.add(correction(seed))
    shutil.rmtree(training_set.folder / folder.NOTES)
    assert training_set.update(sample, stack(0, 1)).held == sample.held
    shutil.rmtree(training_set.folder / folder.NOTES)
    assert training_set.add(stack(0, 1)).held == sample.held


def test_slices_seen_as_a_volume_keep_what_is_held_out(training_set):
    slices = stack(0, 1, 2)
    first = training_set.add(slices)
    volume = training_set.add(dataclasses.replace(slices, ndim=3))
    training_set.remove(first)
    again = training_set.update(volume, dataclasses.replace(slices, ndim=3))
    np.testing.assert_array_equal(again.validation_mask(), first.validation_mask())


def test_a_volume_of_which_a_slice_came_alone_keeps_what_is_held_out(training_set):
    slices = stack(0, 1, 2, 3)
    volume = training_set.add(dataclasses.replace(slices, ndim=3))
    training_set.add(correction(1))
    now = training_set.update(volume, slices)
    np.testing.assert_array_equal(now.validation_mask(), volume.validation_mask())


# ---- damage -----------------------------------------------------------------------


def truncate(sample: Sample) -> None:
    path = sample.folder / "labels.ome.tif"
    path.write_bytes(path.read_bytes()[:-100])


def rewrite(**changes: Any) -> Any:
    def damage(sample: Sample) -> None:
        path = sample.folder / "sample.json"
        said = json.loads(path.read_text("utf-8")) | changes
        path.write_text(json.dumps(said), "utf-8")

    return damage


DAMAGE = {
    "no description": lambda s: (s.folder / "sample.json").unlink(),
    "empty description": lambda s: (s.folder / "sample.json").write_text(""),
    "half a description": lambda s: (s.folder / "sample.json").write_text('{"form'),
    "a list": lambda s: (s.folder / "sample.json").write_text("[1]"),
    "binary": lambda s: (s.folder / "sample.json").write_bytes(b"\xff\xfe\x00"),
    "no image": lambda s: (s.folder / "image.ome.tif").unlink(),
    "truncated labels": truncate,
    "emptied labels": lambda s: (s.folder / "labels.ome.tif").write_bytes(b""),
    "renamed": lambda s: s.folder.rename(s.folder.with_name("nicer")),
    "newer": rewrite(format=2),
    "unknown field": rewrite(mood="fine"),
    "unknown word": rewrite(extent="half"),
    "wrong axes": rewrite(axes="YQ"),
    "too many axes": rewrite(axes="ZYX"),
    "wrong dtypes": rewrite(dtypes={"image": "|u1", "labels": "spam"}),
    "an object": rewrite(dtypes={"image": "|u1", "labels": "|O"}),
    "no arrays": rewrite(sizes={}, dtypes={}),
    "other files": rewrite(sizes={"../a": 1}, dtypes={"../a": "|u1"}),
    "wrong cells": rewrite(held=[[1, 2, 3]]),
    "no block": rewrite(block=[0, 0]),
    "no size": rewrite(sizes={"image": None, "labels": None}),
    "wrong brush": rewrite(background=0),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_sample_is_told_and_skipped_and_never_deleted(training_set, damage):
    good, bad = training_set.add(correction(0)), training_set.add(correction(1))
    damage(bad)
    assert training_set.samples() == (good,)
    ((path, sentence),) = training_set.damaged().items()
    assert path.is_dir()
    assert str(path) in sentence
    assert sentence[-1] in ".?"
    training_set.add(correction(2))
    assert path.is_dir()


def test_labels_that_are_damaged_unseen_are_no_other_error(training_set):
    sample = training_set.add(correction())
    path = sample.folder / "labels.ome.tif"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match=r"labels\.ome\.tif"):
        training_set.read(sample)
    swapped = np.zeros((10, 10), np.uint8)
    tifffile.imwrite(path, swapped)
    rewrite(sizes=sample.sizes | {"labels": path.stat().st_size})(sample)
    with pytest.raises(DataError, match=r"\(10, 10\)"):
        training_set.read(sample)


def test_foreign_folders_are_told_and_files_and_hidden_ones_are_not(training_set):
    sample = training_set.add(correction())
    foreign = training_set.folder / "holiday"
    foreign.mkdir()
    (training_set.folder / "notes.txt").write_text("mine")
    (training_set.folder / ".rounds").mkdir()
    assert training_set.samples() == (sample,)
    assert list(training_set.damaged()) == [foreign]


def test_where_nothing_can_be_written_a_sentence_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        TrainingSet(tmp_path / "file").add(correction())


# ---- crashes and crowds -----------------------------------------------------------


@pytest.mark.parametrize("change", ["add", "update"])
def test_an_error_in_the_middle_leaves_all_as_it_was(training_set, monkeypatch, change):
    sample = training_set.add(correction())
    write, calls = folder.write_image, itertools.count()

    def failing(*args: Any, **options: Any) -> None:
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        write(*args, **options)

    monkeypatch.setattr(folder, "write_image", failing)
    arguments = [correction(1)] if change == "add" else [sample, correction(1)]
    with pytest.raises(DataError, match="No space left"):
        getattr(training_set, change)(*arguments)
    ours = (folder.LOCK, folder.NOTES)
    left = {p for p in training_set.folder.iterdir() if p.name not in ours}
    assert left == {sample.folder}
    assert_same(correction(), training_set.read(sample))


def test_what_a_crash_left_is_ignored(training_set):
    sample = training_set.add(correction())
    for name in (f".01234567.{sample.id}", f".01234567.{sample.id}.gone", ".x"):
        (training_set.folder / name).mkdir()
    assert training_set.samples() == (sample,)
    assert training_set.damaged() == {}


def test_a_crash_between_old_and_new_loses_no_sample(training_set):
    sample = training_set.add(correction())
    sample.folder.rename(training_set.folder / f".01234567.{sample.id}.old")
    assert training_set.samples() == (sample,)
    assert_same(correction(), training_set.read(sample))


def test_an_old_version_that_a_crash_left_does_not_rise_again(training_set):
    sample = training_set.add(correction())
    (training_set.folder / f".01234567.{sample.id}.old").mkdir()
    training_set.remove(sample)
    assert training_set.samples() == ()
    left = sorted(p.name for p in training_set.folder.iterdir())
    assert left == [folder.NOTES, folder.LOCK]


@pytest.mark.parametrize("damaged", [False, True])
def test_what_was_held_out_stays_so_when_an_image_comes_back(training_set, damaged):
    whole = correction()
    first = training_set.add(whole)
    training_set.remove(first)
    some = np.where(first.validation_mask(), whole.labels, 0)
    if damaged:
        (note,) = (training_set.folder / folder.NOTES).glob("*.json")
        note.write_text("half")
    painted = training_set.add(correction(labels=some, extent="painted"))
    same = (painted.validation, painted.held) == (first.validation, first.held)
    assert same is not damaged


def test_another_image_in_a_sample_does_not_make_the_first_forgotten(training_set):
    sample = training_set.add(correction())
    training_set.update(sample, correction(seed=1))
    some = np.where(sample.validation_mask(), correction().labels, 0)
    again = training_set.add(correction(labels=some, extent="painted"))
    assert again.held == sample.held


def test_nobody_sees_a_sample_gone_while_it_is_replaced(training_set, monkeypatch):
    sample = training_set.add(correction())
    replace, moved = Path.replace, threading.Event()

    def slowly(path: Path, target: Path) -> Path:
        result = replace(path, target)
        if target.name.endswith(".old"):
            moved.set()
            time.sleep(0.3)
        return result

    monkeypatch.setattr(Path, "replace", slowly)
    with ThreadPoolExecutor() as pool:
        updated = pool.submit(training_set.update, sample, correction(seed=1))
        assert moved.wait(10)
        assert [s.id for s in training_set.samples()] == [sample.id]
        assert_same(correction(seed=1), training_set.read(sample))
        assert_same(correction(seed=1), training_set.read(updated.result()))


WRITER = """
import sys
import threading
import numpy as np
from napari_attunet.corrections import Correction, TrainingSet
place, count = TrainingSet(sys.argv[1]), int(sys.argv[2])
labels = np.zeros((40, 40), np.uint16)
labels[5:20, 5:20] = 1
def correction(i):
    image = np.full((40, 40), i, np.uint8)
    return Correction(
        image=image, axes="YX", labels=labels, output="objects", name=str(i)
    )
kept = place.add(correction(255))
print("ready", flush=True)
for i in range(count):
    place.add(correction(i))
    kept = place.update(kept, correction(255))
"""


def start(training_set: TrainingSet, count: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WRITER, str(training_set.folder), str(count)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_two_processes_add_at_the_same_time(training_set):
    writers = [start(training_set, 5) for _ in range(2)]
    seen: set[str] = set()
    while any(writer.poll() is None for writer in writers):
        samples = training_set.samples()
        assert training_set.damaged() == {}
        assert seen <= {s.id for s in samples}, "a sample was gone for a moment"
        seen |= {s.id for s in samples}
        for sample in samples:
            training_set.read(sample)
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    samples = training_set.samples()
    names = Counter(s.name for s in samples)
    assert names == dict.fromkeys(("0", "1", "2", "3", "4", "255"), 2)
    assert training_set.damaged() == {}
    for one, other in itertools.combinations(samples, 2):
        if one.image_sha256 == other.image_sha256:
            assert (one.validation, one.held) == (other.validation, other.held)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
def test_a_killed_process_leaves_a_readable_set(training_set, rng):
    for round_ in range(1, 5):
        writer = start(training_set, 10**6)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(rng.uniform(0.02, 0.5))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        samples = training_set.samples()
        assert training_set.damaged() == {}
        assert [s.name for s in samples].count("255") == round_
        for sample in samples:
            training_set.read(sample)


def test_the_last_folder_is_remembered_while_it_is_there(tmp_path, monkeypatch):
    monkeypatch.delenv("NAPARI_ATTUNET_TRAINING")
    monkeypatch.setattr(
        "platformdirs.user_data_path", lambda *_, **__: tmp_path / "data"
    )
    assert last_folder() == default_folder() == tmp_path / "data/training/default"
    mine = tmp_path / "mine"
    mine.mkdir()
    remember_folder(mine)
    assert last_folder() == mine
    monkeypatch.setenv("NAPARI_ATTUNET_TRAINING", str(tmp_path / "said"))
    assert last_folder() == tmp_path / "said"
    remember_folder(tmp_path)
    monkeypatch.delenv("NAPARI_ATTUNET_TRAINING")
    assert last_folder() == mine
    mine.rmdir()
    assert last_folder() == default_folder()
