"""The places that the user is sent to, by hand and by law."""

from __future__ import annotations

from types import SimpleNamespace

import dask.array
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_attunet.errors import DataError
from napari_attunet.model import Model
from napari_attunet.progress import Progress, drain
from napari_attunet.review import (
    FLIPS,
    Doubt,
    disagreement,
    doubt_of,
    doubt_steps,
    places_to_check,
)
from napari_attunet.segmenter import Segmenter
from napari_attunet.spec import ModelSpec, NetworkSpec

seeds = st.integers(0, 2**32 - 1)


def answers(seed, count=1, k=3, shape=(5, 4)):
    """Probabilities of k classes, some of them exactly 0 or 1."""
    rng = np.random.default_rng(seed)
    raw = rng.random((count, k, *shape)) ** rng.integers(1, 20)
    raw *= rng.random(raw.shape) < 0.8
    raw[:, 0] += 1e-6
    return (raw / raw.sum(1, keepdims=True)).astype(np.float32)


def spots(shape, *centres, width=3):
    """An array with a bump at each (position, height)."""
    grid = np.indices(shape)
    doubt = np.zeros(shape)
    for position, height in centres:
        distance = sum((g - p) ** 2 for g, p in zip(grid, position, strict=True))
        doubt = np.maximum(doubt, height * np.exp(-distance / (2 * width**2)))
    return doubt


# --- doubt --------------------------------------------------------------------------


def test_doubt_by_hand():
    sure, even, torn = [1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]
    found = doubt_of(np.array([sure, even, torn]).T)
    np.testing.assert_allclose(found, [0, 1, 0.5], atol=1e-6)
    assert found.dtype == np.float32
    with pytest.raises(ValueError, match="two classes"):
        doubt_of(np.ones((1, 3, 3)))


def test_disagreement_by_hand():
    one, other = (
        np.array([[1.0, 0.5, 0.2], [0.0, 0.5, 0.8]]),
        np.array([[0.0, 0.5, 0.2], [1.0, 0.5, 0.8]]),
    )
    np.testing.assert_allclose(disagreement([one, other]), [1, 0, 0], atol=1e-6)


@given(seeds, st.integers(1, 4), st.integers(2, 5))
def test_doubt_of_the_mean_is_mean_doubt_and_disagreement(seed, count, k):
    several = answers(seed, count, k)
    apart = disagreement(list(several))
    assert ((apart >= 0) & (apart <= 1)).all()
    mean_doubt = np.mean([doubt_of(a) for a in several], axis=0)
    np.testing.assert_allclose(doubt_of(several.mean(0)), mean_doubt + apart, atol=1e-5)


# --- places -------------------------------------------------------------------------


def test_places_are_ranked_and_where_the_doubt_is():
    doubt = spots((100, 120), ((20, 30), 0.6), ((70, 90), 0.9), ((80, 10), 0.3))
    places = places_to_check(doubt, radius=8)
    assert [p.position for p in places] == [(70, 90), (20, 30), (80, 10)]
    scores = [p.score for p in places]
    assert scores == sorted(scores, reverse=True)
    np.testing.assert_allclose(np.array(scores) / scores[0], [1, 2 / 3, 1 / 3], 1e-3)
    assert places_to_check(doubt, radius=8, count=2) == places[:2]


def test_a_large_spot_is_told_from_a_small_one():
    doubt = spots((80, 160), ((40, 40), 0.9)) + spots(
        (80, 160), ((40, 120), 0.9), width=9
    )
    large, small = places_to_check(doubt, radius=8)
    assert (large.position, small.position) == ((40, 120), (40, 40))
    assert 10 < small.size < large.size < 33


def test_of_two_peaks_close_by_the_higher_is_taken():
    doubt = spots((60, 60), ((30, 20), 0.8), ((30, 34), 0.7), width=2)
    (place,) = places_to_check(doubt, radius=16)
    assert 20 <= place.position[1] < 27
    assert len(places_to_check(doubt, radius=4)) == 2


def test_frames_are_for_themselves_and_volumes_are_not():
    doubt = np.zeros((3, 40, 40))
    doubt[0] = spots((40, 40), ((20, 20), 0.5))
    doubt[2] = spots((40, 40), ((20, 21), 0.9))
    assert [p.position for p in places_to_check(doubt, radius=8)] == [
        (2, 20, 21),
        (0, 20, 20),
    ]
    assert len(places_to_check(doubt, radius=8, ndim=3)) == 1


@pytest.mark.parametrize("value", [0, 0.001])
def test_where_nothing_is_in_doubt_there_is_nothing_to_check(value):
    assert places_to_check(np.full((30, 30), value)) == ()


def test_doubt_all_over_is_covered_and_no_more():
    places = places_to_check(np.ones((40, 40), np.float16), radius=10, count=100)
    assert 9 <= len(places) <= 25
    assert all(p.score == 1 for p in places)


@given(
    seeds,
    st.sampled_from([((50, 40), 2), ((3, 30, 20), 2), ((12, 20, 16), 3), ((1, 1), 2)]),
    st.sampled_from([3, 7.5, 16]),
    st.integers(1, 12),
)
@settings(deadline=None, max_examples=50)
def test_no_two_places_of_a_frame_are_near_each_other(seed, kind, radius, count):
    shape, ndim = kind
    doubt = 0.02 + 0.98 * np.random.default_rng(seed).random(shape) ** 4
    places = places_to_check(doubt, radius=radius, count=count, ndim=ndim)
    assert 1 <= len(places) <= count
    assert [p.score for p in places] == sorted((p.score for p in places), reverse=True)
    leading = len(shape) - ndim
    for i, place in enumerate(places):
        assert all(0 <= at < n for at, n in zip(place.position, shape, strict=True))
        assert 1 <= place.size <= max(shape)
        assert 0 < place.score <= 1
        for other in places[:i]:
            if other.position[:leading] == place.position[:leading]:
                assert (
                    np.linalg.norm(np.subtract(other.position, place.position)) > radius
                )


