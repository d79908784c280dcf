"""What is skipped is empty, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from napari_attunet.errors import DataError
from napari_attunet.glance import MARGIN, REDUCTION, occupied
from napari_attunet.model import Model, load_model
from napari_attunet.progress import drain
from napari_attunet.segmenter import Segmenter
from napari_attunet.spec import ModelSpec, NetworkSpec
from napari_attunet.tiling import Tiling
from napari_attunet.view import ImageView


class Plain:
    """An image that enters as it is."""

    def __init__(self, image):
        self._view = ImageView(image, "YX", ndim=2)

    def read(self, frame, start, stop):
        return self._view.read_reflected(frame, start, stop).astype(np.float32)


def bright(x, tile):
    """Stand in for a network: what is bright is an object, as far as it is wanted."""
    found = np.clip(x[0, 0].numpy()[tile.part], 0, 1)
    return np.stack([1 - found, found])


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    tile=st.integers(8, 100),
    halo=st.integers(0, 40),
    divisor=st.sampled_from([1, 4, 16]),
    seed=st.integers(0, 1000),
    count=st.integers(0, 3),
)
def test_tiles_with_something_are_looked_at_and_far_ones_are_not(
    shape, tile, halo, divisor, seed, count
):
    rng = np.random.default_rng(seed)
    image = np.zeros(shape, np.float32)
    for _ in range(count):
        y, x = (int(rng.integers(n)) for n in shape)
        image[y : y + 4, x : x + 4] = 1
    tiling = Tiling(shape, tile=tile, halo=halo, divisor=divisor)
    steps = occupied(Plain(image), (), tiling, bright, channels=1, least=0.5)
    kept = drain(steps)
    kept = [t.write for t in kept]
    reach = (MARGIN + 1) * REDUCTION
    cells = [n // REDUCTION for n in shape]  # those at the end see mirrored pixels
    whole = image[tuple(slice(0, n * REDUCTION) for n in cells)]
    means = whole.reshape(cells[0], REDUCTION, cells[1], REDUCTION).mean((1, 3))
    for at in (t.write for t in tiling):
        near = tuple(
            slice(max(0, w.start // REDUCTION - MARGIN), w.stop // REDUCTION + MARGIN)
            for w in at
        )
        if (means[near] > 0.1).any():
            assert at in kept
        around = tuple(slice(max(0, w.start - reach), w.stop + reach) for w in at)
        # Mirrored beyond the image, what lies at its end may count for more than it is.
        if (image[at].reshape(-1) > 0).sum() >= REDUCTION**2:
            assert at in kept
        if not image[around].any():
            assert at not in kept


@pytest.fixture(scope="module")
def model():
    return load_model("nuclei-fluorescence")


def sparse(seed=0):
    """A dark, noisy image with cells in one corner."""
    cell = data.cell()[200:456, 200:456]
    rng = np.random.default_rng(seed)
    image = np.full((640, 704), int(np.median(data.cell())), np.int16)
    image += rng.integers(-2, 3, image.shape).astype(np.int16)
    image[-256:, :256] = cell
    return image.clip(0, 255).astype(np.uint8)


def test_what_is_found_is_the_same(model):
    segmenter = Segmenter(model, tile=128)
    whole = segmenter.segment(sparse(), probabilities=True)
    quick = segmenter.segment(sparse(), probabilities=True, skip_empty=True)
    assert whole.labels.any()
    np.testing.assert_array_equal(quick.labels, whole.labels)
    assert whole.record["skipped"] == 0
    assert 10 < quick.record["skipped"] < quick.record["tiles"] == 30
    assert not quick.record["exact"]
    np.testing.assert_allclose(quick.probabilities.sum(0), 1, atol=1e-5)
    there = whole.labels > 0
    np.testing.assert_allclose(
        quick.probabilities[:, there], whole.probabilities[:, there], atol=1e-5
    )


def test_each_frame_is_looked_at(model):
    empty = np.full((640, 704), 20, np.uint8)
    image = np.stack([empty, sparse(), empty, sparse()[::-1]])
    segmenter = Segmenter(model, tile=128)
    found = segmenter.segment(image, axes="TYX", skip_empty=True)
    whole = segmenter.segment(image, axes="TYX")
    np.testing.assert_array_equal(found.labels, whole.labels)
    assert not found.labels[[0, 2]].any()
    assert found.labels[[1, 3]].any()
    assert found.record["skipped"] > 60


def test_whoever_looks_for_fainter_things_skips_less(model):
    segmenter = Segmenter(model, tile=128)
    skipped = [
        segmenter.segment(
            sparse(), output="classes", threshold=threshold, skip_empty=True
        ).record["skipped"]
        for threshold in (0.0, 0.05, 0.5)
    ]
    assert skipped[0] == 0 < skipped[2]
    assert skipped[1] <= skipped[2]


def test_memory_that_lacks_for_a_glance_takes_smaller_tiles(model, monkeypatch):
    asked = []

    def occupied(prepared, frame, tiling, *args, **options):
        asked.append(tiling.tile)
        if len(asked) == 1:
            raise MemoryError
        return list(tiling)
        yield

    monkeypatch.setattr("napari_attunet.inference.occupied", occupied)
    found = Segmenter(model, tile=256).segment(sparse(), skip_empty=True)
    assert asked == [(256, 256), (128, 128)]
    assert "ran out of memory" in found.record["fallbacks"][0]


@pytest.mark.parametrize("output", ["objects", "classes"])
def test_an_image_with_nothing_needs_no_tile(model, output):
    image = np.zeros((300, 200), np.uint8)
    segmenter = Segmenter(model, tile=64)
    found = segmenter.segment(image, output=output, probabilities=True, skip_empty=True)
    assert found.record["skipped"] == found.record["tiles"]
    assert not found.labels.any()
    assert (found.probabilities[0] == 1).all()


def test_tiles_are_small_enough_to_be_empty(model):
    image = np.zeros((1200, 1100), np.uint8)
    found = Segmenter(model).segment(image, skip_empty=True)
    assert found.record["tile"] == [512, 512]


def test_what_does_not_go_together_is_refused(model):
    with pytest.raises(DataError, match="without attention"):
        Segmenter(model).segment(sparse(), attention=True, skip_empty=True)
    spec = ModelSpec(name="m", network=NetworkSpec(ndim=3, features=(4, 8)))
    with pytest.raises(DataError, match="only 2D models"):
        Segmenter(Model.fresh(spec)).segment(np.zeros((8, 16, 16)), skip_empty=True)
