"""Specifications validate themselves and travel as JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_attunet.errors import ModelError
from napari_attunet.schema import from_json, to_json
from napari_attunet.spec import (
    AttentionSpec,
    GateSpec,
    ModelSpec,
    NetworkSpec,
    Normalization,
    ObjectSettings,
)


@st.composite
def network_specs(draw):
    ndim = draw(st.sampled_from([2, 3]))
    levels = draw(st.integers(2, 5))
    stride = st.tuples(*[st.integers(1, 3)] * ndim)
    gate = st.builds(
        GateSpec,
        kind=st.sampled_from(["additive", "multiplicative"]),
        signal=st.sampled_from(["fine", "coarse"]),
        activation=st.sampled_from(["relu", "leaky_relu", "softplus", "elu"]),
        channels=st.none() | st.just(tuple(range(1, levels))),
        norm=st.sampled_from(["batch", "instance", "group", None]),
    )
    return NetworkSpec(
        ndim=ndim,
        in_channels=draw(st.integers(1, 4)),
        out_channels=draw(st.integers(1, 5)),
        features=tuple(draw(st.integers(1, 64)) for _ in range(levels)),
        strides=tuple(draw(stride) for _ in range(levels - 1)),
        gate=draw(st.none() | gate),
        norm=draw(st.sampled_from(["batch", "instance", "group", None])),
        upsampling=draw(st.sampled_from(["nearest", "transposed"])),
    )


@given(network_specs())
def test_json_round_trip(network):
    spec = ModelSpec(
        name="über-model",
        network=network,
        normalization=Normalization(kind="zscore", clip=(-3.0, 3.0)),
        pixel_size=(0.5,) * network.ndim,
        training={"scores": {"dice": 0.5}},
    )
    assert from_json(ModelSpec, to_json(spec)) == spec


@given(network_specs())
def test_halo_lies_on_the_grid(network):
    for halo, divisor in zip(network.halo, network.divisor, strict=True):
        assert halo > 0
        assert halo % divisor == 0


def test_halo_of_the_reference_network():
    """Five levels see 110 pixels to each side, known from measuring the original."""
    assert NetworkSpec().halo == (112, 112)


def test_defaults_are_filled_in():
    spec = ModelSpec(name="m", network=NetworkSpec(features=(4, 8), out_channels=1))
    assert spec.network.strides == ((2, 2),)
    assert spec.classes == ("background", "class 1")
    assert spec.key == "m@1"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NetworkSpec(ndim=4), "one of"),
        (lambda: NetworkSpec(norm="layer"), "one of"),
        (lambda: NetworkSpec(upsampling="bilinear"), "one of"),
        (lambda: GateSpec(signal="grid"), "one of"),
        (lambda: GateSpec(activation="gelu"), "one of"),
        (lambda: Normalization(kind="minmax"), "one of"),
        (lambda: Normalization(clip=(1.0, 0.0)), "rise"),
        (lambda: ObjectSettings(boundary=0), "from 1"),
        (lambda: NetworkSpec(features=(8,)), "two levels"),
        (lambda: NetworkSpec(features=(8, 16), strides=((2, 2),) * 2), "strides"),
        (lambda: NetworkSpec(features=(8, 16), strides=((2,),)), "strides"),
        (lambda: NetworkSpec(in_channels=0), "at least one input"),
        (lambda: NetworkSpec(gate=GateSpec(channels=(1,))), "gate channels"),
        (lambda: GateSpec(channels=(0,)), "positive"),
        (lambda: Normalization(low=99, high=1), "low < high"),
        (lambda: ObjectSettings(seed_threshold=2), "between 0 and 1"),
        (lambda: ObjectSettings(interior=1, boundary=1), "two different"),
        (lambda: ModelSpec(name="a/b", network=NetworkSpec()), "cannot name"),
        (lambda: ModelSpec(name="", network=NetworkSpec()), "cannot name"),
        (lambda: ModelSpec(name="m", version=0, network=NetworkSpec()), "from 1"),
        (lambda: ModelSpec(name="m", network=NetworkSpec(), classes=("a",)), "names"),
        (lambda: ModelSpec(name="m", network=NetworkSpec(), threshold=2.0), "between"),
        (lambda: ModelSpec(name="m", network=NetworkSpec(), output="objects"), "among"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ModelError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ndim": 5}, "one of"),
        ({"ndim": True}, "one of"),
        ({"features": "16"}, "list"),
        ({"features": [16, 2.5]}, "int"),
        ({"gate": {"kind": 3}}, "str"),
        ({"colour": "red"}, "unknown fields"),
        ({"norm": "layer"}, "one of"),
    ],
)
def test_a_header_is_checked_field_by_field(change, message):
    data = json.loads(to_json(NetworkSpec())) | change
    with pytest.raises(ModelError, match=message):
        from_json(NetworkSpec, json.dumps(data))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"version": 1}'])
def test_what_is_no_specification(text):
    with pytest.raises(ModelError):
        from_json(ModelSpec, text)


@pytest.mark.parametrize(
    "attention",
    [
        (AttentionSpec(kind="se"), AttentionSpec(kind="se")),
        (AttentionSpec(kind="cbam"), AttentionSpec(kind="cbam", where="decoder")),
        (AttentionSpec(where="encoder"), AttentionSpec(where="bottleneck")),
    ],
)
def test_a_block_has_each_kind_of_attention_once(attention):
    with pytest.raises(ModelError, match="once"):
        NetworkSpec(features=(4, 8), attention=attention)


def test_different_places_may_have_the_same_kind():
    places = (AttentionSpec(where="encoder"), AttentionSpec(where="decoder"))
    assert NetworkSpec(features=(4, 8), attention=places).attention == places


def test_a_grid_gate_takes_a_coarse_signal():
    assert GateSpec(kind="grid").signal == "coarse"
    with pytest.raises(ModelError, match="coarse"):
        GateSpec(kind="grid", signal="fine")
