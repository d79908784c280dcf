"""A part of an image is answered as the whole is, and edits do what they say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_attunet.errors import DataError, DeviceError
from napari_attunet.inspection import Inspection
from napari_attunet.model import Model
from napari_attunet.networks import AttentionUNet
from napari_attunet.progress import drain
from napari_attunet.segmenter import Segmenter
from napari_attunet.spec import (
    AttentionSpec,
    GateSpec,
    ModelSpec,
    NetworkSpec,
    TransformerSpec,
)


def make_model(output="classes", **network):
    options = {"features": (3, 4, 5), "out_channels": 3, **network}
    spec = ModelSpec(name="m", network=NetworkSpec(**options), output=output)
    model = Model.fresh(spec, seed=0)
    with torch.no_grad():
        for name, tensor in model.network.state_dict().items():
            if name.endswith(("weight", "bias")):
                generator = torch.Generator().manual_seed(len(name))
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    return model


def make_image(*shape):
    return np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(3, 90), st.integers(3, 90)),
    start=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    signal=st.sampled_from(["fine", "coarse", "bottleneck"]),
)
def test_a_part_is_answered_as_in_the_whole(shape, start, size, signal):
    model = make_model(gate=GateSpec(signal=signal))
    image = make_image(*shape)
    region = []
    for length, share, extent in zip(shape, start, size, strict=True):
        first = int(share * length)
        region.append(slice(first, min(length, first + extent)))
    segmenter = Segmenter(model)
    whole = segmenter.segment(image, axes="YX", probabilities=True, attention=True)

    inspection = Inspection(segmenter, image, axes="YX", region=region)
    found = inspection.answer()

    for asked, used in zip(region, inspection.region, strict=True):
        assert used.start <= asked.start < asked.stop <= used.stop
        assert used.start % 4 == 0
    part = whole.probabilities[(slice(None), *inspection.region)]
    np.testing.assert_allclose(found.probabilities, part, atol=1e-4)
    for of_part, of_whole in zip(found.attention, whole.attention, strict=True):
        assert (of_part.name, of_part.scale) == (of_whole.name, of_whole.scale)
        cells = tuple(
            slice(r.start // s, -(-r.stop // s))
            for r, s in zip(inspection.region, of_whole.scale, strict=True)
        )
        np.testing.assert_allclose(of_part.values, of_whole.values[cells], atol=1e-4)


@pytest.mark.parametrize("signal", ["fine", "coarse", "bottleneck"])
def test_editing_nothing_changes_nothing(signal):
    segmenter = Segmenter(make_model(gate=GateSpec(signal=signal)))
    inspection = Inspection(segmenter, make_image(40, 52), axes="YX")
    before = inspection.answer()
    same = {m.level: m.values for m in before.attention}
    unknown = {n: np.full_like(values, np.nan) for n, values in same.items()}
    for again in (
        inspection.answer(),
        inspection.answer(same),
        inspection.answer(unknown),
    ):
        assert np.array_equal(again.probabilities, before.probabilities)
        assert np.array_equal(again.labels, before.labels)


def test_it_is_exact_whatever_the_segmenter_is(monkeypatch):
    monkeypatch.setattr("napari_attunet.devices.has_bfloat16", lambda name: True)
    model, image = make_model(), make_image(40, 52)
    fast, exact = (
        Inspection(Segmenter(model, device="cpu", precision=p), image).answer({1: 1.0})
        for p in ("fast", "exact")
    )
    np.testing.assert_array_equal(fast.probabilities, exact.probabilities)


def test_what_a_gate_lets_through_can_be_painted():
    segmenter = Segmenter(make_model())
    inspection = Inspection(segmenter, make_image(40, 52), axes="YX")
    before = inspection.answer()
    painted = before.attention[1].values.copy()
    painted[:4] = 0
    after = inspection.answer({2: painted})
    assert np.array_equal(after.attention[1].values, painted)
    assert np.array_equal(after.attention[1].values[4:], before.attention[1].values[4:])
    assert not np.array_equal(after.probabilities, before.probabilities)
    assert np.array_equal(inspection.answer().labels, before.labels)


@pytest.mark.parametrize("ndim", [2, 3])
def test_of_a_stack_one_position_is_looked_at(ndim):
    model = make_model(ndim=ndim, features=(3, 4))
    image = make_image(3, 8, 20, 24)
    region = (slice(1, 2), slice(2, 3) if ndim == 2 else slice(0, 8))
    region += (slice(4, 20), slice(0, 24))
    inspection = Inspection(Segmenter(model), image, axes="TZYX", region=region)
    found = inspection.answer()
    assert found.labels.shape == (1, 1 if ndim == 2 else 8, 16, 24)
    edits = {1: found.attention[0].values}
    again = inspection.answer(edits)
    assert np.array_equal(again.probabilities, found.probabilities)
    with pytest.raises(DataError, match="one position along"):
        Inspection(Segmenter(model), image, axes="TZYX")


def test_axes_may_stand_in_any_order():
    model = make_model(in_channels=2)
    image = make_image(2, 36, 28)
    part = (slice(16, 32), slice(4, 28))
    one = Inspection(Segmenter(model), image, axes="CYX", region=part)
    other = Inspection(
        Segmenter(model), image.transpose(2, 1, 0), axes="XYC", region=part[::-1]
    )
    assert one.region == other.region[::-1] == part
    straight, turned = one.answer(), other.answer()
    np.testing.assert_allclose(
        straight.probabilities, turned.probabilities.transpose(0, 2, 1), atol=1e-5
    )
    painted = turned.attention[0].values * 0.5
    edited = other.answer({1: painted})
    assert np.array_equal(edited.attention[0].values, painted)
    expected = one.answer({1: painted.T})
    np.testing.assert_allclose(
        expected.probabilities, edited.probabilities.transpose(0, 2, 1), atol=1e-5
    )


def test_each_gate_is_opened_and_closed_in_turn():
    inspection = Inspection(Segmenter(make_model()), make_image(40, 52), axes="YX")
    labels = inspection.answer().labels
    found = drain(inspection.ablations(labels))
    assert [(a.level, a.state) for a in found] == [
        *((0, "as learnt"), (1, "open"), (2, "open"), (1, "closed"), (2, "closed"))
    ]
    assert (found[0].dice, found[0].changed) == (1, 0)
    assert any(a.changed for a in found[1:])
    assert all((a.dice < 1) == (a.changed > 0) for a in found)
    with pytest.raises(DataError, match="choose labels"):
        drain(inspection.ablations(labels[:8]))


@pytest.mark.parametrize("pool", [1, 2])
def test_where_a_position_looks(pool):
    attention = (AttentionSpec(kind="self", where="bottleneck", pool=pool),)
    model = make_model(attention=attention, features=(4, 8, 16))
    inspection = Inspection(Segmenter(model), make_image(64, 48), axes="YX")
    (mechanism,) = (m for m in inspection.mechanisms if m.kind == "pairwise")
    one = inspection.look(mechanism, (0, 0))
    assert one.scale == (4 * pool,) * 2
    assert one.values.shape == (16 // pool, 12 // pool)
    assert one.values.max() == 1
    assert one.values.min() >= 0
    assert one.translate == ((4 * pool - 1) / 2,) * 2
    assert not np.array_equal(one.values, inspection.look(mechanism, (60, 40)).values)


def turned(model):
    """Let its transformer look at the image turned by a quarter."""
    last = model.network.transformer.localisation[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, -1, 0, 1, 0, 0]))
    return model


def test_editing_nothing_changes_nothing_where_the_image_is_turned():
    model = turned(make_model(transformer=TransformerSpec()))
    inspection = Inspection(Segmenter(model), make_image(40, 40), axes="YX")
    before = inspection.answer()
    same = {m.level: m.values for m in before.attention}
    again = inspection.answer(same)
    np.testing.assert_allclose(again.probabilities, before.probabilities, atol=1e-6)
    painted = before.attention[0].values.copy()
    painted[:8, :8] = 0
    after = inspection.answer({1: painted})
    np.testing.assert_allclose(after.attention[0].values, painted, atol=1e-5)


def test_a_position_looks_the_same_way_where_the_image_is_turned():
    options = {
        "attention": (AttentionSpec(kind="self", where="bottleneck"),),
        "features": (4, 8, 16),
    }
    image = make_image(32, 32)
    upright = make_model(**options)
    plain = Inspection(Segmenter(upright), np.rot90(image), axes="YX")
    model = turned(make_model(**options, transformer=TransformerSpec()))
    model.network.load_state_dict(upright.network.state_dict(), strict=False)
    seen = Inspection(Segmenter(model), image, axes="YX")
    (one,) = (m for m in plain.mechanisms if m.kind == "pairwise")
    (other,) = (m for m in seen.mechanisms if m.kind == "pairwise")
    in_frame = plain.look(one, (31 - 20, 5)).values
    np.testing.assert_allclose(
        seen.look(other, (5, 20)).values, np.rot90(in_frame, -1), atol=1e-3
    )


def test_a_part_too_large_for_the_memory_is_told(monkeypatch):
    def full(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    model = make_model()
    monkeypatch.setattr(AttentionUNet, "encode", full)
    with pytest.raises(DeviceError, match="choose a smaller part"):
        Inspection(Segmenter(model), make_image(40, 52), axes="YX")


@pytest.mark.parametrize("position", [(64, 0), (-1, 0), (0,)])
def test_a_position_outside_is_refused(position):
    attention = (AttentionSpec(kind="self", where="bottleneck"),)
    inspection = Inspection(
        Segmenter(make_model(attention=attention)), make_image(64, 48), axes="YX"
    )
    (mechanism,) = (m for m in inspection.mechanisms if m.kind == "pairwise")
    with pytest.raises(DataError, match="doesn't lie in the part"):
        inspection.look(mechanism, position)


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ({3: 1.0}, "no gate at level 3"),
        ({1: 1.5}, "between 0"),
        ({1: float("inf")}, "between 0"),
        ({2: np.zeros((3, 3))}, "has the shape"),
    ],
)
def test_what_is_no_edit_is_refused(edits, said):
    inspection = Inspection(Segmenter(make_model()), make_image(40, 52), axes="YX")
    with pytest.raises(DataError, match=said):
        inspection.answer(edits)


@pytest.mark.parametrize(
    ("region", "said"),
    [((slice(4, 4), slice(0, 8)), "holds nothing"), ((slice(0, 8),), "needs a part")],
)
def test_what_is_no_region_is_refused(region, said):
    with pytest.raises(DataError, match=said):
        Inspection(
            Segmenter(make_model()), make_image(40, 52), axes="YX", region=region
        )
