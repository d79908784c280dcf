"""Every registered gate keeps the same contract; a new one is tested by existing."""

import numpy as np
import pytest
import torch

from napari_attunet.errors import ModelError
from napari_attunet.networks.gates import Gate, MultiGate, Ports
from napari_attunet.spec import GateSpec

ACTIVATIONS = {
    "relu": lambda v: np.maximum(v, 0),
    "leaky_relu": lambda v: np.where(v > 0, v, 0.01 * v),
    "softplus": lambda v: np.log1p(np.exp(v)),
    "elu": lambda v: np.where(v > 0, v, np.expm1(np.minimum(v, 0))),
}


def make_gate(kind, ndim, stride, **options):
    torch.manual_seed(0)
    coarse = stride > 1 or kind == "grid"
    spec = GateSpec(kind=kind, signal="coarse" if coarse else "fine", **options)
    ports = Ports(ndim=ndim, skip=4, signal=6, inner=3, stride=(stride,) * ndim)
    made = MultiGate if spec.count > 1 else Gate.named(kind)
    return made(spec, ports).eval()


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
    gated.features.square().sum().backward()
    for tensor in (skip, signal, *gate.parameters()):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", sorted(set(Gate.kinds) - {"grid"}))
@pytest.mark.parametrize("stride", [1, 2])
def test_a_gate_never_amplifies(kind, stride):
    skip, signal = make_inputs(2, stride)
    gated = make_gate(kind, 2, stride)(skip, signal)
    assert torch.all(gated.features.abs() <= skip.abs() + 1e-6)


@pytest.mark.parametrize("kind", sorted(Gate.kinds))
@pytest.mark.parametrize("count", [1, 2])
def test_a_closed_gate_lets_nothing_of_the_skip_through(kind, count):
    gate = make_gate(kind, 2, 2, count=count)
    skip, signal = make_inputs(2, 2)
    closed = torch.zeros_like(gate(skip, signal).alpha)
    passed = gate.passed(skip, closed)
    assert torch.equal(passed, gate.passed(torch.randn_like(skip), closed))
    assert not torch.equal(gate.passed(skip, closed + 1), passed)


@pytest.mark.parametrize("kind", sorted(Gate.kinds))
@pytest.mark.parametrize("ndim", [2, 3])
def test_several_gates_on_one_skip(kind, ndim):
    gate = make_gate(kind, ndim, 2, count=3)
    skip, signal = make_inputs(ndim, 2)
    gated = gate(skip, signal)
    assert gated.features.shape == skip.shape
    assert gated.alpha.shape == (2, 3, *(4,) * ndim)
    for number, one in enumerate(gate.gates):
        assert torch.equal(gated.alpha[:, number : number + 1], one(skip, signal).alpha)
    gated.features.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in gate.parameters())


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


def linearly(values, factor):
    """Return (N, C, Y, X) values interpolated to a finer grid, edges repeated."""
    for axis in (2, 3):
        size = values.shape[axis]
        at = (np.arange(size * factor) + 0.5) / factor - 0.5
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(4)])
        one, other = (
            values.take(np.clip(i, 0, size - 1), axis) for i in (low, low + 1)
        )
        values = one * (1 - share) + other * share
    return values


def test_the_grid_gate_equals_its_formula():
    """W(x·up(sigmoid(ψ(σ₁(θx + up(φg)))))), written out in numpy."""
    gate = make_gate("grid", 2, 2)
    with torch.no_grad():
        for name, tensor in gate.state_dict().items():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2) if "var" in name else tensor.normal_()
    skip, _ = make_inputs(2, 2)
    signal = torch.randn(2, 6, 2, 2)  # of the bottleneck, twice as coarse as θ's grid
    w = {k: v.double().numpy() for k, v in gate.state_dict().items()}
    x, g = skip.double().numpy(), signal.double().numpy()

    def pointwise(name, values):
        matrix = w[f"{name}.weight"][:, :, 0, 0]
        projected = np.einsum("oc,ncyx->noyx", matrix, values)
        return projected + w[f"{name}.bias"][:, None, None]

    cells = x.reshape(2, 4, 4, 2, 4, 2)  # N, C, and each axis as cells and pixels
    theta = np.einsum("ocij,ncyixj->noyx", w["theta.weight"], cells)
    joint = np.maximum(theta + linearly(pointwise("phi", g), 2), 0)
    alpha = 1 / (1 + np.exp(-pointwise("psi", joint)))
    mixed = pointwise("w.0", x * linearly(alpha, 2))
    mean, variance, scale, shift = (
        w[f"w.1.{name}"][:, None, None]
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    features = (mixed - mean) / np.sqrt(variance + 1e-5) * scale + shift

    gated = gate(skip, signal)
    np.testing.assert_allclose(gated.alpha.detach().numpy(), alpha, atol=1e-5)
    np.testing.assert_allclose(gated.features.detach().numpy(), features, atol=1e-5)


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
    with pytest.raises(TypeError, match="'additive' is taken"):

        class Second(Gate, name="additive"):
            pass

    assert Gate.named("additive").__name__ == "AdditiveGate"
