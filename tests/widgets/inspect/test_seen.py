"""What is seen lies where it belongs, and the probe tells what the layers show."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.components import LayerList, ViewerModel
from napari.layers import Image, Labels

from napari_attunet.canvas import AttentionMap, AttentionTable
from napari_attunet.errors import DataError
from napari_attunet.model import Model, save_model
from napari_attunet.progress import drain
from napari_attunet.spec import AttentionSpec, GateSpec, ModelSpec, NetworkSpec
from napari_attunet.widgets import warm
from napari_attunet.widgets.delivery import EditWatch, deliver
from napari_attunet.widgets.inspect.look import Look, last_run, statistics_steps
from napari_attunet.widgets.inspect.seen import Seen
from napari_attunet.widgets.poses import Pose, in_units_of
from napari_attunet.widgets.results import Settings, compute, plan

#: napari says so of every volume that is turned out of its slices.
pytestmark = pytest.mark.filterwarnings("ignore:Non-orthogonal slicing:UserWarning")


def attention(shape, scale, name="α level 1", kind="gate", seed=0) -> AttentionMap:
    cells = tuple(-(-n // f) for n, f in zip(shape, scale, strict=True))
    values = np.random.default_rng(seed).random(cells).astype(np.float32)
    return AttentionMap(
        name=name,
        level=1,
        kind=kind,
        values=values,
        scale=tuple(scale),
        translate=tuple((f - 1) / 2 for f in scale),
    )


def seen_of(layer: Image, axes: str, region, factors, ndim=2, **more) -> Seen:
    """Return something seen of a part, with maps coarser by the factors."""
    spec = ModelSpec(
        name="m", network=NetworkSpec(ndim=ndim, out_channels=3, features=(3, 4))
    )
    part = tuple(r.stop - r.start for r in region)
    label_axes = axes.replace("C", "")
    maps = []
    for number, factor in enumerate(factors):
        scale = [factor if a in "ZYX"[-ndim:] else 1 for a in label_axes]
        maps.append(attention(part, scale, name=f"map {number}", seed=number))
    probabilities = np.random.default_rng(9).random((3, *part)).astype(np.float32)
    options = {"tables": (), "output": "classes", **more}
    return Seen(
        spec=spec,
        axes=axes,
        shape=tuple(layer.data.shape),
        pose=Pose.of(layer),
        rgb=layer.rgb,
        region=tuple(region),
        labels=np.zeros(part, np.int32),
        maps=tuple(maps),
        probabilities=probabilities,
        **options,
    )


FINITE = st.floats(-30, 30, allow_nan=False)
FACTOR = st.floats(0.2, 4)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_probe_tells_what_the_layers_show_under_any_affine(data):
    kind = data.draw(st.sampled_from(["YX", "YXC", "TYX", "CYX", "ZYX"]))
    sizes = {"C": 3, "T": 3, "Z": 9, "Y": 41, "X": 52}
    shape = tuple(sizes[axis] for axis in kind)
    count = len(kind) - (kind == "YXC")
    matrix = np.eye(count + 1)
    matrix[:count, :count] += data.draw(
        st.lists(
            st.lists(st.floats(-0.3, 0.3), min_size=count, max_size=count),
            min_size=count,
            max_size=count,
        )
    )
    matrix[:count, count] = data.draw(st.lists(FINITE, min_size=count, max_size=count))
    layer = Image(
        np.zeros(shape, np.uint8),
        rgb=kind == "YXC",
        scale=data.draw(st.lists(FACTOR, min_size=count, max_size=count)),
        translate=data.draw(st.lists(FINITE, min_size=count, max_size=count)),
        rotate=data.draw(st.floats(-80, 80)) if count == 2 else None,
        affine=matrix,
    )
    ndim = 3 if kind == "ZYX" else 2
    label_axes = kind.replace("C", "")
    region = []
    for axis in label_axes:
        grid = 8 if axis in "ZYX"[-ndim:] else 1
        first = data.draw(st.integers(0, (sizes[axis] - 1) // grid)) * grid
        last = data.draw(st.integers(first + 1, sizes[axis]))
        region.append(slice(first, last))
    seen = seen_of(layer, kind, region, (1, 2, 4, 8), ndim)
    layers = []
    for found in seen.maps:
        values, pose = seen.fit(found.values, found.scale, found.translate)
        layers.append(Image(values, **pose.arguments()))

    # Within a pixel, not at its rim, where a rounding error decides.
    pixel = [data.draw(st.integers(r.start, r.stop - 1)) for r in region]
    within = [p + data.draw(st.floats(-0.4, 0.4)) for p in pixel]
    place = dict(zip(label_axes, within, strict=True)) | {"C": 1.0}
    world = layer.data_to_world([place[axis] for axis in kind[:count]])
    probed = seen.probe((7.0, *world))  # the viewer may have more axes

    assert probed is not None
    assert probed.position == tuple(pixel)
    assert len(probed.attention) == len(layers) == 4
    for (_, value), shown in zip(probed.attention, layers, strict=True):
        cell = np.round(shown.world_to_data(world[-shown.ndim :])).astype(int)
        assert shown.data[tuple(cell)] == value
    local = tuple(p - r.start for p, r in zip(pixel, region, strict=True))
    for number, (_, value) in enumerate(probed.classes):
        assert value == seen.probabilities[(number, *local)]


def test_what_begins_before_the_part_lies_there():
    layer = Image(np.zeros((40, 40), np.uint8), scale=(2, 2))
    seen = seen_of(layer, "YX", (slice(8, 40), slice(16, 40)), (1,))
    _, pose = seen.fit(np.zeros((9, 9)), (4, 4), (-6.5, -2.5))
    # Its first cell covers the pixels -8 to -5 and -4 to -1 before the part.
    np.testing.assert_allclose(pose.translate, (2 * (8 - 6.5), 2 * (16 - 2.5)))
    np.testing.assert_allclose(pose.scale, (8, 8))


def test_beside_the_part_there_is_nothing():
    layer = Image(np.zeros((40, 40), np.uint8))
    seen = seen_of(layer, "YX", (slice(8, 16), slice(8, 24)), (1, 2))
    assert seen.probe((8.0, 8.0)) is not None
    assert seen.probe((7.6, 23.4)) is not None
    for beside in ((7.4, 10.0), (16.0, 10.0), (10.0, 23.6), (-3.0, 10.0)):
        assert seen.probe(beside) is None


def test_self_attention_and_channels_are_not_probed():
    layer = Image(np.zeros((16, 16), np.uint8))
    seen = seen_of(layer, "YX", (slice(0, 16), slice(0, 16)), (1,))
    pairs = attention((16, 16), (2, 2), name="pairs", kind="pairwise")
    seen = replace(seen, maps=(*seen.maps, pairs))
    assert [name for name, _ in seen.probe((3, 3)).attention] == ["map 0"]


@pytest.mark.parametrize(
    ("axes", "shape", "labels"),
    [
        ("YX", (20, 24), (20, 24)),
        ("YXC", (20, 24, 3), (20, 24)),
        ("CYX", (3, 20, 24), (20, 24)),
        ("CYX", (3, 20, 24), (1, 20, 24)),
        ("TCYX", (4, 3, 20, 24), (4, 20, 24)),
    ],
)
def test_the_part_of_labels(axes, shape, labels):
    layer = Image(np.zeros(shape, np.uint8), rgb=axes == "YXC")
    numbers = Labels(np.arange(np.prod(labels)).reshape(labels))
    region = [slice(1, 2), slice(4, 12), slice(8, 24)][-len(axes.replace("C", "")) :]
    seen = seen_of(layer, axes, region, (1,))
    found = seen.part_of(layer, numbers)()
    plain = numbers.data.reshape(numbers.data.shape[-len(region) :])
    np.testing.assert_array_equal(found, plain[tuple(region)])
    with pytest.raises(DataError, match="Choose other labels"):
        seen.part_of(layer, Labels(np.zeros((5, 5), int)))


def test_rows_are_those_of_the_tile_and_frame():
    layer = Image(np.zeros((3, 32, 64), np.uint8))
    region = (slice(0, 3), slice(0, 32), slice(0, 64))
    values = np.arange(3 * 2 * 4, dtype=np.float32).reshape(3, 2, 4)
    # Two tiles that overlap, as they are read.
    regions = (
        (slice(-8, 40), slice(-8, 40)),
        (slice(-8, 40), slice(24, 72)),
    )
    table = AttentionTable("SE", 1, "channel", values, regions)
    seen = seen_of(layer, "TYX", region, (1,), tables=(table,))
    assert seen.row_of(table, (2, 10, 5)) == (2, 0)
    assert seen.row_of(table, (0, 10, 60)) == (0, 1)
    assert seen.row_of(table, (1, 10, 30)) == (1, 0)
    assert seen.row_of(table, (1, 10, 35)) == (1, 1)
    assert seen.row_of(table, (99, -50, 999)) == (2, 1)  # beside it, the nearest


def test_points_of_the_part_are_points_of_the_layer():
    layer = Image(np.zeros((5, 3, 32, 64), np.uint8))
    region = (slice(4, 5), slice(8, 32), slice(16, 64))
    seen = seen_of(layer, "TCYX", region, (1,))
    points = seen.spread(np.array([(0.0, 0.0), (2.0, 3.0)]), (0,))
    np.testing.assert_array_equal(points, [(4, 0, 8, 16), (4, 0, 10, 19)])


# --- a look, and what the last run left ------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    network = NetworkSpec(
        out_channels=3,
        features=(4, 6, 8),
        gate=GateSpec(),
        attention=(AttentionSpec(kind="cbam", where="decoder"),),
    )
    spec = ModelSpec(
        name="grey", network=network, classes=("none", "cell", "edge"), output="objects"
    )
    path = tmp_path_factory.mktemp("models") / "grey@1.safetensors"
    save_model(Model.fresh(spec, seed=1), path)
    return path, spec


def cells(*shape) -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)


def segmented(layers: LayerList, source: Image, weights, **chosen) -> None:
    path, spec = weights
    task = plan(layers, source, spec, Settings(model=str(path), **chosen))
    outcome = drain(compute(task))
    list(deliver(outcome, layers, source, EditWatch(layers, task)))


def test_the_last_run_is_there_again(weights):
    source = Image(cells(40, 48), name="cells", scale=(2, 2))
    layers = LayerList([source])
    assert last_run(layers, source, weights[1]) is None
    segmented(layers, source, weights)
    seen = last_run(layers, source, weights[1])

    assert seen is not None
    assert seen.inspection is None
    assert seen.region == (slice(0, 40), slice(0, 48))
    assert [m.kind for m in seen.maps] == ["gate", "gate", "spatial", "spatial"]
    assert [t.kind for t in seen.tables] == ["channel", "channel"]
    shown = {id(layer.data) for layer in layers}
    assert all(id(m.values) in shown for m in seen.maps)  # no copy is kept
    same, found = drain(statistics_steps(seen, lambda: seen.labels))
    assert same is seen
    assert [g.name for g in found] == [m.name for m in seen.maps]

    labels = next(layer for layer in layers if isinstance(layer, Labels))
    labels.data[3, 4] = 77
    assert last_run(layers, source, weights[1]).labels[3, 4] == 77  # as corrected
    # Of another run only the labels are new: the maps that are left are not its own.
    segmented(layers, source, weights, attention=False)
    assert last_run(layers, source, weights[1]) is None
    segmented(layers, source, weights)
    assert last_run(layers, source, weights[1]) is not None
    source.data = cells(5, 40, 48)
    assert last_run(layers, source, weights[1]) is None


def test_a_run_of_a_stack_with_channels_is_there_again(weights):
    source = Image(cells(2, 3, 24, 32), name="cells", axis_labels=("c", "t", "y", "x"))
    layers = LayerList([source])
    segmented(layers, source, weights, channels=(1,))
    seen = last_run(layers, source, weights[1])
    assert seen.label_axes == "TYX"
    assert seen.labels.shape == (3, 24, 32)
    assert seen.probe((0, 2, 5, 6)).position == (2, 5, 6)


def test_a_look_answers_as_the_whole_image(weights):
    path, spec = weights
    viewer = ViewerModel()
    source = viewer.add_image(cells(3, 200, 180), axis_labels=("t", "y", "x"))
    source.corner_pixels = np.array([(1, 40, 60), (1, 140, 150)])
    viewer.dims.set_point(0, 1)
    look = Look.of(viewer, source, spec, Settings(model=str(path)))
    seen = drain(look.compute())

    assert seen.look is look
    assert seen.output == "objects"
    time, rows, columns = seen.region
    assert (time.start, time.stop) == (1, 2)
    assert rows.start <= 40 < 140 < rows.stop
    assert columns.start <= 60 < 150 < columns.stop
    assert seen.labels.shape == (
        1,
        rows.stop - rows.start,
        columns.stop - columns.start,
    )
    assert seen.probabilities.shape == (3, *seen.labels.shape)
    assert "t 1, y " in seen.describe()


def test_a_look_is_as_precise_as_the_run(weights):
    path, spec = weights
    viewer = ViewerModel()
    source = viewer.add_image(cells(64, 64))
    settings = Settings(model=str(path), device="cpu", threads=1, precision="exact")
    drain(Look.of(viewer, source, spec, settings).compute())
    same = {"device": "cpu", "threads": 1, "tile": None, "precision": "exact"}
    assert warm._kept is not None
    kept = warm._kept[1]
    assert warm.segmenter_for(str(path), **same) is kept


def test_a_look_and_the_last_run_agree(tmp_path):
    network = NetworkSpec(out_channels=3, features=(4, 6, 8), gate=GateSpec())
    spec = ModelSpec(name="local", network=network)  # nothing in it pools
    path = tmp_path / "local@1.safetensors"
    save_model(Model.fresh(spec, seed=1), path)
    viewer = ViewerModel()
    source = viewer.add_image(cells(200, 180), scale=(2, 3))
    source.corner_pixels = np.array([(40, 60), (140, 150)])
    look = Look.of(viewer, source, spec, Settings(model=str(path)))
    seen = drain(look.compute())
    layers = LayerList([source])
    segmented(layers, source, (path, spec))
    whole = last_run(layers, source, spec)
    assert "last run" in whole.describe()
    np.testing.assert_array_equal(seen.labels, whole.labels[seen.region])
    for world in ((180.0, 300.0), (112.0, 201.0), (250.0, 333.0)):
        here, there = seen.probe(world), whole.probe(world)
        assert here.position == there.position
        for (name, value), (other, expected) in zip(
            here.attention, there.attention, strict=True
        ):
            assert name == other
            assert value == pytest.approx(expected, abs=1e-5)
        assert there.classes == ()
        assert (
            int(np.argmax([p for _, p in here.classes])) == whole.labels[here.position]
        )


def test_units_of_the_viewer_are_not_those_of_the_layer():
    viewer = ViewerModel()
    viewer.add_image(cells(40, 40), scale=(0.5, 0.5), units="um")
    layer = viewer.add_image(cells(40, 40), scale=(500, 500), units="nm")
    dims = SimpleNamespace(units=viewer.layers[0].units)
    place = in_units_of(layer, dims, (5.0, 10.0))
    np.testing.assert_allclose(Pose.of(layer).pixel_at(place), (10, 20))