def test_a_place_says_what_most_of_the_doubt_around_it_is_about():
    values = spots((60, 80), ((30, 20), 0.8), ((30, 60), 0.7)).astype(np.float32)
    causes = np.zeros(values.shape, np.uint16)
    causes[:, 40:] = 1
    causes[30, 20] = 1  # a single pixel
    doubt = Doubt(values=values, causes=causes, reasons=("a or b", "a or c"))
    assert [p.reason for p in doubt.places(radius=8)] == ["a or b", "a or c"]


def test_other_frames_have_no_say_in_a_reason():
    values = np.stack([spots((40, 40), ((20, 20), h)) for h in (0.5, 0.9, 0.5)])
    causes = np.zeros(values.shape, np.uint16)
    causes[1] = 1
    doubt = Doubt(values=values, causes=causes, reasons=("a or b", "a or c"))
    assert [(p.position[0], p.reason) for p in doubt.places(radius=8)] == [
        (1, "a or c"),
        (0, "a or b"),
        (2, "a or b"),
    ]


# --- a segmenter's doubt -------------------------------------------------------------


class Pretender:
    """Gives the image itself as the probability of the last class.

    Where `lopsided`, what lies in the first row of what it gets is taken for sure.
    """

    def __init__(self, lopsided=False, ndim=2):
        network = NetworkSpec(out_channels=3, features=(2, 3), ndim=ndim)
        spec = ModelSpec(name="it", network=network, classes=("none", "cell", "edge"))
        self.model = SimpleNamespace(spec=spec)
        self.lopsided = lopsided
        self.runs = 0

    def steps(self, image, *, axes, channels, probabilities, output):
        assert channels == "auto"
        assert probabilities
        assert output == "classes"
        self.runs += 1
        yield Progress(0, 2, "Looking")
        yield Progress(1, 2, "Looking")
        p = np.array(image, np.float32)
        if self.lopsided:
            p[..., 0, :] = 1
        if "C" in axes:
            p = p.max(axes.index("C"))
        found = np.stack([0 * p, 1 - p, p])
        return SimpleNamespace(probabilities=found, axes=axes.replace("C", ""))


def test_flips_are_undone(rng):
    image = rng.random((2, 5, 4, 3))
    doubt = drain(doubt_steps(Pretender(), image, axes="TYXC"))
    p = image.max(-1)
    np.testing.assert_allclose(
        doubt.values, doubt_of(np.stack([0 * p, 1 - p, p])), atol=1e-5
    )
    assert set(np.array(doubt.reasons)[doubt.causes].ravel()) == {"cell or edge"}


def test_what_depends_on_the_orientation_is_in_doubt():
    image = np.zeros((6, 5), np.float32)
    sure = drain(doubt_steps(Pretender(True), image, axes="YX", flips=False))
    assert not sure.values.any()
    doubt = drain(doubt_steps(Pretender(True), image, axes="YX"))
    assert (doubt.values[[0, -1]] > 0.5).all()
    assert not doubt.values[1:-1].any()
    assert {doubt.reasons[c] for c in doubt.causes[0]} == {FLIPS}
    doubt = drain(doubt_steps(Pretender(True), image + 0.05, axes="YX"))
    told = np.array(doubt.reasons)[doubt.causes]
    assert set(told[0]) == set(told[-1]) == {FLIPS}
    assert set(told[1:-1].ravel()) == {"cell or edge"}


def test_progress_goes_on_through_all_runs():
    segmenter = Pretender()
    told = [
        (p.done, p.total) for p in doubt_steps(segmenter, np.zeros((4, 4)), axes="YX")
    ]
    assert told == [(i, 6) for i in range(6)]
    assert segmenter.runs == 3


def test_closing_it_closes_the_segmenter():
    closed = []

    class Watched(Pretender):
        def steps(self, image, **options):
            try:
                yield Progress(0, 2)
                yield Progress(1, 2)
            finally:
                closed.append(True)

    steps = doubt_steps(Watched(), np.zeros((4, 4)), axes="YX")
    next(steps)
    steps.close()
    assert closed == [True]


@pytest.mark.parametrize(
    ("shape", "axes", "network"),
    [
        ((40, 30), "YX", {}),
        ((2, 40, 30), "TYX", {"out_channels": 1}),
        ((40, 30, 3), "YXC", {"in_channels": 3}),
        ((8, 20, 16), "ZYX", {"ndim": 3}),
    ],
    ids=["grey", "stack, one logit", "RGB", "volume"],
)
def test_a_real_segmenter(rng, shape, axes, network):
    network = NetworkSpec(**{"out_channels": 3, "features": (2, 4)} | network)
    segmenter = Segmenter(Model.fresh(ModelSpec(name="it", network=network)))
    image = dask.array.from_array(rng.random(shape).astype(np.float32), chunks=16)
    doubt = drain(doubt_steps(segmenter, image, axes=axes))
    assert doubt.values.shape == shape[: len(axes.replace("C", ""))]
    assert doubt.values.dtype == np.float32
    assert doubt.ndim == network.ndim
    assert doubt.causes.max() < len(doubt.reasons)
    for place in doubt.places(count=3, radius=4):
        assert place.reason in doubt.reasons


def test_an_image_that_does_not_suit_is_refused():
    network = NetworkSpec(features=(2, 4), in_channels=3)
    segmenter = Segmenter(Model.fresh(ModelSpec(name="it", network=network)))
    with pytest.raises(DataError):
        drain(doubt_steps(segmenter, np.zeros((9, 9), complex), axes="YX"))
