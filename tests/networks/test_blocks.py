"""All attention inside blocks keeps one contract; a new one is tested by existing."""

import math

import numpy as np
import pytest
import torch

from napari_attunet.architecture import ATTENTION, GATES
from napari_attunet.errors import ModelError
from napari_attunet.networks.blocks import BlockAttention, ConvBlock, look
from napari_attunet.networks.gates import Gate
from napari_attunet.spec import AttentionSpec

KINDS = sorted(BlockAttention.kinds)
CHANNELS = 12


def make(kind, ndim=2, channels=CHANNELS, **options):
    torch.manual_seed(0)
    spec = AttentionSpec(kind=kind, **options)
    return BlockAttention.named(kind)(spec, ndim, channels)


def features(ndim=2, size=6):
    """What comes out of a ReLU."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, CHANNELS, *(size,) * ndim, generator=generator)


def weights(module):
    return {k: v.double().numpy() for k, v in module.state_dict().items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_contract(kind, ndim):
    attention = make(kind, ndim, reduction=2)
    with torch.no_grad():  # γ is 0 at the start, and hides what is behind it
        for name, parameter in attention.named_parameters():
            if name == "gamma":
                parameter.fill_(1)
    x = features(ndim).requires_grad_()

    found, coefficients = attention(x)

    assert found.shape == x.shape
    for what, values in zip(attention.emits, coefficients, strict=True):
        if what == "channel":
            assert values.shape == (2, CHANNELS)
        elif what == "spatial":
            assert values.shape == (2, 1, *x.shape[2:])
        else:
            assert what == "pairwise"
            assert values.shape[:2] == (2, 2)
            assert values.shape[3:] == x.shape[2:]
        if what != "pairwise":
            assert 0 <= values.min() <= values.max() <= 1
            assert values.mean() > 0.6  # it begins near open
    found.square().sum().backward()
    for tensor in (x, *attention.parameters()):
        assert torch.isfinite(tensor.grad).all()
    moved = {n for n, p in attention.named_parameters() if p.grad.abs().sum() > 0}
    # Adding one number to all keys changes no softmax.
    assert set(dict(attention.named_parameters())) - moved <= {"key.bias"}


@pytest.mark.parametrize("kind", KINDS)
def test_state_survives(kind):
    one, other = make(kind), make(kind)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.normal_()
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(features()).features, other(features()).features)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("residual", [False, True])
def test_in_a_block(kind, residual):
    torch.manual_seed(0)
    specs = [AttentionSpec(kind=kind), AttentionSpec(kind="se")]
    block = ConvBlock(2, 3, CHANNELS, "batch", specs, residual=residual)
    found, coefficients = block(torch.randn(2, 3, 8, 8))
    assert found.shape == (2, CHANNELS, 8, 8)
    assert len(coefficients) == len(BlockAttention.named(kind).emits) + 1


def test_squeeze_and_excitation_equals_its_formula():
    attention, x = make("se", reduction=4), features()
    w, pixels = weights(attention), features().double().numpy()
    average = pixels.mean((2, 3))
    hidden = np.maximum(average @ w["squeeze.weight"].T + w["squeeze.bias"], 0)
    assert hidden.shape == (2, CHANNELS // 4)
    alpha = sigmoid(hidden @ w["excite.weight"].T + w["excite.bias"])
    found = attention(x)
    np.testing.assert_allclose(found.coefficients[0].detach(), alpha, atol=1e-5)
    expected = pixels * alpha[:, :, None, None]
    np.testing.assert_allclose(found.features.detach(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "size"), [(8, 3), (16, 3), (64, 3), (128, 5), (256, 5), (1024, 5)]
)
def test_the_kernel_of_eca_grows_with_the_channels(channels, size):
    """|log₂(C)/2 + 1/2| and up to the next odd number, as the authors' code has it."""
    assert make("eca", channels=channels).conv.weight.shape == (1, 1, size)


def test_eca_equals_its_formula():
    attention = make("eca")
    (kernel,) = weights(attention).values()
    pixels = features().double().numpy()
    average = np.pad(pixels.mean((2, 3)), ((0, 0), (1, 1)))
    alpha = sigmoid(
        sum(kernel[0, 0, i] * average[:, i : i + CHANNELS] for i in range(3))
    )
    found = attention(features())
    np.testing.assert_allclose(found.coefficients[0].detach(), alpha, atol=1e-5)
    expected = pixels * alpha[:, :, None, None]
    np.testing.assert_allclose(found.features.detach(), expected, atol=1e-5)


