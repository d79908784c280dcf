"""A part of the output is what it is in the whole, whatever is left out."""

import pytest
import torch

from napari_attunet import receptive
from napari_attunet.errors import DataError
from napari_attunet.networks import AttentionUNet, fused
from napari_attunet.spec import GateSpec, NetworkSpec


def parts_of(spec, cells):
    """Parts of so many coarsest cells: a corner, one inside, an edge, everything."""
    d = spec.divisor
    for first, last in ((0, 1), (cells // 2, cells // 2 + 1), (1, cells), (0, cells)):
        yield tuple(slice(first * n, last * n) for n in d)
    # unlike along the axes
    yield tuple(slice(i * n, (cells - i) * n) for i, n in enumerate(d))


def exact(network, image):
    """Both in double precision, but for the transformer, which knows single only."""
    if network.spec.transformer is None:
        network, image = network.double(), image.double()
    return network, image


def assert_is_part(found, expected, mechanisms, wanted, close=None):
    def of(values, scale):
        places = zip(wanted, scale, strict=True)
        return values[(..., *(slice(w.start // s, w.stop // s) for w, s in places))]

    precise = expected.logits.dtype == torch.float64
    close = close or dict.fromkeys(("rtol", "atol"), 1e-9 if precise else 1e-4)
    torch.testing.assert_close(
        found.logits, of(expected.logits, [1] * len(wanted)), **close
    )
    pairs = zip(found.attention, expected.attention, mechanisms, strict=True)
    for ours, theirs, mechanism in pairs:
        if mechanism.kind in ("gate", "spatial"):
            theirs = of(theirs, mechanism.scale)
        torch.testing.assert_close(ours, theirs, **close)


def test_a_part_is_what_it_is_in_the_whole(spec, randomised):
    cells = 7
    x = torch.rand(1, spec.in_channels, *(cells * d for d in spec.divisor))
    network, x = exact(randomised(spec), x)
    with torch.inference_mode():
        expected = network.explain(x)
        for wanted in parts_of(spec, cells):
            found = network.explain(x, wanted=wanted)
            assert_is_part(found, expected, network.mechanisms, wanted)


def test_with_edited_gates_as_well(editable, randomised):
    network = randomised(editable).double()
    d, cells = editable.divisor, 5
    x = torch.rand(1, editable.in_channels, *(cells * n for n in d)).double()
    wanted = tuple(slice(2 * n, 4 * n) for n in d)
    scale = editable.gate_scale(0)
    cell = [n // s for n, s in zip(d, scale, strict=True)]  # of the gate's grid
    drawn = torch.rand([2 * n for n in cell]).double()
    drawn[:1] = torch.nan
    laid = torch.full([cells * n for n in cell], torch.nan).double()
    laid[tuple(slice(2 * n, 4 * n) for n in cell)] = drawn
    last = len(network.gates) - 1
    with torch.inference_mode():
        for whole, part in (({0: laid}, {0: drawn}), ({last: 0.0}, {last: 0.0})):
            expected = network.explain(x, whole)
            found = network.explain(x, part, wanted=wanted)
            assert_is_part(found, expected, network.mechanisms, wanted)


@pytest.mark.parametrize("rewritten", [False, True])
def test_only_what_the_part_needs_is_decoded(randomised, rewritten):
    network = randomised(NetworkSpec(features=(4, 6, 8, 10)))
    network = fused(network) if rewritten else network
    seen = []
    for block in network.decoder:
        block.register_forward_hook(lambda m, args, out: seen.append(out[0].shape[2:]))
    inner = slice(104, 136)
    network.explain(torch.rand(1, 1, 240, 240), wanted=(inner, inner))
    # of the coarsest level three cells more on each side, of the next 5 and 4 pixels
    assert [tuple(s) for s in seen] == [(20, 20), (28, 28), (40, 40)]


@pytest.mark.parametrize("strip", [4, 10])
def test_strips_change_nothing(spec, randomised, monkeypatch, strip):
    monkeypatch.setattr(receptive, "STRIP", strip)
    network = randomised(spec)
    faster = fused(network)
    x = torch.rand(2, spec.in_channels, *(9 * d for d in spec.divisor))
    close = {"rtol": 1e-4, "atol": 2e-5}
    with torch.inference_mode():
        expected = network.explain(x)
        for wanted in (*parts_of(spec, 9), None):
            found = faster.explain(x, wanted=wanted)
            wanted = wanted or tuple(slice(0, 9 * d) for d in spec.divisor)
            assert_is_part(found, expected, network.mechanisms, wanted, close)


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="oneDNN has no bfloat16 on this processor, not even emulated",
)
def test_strips_change_nothing_in_half_the_bits(spec, randomised, monkeypatch):
    network = randomised(spec)
    faster = fused(network, torch.bfloat16)  # judged by images too small for strips
    monkeypatch.setattr(receptive, "STRIP", 4)
    x = torch.rand(1, spec.in_channels, *(9 * d for d in spec.divisor))
    with torch.inference_mode():
        found, expected = faster.explain(x), network.explain(x)
    largest = expected.logits.abs().max()
    assert float((found.logits - expected.logits).abs().max()) < 0.1 * largest


def test_gates_are_edited_in_strips_as_well(editable, randomised, monkeypatch):
    monkeypatch.setattr(receptive, "STRIP", 6)
    network = randomised(editable)
    faster, d = fused(network), editable.divisor
    x = torch.rand(1, editable.in_channels, *(9 * n for n in d))
    scale = editable.gate_scale(0)
    whole = torch.rand([9 * n // s for n, s in zip(d, scale, strict=True)])
    whole[len(whole) // 2 :] = torch.nan
    wanted = tuple(slice(2 * n, 8 * n) for n in d)
    cell = [n // s for n, s in zip(d, scale, strict=True)]
    part = whole[tuple(slice(2 * n, 8 * n) for n in cell)]
    inner = torch.full_like(whole, torch.nan)
    inner[tuple(slice(2 * n, 8 * n) for n in cell)] = part
    close = {"rtol": 1e-4, "atol": 2e-5}
    with torch.inference_mode():
        expected = network.explain(x, {0: inner})
        found = faster.explain(x, {0: part}, wanted=wanted)
        assert_is_part(found, expected, network.mechanisms, wanted, close)
        # one number in a tensor is as good as many
        one = torch.full([1] * (2 + len(d)), 0.3)
        found, expected = faster.explain(x, {0: one}), faster.explain(x, {0: 0.3})
        torch.testing.assert_close(found.logits, expected.logits, **close)


def test_what_is_cut_in_strips(randomised, monkeypatch):
    monkeypatch.setattr(receptive, "STRIP", 8)
    seen = []
    faster = fused(randomised(NetworkSpec(features=(4, 6, 8))))
    for part in (faster.encoder, faster.decoder):
        for block in part:
            block.register_forward_hook(
                lambda m, args, out: seen.append(len(out[0][0, 0]))
            )
    faster.explain(torch.rand(1, 1, 64, 16))
    # eight strips and four, of at least so many rows, and the coarsest level whole
    assert seen == [10, *[12] * 6, 10, 10, 12, 12, 10, 16, *seen[13:]]
    assert len(seen) == 8 + 4 + 1 + 4 + 8
    assert max(seen[13:]) < 20


def test_the_decoder_runs_again_on_what_was_kept(randomised):
    spec = NetworkSpec(features=(3, 4, 6), gate=GateSpec(signal="coarse"))
    network = randomised(spec)
    x = torch.rand(1, 1, 40, 48)
    wanted = (slice(8, 16), slice(0, 12))
    with torch.inference_mode():
        encoded = network.encode(x, wanted=wanted)
        for _ in range(2):
            found = network.decode(encoded)
            assert found.logits.shape == (1, 1, 8, 12)
        torch.testing.assert_close(
            found.logits, network(x)[..., 8:16, :12], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    "wanted",
    [
        (slice(0, 8),),
        (slice(0, 8), slice(2, 8)),
        (slice(0, 8), slice(8, 8)),
        (slice(0, 8), slice(8, 20)),
        (slice(-4, 8), slice(0, 8)),
    ],
)
def test_a_part_off_the_grid_is_refused(wanted):
    network = AttentionUNet(NetworkSpec(features=(3, 4, 6))).eval()
    with pytest.raises(DataError, match="multiples of \\(4, 4\\)"):
        network.explain(torch.rand(1, 1, 16, 16), wanted=wanted)
