"""Segmentation: tiles change nothing, every kind of array works, failures retreat."""

import copy
import dataclasses
import math
import threading
import time

import dask.array as da
import numpy as np
import pytest
import skimage.data
import torch
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from napari_attunet import inference, plan
from napari_attunet.canvas import in_pixels
from napari_attunet.devices import Device, choose_device
from napari_attunet.errors import Cancelled, DataError, DeviceError
from napari_attunet.model import Model, load_model
from napari_attunet.networks import AttentionUNet, fused
from napari_attunet.plan import (
    activation_bytes,
    default_halo,
    default_tile,
    prepare,
)
from napari_attunet.progress import drain, until
from napari_attunet.receptive import STRIP
from napari_attunet.segmenter import Segmenter, segment
from napari_attunet.spec import (
    AttentionSpec,
    GateSpec,
    ModelSpec,
    NetworkSpec,
    Normalization,
    ObjectSettings,
    TransformerSpec,
)
from napari_attunet.tiling import Tile, Tiling


def make_model(seed=0, output="classes", **network):
    spec = NetworkSpec(**{"features": (2, 3, 4), "out_channels": 3, **network})
    model = Model.fresh(ModelSpec(name="m", network=spec, output=output), seed=seed)
    with torch.no_grad():  # so that α and probabilities differ from place to place
        for name, tensor in model.network.state_dict().items():
            if name.endswith(("weight", "bias")):
                generator = torch.Generator().manual_seed(len(name) + seed)
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    return model


def make_image(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(100, 20, shape).astype(dtype)


def assert_same(a, b, atol=1e-4):
    np.testing.assert_allclose(a.probabilities, b.probabilities, atol=atol)
    assert len(a.attention) == len(b.attention)
    for x, y in zip(a.attention, b.attention, strict=True):
        np.testing.assert_allclose(x.values, y.values, atol=atol)
    # where two classes are as good as equal either may win
    ranked = np.sort(b.probabilities, axis=0)
    clear = ranked[-1] - ranked[-2] > 2 * atol
    np.testing.assert_array_equal(a.labels[clear], b.labels[clear])


EVERYTHING = {"attention": True, "probabilities": True}


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    tile=st.tuples(st.integers(9, 60), st.integers(9, 60)),
    strides=st.tuples(*[st.tuples(st.integers(1, 3), st.integers(1, 3))] * 2),
    gate=st.sampled_from(
        [
            GateSpec(),
            GateSpec(signal="coarse"),
            GateSpec(signal="bottleneck"),
            GateSpec(kind="grid", count=2),
            GateSpec(kind="grid", signal="bottleneck"),
        ]
    ),
    attention=st.sampled_from([(), (AttentionSpec(kind="cbam-spatial"),)]),
    upsampling=st.sampled_from(["nearest", "transposed"]),
    extra=st.integers(0, 1),
)
def test_tiles_change_nothing_in_2d(
    shape, tile, strides, gate, attention, upsampling, extra
):
    model = make_model(
        strides=strides, gate=gate, attention=attention, upsampling=upsampling
    )
    network = model.spec.network
    halo = [h + extra * d for h, d in zip(network.halo, network.divisor, strict=True)]
    image = make_image(shape)
    whole = Segmenter(model, tile=10_000).segment(image, axes="YX", **EVERYTHING)
    tiled = Segmenter(model, tile=tile, halo=halo).segment(
        image, axes="YX", **EVERYTHING
    )
    assert whole.record["tiles"] == 1
    assert whole.record["exact"]
    assert tiled.record["exact"]
    assert_same(tiled, whole)


def test_a_halo_too_small_is_seen_and_said():
    """The property above could not fail if tiles had no influence at all."""
    model = make_model()
    image = make_image((64, 64))
    whole = Segmenter(model).segment(image, **EVERYTHING)
    tiled = Segmenter(model, tile=16, halo=0).segment(image, **EVERYTHING)
    assert not tiled.record["exact"]
    assert np.abs(tiled.probabilities - whole.probabilities).max() > 1e-3


def test_3d_is_exact_with_the_whole_halo():
    model = make_model(ndim=3, features=(2, 3), strides=((1, 2, 2),))
    image = make_image((13, 22, 17))
    whole = Segmenter(model).segment(image, **EVERYTHING)
    halo = model.spec.network.halo
    tiled = Segmenter(model, tile=(4, 6, 8), halo=halo).segment(image, **EVERYTHING)
    assert tiled.record["tiles"] > 8
    assert_same(tiled, whole)


@pytest.mark.parametrize(
    "pooling",
    [
        {"norm": "instance"},
        {"attention": (AttentionSpec(kind="se"),)},
        {"attention": (AttentionSpec(kind="self", where="bottleneck"),)},
        {"transformer": TransformerSpec()},
    ],
)
def test_what_pools_says_that_tiles_matter(pooling):
    model = make_model(**pooling)
    image = make_image((80, 80))
    assert Segmenter(model).segment(image).record["exact"]
    assert not Segmenter(model, tile=40).segment(image).record["exact"]


