"""The Attention U-Net against the original's size and a computation by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_attunet.errors import DataError
from napari_attunet.networks import AttentionUNet
from napari_attunet.networks.layers import channels_last, norm
from napari_attunet.spec import AttentionSpec, GateSpec, NetworkSpec, TransformerSpec


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


def test_contract(spec):
    torch.manual_seed(0)
    network = AttentionUNet(spec).train()
    shape = tuple(2 * d for d in spec.divisor)
    x = torch.randn(2, spec.in_channels, *shape)

    explained = network.explain(x)

    assert explained.logits.shape == (2, spec.out_channels, *shape)
    assert len(network.gates) == (spec.levels - 1 if spec.gate else 0)
    for what, values in zip(network.mechanisms, explained.attention, strict=True):
        coarse = tuple(n // s for n, s in zip(shape, what.scale, strict=True))
        if what.kind in ("gate", "spatial"):
            assert values.shape == (2, what.channels, *coarse)
            assert 0 <= values.min() <= values.max() <= 1
        elif what.kind == "channel":
            assert values.shape == (2, what.channels)
        elif what.kind == "pairwise":
            assert values.shape[:2] == (2, 2)
            assert values.shape[3:] == coarse
        else:
            assert values.shape == (2, spec.ndim, spec.ndim + 1)
    auxiliary = spec.levels - 2 if spec.deep_supervision else 0
    assert len(explained.auxiliary) == auxiliary
    for level, logits in enumerate(explained.auxiliary, start=1):
        assert logits.shape[2:] == tuple(
            n // s for n, s in zip(shape, spec.scale(level), strict=True)
        )
    loss = explained.logits.square().mean()
    loss = loss + sum(a.square().mean() for a in explained.auxiliary)
    loss.backward()
    for name, parameter in network.named_parameters():
        # γ of self-attention begins at 0 and hides what is behind it
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name

    network.eval()
    with torch.inference_mode():
        assert torch.equal(network(x), network.explain(x).logits)
        assert network.explain(x).auxiliary == ()


def test_what_attends_is_listed_fine_to_coarse():
    attention = (AttentionSpec(kind="cbam", where="encoder"),)
    spec = NetworkSpec(features=(2, 3, 4), attention=attention)
    network = AttentionUNet(spec).eval()
    found = network.explain(torch.zeros(1, 1, 16, 16)).attention
    listed = [(m.part, m.kind, m.level, m.scale) for m in network.mechanisms]
    assert len(found) == len(listed)
    assert listed[:2] == [
        ("encoder", "channel", 0, (1, 1)),
        ("encoder", "spatial", 0, (1, 1)),
    ]
    assert listed[-2:] == [("skip", "gate", 0, (1, 1)), ("skip", "gate", 1, (2, 2))]


# --- what if -----------------------------------------------------------------------


def test_editing_nothing_changes_nothing(editable, randomised):
    spec = editable
    network = randomised(spec)
    x = torch.randn(1, spec.in_channels, *(2 * d for d in spec.divisor))
    with torch.inference_mode():
        before = network.explain(x)
        encoded = network.encode(x)
        for _ in range(2):  # what was encoded serves any number of times
            again = network.decode(encoded)
            assert torch.equal(again.logits, before.logits)
        alphas = {
            m.level: values
            for m, values in zip(network.mechanisms, before.attention, strict=True)
            if m.kind == "gate"
        }
        assert torch.equal(network.decode(encoded, alphas).logits, before.logits)
        assert not torch.equal(network.decode(encoded, {0: 0.0}).logits, before.logits)


@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
@pytest.mark.parametrize("signal", ["fine", "coarse", "bottleneck"])
def test_all_gates_open_is_the_network_without_gates(kind, signal, randomised):
    gate = GateSpec(kind=kind, signal=signal)
    gated = randomised(NetworkSpec(features=(3, 4, 5), gate=gate))
    plain = AttentionUNet(NetworkSpec(features=(3, 4, 5), gate=None)).eval()
    weights = gated.state_dict()
    plain.load_state_dict({n: weights[n] for n in plain.state_dict()})
    x = torch.randn(1, 1, 16, 16)
    with torch.inference_mode():
        opened = gated.explain(x, {0: 1.0, 1: 1.0})
        assert torch.equal(opened.logits, plain(x))
        assert not torch.equal(gated(x), plain(x))
    assert all((values == 1).all() for values in opened.attention)


def test_a_closed_gate_makes_the_output_independent_of_its_skip(editable, randomised):
    network = randomised(editable)
    x = torch.randn(1, editable.in_channels, *(2 * d for d in editable.divisor))
    with torch.inference_mode():
        encoded, expected = network.encode(x), network(x)
        for level in range(editable.levels - 1):
            skips = list(encoded.skips)
            skips[level] = torch.randn_like(skips[level])
            other = encoded._replace(skips=skips)
            one, two = (
                network.decode(e, {level: 0.0}).logits for e in (encoded, other)
            )
            assert torch.equal(one, two)
            assert not torch.equal(network.decode(other).logits, expected)


def test_an_edit_is_drawn_on_the_image(randomised):
    """With a spatial transformer α is shown, and painted, where it is on the image."""
    spec = NetworkSpec(features=(3, 4), transformer=TransformerSpec())
    network = randomised(spec)
    with torch.no_grad():
        turn = torch.tensor([0.0, -1, 0, 1, 0, 0])  # by a quarter
        network.transformer.localisation[-1].bias.copy_(turn)
        network.transformer.localisation[-1].weight.zero_()
    drawn = torch.zeros(1, 1, 16, 16)
    drawn[..., :4, :4] = 1
    with torch.inference_mode():
        (_, alpha) = network.explain(torch.randn(1, 1, 16, 16), {0: drawn}).attention
    torch.testing.assert_close(alpha, drawn, atol=1e-5, rtol=0)


def test_where_an_edit_says_nothing_all_stays_as_learnt(randomised):
    network = randomised(NetworkSpec(features=(3, 4)))
    x = torch.randn(1, 1, 16, 16)
    edit = torch.full((1, 1, 16, 16), torch.nan)
    with torch.inference_mode():
        before = network.explain(x)
        assert torch.equal(network.explain(x, {0: edit}).logits, before.logits)
        edit[..., 0, 0] = 0.25
        (alpha,) = network.explain(x, {0: edit}).attention
    assert alpha[0, 0, 0, 0] == 0.25
    assert torch.equal(alpha[..., 1:, :], before.attention[0][..., 1:, :])


def test_there_is_nothing_to_edit_where_there_is_no_gate():
    network = AttentionUNet(NetworkSpec(features=(3, 4, 5)))
    with pytest.raises(DataError, match="2 gates"):
        network.explain(torch.zeros(1, 1, 16, 16), {2: 1.0})
    plain = AttentionUNet(NetworkSpec(features=(3, 4, 5), gate=None))
    with pytest.raises(DataError, match="0 gates"):
        plain.explain(torch.zeros(1, 1, 16, 16), {0: 1.0})


# --- what does not fit --------------------------------------------------------------


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
    gate=st.sampled_from(["additive", "grid"]),
    signal=st.sampled_from(["fine", "coarse", "bottleneck"]),
    upsampling=st.sampled_from(["nearest", "transposed"]),
    where=st.sampled_from(["", "all", "encoder", "decoder", "bottleneck"]),
)
def test_the_halo_is_what_the_network_sees(strides, gate, signal, upsampling, where):
    """Gradients of one coarsest cell reach as far as the spec says, and no further."""
    features = (2,) * (len(strides) + 1)
    spec = NetworkSpec(
        features=features,
        strides=tuple((s, 1) for s in strides),
        gate=GateSpec(
            kind=gate,
            signal="coarse" if (gate, signal) == ("grid", "fine") else signal,
            activation="softplus",
        ),
        attention=(AttentionSpec(kind="cbam-spatial", where=where),) if where else (),
        upsampling=upsampling,
    )
    network = AttentionUNet(spec).double().eval()
    assert spec.is_local
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
    for what, alpha in zip(network.mechanisms, explained.attention, strict=True):
        np.testing.assert_allclose(alpha[0], alphas[what.level], atol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_groups_are_normalised_alike_in_either_layout(ndim):
    torch.manual_seed(0)
    x = torch.randn(2, 24, *(40,) * ndim) + 20
    layer = norm(ndim, "group", 24)
    with torch.inference_mode():
        exact = norm(ndim, "group", 24).double()(x.double())
        both = [(laid_out, layer(laid_out)) for laid_out in (x, channels_last(x))]
    for laid_out, found in both:
        assert found.stride() == laid_out.stride()
        assert float((found - exact).abs().max()) < 2e-5
