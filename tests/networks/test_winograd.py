"""Winograd's algorithm against the convolution itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from napari_attunet.networks import AttentionUNet, fused
from napari_attunet.networks.winograd import winograd_convolution, winograd_weight
from napari_attunet.spec import NetworkSpec


@settings(deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, 40),) * 2),
    channels=st.tuples(*(st.integers(1, 9),) * 2),
    count=st.integers(1, 3),
    biased=st.booleans(),
    last=st.booleans(),
    relu=st.booleans(),
)
def test_it_is_the_convolution(shape, channels, count, biased, last, relu):
    torch.manual_seed(0)
    into, out = channels
    x = torch.randn(count, into, *shape, dtype=torch.float64)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(out, into, 3, 3, dtype=torch.float64)
    bias = torch.randn(out, dtype=torch.float64) if biased else None
    before = x.clone()
    found = winograd_convolution(x, winograd_weight(weight), bias, relu=relu)
    expected = F.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(found, expected.relu() if relu else expected)
    assert torch.equal(x, before)


@settings(deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, 40),) * 2),
    channels=st.tuples(*(st.integers(1, 9),) * 2),
    repeats=st.tuples(*(st.integers(1, 2),) * 2),
    count=st.integers(1, 3),
    relu=st.booleans(),
)
def test_no_pixel_need_be_repeated(shape, channels, repeats, count, relu):
    torch.manual_seed(0)
    into, out = channels
    x = torch.randn(count, into, *shape, dtype=torch.float64)
    weight = torch.randn(out, into, 3, 3, dtype=torch.float64)
    bias = torch.randn(out, dtype=torch.float64)
    transformed = winograd_weight(weight, repeats)
    kept = {1: 6, 2: 5}  # what meets a zero is left out
    assert transformed.shape[2:4] == tuple(kept[r] for r in repeats)
    found = winograd_convolution(x, transformed, bias, relu=relu)
    larger = x.repeat_interleave(repeats[0], 2).repeat_interleave(repeats[1], 3)
    expected = F.conv2d(larger, weight, bias, padding=1)
    torch.testing.assert_close(found, expected.relu() if relu else expected)


def test_many_patches_go_in_parts():
    x = torch.randn(2, 3, 90, 70, dtype=torch.float64)  # 18 patches across, 23 down
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    found = winograd_convolution(x, winograd_weight(weight), None)
    torch.testing.assert_close(found, F.conv2d(x, weight, padding=1))


def test_rounding_stays_small():
    x = torch.randn(1, 512, 32, 32)
    weight = torch.randn(256, 512, 3, 3) / 68
    found = winograd_convolution(x, winograd_weight(weight), None)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    assert (found - exact).abs().max() < 1e-4 * exact.abs().max()


@pytest.mark.parametrize(("features", "used"), [(127, False), (128, True)])
def test_it_is_for_many_channels(features, used):
    network = AttentionUNet(NetworkSpec(features=(8, features))).eval()
    kinds = {type(m).__name__ for m in fused(network).modules()}
    assert ("Winograd" in kinds) == used


@pytest.mark.parametrize(
    ("strides", "used"), [((2, 2), True), ((1, 2), True), ((2, 3), False)]
)
def test_it_serves_the_step_up(strides, used, caplog):
    network = AttentionUNet(
        NetworkSpec(features=(128, 128), strides=(strides,), gate=None)
    ).eval()
    faster = fused(network)
    assert ("Winograd" in {type(m).__name__ for m in faster.ups.modules()}) == used
    assert not caplog.records
    x = torch.randn(1, 1, 4 * strides[0], 4 * strides[1])
    with torch.inference_mode():
        torch.testing.assert_close(faster(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="oneDNN has no bfloat16 on this processor, not even emulated",
)
def test_half_the_bits_would_not_do():
    network = AttentionUNet(NetworkSpec(features=(8, 128))).eval()
    half = fused(network, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert "Winograd" not in {type(m).__name__ for m in half.modules()}
