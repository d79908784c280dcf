"""Skips and what comes from below them, joined and side by side."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from napari_attunet.networks import fused
from napari_attunet.networks.gates import AdditiveGate, Ports
from napari_attunet.networks.joined import Beside, Joint, Paired
from napari_attunet.networks.layers import channels_last
from napari_attunet.spec import GateSpec, NetworkSpec

onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="PyTorch comes without oneDNN"
)

THREE_LEVELS = NetworkSpec(features=(4, 6, 8))
PLAIN = NetworkSpec(features=(4, 6), gate=None)


@onednn
@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    channels=st.tuples(*[st.integers(1, 20)] * 3),
    kernel=st.sampled_from([1, 3]),
    bias=st.booleans(),
    relu=st.booleans(),
)
def test_two_convolved_as_if_they_were_joined(sizes, channels, kernel, bias, relu):
    torch.manual_seed(0)
    *entering, leaving = channels
    parts = [channels_last(torch.randn(2, c, *sizes)) for c in entering]
    before = [part.clone() for part in parts]
    weights = [torch.randn(leaving, c, *(kernel,) * len(sizes)) for c in entering]
    shift = torch.randn(leaving) if bias else None
    with torch.inference_mode():
        found = Paired(weights, shift, relu=relu)(parts)
    convolve = F.conv2d if len(sizes) == 2 else F.conv3d
    expected = convolve(
        torch.cat(parts, dim=1).double(),
        torch.cat(weights, dim=1).double(),
        shift.double() if bias else None,
        padding=kernel // 2,
    )
    expected = expected.relu() if relu else expected
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    for part, as_it_was in zip(parts, before, strict=True):
        assert torch.equal(part, as_it_was)


@pytest.mark.parametrize("kind", [Joint, pytest.param(Beside, marks=onednn)])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "softplus", "elu"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_gates_on_both(kind, activation, ndim):
    torch.manual_seed(0)
    ports = Ports(ndim=ndim, skip=5, signal=7, inner=3, stride=(1,) * ndim)
    gate = AdditiveGate(GateSpec(activation=activation), ports).eval()
    skip, up = torch.randn(2, 5, *(4,) * ndim), torch.randn(2, 7, *(4,) * ndim)
    with torch.inference_mode():
        passed, alpha = gate(skip, up)
        shut, _ = kind(gate)([skip, up], lambda alpha: alpha * 0)
        found, also = kind(gate)([skip, up])
    if kind is Beside:
        found, shut = torch.cat(found, dim=1), torch.cat(shut, dim=1)
    torch.testing.assert_close(found, torch.cat((passed, up), dim=1))
    torch.testing.assert_close(also, alpha)
    assert not shut[:, :5].any()


def kinds_in(network):
    return {type(module).__name__ for module in network.modules()}


@onednn
def test_nothing_is_joined_without_need(randomised):
    kinds = kinds_in(fused(randomised(THREE_LEVELS)))
    assert {"Paired", "Beside"} <= kinds
    assert "Joint" not in kinds
    assert "Paired" in kinds_in(fused(randomised(PLAIN)))


@onednn
def test_many_channels_are_joined_for_winograd(randomised):
    network = randomised(NetworkSpec(features=(4, 128, 128)))
    kinds = [type(b.get_submodule("0")).__name__ for b in fused(network).decoder]
    assert kinds == ["Paired", "Winograd"]


@pytest.mark.parametrize("spec", [THREE_LEVELS, PLAIN])
def test_where_convolutions_add_nothing_up(randomised, monkeypatch, caplog, spec):
    def refuses(self, parts):
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(Paired, "forward", refuses)
    network = randomised(spec)
    x = torch.randn(1, 1, *(3 * d for d in spec.divisor))
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        faster = fused(network)
        torch.testing.assert_close(faster(x), network(x), rtol=1e-4, atol=2e-5)
    assert ("Joint" in kinds_in(faster)) == (spec.gate is not None)
    assert not {"Paired", "Beside"} & kinds_in(faster)
    if torch.backends.mkldnn.is_available():
        assert "Paired is not used for" in caplog.text