def test_cbam_equals_its_formula():
    attention = make("cbam", reduction=3)
    w, x = weights(attention), features().double().numpy()

    def mlp(values):
        hidden = values @ w["channel.mlp.0.weight"].T + w["channel.mlp.0.bias"]
        hidden = np.maximum(hidden, 0)
        return hidden @ w["channel.mlp.2.weight"].T + w["channel.mlp.2.bias"]

    of_channels = sigmoid(mlp(x.mean((2, 3))) + mlp(x.max((2, 3))))
    x = x * of_channels[:, :, None, None]
    described = np.pad(
        np.stack((x.mean(1), x.max(1)), 1), ((0, 0),) * 2 + ((3, 3),) * 2
    )
    kernel, size = w["spatial.conv.weight"][0], x.shape[2]
    total = np.zeros((2, size, size))
    for dy in range(7):
        for dx in range(7):
            window = described[:, :, dy : dy + size, dx : dx + size]
            total += np.einsum("c,ncyx->nyx", kernel[:, dy, dx], window)
    of_pixels = sigmoid(total)[:, None]

    found = attention(features())
    assert "spatial.conv.bias" not in w
    channel, spatial = found.coefficients
    np.testing.assert_allclose(channel.detach(), of_channels, atol=1e-5)
    np.testing.assert_allclose(spatial.detach(), of_pixels, atol=1e-5)
    np.testing.assert_allclose(found.features.detach(), x * of_pixels, atol=1e-5)


@pytest.mark.parametrize("pool", [1, 2, 4])
def test_self_attention_equals_its_formula(pool):
    attention = make("self", pool=pool, reduction=3)
    with torch.no_grad():
        attention.gamma.fill_(0.7)
    w, x = weights(attention), features(size=8).double().numpy()
    count = 8 // pool
    pooled = x.reshape(2, CHANNELS, count, pool, count, pool).mean((3, 5))

    def project(name):
        matrix = w[f"{name}.weight"][:, :, 0, 0]
        projected = np.einsum("oc,ncyx->noyx", matrix, pooled)
        return (projected + w[f"{name}.bias"][:, None, None]).reshape(2, -1, count**2)

    q, k, v = (project(name) for name in ("query", "key", "value"))
    assert q.shape[1] == CHANNELS // 3
    scores = np.einsum("ndp,ndr->npr", q, k) / math.sqrt(q.shape[1])
    shares = np.exp(scores) / np.exp(scores).sum(2, keepdims=True)
    found = np.einsum("npr,ncr->ncp", shares, v).reshape(2, CHANNELS, count, count)
    if pool > 1:
        found = torch.nn.functional.interpolate(
            torch.from_numpy(found), (8, 8), mode="bilinear"
        ).numpy()

    attended = attention(features(size=8))
    expected = x + 0.7 * found
    np.testing.assert_allclose(attended.features.detach(), expected, atol=1e-5)
    (pairwise,) = attended.coefficients
    for position in ((0, 0), (count - 1, 1)):
        looked = look(pairwise[1].detach(), position)
        row = shares[1, np.ravel_multi_index(position, (count, count))]
        np.testing.assert_allclose(looked.flatten(), row, atol=1e-5)


def test_self_attention_begins_as_nothing():
    x = features()
    assert torch.equal(make("self")(x).features, x)


def test_windows_need_not_divide_the_grid():
    x = features(size=7)
    attended = make("self", pool=3)(x)
    assert attended.features.shape == x.shape
    assert attended.coefficients[0].shape[3:] == (3, 3)


def test_all_kinds_can_be_chosen_without_pytorch():
    assert sorted(ATTENTION) == KINDS
    assert sorted(GATES) == sorted(Gate.kinds)


def test_a_misspelt_name_lists_the_right_ones():
    with pytest.raises(ModelError, match="cbam"):
        BlockAttention.named("cban")


def test_a_name_is_taken_once():
    with pytest.raises(TypeError, match="'se' is taken"):

        class Second(BlockAttention, name="se"):
            pass
