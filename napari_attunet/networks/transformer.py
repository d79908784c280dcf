"""The spatial transformer: a network that chooses where to look, and maps it back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_attunet.architecture import TransformerSpec
from napari_attunet.networks.layers import LAYERS, conv

__all__ = ["SpatialTransformer", "Transformed", "inverse", "sample"]

#: Cells along each axis that the localisation network's features are averaged to.
CELLS = 4

#: Channels between them and the matrix.
HIDDEN = 32

#: A frame of less than this share of the image's area, or turned inside out, is no way
#: to look at it: the image is then left as it is.
SMALLEST = 0.05


class Transformed(NamedTuple):
    """What a spatial transformer returns.

    Attributes
    ----------
    sampled : Tensor, (N, C, *spatial)
        The image as the network is to see it.
    matrix : Tensor, (N, ndim, ndim + 1)
        From coordinates of the sampled frame to those of the image, both -1 to 1 from
        edge to edge, the last axis first (x, y, z).
    """

    sampled: Tensor
    matrix: Tensor


class SpatialTransformer(nn.Module):
    """Affine spatial transformer at the input.

    Jaderberg et al. 2015, "Spatial Transformer Networks",
    https://arxiv.org/abs/1506.02025: a localisation network finds a matrix θ of shape
    (ndim, ndim + 1), a grid generator turns every pixel p of the output into θ·(p, 1),
    and a sampler reads the image there, interpolating linearly. It starts with the
    identity. `restore` samples with the inverse, so that what a network says of the
    sampled frame lies on the image; what the frame leaves out takes its nearest edge.

    Parameters
    ----------
    spec : TransformerSpec
    ndim : {2, 3}
    channels : int
    """

    def __init__(self, spec: TransformerSpec, ndim: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for features in spec.features:
            layers += [
                conv(ndim, before, features, kernel=3, padding=1),
                nn.ReLU(),
                LAYERS[ndim].max_pool(2, ceil_mode=True),
            ]
            before = features
        layers += [LAYERS[ndim].adaptive_pool(CELLS), nn.Flatten()]
        last = nn.Linear(HIDDEN, ndim * (ndim + 1))
        self.localisation = nn.Sequential(
            *layers, nn.Linear(before * CELLS**ndim, HIDDEN), nn.ReLU(), last
        )
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.eye(ndim, ndim + 1).flatten())
        self._ndim = ndim

    def matrix(self, x: Tensor) -> Tensor:
        """Return where to look, (N, ndim, ndim + 1) of float32."""
        with torch.autocast(x.device.type, enabled=False):  # half a pixel is too much
            found = self.localisation(x.float())
        found = found.reshape(-1, self._ndim, self._ndim + 1)
        identity = torch.eye(
            self._ndim, self._ndim + 1, dtype=found.dtype, device=found.device
        )
        area = torch.linalg.det(found[:, :, : self._ndim])
        sound = (area > SMALLEST) & found.isfinite().flatten(1).all(1)
        return torch.where(sound[:, None, None], found, identity)

    def forward(self, x: Tensor) -> Transformed:
        """Look at an image, (N, C, *spatial)."""
        matrix = self.matrix(x)
        return Transformed(sample(x, matrix), matrix)

    @staticmethod
    def restore(found: Tensor, matrix: Tensor) -> Tensor:
        """Lay on the image what was found in the sampled frame.

        Parameters
        ----------
        found : Tensor, (N, K, *spatial), on any grid over the frame
        matrix : Tensor, (N, ndim, ndim + 1)
        """
        return sample(found, inverse(matrix))


def sample(x: Tensor, matrix: Tensor) -> Tensor:
    """Read x at the matrix times every pixel's coordinates, on its own grid.

    In float32 whatever autocast says: bfloat16 tells no pixel from the next. Beyond the
    edge is what lies on it.
    """
    with torch.autocast(x.device.type, enabled=False):
        values, matrix = x.float(), matrix.float()
        grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
        sizes = torch.tensor(x.shape[:1:-1], device=grid.device)  # last axis first
        edge = (sizes - 1) / sizes
        # As border padding does, which not all backends have.
        grid = torch.maximum(torch.minimum(grid, edge), -edge)
        return F.grid_sample(values, grid, align_corners=False).to(x.dtype)


def inverse(matrix: Tensor) -> Tensor:
    """Return the inverse of an affine matrix, (N, ndim, ndim + 1)."""
    with torch.autocast(matrix.device.type, enabled=False):
        linear, shift = matrix.float().split((matrix.shape[1], 1), dim=2)
        back = torch.linalg.inv(linear)
        return torch.cat((back, -back @ shift), dim=2)
