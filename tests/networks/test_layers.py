"""Layers of our own against PyTorch's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from napari_attunet.networks.layers import (
    channels_last,
    for_channels,
    norm,
    repeated_kernel,
)


@settings(deadline=None)
@given(
    ndim=st.sampled_from([2, 3]),
    channels=st.integers(1, 18),
    last=st.booleans(),
    grad_last=st.booleans(),
    training=st.booleans(),
    seed=st.integers(0, 99),
)
def test_normalising_few_channels_is_no_other(
    ndim, channels, last, grad_last, training, seed
):
    torch.manual_seed(seed)
    plain = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[ndim](channels)
    ours = norm(ndim, "batch", channels)
    for module in (plain, ours):
        nn.init.uniform_(module.weight, generator=torch.Generator().manual_seed(1))
        module.double().train(training)
    x = torch.randn(2, channels, *range(3, 3 + ndim), dtype=torch.float64)
    down = torch.randn_like(x)
    x = channels_last(x) if last else x
    down = channels_last(down) if grad_last else down
    outcome = []
    for module in (plain, ours):
        entering = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = module(entering)
        activated = nn.ReLU(inplace=True)(y)  # as it is used
        activated.backward(down)
        outcome.append(
            (activated.detach(), entering.grad, *(p.grad for p in module.parameters()))
        )
        if channels > 1:  # one lies in either layout
            assert activated.stride() == x.stride()
    for found, expected in zip(*reversed(outcome), strict=True):
        torch.testing.assert_close(found, expected)
    for found, expected in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("channels", "threads", "planes"),
    [(8, 2, True), (24, 2, True), (16, 2, False), (32, 2, False), (8, 1, False)],
)
def test_rows_of_whole_lines_are_left_alone(monkeypatch, channels, threads, planes):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    seen = []
    monkeypatch.setattr(
        nn.BatchNorm2d, "forward", lambda self, x: seen.append(x.is_contiguous()) or x
    )
    x = channels_last(torch.randn(1, channels, 4, 4))
    norm(2, "batch", channels)(x)
    norm(2, "batch", channels).eval()(x)  # which does not learn
    assert seen == [planes, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("channels", [3, 32])
def test_coefficients_for_each_channel(dtype, last, channels):
    x = torch.randn(2, channels, 4, 5).to(dtype)
    x = channels_last(x) if last else x
    alpha = torch.rand(2, 1, 4, 5).to(dtype).requires_grad_()
    spread = for_channels(alpha, x)
    if dtype == torch.bfloat16 and last and channels == 3:
        assert spread.stride() == x.stride()
    else:
        assert spread is alpha
    assert torch.equal(x * spread, x * alpha)
    (x * spread).sum().backward()
    expected = x.float().sum(1, keepdim=True)
    torch.testing.assert_close(alpha.grad.float(), expected, rtol=2e-2, atol=0.1)


def test_the_step_ups_kernel_is_exact_under_autocast():
    weight = torch.randn(4, 3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = repeated_kernel(weight, (2, 2))
    assert found.dtype == torch.float32
    assert torch.equal(found, repeated_kernel(weight, (2, 2)))
