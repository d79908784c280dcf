from __future__ import annotations

import math
import re
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from napari_attunet.axes import guess_axes
from napari_attunet.errors import DataError
from napari_attunet.view import CHUNKED_READS, ImageView

DTYPES = [
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", ">u2"),
]
laws = settings(max_examples=60, deadline=None)


class Recorder:
    """An array that remembers how much of it was read, and how often."""

    def __init__(
        self, array: np.ndarray, chunks: tuple[int, ...] | None = None
    ) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.ndim = array.ndim
        if chunks is not None:
            self.chunks = chunks
        self.reads: list[int] = []
        self.touched: list[tuple[int, ...]] = []

    def __getitem__(self, key: tuple[Any, ...]) -> np.ndarray:
        part = self.array[key]
        self.reads.append(part.size)
        if hasattr(self, "chunks"):
            lines = zip(key, self.shape, self.chunks, strict=True)
            hit = [np.unique(np.atleast_1d(np.arange(n)[k]) // c) for k, n, c in lines]
            grid = np.stack(np.meshgrid(*hit, indexing="ij"), axis=-1)
            self.touched += map(tuple, grid.reshape(-1, len(self.shape)).tolist())
        return part


@st.composite
def views(draw: st.DrawFn) -> tuple[np.ndarray, ImageView]:
    """A random small image with axes in a random order, and a view of it."""
    ndim = draw(st.sampled_from([2, 3]))
    optional = draw(st.sets(st.sampled_from("TC" if ndim == 3 else "TCZ")))
    axes = "".join(draw(st.permutations(sorted(optional | set("ZYX"[3 - ndim :])))))
    shape = tuple(draw(st.integers(1, 5)) for _ in axes)
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    image = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    return image, ImageView(image, axes, ndim=ndim)


def canonical(image: np.ndarray, view: ImageView, frame: tuple[int, ...]) -> np.ndarray:
    """One frame as (C, [Z,] Y, X), the slow and plain way."""
    order = view.leading_axes + "C" + view.spatial_axes
    image = image if view.has_channels else image[..., np.newaxis]
    axes = view.axes if view.has_channels else view.axes + "C"
    return image.transpose([axes.index(a) for a in order])[frame]


# ---- guessing --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "options", "axes"),
    [
        ((64, 64), {"ndim": 2}, "YX"),
        ((9, 64, 64), {"ndim": 2}, "ZYX"),
        ((9, 64, 64), {"ndim": 3}, "ZYX"),
        ((5, 9, 64, 64), {"ndim": 2}, "TZYX"),
        ((5, 9, 64, 64), {"ndim": 3}, "TZYX"),
        ((64, 64, 3), {"ndim": 2}, "YXC"),
        ((64, 64, 4), {"ndim": 2, "in_channels": 3}, "YXC"),
        ((64, 64, 3), {"ndim": 3}, "ZYX"),
        ((9, 64, 64, 3), {"ndim": 3}, "ZYXC"),
        ((9, 12, 3), {"ndim": 2}, "ZYX"),
        ((9, 12, 3), {"ndim": 2, "rgb": True}, "YXC"),
        ((3, 64, 64), {"ndim": 2}, "ZYX"),
        ((3, 64, 64), {"ndim": 2, "in_channels": 3}, "CYX"),
        ((64, 64, 2), {"ndim": 2, "in_channels": 2}, "YXC"),
        ((5, 2, 64, 64), {"ndim": 2, "in_channels": 2}, "ZCYX"),
        ((2, 9, 64, 64), {"ndim": 3, "in_channels": 2}, "CZYX"),
        ((5, 2, 9, 64, 64), {"ndim": 3}, "TCZYX"),
        ((5, 9, 64, 64, 3), {"ndim": 2}, "TZYXC"),
    ],
)
def test_axes_are_guessed(shape, options, axes) -> None:
    assert guess_axes(shape, **options) == axes


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((64,), {"ndim": 2}, "needs the axes Y and X"),
        ((), {"ndim": 2}, "needs the axes Y and X"),
        ((64, 64), {"ndim": 3}, "use a 2D model"),
        ((64, 64, 3), {"ndim": 3, "rgb": True}, "colour last"),
        ((64, 64), {"ndim": 2, "rgb": True}, "3 or 4 channels"),
        ((2, 2, 2, 2, 64, 64), {"ndim": 2}, "cannot be guessed"),
    ],
)
def test_hopeless_axes_are_refused(shape, options, message) -> None:
    with pytest.raises(DataError, match=message):
        guess_axes(shape, **options)


