"""Every registered gate keeps the same contract; a new one is tested by existing."""

import numpy as np
import pytest
import torch

from napari_attunet.errors import ModelError
from napari_attunet.networks.gates import Gate, Ports
from napari_attunet.spec import GateSpec

ACTIVATIONS = {
    "relu": lambda v: np.maximum(v, 0),
    "leaky_relu": lambda v: np.where(v > 0, v, 0.01 * v),
    "softplus": lambda v: np.log1p(np.exp(v)),
    "elu": lambda v: np.where(v > 0, v, np.expm1(np.minimum(v, 0))),
}


def make_gate(kind, ndim, stride, **options):
    torch.manual_seed(0)
    spec = GateSpec(kind=kind, signal="coarse" if stride > 1 else "fine", **options)
    ports = Ports(ndim=ndim, skip=4, signal=6, inner=3, stride=(stride,) * ndim)
    return Gate.named(kind)(spec, ports).eval()


def make_inputs(ndim, stride):
    generator = torch.Generator().manual_seed(1)
    skip = torch.randn(2, 4, *(8,) * ndim, generator=generator)
    signal = torch.randn(2, 6, *(8 // stride,) * ndim, generator=generator)
    return skip, signal


@pytest.mark.parametrize("kind", sorted(Gate.kinds))
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_contract(kind, ndim, stride):
    gate = make_gate(kind, ndim, stride)
    skip, signal = make_inputs(ndim, stride)
    skip.requires_grad_(True)
    signal.requires_grad_(True)

    gated = gate(skip, signal)

    assert gated.features.shape == skip.shape
    assert gated.alpha.shape == (2, 1, *(8 // stride,) * ndim)
    assert 0 <= gated.alpha.min() <= gated.alpha.max() <= 1
    # a gate begins open: what it guards must reach the decoder from the first step
    assert gated.alpha.mean() > 0.7
    # and never amplifies
    assert torch.all(gated.features.abs() <= skip.abs() + 1e-6)
    gated.features.square().sum().backward()
    for tensor in (skip, signal, *gate.parameters()):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", sorted(Gate.kinds))
def test_state_survives(kind):
    gate, other = make_gate(kind, 2, 1), make_gate(kind, 2, 1)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.normal_()
    other.load_state_dict(gate.state_dict())
    inputs = make_inputs(2, 1)
    assert torch.equal(gate(*inputs).features, other(*inputs).features)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
def test_equals_its_formula(kind, activation):
    """α = sigmoid(ψ(σ₁(W_x x ∘ W_g g))), written out in numpy."""
    gate = make_gate(kind, 2, 1, activation=activation, norm=None)
    skip, signal = make_inputs(2, 1)
    weights = {k: v.double().numpy() for k, v in gate.state_dict().items()}
    x, g = skip.double().numpy(), signal.double().numpy()

    def project(name, values):
        matrix, bias = (
            weights[f"{name}.0.weight"][:, :, 0, 0],
            weights[f"{name}.0.bias"],
        )
        return np.einsum("oc,ncyx->noyx", matrix, values) + bias[:, None, None]

    px, pg = project("w_x", x), project("w_g", g)
    joint = ACTIVATIONS[activation](px + pg if kind == "additive" else px * pg)
    alpha = 1 / (1 + np.exp(-project("psi", joint)))

    gated = gate(skip, signal)
    np.testing.assert_allclose(gated.alpha.detach().numpy(), alpha, atol=1e-5)
    np.testing.assert_allclose(gated.features.detach().numpy(), x * alpha, atol=1e-5)


def test_the_skip_is_gated_and_the_signal_only_steers():
    """x is the encoder's skip; swapping the two is a known mistake of others."""
    gate = make_gate("additive", 2, 1)
    skip, signal = make_inputs(2, 1)
    assert torch.count_nonzero(gate(torch.zeros_like(skip), signal).features) == 0
    assert torch.count_nonzero(gate(skip, torch.zeros_like(signal)).features) > 0


def test_a_misspelt_name_lists_the_right_ones():
    with pytest.raises(ModelError, match="additive"):
        Gate.named("aditive")


def test_a_name_is_taken_once():
    with pytest.raises(TypeError, match="exists already"):

        class Second(Gate, name="additive"):
            pass

    assert Gate.named("additive").__name__ == "AdditiveGate"
