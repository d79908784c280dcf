"""How a crop is varied: turned, stretched, lit, blurred, stained otherwise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from monai import transforms
from scipy import ndimage
from skimage.color import hed2rgb, rgb2hed
from torch import Tensor

from napari_attunet.training.settings import Augmentation

__all__ = ["counterstain", "intensity_transform", "random_matrix", "vary_stain"]

#: How much of the DAB stain ``skimage.color.rgb2hed`` finds in weakly and strongly
#: brown tissue.
BROWN = (0.02, 0.25)


def random_matrix(
    rng: np.random.Generator, ndim: int, augmentation: Augmentation
) -> npt.NDArray[np.float64]:
    """Return the matrix from output pixels to source pixels, axes (Z)YX."""
    low, high = np.log(augmentation.zoom)
    usual = np.clip(0.0, low, high)  # most crops stay near the size they have
    zoom = np.exp(rng.triangular(low, usual, high) if low < high else usual)
    stretch = np.exp(rng.uniform(-1, 1, ndim) * augmentation.stretch / 2)
    matrix = np.diag(1 / (zoom * stretch))
    if augmentation.flip:
        matrix = matrix @ np.diag(rng.choice((-1.0, 1.0), ndim))
    if augmentation.rotate:
        angle = rng.uniform(0, 2 * np.pi)
        turn = np.eye(ndim)
        turn[-2:, -2:] = (
            (np.cos(angle), -np.sin(angle)),
            (np.sin(angle), np.cos(angle)),
        )
        matrix = turn @ matrix
    return matrix


def intensity_transform(augmentation: Augmentation) -> transforms.Compose:
    """Return MONAI's random brightness, contrast, gamma, light, blur and noise."""
    s = augmentation.intensity
    return transforms.Compose(
        [
            transforms.RandGaussianSmooth(
                (0.3, 0.3 + 1.2 * s),
                (0.3, 0.3 + 1.2 * s),
                (0.3, 0.3 + 1.2 * s),
                prob=0.2,
            ),
            transforms.RandAdjustContrast(
                prob=0.4, gamma=(1 / (1 + 0.8 * s), 1 + 0.8 * s)
            ),
            transforms.RandBiasField(degree=2, coeff_range=(0.0, 0.25 * s), prob=0.15),
            transforms.RandScaleIntensity(factors=0.4 * s, prob=0.5),
            transforms.RandShiftIntensity(offsets=0.1 * s, prob=0.5),
            transforms.RandGaussianNoise(prob=0.4, std=0.08 * s),
        ]
    )


def counterstain(
    pixels: Tensor, objects: npt.NDArray[np.bool_], rng: np.random.Generator
) -> Tensor:
    """Stain soft, streaky patches of an RGB crop in 0..1 brown, objects hardly."""
    stains = rgb2hed(np.clip(pixels.numpy(), 0, 1), channel_axis=0)
    patches = ndimage.gaussian_filter(
        rng.normal(size=objects.shape), rng.uniform(10, 50), mode="wrap"
    )
    patches = patches / patches.std() + rng.uniform(-0.5, 1.5)
    sigma = rng.uniform(0.5, 4, objects.ndim)
    streaks = ndimage.gaussian_filter(rng.normal(size=objects.shape), sigma)
    streaks = 1 + rng.uniform(0.1, 0.5) * streaks / streaks.std()
    spared = ndimage.gaussian_filter(objects.astype(float), rng.uniform(0.5, 2))
    amount = np.clip(4 * patches, 0, 1) * np.clip(streaks, 0, 2)
    amount *= 1 - rng.uniform(0.4, 1.0) * spared
    stains[2] += rng.uniform(*BROWN) * amount
    brown = hed2rgb(stains, channel_axis=0)
    return torch.from_numpy(brown.astype(np.float32))


def vary_stain(pixels: Tensor, rng: np.random.Generator, spread: float) -> Tensor:
    """Scale and shift the concentrations of each stain of an RGB crop in 0..1."""
    rgb = np.clip(pixels.numpy(), 0, 1)
    stains = rgb2hed(rgb, channel_axis=0)
    gain = rng.uniform(1 - spread, 1 + spread, (3,) + (1,) * (rgb.ndim - 1))
    shift = rng.uniform(-0.05, 0.05, gain.shape) * spread
    varied = hed2rgb(stains * gain + shift, channel_axis=0)
    return torch.from_numpy(varied.astype(np.float32))