@laws
@given(
    st.lists(st.integers(1, 20), min_size=2, max_size=5),
    st.sampled_from([2, 3]),
    st.integers(1, 4),
)
def test_a_guess_is_always_usable(shape, ndim, in_channels) -> None:
    try:
        axes = guess_axes(shape, ndim=ndim, in_channels=in_channels)
    except DataError:
        assert len(shape) < ndim
    else:
        ImageView(np.empty(shape, "u1"), axes, ndim=ndim)


# ---- refusing --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "axes", "ndim", "message"),
    [
        (np.zeros((3, 3)), "YS", 2, "contain S"),
        (np.zeros((3, 3)), "YY", 2, "twice"),
        (np.zeros((3, 3)), "ZYX", 2, re.escape("shape (3, 3)")),
        (np.zeros((3, 3, 3)), "TYX", 3, "lacks Z"),
        (np.zeros((3, 0)), "YX", 2, "axis X is empty"),
        (np.zeros((3, 3), complex), "YX", 2, "complex128"),
        (np.zeros((3, 3), object), "YX", 2, "object"),
        (np.zeros((3, 3), "M8[s]"), "YX", 2, "datetime"),
        (da.zeros((3, 3))[da.ones(3) > 0], "YX", 2, "compute_chunk_sizes"),
    ],
)
def test_unusable_images_are_refused(image, axes, ndim, message) -> None:
    with pytest.raises(DataError, match=message):
        ImageView(image, axes, ndim=ndim)


def test_regions_that_numpy_would_misread_are_refused() -> None:
    view = ImageView(np.zeros((4, 4)), "YX", ndim=2)
    for region in [slice(-2, 3), slice(0, -1), slice(0, 4, 2)]:
        with pytest.raises(ValueError, match="no negative bound and no step"):
            view.read((), (region, slice(0, 4)))
    with pytest.raises(ValueError, match="must not end before it starts"):
        view.read_reflected((), (3, 0), (1, 4))
    with pytest.raises(ValueError, match="zip"):
        view.read((0,), (slice(0, 4), slice(0, 4)))


# ---- reading and writing back ----------------------------------------------------


def test_names_of_a_2d_models_view_of_a_movie_of_stacks() -> None:
    view = ImageView(np.zeros((2, 3, 4, 5, 6)), "tczyx", ndim=2)
    assert (view.axes, view.label_axes, view.label_shape) == (
        "TCZYX",
        "TZYX",
        (2, 4, 5, 6),
    )
    assert (view.spatial_axes, view.spatial_shape) == ("YX", (5, 6))
    assert (view.leading_axes, view.leading_shape) == ("TZ", (2, 4))
    assert (view.n_channels, view.has_channels) == (3, True)
    assert list(view.frames()) == list(np.ndindex(2, 4))
    assert "TCZYX" in repr(view)


def test_spatial_axes_out_of_order() -> None:
    image = np.random.default_rng(0).random((4, 5, 6))
    view = ImageView(image, "XYZ", ndim=3)
    assert view.spatial_shape == (6, 5, 4)
    assert view.label_shape == (4, 5, 6)
    block = view.read((), (slice(1, 3), slice(0, 5), slice(2, 4)))
    assert np.array_equal(block[0], image[2:4, :, 1:3].T)


@laws
@given(views(), st.data())
def test_read_is_the_region_of_the_transposed_image(case, data) -> None:
    image, view = case
    frame = data.draw(st.sampled_from(list(view.frames())))
    region = []
    for size in view.spatial_shape:
        start = data.draw(st.integers(0, size))
        region.append(slice(start, data.draw(st.integers(start, size))))
    block = view.read(frame, tuple(region))
    assert block.dtype == image.dtype
    assert np.array_equal(block, canonical(image, view, frame)[:, *region])


@laws
@given(views(), st.data())
def test_reflected_reads_are_numpys_symmetric_padding(case, data) -> None:
    image, view = case
    frame = data.draw(st.sampled_from(list(view.frames())))
    far = 25  # several times around every axis
    start = [data.draw(st.integers(-far, far)) for _ in view.spatial_shape]
    stop = [data.draw(st.integers(s, far)) for s in start]
    whole = canonical(image, view, frame)
    padded = np.pad(whole, [(0, 0)] + [(far, far)] * len(start), mode="symmetric")
    expected = padded[
        :, *(slice(a + far, b + far) for a, b in zip(start, stop, strict=True))
    ]
    block = view.read_reflected(frame, start, stop)
    assert block.dtype == image.dtype
    assert np.array_equal(block, expected)


