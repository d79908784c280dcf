"""The rewritten network against the one that it was made of."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from napari_attunet.networks import fuse, fused, operations
from napari_attunet.networks.joined import Paired
from napari_attunet.networks.layers import (
    RepeatedConv2d,
    RepeatedConv3d,
    channels_last,
    max_pool,
    repeated_kernel,
)
from napari_attunet.spec import GateSpec, NetworkSpec

THREE_LEVELS = NetworkSpec(features=(16, 20, 24), in_channels=2, out_channels=3)


def assert_same(found, expected):
    for ours, theirs in zip(
        (found.logits, *found.attention),
        (expected.logits, *expected.attention),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)
    assert found.auxiliary == ()


def an_image(spec, cells=3):
    return torch.randn(2, spec.in_channels, *(cells * d for d in spec.divisor))


def test_every_network_stays_the_same(spec, randomised, caplog):
    network = randomised(spec)
    x = an_image(spec)
    with torch.inference_mode():
        expected = network.explain(x)
        assert_same(fused(network).explain(x), expected)
    assert not caplog.records  # no operation was turned down


@settings(deadline=None)
@given(
    repeats=st.lists(st.integers(1, 4), min_size=2, max_size=3),
    seed=st.integers(0, 99),
)
def test_no_pixel_need_be_repeated(repeats, seed):
    torch.manual_seed(seed)
    ndim = len(repeats)
    x = torch.randn(2, 3, *torch.randint(1, 6, (ndim,)), dtype=torch.float64)
    weight = torch.randn(4, 3, *(3,) * ndim, dtype=torch.float64)
    larger = nn.Upsample(scale_factor=tuple(map(float, repeats)))(x)
    convolve = F.conv2d if ndim == 2 else F.conv3d
    transposed = F.conv_transpose2d if ndim == 2 else F.conv_transpose3d
    kernel = repeated_kernel(weight, repeats)
    expected = convolve(larger, weight, padding=1)
    torch.testing.assert_close(
        transposed(x, kernel, stride=tuple(repeats), padding=1), expected
    )
    layer = (RepeatedConv2d if ndim == 2 else RepeatedConv3d)(3, 4, repeats)
    layer.weight.data = weight.requires_grad_()
    torch.nn.init.zeros_(layer.bias)
    found = layer.double()(x)
    torch.testing.assert_close(found, expected)
    # what it learns is the same as well
    down = torch.randn_like(expected)
    (ours,) = torch.autograd.grad((found * down).sum(), layer.weight)
    again = convolve(larger, weight, padding=1)
    (theirs,) = torch.autograd.grad((again * down).sum(), weight)
    torch.testing.assert_close(ours, theirs)


@settings(deadline=None)
@given(
    strides=st.lists(st.integers(1, 4), min_size=2, max_size=3),
    channels=st.integers(1, 9),
    last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_pooling_needs_no_indices(strides, channels, last, seed):
    torch.manual_seed(seed)
    ndim = len(strides)
    cells = torch.randint(1, 6, (ndim,)).tolist()
    x = torch.randn(2, channels, *(s * c for s, c in zip(strides, cells, strict=True)))
    x[torch.rand(x.shape) < 0.05] = torch.nan
    x[torch.rand(x.shape) < 0.05] = -torch.inf
    if last:
        x = channels_last(x)
    pool = max_pool(ndim, strides)
    found = operations.MaxPool(pool)(x)
    torch.testing.assert_close(found, pool(x), rtol=0, atol=0, equal_nan=True)


def kinds_in(network):
    return {type(module).__name__ for module in network.modules()}


@pytest.mark.parametrize("ndim", [2, 3])
def test_what_is_saved(randomised, ndim):
    spec = NetworkSpec(ndim=ndim, features=(4, 6))
    kinds = kinds_in(fused(randomised(spec)))
    assert {"Matrix", "Repeated", "OneDNN", "MaxPool"} <= kinds
    wasted = {"BatchNorm2d", "BatchNorm3d", "Conv2d", "Conv3d"}
    wasted |= {"MaxPool2d", "MaxPool3d"}
    wasted |= {"RepeatedConv2d", "RepeatedConv3d"}
    assert not kinds & wasted


def test_the_network_is_left_as_it_was(randomised):
    network = randomised(THREE_LEVELS)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    kinds = kinds_in(network)
    fused(network)
    assert kinds_in(network) == kinds
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.stride() == before[name].stride()
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("ndim", [2, 3])
def test_channels_lie_last_from_the_first_layer_on(randomised, ndim, channels):
    spec = NetworkSpec(ndim=ndim, features=(4, 6), in_channels=channels)
    faster, layouts = fused(randomised(spec)), []
    layout = torch.channels_last if ndim == 2 else torch.channels_last_3d
    first = faster.encoder[0].get_submodule("0")
    first.register_forward_hook(
        lambda module, args, out: layouts.append(
            (out.is_contiguous(memory_format=layout), out.is_contiguous())
        )
    )
    faster(an_image(spec))
    assert layouts == [(True, False)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_numbers_of_others_go_on(randomised, dtype):
    network = randomised(THREE_LEVELS)
    state = torch.get_rng_state()
    fused(network, dtype)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_is_not_for_it(randomised):
    with pytest.raises(ValueError, match="evaluation"):
        fused(randomised(THREE_LEVELS).train())


def wrong(weight, repeats):
    return repeated_kernel(weight, repeats) * 1.01


def no_number(weight, repeats):
    return repeated_kernel(weight, repeats) * torch.nan


def refused(weight, repeats):
    raise RuntimeError("could not create a primitive")


def misshaped(weight, repeats):
    return repeated_kernel(weight, repeats)[:, :1]


@pytest.mark.parametrize("fault", [wrong, no_number, refused, misshaped])
def test_an_operation_that_fails_is_not_used(randomised, monkeypatch, caplog, fault):
    network = randomised(THREE_LEVELS)
    monkeypatch.setattr(operations, "repeated_kernel", fault)
    x = an_image(THREE_LEVELS)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        faster = fused(network)
        assert_same(faster.explain(x), network.explain(x))
    assert len(caplog.records) == 2  # once for each step up
    assert "Repeated is not used for RepeatedConv2d + BatchNorm2d" in caplog.text
    assert not any(isinstance(m, nn.BatchNorm2d) for m in faster.modules())


def test_pooling_that_fails_is_not_used(randomised, monkeypatch, caplog):
    network = randomised(THREE_LEVELS)
    x = an_image(THREE_LEVELS)
    monkeypatch.setattr(torch, "maximum", torch.minimum)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        faster = fused(network)
        assert_same(faster.explain(x), network.explain(x))
    assert "MaxPool is not used for MaxPool2d" in caplog.text
    assert "MaxPool2d" in kinds_in(faster)


def test_without_onednn(randomised, monkeypatch, caplog):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    network = randomised(THREE_LEVELS)
    x = an_image(THREE_LEVELS)
    with torch.inference_mode():
        faster = fused(network)
        assert_same(faster.explain(x), network.explain(x))
    assert "OneDNN" not in kinds_in(faster)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in faster.modules())


def test_everything_may_fail(randomised, monkeypatch, caplog):
    monkeypatch.setattr(fuse, "_disagreement", lambda found, expected: 1.0)
    network = randomised(THREE_LEVELS)
    faster = fused(network)
    x = an_image(THREE_LEVELS)
    with torch.inference_mode():
        assert_same(faster.explain(x), network.explain(x))
    assert kinds_in(faster) - kinds_in(network) == {"FusedUNet", "ModuleDict"}
    assert "differs by 1.0e+00" in caplog.text


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="oneDNN has no bfloat16 on this processor, not even emulated",
)
def test_half_the_bits_change_little(spec, randomised, caplog):
    network = randomised(spec)
    faster = fused(network, torch.bfloat16)
    assert faster.dtype == torch.bfloat16
    assert not caplog.records
    assert "Winograd" not in kinds_in(faster)
    x = an_image(spec)
    with torch.inference_mode():
        found, expected = faster.explain(x), network.explain(x)
    assert found.logits.dtype == torch.float32
    largest = expected.logits.abs().max()
    assert float((found.logits - expected.logits).abs().max()) < 0.1 * largest
    for mechanism, ours, theirs in zip(
        network.mechanisms, found.attention, expected.attention, strict=True
    ):
        assert ours.dtype == torch.float32
        if mechanism.kind != "pairwise":
            assert float((ours - theirs).abs().max()) < 0.1


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="oneDNN has no bfloat16 on this processor, not even emulated",
)
def test_what_all_pixels_share_is_not_rounded(randomised):
    network = randomised(THREE_LEVELS)
    exact, half = fused(network), fused(network, torch.bfloat16)
    first = half.encoder[0].get_submodule("0.first")
    assert torch.equal(first.weight, exact.encoder[0].get_submodule("0").weight)
    for name, module in half.named_modules():
        if isinstance(module, (operations.OneDNN, Paired)) and module is not first:
            weights = [p for n, p in module.named_parameters() if n != "bias"]
            assert {w.dtype for w in weights} == {torch.bfloat16}
            assert torch.equal(module.bias, exact.get_submodule(name).bias)
    # An image that bfloat16 would round to another.
    x = torch.full((1, 2, 8, 8), 1 + 2**-9)
    rounded = x.bfloat16().float()
    assert not torch.equal(x, rounded)
    with torch.inference_mode():
        assert not torch.equal(half(x), half(rounded))


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="oneDNN has no bfloat16 on this processor, not even emulated",
)
@pytest.mark.parametrize(("channels", "exact"), [(2, True), (4, False)])
def test_a_shortcut_takes_the_image_too(randomised, channels, exact):
    spec = NetworkSpec(in_channels=channels, features=(4, 6), residual=True)
    network = randomised(spec)
    half = fused(network, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    entrances = [m for m in half.modules() if isinstance(m, operations.Entrance)]
    assert len(entrances) == (2 if exact else 0)
    x = an_image(spec)
    with torch.inference_mode():
        difference = (half(x) - network(x)).abs().max()
        assert difference < 0.1 * network(x).abs().max()


def test_where_half_the_bits_do_not_do(randomised, monkeypatch, caplog):
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("not implemented for 'BFloat16'")

    monkeypatch.setattr(fuse.FusedUNet, "in_half", lambda self, dtype: Broken())
    network = randomised(THREE_LEVELS)
    x = an_image(THREE_LEVELS)
    with torch.inference_mode():
        faster = fused(network, torch.bfloat16)
        assert_same(faster.explain(x), network.explain(x))
    assert faster.dtype == torch.float32
    assert "float32, not in torch.bfloat16: not implemented" in caplog.text


def test_edits_reach_the_rewritten_gates(randomised):
    network = randomised(THREE_LEVELS)
    x = an_image(THREE_LEVELS)
    with torch.inference_mode():
        for edits in ({0: 1.0}, {1: 0.0}, {0: 0.3, 1: 0.6}):
            assert_same(fused(network).explain(x, edits), network.explain(x, edits))


def test_statistics_that_hardly_vary(randomised):
    # channels that are dead in training have a variance of nothing
    network = randomised(NetworkSpec(features=(4, 6), gate=GateSpec()))
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor[0] = 0
    x = an_image(network.spec)
    with torch.inference_mode():
        assert_same(fused(network).explain(x), network.explain(x))
