"""The Attention U-Net against the original's size and a computation by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_attunet.errors import DataError
from napari_attunet.networks import AttentionUNet
from napari_attunet.spec import GateSpec, NetworkSpec


# Measured on LeeJunHyun/Image_Segmentation's AttU_Net and U_Net.
@pytest.mark.parametrize(
    ("gate", "channels", "parameters"),
    [
        (GateSpec(), 3, 34_878_573),
        (None, 3, 34_527_041),
        (GateSpec(), 1, 34_877_421),
        (None, 1, 34_525_889),
    ],
)
def test_size_of_the_reference_network(gate, channels, parameters):
    with torch.device("meta"):
        network = AttentionUNet(NetworkSpec(in_channels=channels, gate=gate))
    assert sum(p.numel() for p in network.parameters()) == parameters


SPECS = {
    "plain": NetworkSpec(features=(3, 4, 6), gate=None),
    "additive": NetworkSpec(features=(3, 4, 6), in_channels=2, out_channels=3),
    "coarse": NetworkSpec(features=(3, 4, 6), gate=GateSpec(signal="coarse")),
    "transposed": NetworkSpec(features=(3, 4, 6), upsampling="transposed"),
    "no norm": NetworkSpec(features=(3, 4), norm=None, gate=GateSpec(norm=None)),
    "instance": NetworkSpec(features=(3, 4), norm="instance"),
    "group": NetworkSpec(features=(8, 16), norm="group", gate=GateSpec(norm="group")),
    "channels": NetworkSpec(features=(3, 4, 6), gate=GateSpec(channels=(5, 2))),
    "strides": NetworkSpec(features=(3, 4, 6), strides=((1, 2), (3, 2))),
    "3d": NetworkSpec(ndim=3, features=(3, 4, 6), strides=((1, 2, 2), (2, 2, 2))),
    "3d coarse": NetworkSpec(ndim=3, features=(3, 4), gate=GateSpec(signal="coarse")),
    "multiplicative": NetworkSpec(
        features=(3, 4), gate=GateSpec(kind="multiplicative")
    ),
    "deep": NetworkSpec(features=(3, 4, 6, 8), deep_supervision=True, out_channels=2),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_contract(spec):
    torch.manual_seed(0)
    network = AttentionUNet(spec).train()
    shape = tuple(2 * d for d in spec.divisor)
    x = torch.randn(2, spec.in_channels, *shape)

    explained = network.explain(x)

    assert explained.logits.shape == (2, spec.out_channels, *shape)
    assert len(explained.attention) == (spec.levels - 1 if spec.gate else 0)
    for attention in explained.attention:
        coarse = tuple(n // s for n, s in zip(shape, attention.scale, strict=True))
        assert attention.alpha.shape == (2, 1, *coarse)
    auxiliary = spec.levels - 2 if spec.deep_supervision else 0
    assert len(explained.auxiliary) == auxiliary
    for level, logits in enumerate(explained.auxiliary, start=1):
        assert logits.shape[2:] == tuple(
            n // s for n, s in zip(shape, spec.scale(level), strict=True)
        )
    loss = explained.logits.square().mean()
    loss = loss + sum(a.square().mean() for a in explained.auxiliary)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())

    network.eval()
    with torch.inference_mode():
        assert torch.equal(network(x), network.explain(x).logits)
        assert network.explain(x).auxiliary == ()


def test_gates_are_listed_fine_to_coarse():
    network = AttentionUNet(NetworkSpec(features=(2, 3, 4, 5))).eval()
    attention = network.explain(torch.zeros(1, 1, 16, 16)).attention
    assert [a.level for a in attention] == [0, 1, 2]
    assert [a.scale for a in attention] == [(1, 1), (2, 2), (4, 4)]


@pytest.mark.parametrize(
    "shape", [(1, 1, 16, 18), (1, 2, 16, 16), (1, 16, 16), (1, 1, 16, 16, 16)]
)
def test_what_does_not_fit_is_refused(shape):
    network = AttentionUNet(NetworkSpec(features=(2, 3, 4)))
    with pytest.raises(DataError, match=r"multiples of|takes"):
        network(torch.zeros(shape))


@settings(max_examples=25, deadline=None)
@given(
    strides=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    signal=st.sampled_from(["fine", "coarse"]),
    upsampling=st.sampled_from(["nearest", "transposed"]),
)
def test_the_halo_is_what_the_network_sees(strides, signal, upsampling):
    """Gradients of one coarsest cell reach as far as the spec says, and no further."""
    features = (2,) * (len(strides) + 1)
    spec = NetworkSpec(
        features=features,
        strides=tuple((s, 1) for s in strides),
        gate=GateSpec(signal=signal, activation="softplus"),
        upsampling=upsampling,
    )
    network = AttentionUNet(spec).double().eval()
    for module in network.modules():  # let every path carry a gradient
        if isinstance(module, torch.nn.MaxPool2d):
            module.forward = lambda x, m=module: torch.nn.functional.avg_pool2d(
                x, m.kernel_size, m.stride
            )
        elif isinstance(module, torch.nn.ReLU):
            module.forward = torch.nn.functional.softplus
    halo, cell = spec.halo[0], spec.divisor[0]
    start = halo + 2 * cell
    x = torch.rand(1, 1, start + 3 * cell + halo, 32, dtype=torch.float64)
    x.requires_grad_(True)
    network(x)[:, :, start : start + cell, 16].sum().backward()
    seen = x.grad[0, 0].abs().sum(1).nonzero()
    reach = max(start - int(seen.min()), int(seen.max()) - (start + cell - 1))
    assert halo - cell < reach <= halo


# --- an independent computation ---------------------------------------------------


def conv(weights, name, x):
    """Return a 'same' convolution, written as a sum over shifted copies."""
    kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    r = kernel.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (r, r), (r, r)))
    out = np.zeros((kernel.shape[0], *x.shape[1:])) + bias[:, None, None]
    for dy in range(2 * r + 1):
        for dx in range(2 * r + 1):
            window = padded[:, dy : dy + x.shape[1], dx : dx + x.shape[2]]
            out += np.einsum("oc,cyx->oyx", kernel[:, :, dy, dx], window)
    return out


def batch_norm(weights, name, x):
    def get(key):
        return weights[f"{name}.{key}"][:, None, None]

    normal = (x - get("running_mean")) / np.sqrt(get("running_var") + 1e-5)
    return normal * get("weight") + get("bias")


def block(weights, name, x):
    for c, n in ((0, 1), (3, 4)):
        x = batch_norm(weights, f"{name}.{n}", conv(weights, f"{name}.{c}", x))
        x = np.maximum(x, 0)
    return x


def pool(x):
    c, h, w = x.shape
    return x.reshape(c, h // 2, 2, w // 2, 2).max((2, 4))


def up(weights, name, x):
    x = x.repeat(2, axis=1).repeat(2, axis=2)
    return np.maximum(
        batch_norm(weights, f"{name}.2", conv(weights, f"{name}.1", x)), 0
    )


def gate(weights, name, x, g):
    def project(part, values):
        projected = conv(weights, f"{name}.{part}.0", values)
        return batch_norm(weights, f"{name}.{part}.1", projected)

    joint = np.maximum(project("w_x", x) + project("w_g", g), 0)
    alpha = 1 / (1 + np.exp(-project("psi", joint)))
    return x * alpha, alpha


def test_equals_a_computation_by_hand():
    """A small Attention U-Net in numpy alone, from Oktay et al. 2018, fig. 1 and 2."""
    torch.manual_seed(3)
    spec = NetworkSpec(features=(3, 4, 5), in_channels=2, out_channels=2)
    network = AttentionUNet(spec).eval()
    with torch.no_grad():  # untrained statistics would hide a wrong normalisation
        for name, tensor in network.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_()
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.normal_(0.5)
    image = torch.randn(1, 2, 12, 8)
    w = {k: v.double().numpy() for k, v in network.state_dict().items()}

    fine = block(w, "encoder.0", image[0].double().numpy())
    middle = block(w, "encoder.1", pool(fine))
    x = block(w, "encoder.2", pool(middle))
    alphas = {}
    for level, skip in ((1, middle), (0, fine)):
        signal = up(w, f"ups.{level}", x)
        gated, alphas[level] = gate(w, f"gates.{level}", skip, signal)
        x = block(w, f"decoder.{level}", np.concatenate((gated, signal)))
    logits = conv(w, "head", x)

    with torch.inference_mode():
        explained = network.explain(image)
    np.testing.assert_allclose(explained.logits[0], logits, atol=1e-5)
    for attention in explained.attention:
        np.testing.assert_allclose(
            attention.alpha[0], alphas[attention.level], atol=1e-5
        )