@laws
@given(views())
def test_labels_laid_back_have_the_images_shape_and_order(case) -> None:
    image, view = case
    labels = np.zeros(view.label_shape, image.dtype)
    whole = tuple(slice(0, size) for size in view.spatial_shape)
    for frame in view.frames():
        block = view.read(frame, whole)[0]
        labels[view.label_index(frame, whole)] = view.to_label_order(block)
    first = image.take(0, axis=view.axes.index("C")) if view.has_channels else image
    assert np.array_equal(labels, first)
    assert (
        view.in_label_axes(view.spatial_shape, view.leading_shape) == view.label_shape
    )


def test_blocks_with_classes_in_front_keep_them_there() -> None:
    view = ImageView(np.zeros((4, 5, 6)), "XYZ", ndim=3)
    assert view.to_label_order(np.zeros((2, 6, 5, 4))).shape == (2, 4, 5, 6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["dask", "zarr"])
def test_lazy_arrays_read_like_numpy(kind, dtype) -> None:
    image = np.arange(3 * 7 * 9 * 2).reshape(3, 7, 9, 2).astype(dtype)
    if kind == "dask":
        lazy = da.from_array(image, chunks=(1, 4, 4, 2))
    else:
        lazy = zarr.array(image, chunks=(1, 4, 4, 2), store=zarr.storage.MemoryStore())
    dense, view = ImageView(image, "TYXC", ndim=2), ImageView(lazy, "TYXC", ndim=2)
    for where in [((2,), (-3, 2), (6, 14)), ((0,), (1, 1), (2, 2))]:
        block = view.read_reflected(*where)
        assert isinstance(block, np.ndarray)
        assert block.dtype == np.dtype(dtype)
        assert np.array_equal(block, dense.read_reflected(*where))
    assert np.array_equal(view.sample(), dense.sample())
    small = view.sample(max_pixels=20)
    assert small.shape[0] == 2
    assert 0 < small.shape[1] <= 20


def test_only_the_region_is_read_from_dask() -> None:
    source = Recorder(np.zeros((5, 64, 64), "u1"))
    lazy = da.from_array(source, chunks=(1, 16, 16), meta=np.empty((0, 0, 0), "u1"))
    view = ImageView(lazy, "TYX", ndim=2)
    source.reads.clear()
    view.read((3,), (slice(0, 16), slice(10, 20)))
    assert sum(source.reads) == 16 * 10
    source.reads.clear()
    view.read_reflected((3,), (-8, 60), (8, 80))  # mirrors pixels 48 to 63
    assert sum(source.reads) == 8 * 16


def test_a_zarr_store_is_asked_for_the_regions_chunks_only() -> None:
    asked = []

    class Counting(zarr.storage.MemoryStore):
        async def get(self, key, *args, **options):
            asked.append(key)
            return await super().get(key, *args, **options)

    lazy = zarr.create_array(
        Counting(), shape=(4, 32, 32), chunks=(1, 16, 16), dtype="u2", fill_value=0
    )
    lazy[:] = 7
    asked.clear()
    block = ImageView(lazy, "ZYX", ndim=2).read((2,), (slice(3, 9), slice(20, 30)))
    assert (block == 7).all()
    assert asked == ["c/2/0/1"]


# ---- sampling --------------------------------------------------------------------


@laws
@given(views())
def test_a_small_image_is_sampled_whole(case) -> None:
    image, view = case
    pixels = view.sample()
    frames = [
        canonical(image, view, frame).reshape(view.n_channels, -1)
        for frame in view.frames()
    ]
    expected = np.concatenate(frames, axis=1)
    assert pixels.dtype == image.dtype
    assert np.array_equal(np.sort(pixels, axis=1), np.sort(expected, axis=1))


