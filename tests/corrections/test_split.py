"""What is held out depends on the content; neither it nor its rim is trained on."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from napari_attunet.axes import frame_axes
from napari_attunet.corrections import GUARD
from napari_attunet.corrections.split import (
    FEW_CELLS,
    FEW_IMAGES,
    FEW_PIXELS,
    Split,
    apart,
    block_shape,
    frames_of,
    guarded,
    hash_image,
    in_axes,
    joined,
    split_image,
    split_mask,
)


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


# ---- the hash ---------------------------------------------------------------------


def test_the_same_pixels_are_the_same_image_in_every_order_of_axes(rng):
    image = rng.integers(0, 255, (3, 20, 30), dtype=np.uint16)
    plain = hash_image(image, "CYX")
    assert hash_image(image.transpose(1, 2, 0), "YXC") == plain
    assert hash_image(image[:, np.newaxis], "CZYX") == plain
    assert hash_image(image.astype(">u2"), "CYX") == plain
    assert hash_image(np.asfortranarray(image), "CYX") == plain


def test_other_pixels_are_another_image(rng):
    image = rng.integers(0, 255, (3, 20, 30), dtype=np.uint16)
    other = image.copy()
    other[2, 19, 29] += 1
    hashes = [
        hash_image(image, "CYX"),
        hash_image(other, "CYX"),
        hash_image(image, "ZYX"),
        hash_image(image.reshape(3, 30, 20), "CYX"),
        hash_image(image.view(np.int16), "CYX"),
    ]
    assert len(set(hashes)) == len(hashes)


# ---- frames of a stack ------------------------------------------------------------


@given(data=st.data(), axes=st.sampled_from(["ZYX", "TZYX", "YXT", "ZYTX", "YX"]))
def test_frames_and_stacks_tell_the_same(data, axes):
    sizes = {"T": 2, "Z": 3, "Y": 200, "X": 300}
    shape = [sizes[a] for a in axes]
    image = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    frames = frames_of(image, axes, np.ones(shape, bool), 2)
    assert len(frames) == image.size // (200 * 300)
    kinds = st.sampled_from(["none", "all", "blocks"])
    cells = st.sets(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1)
    splits = [
        Split("blocks", f.block, tuple(sorted(data.draw(cells))))
        if (kind := data.draw(kinds)) == "blocks"
        else Split(kind)
        for f in frames
    ]
    whole = joined(frames, splits, axes)
    mask = split_mask(whole, shape)
    again = apart(whole, axes, frames)
    for frame, split, back in zip(frames, splits, again, strict=True):
        part = mask[tuple(frame.place.get(a, slice(None)) for a in axes)]
        wanted = split_mask(split, frame.known.shape)
        np.testing.assert_array_equal(part, wanted)
        np.testing.assert_array_equal(split_mask(back, frame.known.shape), wanted)


def test_frames_are_the_images_that_they_would_be_alone(rng):
    image = rng.integers(0, 255, (2, 3, 20, 30, 3), np.uint8)
    frames = frames_of(image, "TZYXC", np.ones((2, 3, 20, 30), bool), 2)
    assert [f.sha256 for f in frames] == [
        hash_image(part, "YXC") for volume in image for part in volume
    ]
    volumes = frames_of(image, "TZYXC", np.ones((2, 3, 20, 30), bool), 3)
    assert [f.sha256 for f in volumes] == [hash_image(v, "ZYXC") for v in image]


# ---- the decision -----------------------------------------------------------------


def test_where_there_are_many_images_a_fifth_of_them_is_held_out():
    known = np.ones((100, 100), bool)
    splits = [
        split_image(digest(i), known, (50, 50), images=FEW_IMAGES, few=False)
        for i in range(500)
    ]
    kinds = [s.validation for s in splits]
    assert set(kinds) == {"none", "all"}
    assert 70 <= kinds.count("all") <= 130
    assert not any(s.held for s in splits)


def test_where_there_are_few_blocks_that_hold_something_are_held_out():
    known = np.zeros((400, 400), bool)
    known[:100, 110:190] = True
    known[:, 310:320] = True
    known[390, 5] = True
    assert known.sum() > FEW_PIXELS
    split = split_image(digest(1), known, (100, 100), images=FEW_IMAGES - 1, few=False)
    assert split.validation == "blocks"
    assert len(split.held) == 1  # of six
    assert split.held[0] in {(0, 1), (0, 3), (1, 3), (2, 3), (3, 3), (3, 0)}
    chosen = {
        split_image(digest(i), known, (100, 100), images=0, few=False).held
        for i in range(100)
    }
    assert len(chosen) == 6


@pytest.mark.parametrize("cells", [1, FEW_CELLS - 1])
def test_with_too_few_blocks_nothing_is_held_out(cells):
    known = np.zeros((100, 1000), bool)
    known[:, : cells * 100] = True
    assert split_image(digest(1), known, (100, 100), images=0, few=False) == Split()


def test_of_few_strokes_all_is_learnt_from_and_the_future_held_out():
    known = np.zeros((400, 400), bool)
    known[150:180, 105:150] = known[350, :250] = True  # in four of sixteen blocks
    for number in range(20):
        split = split_image(digest(number), known, (100, 100), images=0, few=True)
        held = split_mask(split, known.shape)
        assert len(split.held) == 2  # of eleven
        assert not (guarded(held, (0, 1)) & known).any()
    assert (
        split_image(digest(0), known, (100, 100), images=FEW_IMAGES, few=True)
        == Split()
    )
    everywhere = np.zeros((400, 400), bool)
    everywhere[::50, ::50] = True
    assert split_image(digest(1), everywhere, (100, 100), images=0, few=True) == Split()
    small = np.zeros((100, 200), bool)  # two blocks
    assert split_image(digest(1), small, (100, 100), images=0, few=True) == Split()


@given(n=st.integers(1, 5000))
def test_blocks_are_about_as_long_as_wanted(n):
    (block,) = block_shape([n])
    if n < 192:
        assert block == n
    else:
        assert 96 <= block <= 160


@settings(max_examples=60, deadline=None)
@given(
    axes=st.sampled_from(["YX", "XY", "TYX", "YXT", "ZYX"]),
    ndim=st.sampled_from([2, 3]),
    size=st.integers(60, 300),
    seed=st.integers(0, 1000),
)
def test_training_keeps_its_distance_within_a_frame(axes, ndim, size, seed):
    ndim = ndim if "Z" in axes else 2
    shape = [3 if a in "TZ" else size for a in axes]
    spatial = frame_axes(axes, ndim)
    block = tuple(min(n, 40) if i in spatial else 1 for i, n in enumerate(shape))
    rng = np.random.default_rng(seed)
    known = rng.random(shape) < 0.5
    split = split_image(digest(seed), known, block, images=0, few=False)
    held = split_mask(split, shape)
    near = guarded(held, spatial)
    assert (held <= near).all()
    structure = np.zeros((3,) * len(axes), bool)
    structure[tuple(slice(None) if i in spatial else 1 for i in range(len(axes)))] = 1
    grown = ndimage.binary_dilation(held, structure, iterations=GUARD)
    assert np.array_equal(near, grown)


def test_a_split_follows_its_image_into_another_order_of_axes(rng):
    known = rng.random((3, 300, 260)) < 0.5
    split = split_image(digest(1), known, (1, 100, 130), images=0, few=False)
    mask = split_mask(split, known.shape)
    moved = in_axes(split, "TYX", "XTY")
    assert np.array_equal(split_mask(moved, (260, 3, 300)), mask.transpose(2, 0, 1))
    flat = split_image(digest(1), known[0], (100, 130), images=0, few=False)
    deep = in_axes(flat, "YX", "ZYX")
    assert np.array_equal(
        split_mask(deep, (1, 300, 260))[0], split_mask(flat, (300, 260))
    )
    assert in_axes(deep, "ZYX", "YX") == flat
    assert in_axes(Split("all"), "YX", "XY") == Split("all")
