"""The spatial transformer looks where its matrix says, and maps what it found back."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from napari_attunet.networks.transformer import SpatialTransformer, sample
from napari_attunet.spec import TransformerSpec


def make(ndim=2, channels=1):
    torch.manual_seed(0)
    return SpatialTransformer(TransformerSpec(), ndim, channels)


def turned(angle, scale=1.0, shift=(0.0, 0.0)):
    c, s = np.cos(angle) * scale, np.sin(angle) * scale
    return torch.tensor([[c, -s, shift[0]], [s, c, shift[1]]], dtype=torch.float32)


def fixed(transformer, matrix):
    """Let it look one way, whatever it sees."""
    with torch.no_grad():
        transformer.localisation[-1].bias.copy_(matrix.flatten())
    return transformer


@pytest.mark.parametrize("ndim", [2, 3])
def test_it_begins_with_the_identity_and_learns(ndim):
    transformer = make(ndim, 2)
    x = torch.rand(2, 2, *(16,) * ndim)
    found = transformer(x)
    torch.testing.assert_close(found.sampled, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        found.matrix, torch.eye(ndim, ndim + 1).expand(2, -1, -1)
    )
    found.sampled.square().sum().backward()
    last = transformer.localisation[-1]
    assert last.weight.grad.abs().sum() > 0
    assert last.bias.grad.abs().sum() > 0
    with torch.no_grad():  # and once it is not all zero, everything before it
        last.weight.normal_(std=0.01)
    transformer(x).sampled.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in transformer.parameters())


def test_it_samples_as_its_formula_says():
    """Written out with pixels, against scipy's own interpolation."""
    matrix = turned(0.3, 0.7, (0.1, -0.2))
    x = torch.rand(1, 1, 12, 20)
    found = fixed(make(), matrix)(x)
    size = np.array(x.shape[2:])
    rows, columns = np.indices(x.shape[2:])
    # To the middle of pixels from -1 to 1, x first.
    place = [
        (2 * columns + 1) / size[1] - 1,
        (2 * rows + 1) / size[0] - 1,
        np.ones(x.shape[2:]),
    ]
    there = np.einsum("ij,jyx->iyx", matrix.double().numpy(), place)
    at = [((there[1 - a] + 1) * size[a] - 1) / 2 for a in (0, 1)]
    expected = ndimage.map_coordinates(x[0, 0].numpy(), at, order=1, mode="nearest")
    np.testing.assert_allclose(found.sampled.detach()[0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("angle", [0.0, 0.2, np.pi / 2])
def test_what_it_finds_lies_on_the_image(angle):
    """A soft blob is where it was, after there and back."""
    rows, columns = np.indices((48, 48))
    blob = np.exp(-((rows - 20) ** 2 + (columns - 27) ** 2) / 60).astype(np.float32)
    image = torch.from_numpy(blob)[None, None]
    transformer = fixed(make(), turned(angle, 0.8, (0.05, -0.1)))
    sampled, matrix = transformer(image)
    assert angle == 0 or (sampled - image).abs().max() > 0.1
    back = transformer.restore(sampled, matrix)
    assert (back - image).abs().max() < 0.03
    coarse = transformer.restore(
        torch.nn.functional.avg_pool2d(sampled, 2), matrix
    )  # its own grid covers the same frame
    expected = torch.nn.functional.avg_pool2d(image, 2)
    assert (coarse - expected).abs().max() < 0.05


@pytest.mark.parametrize(
    "matrix",
    [
        turned(0.0, 0.0),
        turned(0.5, 0.1),
        torch.tensor([[1.0, 1, 0], [1, 1, 0]]),
        torch.tensor([[-1.0, 0, 0], [0, 1, 0]]),
        torch.full((2, 3), float("nan")),
        torch.full((2, 3), float("inf")),
    ],
)
def test_a_degenerate_look_is_none(matrix):
    x = torch.rand(1, 1, 16, 16)
    transformer = fixed(make(), matrix)
    found = transformer(x)
    torch.testing.assert_close(found.matrix[0], torch.eye(2, 3))
    torch.testing.assert_close(found.sampled, x, atol=1e-5, rtol=0)
    found.sampled.sum().backward()
    if matrix.isfinite().all():
        for parameter in transformer.parameters():
            assert torch.isfinite(parameter.grad).all()


def test_sampling_by_the_identity_changes_nothing():
    x = torch.rand(1, 3, 7, 9)
    identity = torch.eye(2, 3)[None]
    torch.testing.assert_close(sample(x, identity), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(1, 2, 96, 64), (1, 1, 8, 24, 16)])
def test_reduced_precision_moves_no_pixel(shape):
    """bfloat16 cannot tell one pixel of a crop from the next."""
    x = torch.rand(shape)
    transformer = make(len(shape) - 2, shape[1])
    with torch.autocast("cpu", torch.bfloat16):
        sampled, matrix = transformer(x)
        assert matrix.dtype == torch.float32
        back = transformer.restore(sampled.bfloat16(), matrix)
    torch.testing.assert_close(sampled, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.float(), x, atol=4e-3, rtol=0)


def test_beyond_the_edge_is_what_lies_on_it():
    x = torch.rand(1, 1, 6, 8)
    matrix = turned(0.4, 1.7, (0.3, 0.1))[None]
    grid = torch.nn.functional.affine_grid(matrix, [1, 1, 6, 8], align_corners=False)
    expected = torch.nn.functional.grid_sample(
        x, grid, padding_mode="border", align_corners=False
    )
    torch.testing.assert_close(sample(x, matrix), expected, atol=1e-5, rtol=0)