@laws
@given(views(), st.integers(1, 50), st.booleans(), st.data())
def test_a_sample_keeps_to_its_size_and_its_pixels_together(
    case, most, lazy, data
) -> None:
    image, view = case
    if view.has_channels:  # channels that tell which pixel they belong to
        image = np.broadcast_to(
            np.arange(math.prod(view.label_shape), dtype=float).reshape(
                view.label_shape
            ),
            (view.n_channels, *view.label_shape),
        )
        image = np.moveaxis(image, 0, view.axes.index("C"))
    chunks = tuple(data.draw(st.integers(1, 3)) for _ in image.shape)
    source = Recorder(image, chunks) if lazy else image
    pixels = ImageView(source, view.axes, ndim=len(view.spatial_axes)).sample(most)
    limit = max(1, most * 4 // max(4, view.n_channels))
    assert pixels.shape[0] == view.n_channels
    assert 1 <= pixels.shape[1] <= limit
    if view.has_channels:
        assert (pixels == pixels[0]).all()
        assert len(np.unique(pixels[0])) == pixels.shape[1]  # none twice


@pytest.mark.parametrize(
    ("shape", "chunks", "axes"),
    [
        ((40, 200, 300), (1, 200, 300), "TYX"),
        ((40, 200, 300), (4, 50, 100), "ZYX"),
        ((3, 40, 200, 100), (1, 1, 100, 100), "CTYX"),
        ((200, 300, 40), (200, 300, 1), "YXZ"),
    ],
    ids=["whole frames", "bricks", "separate channels", "frames last"],
)
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_sample_decodes_few_chunks_and_each_once(shape, chunks, axes, ndim) -> None:
    if ndim == 3 and "Z" not in axes:
        axes = axes.replace("T", "Z")
    source = Recorder(np.broadcast_to(np.uint8(0), shape), chunks)
    pixels = ImageView(source, axes, ndim=ndim).sample(max_pixels=100_000)
    assert len(source.touched) <= CHUNKED_READS
    assert len(set(source.touched)) == len(source.touched)
    assert 20_000 < pixels.shape[1] <= 100_000


def test_a_sample_of_dask_runs_few_tasks_even_with_uneven_chunks() -> None:
    source = Recorder(np.zeros((300, 60, 70), "u1"))
    uneven = ((1,) * 300, (20, 40), (70,))
    lazy = da.from_array(source, chunks=uneven, meta=np.empty((0, 0, 0), "u1"))
    view = ImageView(lazy, "TYX", ndim=2)
    source.reads.clear()
    view.sample(max_pixels=10_000)
    assert 0 < len(source.reads) <= CHUNKED_READS


def test_a_sample_of_zarr_knows_chunks_of_different_sizes() -> None:
    class Rectilinear:
        """As zarr from 3.2 on: such a grid has no chunks of one shape."""

        read_chunk_sizes = ((1, 1), (5, 0, 59), (40, 24))
        array = np.arange(2 * 64 * 64).reshape(2, 64, 64)
        shape, dtype, ndim = array.shape, array.dtype, array.ndim

        @property
        def chunks(self) -> None:
            pytest.fail("It has none.")

        def __getitem__(self, key: tuple[Any, ...]) -> np.ndarray:
            return self.array[key]

    source = Rectilinear()
    edges, channels = ImageView(source, "ZYX", ndim=2)._chunks()
    assert edges is not None
    assert [e.tolist() for e in edges] == [[0, 1, 2], [0, 5, 64], [0, 40, 64]]
    assert channels == 1
    assert ImageView(source, "ZYX", ndim=2).sample(100).size <= 100


def test_small_chunks_are_joined_to_blocks() -> None:
    source = Recorder(np.broadcast_to(np.uint8(0), (4096, 4096)), (16, 16))
    pixels = ImageView(source, "YX", ndim=2).sample(max_pixels=1_000_000)
    assert len(source.reads) == CHUNKED_READS
    assert pixels.shape[1] > 400_000
    assert len(source.touched) * 16 * 16 <= 1_000_000


@pytest.mark.parametrize("chunks", [None, (1, 64, 64), (1, 512, 512), (30, 512, 512)])
def test_a_sample_is_spread_out_and_the_same_every_time(chunks) -> None:
    where = np.arange(30 * 512 * 512, dtype=np.float64).reshape(30, 512, 512)
    source = where if chunks is None else Recorder(where, chunks)
    view = ImageView(source, "TYX", ndim=2)
    pixels = view.sample(max_pixels=50_000)
    assert np.array_equal(pixels, view.sample(max_pixels=50_000))
    t, y, x = np.unravel_index(pixels[0].astype(int), where.shape)
    assert len(np.unique(t)) >= 25
    for line in (y, x):
        share = np.histogram(line, bins=4, range=(0, 512))[0] / line.size
        assert share.min() > 0.1


@example(seed=0)
@given(seed=st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_a_samples_percentiles_are_the_images(seed) -> None:
    gradient = np.linspace(0, 1, 1000)[:, None] * np.linspace(0.5, 1, 800)
    view = ImageView(gradient, "YX", ndim=2)
    low, high = np.percentile(view.sample(max_pixels=50_000, seed=seed), [1, 99.8])
    assert (low, high) == pytest.approx(np.percentile(gradient, [1, 99.8]), abs=0.05)