@pytest.mark.parametrize("scale", [(1, 1), (2, 2), (4, 4)])
def test_attention_lies_on_its_own_grid(scale):
    model = make_model(features=(2, 3, 4, 5))
    result = Segmenter(model).segment(
        make_image((3, 37, 30)), axes="TYX", attention=True
    )
    names = [m.name for m in result.attention]
    assert names == ["α level 1", "α level 2", "α level 3"]
    found = next(m for m in result.attention if m.scale == (1, *scale))
    assert found.values.shape == (3, -(-37 // scale[0]), -(-30 // scale[1]))
    assert found.translate == (0, (scale[0] - 1) / 2, (scale[1] - 1) / 2)
    assert 0 <= found.values.min() < found.values.max() <= 1


EVERY_KIND = (
    AttentionSpec(kind="cbam"),
    AttentionSpec(kind="self", where="bottleneck"),
)


def test_all_that_attends_is_named_and_placed():
    model = make_model(
        features=(4, 6, 8),
        gate=GateSpec(kind="grid", count=2),
        attention=EVERY_KIND,
        transformer=TransformerSpec(),
    )
    image = make_image((3, 37, 30))
    result = Segmenter(model).segment(image, axes="TYX", attention=True)
    assert [m.name for m in result.attention] == [
        "CBAM encoder level 1",
        "CBAM encoder level 2",
        "CBAM encoder level 3",
        "α level 1 gate 1",
        "α level 1 gate 2",
        "α level 2 gate 1",
        "α level 2 gate 2",
        "CBAM decoder level 1",
        "CBAM decoder level 2",
    ]
    for found in result.attention:
        assert 0 <= found.values.min() <= found.values.max() <= 1
        factor = found.scale[1]
        assert found.values.shape == (3, -(-37 // factor), -(-30 // factor))
    assert [t.name for t in result.tables] == [
        "spatial transformer",
        *(f"CBAM encoder level {i}" for i in (1, 2, 3)),
        *(f"CBAM decoder level {i}" for i in (1, 2)),
    ]
    transform, *channels = result.tables
    assert transform.values.shape == (3, 1, 3, 3)
    assert [t.values.shape for t in channels] == [(3, 1, c) for c in (4, 6, 8, 4, 6)]
    assert all(0 <= t.values.min() <= t.values.max() <= 1 for t in channels)


MANY_KINDS = (*EVERY_KIND, AttentionSpec(kind="se"), AttentionSpec(kind="eca"))


@settings(max_examples=15, deadline=None)
@given(
    frames=st.integers(2, 9),
    shape=st.tuples(st.integers(5, 40), st.integers(5, 40)),
    norm=st.sampled_from(["batch", "instance", "group"]),
    attention=st.sampled_from([(), *((kind,) for kind in MANY_KINDS)]),
    transformer=st.sampled_from([None, TransformerSpec()]),
    output=st.sampled_from(["classes", "objects"]),
    fit=st.integers(1, 5),
)
def test_small_frames_are_worked_on_together(
    frames, shape, norm, attention, transformer, output, fit
):
    """As many as there is room for, each with the result that it has by itself."""
    model = make_model(
        features=(4, 6, 8), norm=norm, attention=attention, transformer=transformer
    )
    padded = math.prod(-(-n // 4) * 4 for n in shape)
    options = {"axes": "TYX", "output": output, **EVERYTHING}
    image = make_image((frames, *shape))
    alone, together = both_ways(model, image, fit * padded, **options)
    assert together.record["batch"] == min(fit, frames)
    assert_same(together, alone)
    for a, b in zip(together.tables, alone.tables, strict=True):
        np.testing.assert_allclose(a.values, b.values, atol=1e-4)


@pytest.mark.parametrize("output", ["classes", "objects"])
@pytest.mark.parametrize("skip_empty", [False, True])
@pytest.mark.parametrize(
    ("ndim", "shape"), [(2, (40, 304)), (2, (2, 40, 304)), (3, (24, 32, 120))]
)
def test_like_tiles_of_a_frame_go_together(ndim, shape, skip_empty, output):
    model = make_model(ndim=ndim, features=(2, 3))
    image = make_image(shape)
    options = {"output": output, "probabilities": True}
    if ndim == 2:
        options["skip_empty"] = skip_empty
    alone, together = both_ways(model, image, 10**6, tile=8, halo=8, **options)
    assert together.record["tiles"] > together.record["batch"] > 1
    assert_same(together, alone)


def both_ways(model, image, pixels, tile=None, halo=8, **options):
    """Return what one tile at a time gives, and several of so many pixels."""
    alone, together = found = [Segmenter(model, tile=tile, halo=halo) for _ in range(2)]
    for segmenter, count in ((alone, 0), (together, pixels)):
        size = segmenter._tile_on

        def tile_on(*places, size=size, count=count):
            return size(*places)[0], count

        segmenter._tile_on = tile_on
    results = [segmenter.segment(image, **options) for segmenter in found]
    assert results[0].record["batch"] == 1
    return results


def test_a_batch_that_does_not_fit_is_taken_tile_by_tile(monkeypatch):
    model = make_model()
    image = make_image((5, 32, 32))
    options = {"axes": "TYX", **EVERYTHING}
    expected = Segmenter(model).segment(image, **options)
    assert expected.record["batch"] == 5
    shapes = []
    explain = AttentionUNet.explain

    def limited(self, x, **more):
        shapes.append(len(x))
        if len(x) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return explain(self, x, **more)

    monkeypatch.setattr(plan, "TOGETHER", 3 * 32 * 32)
    monkeypatch.setattr(AttentionUNet, "explain", limited)
    result = Segmenter(model).segment(image, **options)
    assert shapes == [3, 1, 1, 1, 1, 1]  # tried once
    assert result.record["batch"] == 1
    assert result.record["tile"] == [32, 32]
    assert_same(result, expected)


def test_what_goes_together_has_no_more_room_than_a_tile():
    network = NetworkSpec(features=(64, 128))
    assert plan.pixels_together(network, 2**40) == plan.TOGETHER
    for room in (2**20, 2**26):
        pixels = plan.pixels_together(network, room)
        assert 0 < pixels < plan.TOGETHER
        assert 4 * 64 * plan.LIVE[1] * pixels <= room
    model = make_model()
    given = Segmenter(model, tile=16).segment(make_image((9, 8, 8)), axes="TYX")
    assert given.record["batch"] == 4  # of 8 x 8 pixels


def test_objects_are_told_apart_when_tiles_are_gone(monkeypatch):
    """Both need memory."""
    released = []
    monkeypatch.setattr(
        "napari_attunet.inference.release_memory", lambda _: released.append(1)
    )
    steps = Segmenter(make_model()).steps(make_image((64, 64)), output="objects")
    for progress in steps:
        if progress.message == "Separating objects":
            assert released
            return
    raise AssertionError


def test_classes_lie_in_the_labels_that_they_become(monkeypatch):
    monkeypatch.setattr("napari_attunet.canvas.SLAB", 7)
    for out_channels, shape in ((3, (5, 31)), (300, (3, 8))):
        found = Segmenter(
            make_model(out_channels=out_channels, features=(2, 3))
        ).segment(make_image(shape), output="classes", probabilities=True)
        assert found.labels.dtype == np.int32
        np.testing.assert_array_equal(found.labels, found.probabilities.argmax(0))


def test_each_tile_has_a_row_of_its_own():
    model = make_model(attention=(AttentionSpec(kind="se"),))
    image = make_image((64, 40))
    segmenter = Segmenter(model, tile=32, halo=0)
    (table, *_) = segmenter.segment(image, axes="YX", attention=True).tables
    assert table.values.shape == (4, 2)
    assert table.regions[1] == (slice(0, 32), slice(32, 40))
    top = segmenter.segment(
        image, axes="YX", region=(slice(0, 32), slice(0, 32)), attention=True
    )
    np.testing.assert_allclose(top.tables[0].values[0], table.values[0], atol=1e-5)


def test_where_the_transformer_looks_is_told_in_pixels():
    """A frame half as large around the middle of the tile's lower right quarter."""
    tile = Tile(
        (slice(16, 48), slice(0, 64)), (slice(0, 32),) * 2, (slice(16, 48),) * 2
    )
    matrix = np.array([[0.5, 0, 0.5], [0, 0.5, 0.5]])  # x first
    found = in_pixels(matrix.astype(np.float32), tile)
    corners = [(-0.5, -0.5, 1), (31.5, 63.5, 1)]
    np.testing.assert_allclose(
        [(found @ corner)[:2] for corner in corners], [(31.5, 31.5), (47.5, 63.5)]
    )
    matrix = np.array([[0.5, 0.1, 0.2], [-0.3, 0.7, -0.4]])
    row, column = 5, 40
    x, y = (2 * column + 1) / 64 - 1, (2 * row + 1) / 32 - 1
    there_x, there_y = 0.5 * x + 0.1 * y + 0.2, -0.3 * x + 0.7 * y - 0.4
    expected = ((there_y + 1) * 32 - 1) / 2 + 16, ((there_x + 1) * 64 - 1) / 2
    found = in_pixels(matrix.astype(np.float32), tile) @ (row, column, 1)
    np.testing.assert_allclose(found[:2], expected, atol=1e-4)
    identity = in_pixels(np.eye(2, 3, dtype=np.float32), tile)
    np.testing.assert_allclose(identity, [[1, 0, 16], [0, 1, 0], [0, 0, 1]], atol=1e-6)


def test_a_plain_unet_has_no_attention():
    result = Segmenter(make_model(gate=None)).segment(
        make_image((20, 20)), **EVERYTHING
    )
    assert (result.attention, result.tables) == ((), ())


DTYPES = ["bool", "uint8", "int16", "uint32", "int64", "float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_real_dtype(dtype):
    image = (make_image((20, 24)) > 100) if dtype == "bool" else make_image((20, 24))
    result = segment(image.astype(dtype), make_model(), device="cpu")
    assert result.labels.dtype == np.int32
    assert result.labels.shape == (20, 24)


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ("YX", (20, 30)),
        ("TYX", (2, 20, 30)),
        ("TZYX", (2, 3, 20, 30)),
        ("CYX", (1, 20, 30)),
        ("YXC", (20, 30, 3)),
        ("YXC", (20, 30, 4)),
        ("ZTYXC", (2, 1, 20, 30, 3)),
        ("XYZ", (30, 20, 3)),
    ],
)
def test_axes(axes, shape):
    image = make_image(shape)
    result = Segmenter(make_model()).segment(image, axes=axes, attention=True)
    assert result.axes == axes.replace("C", "")
    sizes = zip(axes, shape, strict=True)
    assert result.labels.shape == tuple(n for a, n in sizes if a != "C")
    for attention in result.attention:
        assert attention.values.ndim == result.labels.ndim


def test_walked_frames_are_the_slices():
    """Every frame gets what it would get alone, if normalised alike."""
    frame = make_image((24, 20))
    model = make_model()
    # mean and deviation of copies are those of one, percentiles are interpolated
    spec = dataclasses.replace(model.spec, normalization=Normalization(kind="zscore"))
    model = Model(spec, model.network)
    alone = Segmenter(model).segment(frame, axes="YX", probabilities=True)
    stack = np.stack([frame, frame[::-1], frame])
    result = Segmenter(model).segment(stack, axes="TYX", probabilities=True)
    for at in (0, 2):
        np.testing.assert_allclose(
            result.probabilities[:, at], alone.probabilities, atol=1e-4
        )
    transposed = Segmenter(model).segment(
        stack.transpose(2, 0, 1), axes="XTY", probabilities=True
    )
    np.testing.assert_allclose(
        transposed.probabilities.transpose(0, 2, 3, 1), result.probabilities, atol=1e-4
    )


class Watched:
    """An array that remembers how much was read of it at once."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.largest = 0

    def __getitem__(self, key):
        part = np.asarray(self.array[key])
        self.largest = max(self.largest, part.size)
        return part


def test_lazy_arrays_give_the_same_and_are_never_made_dense(tmp_path):
    image = make_image((120, 100), dtype=np.uint16)
    stored = zarr.create_array(tmp_path / "a.zarr", data=image, chunks=(32, 32))
    watched = Watched(image)
    model = make_model(features=(2, 3))
    cut = Segmenter(model, tile=16)
    dense = cut.segment(image, axes="YX", **EVERYTHING)
    for lazy in (da.from_array(image, chunks=40), stored):
        assert_same(cut.segment(lazy, axes="YX", **EVERYTHING), dense)
    segmenter = Segmenter(model, tile=16)
    # the sample of a small image is all of it; only the tiles are looked at here
    steps = segmenter.steps(watched, axes="YX")
    next(steps)
    next(steps)
    watched.largest = 0
    for _ in steps:
        pass
    edge = 16 + 2 * model.spec.network.halo[0]
    assert 0 < watched.largest <= edge**2


@pytest.mark.parametrize(("threads", "apart"), [(1, False), (2, True)])
def test_the_next_tile_is_read_while_one_is_computed(threads, apart, monkeypatch):
    here, readers = threading.current_thread(), []

    class Disk(Watched):
        def __getitem__(self, key):
            readers.append(threading.current_thread())
            return super().__getitem__(key)

    image = make_image((64, 16))
    segmenter = Segmenter(make_model(), tile=16, threads=threads)
    expected = segmenter.segment(image, axes="YX").labels
    steps = segmenter.steps(Disk(image), axes="YX")
    for _ in range(2):  # intensities; then the first tile is to come
        next(steps)
    readers.clear()
    explain = inference._explain

    def waiting(*arguments):  # while a tile is computed, the next one is read
        deadline = time.monotonic() + 5
        while apart and len(readers) < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(readers) == 1 + apart
        return explain(*arguments)

    monkeypatch.setattr(inference, "_explain", waiting)
    assert next(steps).done == 1
    monkeypatch.undo()
    assert {r is not here for r in readers} == {apart}
    steps.close()
    assert not any(r.is_alive() for r in readers if r is not here)
    np.testing.assert_array_equal(
        segmenter.segment(Disk(image), axes="YX").labels, expected
    )


def test_memory_that_does_not_suffice_for_reading_takes_smaller_tiles():
    image = make_image((256, 64))

    class Tight(Watched):
        def __getitem__(self, key):
            part = super().__getitem__(key)
            if self.tight and part.size > 64 * 70:
                raise MemoryError
            return part

    tight = Tight(image)
    tight.tight = False
    steps = Segmenter(make_model(features=(2, 3)), tile=64).steps(tight, axes="YX")
    next(steps)
    next(steps)
    tight.tight = True
    found = drain(steps)
    assert found.record["tile"] == [32, 32]
    assert "ran out of memory" in found.record["fallbacks"][0]
    np.testing.assert_array_equal(
        found.labels, Segmenter(make_model(features=(2, 3))).segment(image).labels
    )


def test_what_cannot_be_read_is_told():
    class Broken(Watched):
        def __getitem__(self, key):
            if self.largest:
                raise OSError("The disk is gone.")
            return super().__getitem__(key)

    with pytest.raises(OSError, match="gone"):
        Segmenter(make_model(), tile=16).segment(
            Broken(make_image((64, 16))), axes="YX"
        )


def test_holes_in_the_data_stay_where_they_are():
    image = make_image((40, 40))
    image[5, 5], image[5, 6], image[5, 7] = np.nan, np.inf, -np.inf
    result = Segmenter(make_model()).segment(image, **EVERYTHING)
    assert np.isfinite(result.probabilities).all()


@pytest.mark.parametrize("value", [0, 7, np.nan])
@pytest.mark.parametrize("output", ["classes", "objects"])
def test_constant_images(value, output):
    model = make_model(output="objects")
    result = Segmenter(model).segment(np.full((20, 20), value, float), output=output)
    assert result.labels.shape == (20, 20)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (3, 3)])
def test_tiny_images(shape):
    result = Segmenter(make_model()).segment(make_image(shape), axes="YX", **EVERYTHING)
    assert result.labels.shape == shape


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((0, 5)), {"axes": "YX"}, "empty|zero|no pixels"),
        (np.zeros((5, 5), complex), {}, "complex|real"),
        (np.zeros((5, 5, 2)), {"axes": "YXC"}, "channel"),
        (np.zeros((5, 5)), {"axes": "YQ"}, "axes|axis|letter"),
        (np.zeros((5, 5)), {"output": "things"}, "classes"),
        (np.zeros((5, 5)), {"threshold": 2}, "between 0 and 1"),
        (np.zeros((5, 5)), {"channels": "infrared"}, "infrared"),
        ([[0, 1], [1, 0]], {}, "this is a list. Give numpy.asarray of it"),
        (zarr.group({}), {}, "this is a Group. Give one of its arrays"),
        (torch.zeros(5, 5), {}, "torch.float32.*has .numpy()"),
    ],
)
def test_what_cannot_be_segmented(image, options, message):
    with pytest.raises(DataError, match=message):
        Segmenter(make_model()).segment(image, **options)


@pytest.mark.parametrize("tile", [0, (8, 8, 8), -1])
def test_wrong_tiles(tile):
    with pytest.raises(DataError, match="tile"):
        Segmenter(make_model(), tile=tile)


# --- labels -----------------------------------------------------------------------


def test_a_sigmoid_network_has_two_classes():
    model = make_model(out_channels=1)
    result = Segmenter(model).segment(make_image((30, 30)), probabilities=True)
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-6)
    np.testing.assert_array_equal(result.labels, result.probabilities[1] > 0.5)
    strict = Segmenter(model).segment(make_image((30, 30)), threshold=0.9)
    np.testing.assert_array_equal(strict.labels, result.probabilities[1] >= 0.9)
    # as the model says, unless something else is asked for
    spec = dataclasses.replace(model.spec, threshold=0.9)
    said = Segmenter(Model(spec, model.network))
    np.testing.assert_array_equal(
        said.segment(make_image((30, 30))).labels, strict.labels
    )
    half = said.segment(make_image((30, 30)), threshold=0.5)
    np.testing.assert_array_equal(half.labels, result.labels)


def test_objects_are_numbered_through_a_whole_stack():
    model = make_model(output="objects")
    settings = ObjectSettings(min_size=1, seed_threshold=0.2, foreground_threshold=0.3)
    result = Segmenter(model).segment(
        make_image((4, 40, 40)), axes="TYX", objects=settings
    )
    present = np.unique(result.labels)
    np.testing.assert_array_equal(present, np.arange(len(present)))
    per_frame = [set(np.unique(frame)) - {0} for frame in result.labels]
    assert sum(map(len, per_frame)) == len(present) - 1 > 4


def test_a_model_of_classes_can_give_objects():
    model = make_model(out_channels=1)
    image = make_image((40, 40))
    foreground = Segmenter(model).segment(image, probabilities=True).probabilities[1]
    labels = Segmenter(model).segment(
        image, output="objects", objects=ObjectSettings(min_size=0, fill_holes=False)
    )
    clear = np.abs(foreground - 0.5) > 1e-3  # objects are found in half precision
    mask = foreground > 0.5
    np.testing.assert_array_equal((labels.labels > 0)[clear], mask[clear])
    assert labels.labels.max() > 1


# --- when things go wrong ---------------------------------------------------------


FULL = [
    torch.OutOfMemoryError("out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]


def refuse(monkeypatch, most, error=FULL[0]):
    """Let the network run out of memory above so many pixels."""
    explain = AttentionUNet.explain

    def limited(self, x, **options):
        if x[0, 0].numel() > most:
            raise error
        return explain(self, x, **options)

    monkeypatch.setattr(AttentionUNet, "explain", limited)


@pytest.mark.parametrize("error", FULL, ids=repr)
def test_out_of_memory_halves_the_tile(monkeypatch, error):
    model = make_model(features=(2, 3))
    image = make_image((200, 200))
    expected = Segmenter(model).segment(image, **EVERYTHING)
    refuse(monkeypatch, 100 * 100, error)
    result = Segmenter(model).segment(image, **EVERYTHING)
    assert_same(result, expected)
    assert "ran out of memory" in result.record["fallbacks"][0]
    assert result.record["tile"][0] <= 100


def test_out_of_memory_everywhere_is_said(monkeypatch):
    refuse(monkeypatch, 0)
    with pytest.raises(DeviceError, match="close other programs"):
        Segmenter(make_model()).segment(make_image((64, 64)))


@pytest.mark.parametrize("error", FULL, ids=repr)
def test_a_network_that_does_not_fit_is_said(monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr("napari_attunet.networks.operations.Repeated.__init__", full)
    with pytest.raises(DeviceError, match="close other programs"):
        Segmenter(make_model()).segment(make_image((64, 64)))


def test_a_card_that_is_full_gives_way_to_the_processor(monkeypatch):
    model, image = make_model(), make_image((64, 64))
    expected = Segmenter(model, device="cpu").segment(image, **EVERYTHING)

    def choose(device="auto", threads=None):
        if device == "cuda":
            return Device("cuda", "A card", "CUDA is available.")
        return choose_device(device, threads)

    on_device = Segmenter.network_on

    def network_on(self, device, **options):
        if device.name == "cuda":
            self._networks["cuda", torch.float32] = None  # what it had come to
            raise torch.OutOfMemoryError("out of memory")
        return on_device(self, device, **options)

    module = "napari_attunet.segmenter"
    monkeypatch.setattr(f"{module}.choose_device", choose)
    monkeypatch.setattr(f"{module}.choose_dtype", lambda *_: (torch.float32, ""))
    monkeypatch.setattr(f"{module}.free_memory", lambda device: 2**30)
    monkeypatch.setattr(f"{module}.release_memory", lambda device: None)
    monkeypatch.setattr(Segmenter, "network_on", network_on)
    segmenter = Segmenter(model, device="cuda")
    result = segmenter.segment(image, **EVERYTHING)
    assert_same(result, expected)
    assert result.record["fallbacks"][-1].endswith("went on with the CPU.")
    assert result.record["device"].startswith("cpu")
    assert result.record["device_reason"] == "The GPU ran out of memory."
    assert [name for name, _ in segmenter._networks] == ["cpu"]


@pytest.mark.parametrize("name", ["nuclei-fluorescence", "nuclei-histology"])
def test_bundled_models_are_exact(name):
    """The contract: 1e-4 of a probability, and no label, against double precision."""
    model = load_model(name)
    colour = model.spec.network.in_channels == 3
    picture = skimage.data.immunohistochemistry() if colour else skimage.data.cell()
    image = picture[:256, :256]
    found = Segmenter(model, tile=96).segment(image, probabilities=True)
    prepared = prepare(model.spec, image)
    x = torch.from_numpy(prepared.read((), (0, 0), (256, 256)))[None].double()
    with torch.inference_mode():
        exact = copy.deepcopy(model.network).double()(x).softmax(1)[0].numpy()
    assert np.abs(found.probabilities - exact).max() < 1e-4
    assert (found.probabilities.argmax(0) == exact.argmax(0)).all()


def test_no_tile_is_mostly_halo_for_want_of_memory():
    tile = default_tile(NetworkSpec(), (4000, 4000), (112, 112), room=0)
    assert min(tile) >= 96


def test_other_errors_are_not_taken_for_a_full_memory(monkeypatch):
    model = make_model()

    def broken(self, x, **options):
        raise RuntimeError("something else")

    monkeypatch.setattr(AttentionUNet, "explain", broken)
    with pytest.raises(RuntimeError, match="something else"):
        Segmenter(model).segment(make_image((64, 64)))


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="oneDNN has no bfloat16 on this processor, not even emulated",
)
def test_precision_is_what_the_device_can(monkeypatch):
    model, image = make_model(), make_image((48, 40))
    exact = Segmenter(model, precision="exact").segment(image, probabilities=True)
    assert (exact.record["precision"], exact.record["exact"]) == ("float32", True)
    monkeypatch.setattr("napari_attunet.devices.has_bfloat16", lambda name: False)
    lacking = Segmenter(model, device="cpu", precision="fast").segment(image)
    assert lacking.record["precision"] == "float32"
    assert "cpu has no fast mode" in " ".join(lacking.record["fallbacks"])
    monkeypatch.setattr("napari_attunet.devices.has_bfloat16", lambda name: True)
    fast = Segmenter(model, precision="fast").segment(image, **EVERYTHING)
    assert (fast.record["precision"], fast.record["exact"]) == ("bfloat16", False)
    assert fast.record["fallbacks"] == []
    assert all(m.values.dtype == np.float32 for m in fast.attention)
    assert np.abs(fast.probabilities - exact.probabilities).mean() < 0.01
    auto = Segmenter(model, device="cpu").segment(image)
    assert auto.record["precision"] == "float32"
    with pytest.raises(DeviceError, match="auto, exact, fast"):
        Segmenter(model, precision="half")
    # of the network, not of the device
    monkeypatch.setattr("napari_attunet.networks.fuse.HALF_TOLERANCE", -1.0)
    refused = Segmenter(model, precision="fast").segment(image)
    assert refused.record["precision"] == "float32"
    assert "cannot do with torch.bfloat16" in " ".join(refused.record["fallbacks"])


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="oneDNN has no bfloat16 on this processor, not even emulated",
)
def test_what_overflows_is_computed_in_float32(monkeypatch):
    model, image = make_model(), make_image((48, 40))
    exact = Segmenter(model, precision="exact").segment(image, **EVERYTHING)
    made = []

    def overflowing(network, dtype):
        made.append(dtype)
        found = fused(network, dtype)
        if dtype != torch.float32:
            found.head.register_forward_hook(lambda *called: called[2] * torch.inf)
        return found

    monkeypatch.setattr("napari_attunet.segmenter.fused", overflowing)
    monkeypatch.setattr("napari_attunet.devices.has_bfloat16", lambda name: True)
    segmenter = Segmenter(model, precision="fast", tile=32)
    found = segmenter.segment(image, **EVERYTHING)
    assert made == [torch.bfloat16, torch.float32]
    assert np.array_equal(found.labels, exact.labels)
    assert np.allclose(found.probabilities, exact.probabilities, atol=1e-5)
    assert found.record["precision"] == "float32"
    assert "too large for torch.bfloat16" in " ".join(found.record["fallbacks"])
    segmenter.segment(image)  # and so is what comes after
    assert len(made) == 2


def test_cancel_takes_effect_at_the_next_tile(monkeypatch):
    model = make_model()
    runs = []
    explain = AttentionUNet.explain

    def counted(self, x, **options):
        runs.append(1)
        return explain(self, x, **options)

    monkeypatch.setattr(AttentionUNet, "explain", counted)
    steps = Segmenter(model, tile=16).steps(make_image((64, 64)))
    for progress in steps:
        if progress.done == 3:
            break
    steps.close()
    assert len(runs) == 3
    with pytest.raises(StopIteration):
        next(steps)


def test_cancel_takes_effect_within_a_tile():
    model, image = make_model(), make_image((64, 64))
    segmenter = Segmenter(model)
    wanted = segmenter.segment(image).labels
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(Cancelled), until(stop):
        segmenter.segment(image)
    assert len(asked) == 4
    assert not any(m._forward_pre_hooks for m in model.network.modules())
    np.testing.assert_array_equal(segmenter.segment(image).labels, wanted)


def test_progress_counts_every_tile():
    steps = Segmenter(make_model(), tile=16).steps(make_image((2, 64, 32)), axes="TYX")
    seen = [(p.done, p.total) for p in steps if p.total > 1]
    assert seen == [(i, 16) for i in range(16)]


def test_the_model_is_left_as_it_was():
    model = make_model()
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    Segmenter(model).segment(make_image((40, 40)))
    after = model.network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not model.network.training


# --- sizes ------------------------------------------------------------------------


def test_default_tiles_are_even_and_bounded():
    network = NetworkSpec(features=(16, 32, 64, 128, 256))
    halo = default_halo(network)
    room = 512 * 2**20
    assert default_tile(network, (300, 500), halo, room) == (304, 512)
    tile = default_tile(network, (4100, 4100), halo, room)
    assert all(t % 16 == 0 for t in tile)
    read = [t + 2 * h for t, h in zip(tile, halo, strict=True)]
    assert 4 * 16 * plan.LIVE_IN_STRIPS[0] * read[0] * read[1] <= room
    assert 4 * 16 * plan.LIVE_IN_STRIPS[1] * tile[0] * tile[1] <= room
    parts = [-(-4100 // t) for t in tile]
    assert all(t - 4100 / n < 16 for t, n in zip(tile, parts, strict=True))
    # one cut less would not fit
    longer = 4100 / (max(parts) - 1)
    assert 4 * 16 * plan.LIVE_IN_STRIPS[1] * longer * max(tile) > room


@settings(deadline=None)
@given(shape=st.tuples(*(st.integers(1, 6000),) * 2))
@example(shape=(200, 60_000))  # too flat for strips
def test_no_tile_reads_more_than_there_is_room_for(shape):
    network = NetworkSpec(features=(16, 32, 64, 128, 256))
    halo, room = default_halo(network), plan.ACTIVATION_BYTES
    tile = default_tile(network, shape, halo, room)
    tiles = Tiling(shape, tile=tile, halo=halo, divisor=network.divisor)
    sizes = [[r.stop - r.start for r in t.read] for t in tiles]
    in_strips = max(s[0] for s in sizes) >= 2 * STRIP, tile[0] >= 2 * STRIP
    of_read, of_tile = (
        (plan.LIVE, plan.LIVE_IN_STRIPS)[flag][i] for i, flag in enumerate(in_strips)
    )
    assert 4 * 16 * of_read * max(map(math.prod, sizes)) <= room
    assert 4 * 16 * of_tile * math.prod(tile) <= room


def test_the_halo_of_two_tiles_is_on_one_side_only():
    network = NetworkSpec(features=(16, 32, 64, 128, 256))
    halo = default_halo(network)
    tile = default_tile(network, (2048, 2048), halo, plan.ACTIVATION_BYTES)
    assert tile == (1024, 2048)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("free", [0, 2**20, 2**29, 2**31, 2**33, 2**36])
def test_tiles_follow_the_memory_there_is(ndim, free):
    slim = NetworkSpec(ndim=ndim, features=(4, 8, 16, 32, 64))
    wide = NetworkSpec(ndim=ndim, features=(64, 128, 256, 512, 1024))
    for network in (slim, wide):
        room = activation_bytes(network, default_halo(network), free)
        assert room <= free / 2
        assert room >= min(plan.ACTIVATION_BYTES, free / 4)
        # not another tile each time another program takes or gives a little
        assert room == activation_bytes(network, default_halo(network), int(free * 1.4))
    plenty = activation_bytes(wide, default_halo(wide), 2**36)
    assert plenty > plan.ACTIVATION_BYTES
    large = (5000,) * 2 if ndim == 2 else (500,) * 3
    halo = default_halo(wide)
    tile = default_tile(wide, large, halo, plenty)
    assert min(tile) > 2 * max(halo)  # else most of the work is halo


def test_default_halo_is_whole_in_2d_and_bounded_in_3d():
    assert default_halo(NetworkSpec()) == (112, 112)
    assert default_halo(NetworkSpec(ndim=3)) == (32, 32, 32)
    small = NetworkSpec(ndim=3, features=(2, 3))
    assert default_halo(small) == small.halo


def test_options_that_don_t_apply_are_refused():
    objects, classes = make_model(output="objects"), make_model()
    image = make_image((20, 20))
    with pytest.raises(DataError, match="threshold"):
        Segmenter(objects).segment(image, threshold=0.5)
    with pytest.raises(DataError, match="Object settings"):
        Segmenter(classes).segment(image, objects=ObjectSettings())
    with pytest.raises(DataError, match="among the 3 classes"):
        Segmenter(objects).segment(image, objects=ObjectSettings(interior=5))


def test_memory_that_lacks_elsewhere_is_no_reason_for_smaller_tiles(monkeypatch):
    runs = []

    def full(self, *arguments):
        runs.append(1)
        raise MemoryError

    monkeypatch.setattr("napari_attunet.canvas.ObjectLabeller.label", full)
    with pytest.raises(MemoryError):
        Segmenter(make_model(output="objects")).segment(make_image((64, 64)))
    assert len(runs) == 1


def test_numbers_of_any_integer_type():
    model = make_model()
    tiled = Segmenter(model, tile=np.int64(16), halo=np.array(model.spec.network.halo))
    assert tiled.segment(make_image((40, 40))).record["exact"]


@pytest.mark.parametrize(
    ("shape", "axes", "region"),
    [
        ((160, 144), "YX", (slice(16, 112), slice(8, 104))),
        ((3, 160, 144), "TYX", (slice(1, 2), slice(16, 144), slice(0, 112))),
        ((160, 144, 2), "YXC", (slice(32, 112), slice(16, 112))),
    ],
)
def test_a_region_is_measured_with_the_whole(shape, axes, region):
    """Away from its border a region is what the whole image has there."""
    channels = shape[axes.index("C")] if "C" in axes else 1
    model = make_model(in_channels=channels)
    image = make_image(shape)
    image[..., :4, :] += 1000  # outside of the regions, but in the statistics
    whole = segment(image, model, axes=axes, probabilities=True)
    part = segment(image, model, axes=axes, probabilities=True, region=region)
    expected = whole.probabilities[(slice(None), *region)]
    assert part.labels.shape == expected.shape[1:]
    inner = (..., *(slice(h, -h) for h in model.spec.network.halo))
    assert expected[inner].size
    np.testing.assert_allclose(part.probabilities[inner], expected[inner], atol=1e-4)


@pytest.mark.parametrize("region", [(slice(0, 8),), (slice(0, 8), slice(4, 99))])
def test_a_region_outside_of_the_image_is_told(region):
    with pytest.raises(DataError, match="region"):
        segment(make_image((32, 32)), make_model(), region=region)
