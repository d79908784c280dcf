"""Images to try things on: synthetic nuclei with their truth, and a real tissue.

Nothing is downloaded. The synthetic nuclei are made for demonstrations and tests; a
model that finds them has not yet proved itself on real ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.interpolate import CubicSpline
from skimage import color, data

from napari_attunet.errors import DataError

__all__ = ["immunohistochemistry", "synthetic_nuclei"]

Floats = npt.NDArray[np.float32]

#: Mean radius in pixels, for two and for three dimensions.
RADIUS = {2: 11.0, 3: 8.0}
#: Part of the image that nuclei cover by default.
COVERAGE = {2: 0.33, 3: 0.2}
#: Chance that a nucleus grows next to another one rather than anywhere.
SOCIABLE = 0.45
#: Part of a nucleus that may lie behind its neighbours.
MAX_OVERLAP = 0.15
#: Places tried for each nucleus before the image counts as full.
TRIES = 30
#: Electrons at the centre of a nucleus of ordinary brightness, and what the camera
#: makes of them: the offset of a black pixel, grey values for an electron, the spread
#: of its read-out in grey values.
ELECTRONS, OFFSET, GAIN, READ_NOISE = 220.0, 100.0, 4.0, 8.0


def synthetic_nuclei(
    shape: tuple[int, ...] = (256, 256), *, n: int | None = None, seed: int = 0
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int32]]:
    """Return an image of fluorescent nuclei and its true labels.

    Smoothly deformed ellipses or ellipsoids, alone and in touching groups, with
    chromatin texture, dark nucleoli and a brightness of their own, under uneven light
    and haze, blurred by a microscope and recorded by a noisy camera.

    Parameters
    ----------
    shape : tuple of int
        ``(Y, X)`` or ``(Z, Y, X)`` in pixels. A nucleus is about 22 pixels wide in 2D
        and 16 in 3D.
    n : int, optional
        Number of nuclei; fewer where there is no more room. By default, they cover
        about a third of an image or a fifth of a volume.
    seed : int
        The same seed gives the same image.

    Returns
    -------
    image : array of uint16
        Grey values of a camera with an offset of 100.
    labels : array of int32
        0 is background, nuclei are numbered from 1 without a gap.

    Raises
    ------
    DataError
        If the shape has neither two nor three axes, or an axis is empty.
    """
    if len(shape) not in RADIUS or min(shape) < 1:
        raise DataError(
            f"Synthetic nuclei need two or three axes of at least one pixel, got "
            f"{shape}. Give the shape as (Y, X) or (Z, Y, X)."
        )
    random = np.random.default_rng(seed)
    radius = RADIUS[len(shape)]
    if n is None:
        volume = {2: math.pi, 3: 4 / 3 * math.pi}[len(shape)] * radius ** len(shape)
        n = max(1, round(COVERAGE[len(shape)] * math.prod(shape) / volume))
    scene = _Scene.empty(shape)
    for _ in range(n):
        if not any(scene.grow(random, radius) for _ in range(TRIES)):
            break
    return _photograph(scene, random), _number(scene.labels)


def immunohistochemistry() -> tuple[npt.NDArray[np.uint8], Floats]:
    """Return a stained tissue that comes with scikit-image, and its haematoxylin.

    Returns
    -------
    rgb : (Y, X, C) array of uint8
        Colonic glands, nuclei blue by haematoxylin and FHL2 brown by DAB, 512 x 512.
    haematoxylin : (Y, X) array of float32
        The blue stain alone by colour deconvolution, from 0 to 1: nuclei are bright.
    """
    rgb = data.immunohistochemistry()
    stain = color.rgb2hed(rgb)[..., 0]
    low, high = np.percentile(stain, (0.1, 99.9))  # single pixels set no limits
    return rgb, np.clip((stain - low) / (high - low), 0, 1).astype(np.float32)


@dataclass(slots=True)
class _Scene:
    """What lies under the microscope.

    Attributes
    ----------
    labels : array of int32
        Which nucleus a pixel belongs to.
    level : array of float32
        0 at the nearest nucleus' centre, 1 on its rim, more outside.
    glow : array of float32
        Light emitted.
    centers : list of array
        Where the nuclei lie, with their radii.
    """

    labels: npt.NDArray[np.int32]
    level: Floats
    glow: Floats
    centers: list[tuple[npt.NDArray[Any], float]]

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> _Scene:
        return cls(
            np.zeros(shape, np.int32),
            np.full(shape, np.inf, np.float32),
            np.zeros(shape, np.float32),
            [],
        )

    def grow(self, random: np.random.Generator, mean_radius: float) -> bool:
        """Place one more nucleus, unless it would cover too much of the others."""
        shape = self.labels.shape
        radius = mean_radius * float(np.clip(random.normal(1, 0.17), 0.6, 1.5))
        center = random.uniform(0, shape)
        if self.centers and random.random() < SOCIABLE:
            neighbour, its_radius = self.centers[random.integers(len(self.centers))]
            direction = random.normal(size=len(shape))
            direction /= np.linalg.norm(direction)
            center = neighbour + direction * (radius + its_radius) * 0.93
        if np.any(center < 0) or np.any(center >= shape):
            return False
        reach = 1.7 * radius
        box = tuple(
            slice(max(0, int(c - reach)), min(size, int(c + reach) + 2))
            for c, size in zip(center, shape, strict=True)
        )
        level, position = _nucleus(box, center, radius, random)
        mine = level < 1
        old = self.labels[box]
        covered = np.bincount(old[mine])
        total = np.count_nonzero(mine)
        if total < 4 or covered[1:].sum() > MAX_OVERLAP * total:
            return False
        wins = mine & (level < self.level[box])
        light = _light(level, position, random)
        self.centers.append((center, radius))
        old[wins] = len(self.centers)
        self.level[box] = np.minimum(self.level[box], level)
        glow = self.glow[box]
        # Where two overlap the one in front shines, and a part of the one behind.
        glow[...] = np.maximum(glow, light) + 0.25 * np.minimum(glow, light)
        return True


def _nucleus(
    box: tuple[slice, ...],
    center: npt.NDArray[Any],
    radius: float,
    random: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Return the level of a deformed ellipsoid in a box, and positions within it."""
    ndim = len(box)
    grid = np.meshgrid(*(np.arange(s.start, s.stop) for s in box), indexing="ij")
    offset = np.stack(grid, axis=-1) - center
    axes = random.normal(1, 0.16, ndim).clip(0.65, 1.4)
    axes /= np.prod(axes) ** (1 / ndim)
    turn, _ = np.linalg.qr(random.normal(size=(ndim, ndim)))
    position = (offset @ turn / (radius * axes)).astype(np.float32)
    level = np.linalg.norm(position, axis=-1)
    for frequency, strength in ((1.3, 0.09), (2.2, 0.07), (3.4, 0.035)):
        wave = random.normal(size=ndim)
        wave *= frequency / np.linalg.norm(wave)
        phase = random.uniform(0, 2 * np.pi)
        level = level * (1 + strength * np.sin(position @ wave + phase))
    return level.astype(np.float32), position


def _light(level: Floats, position: Floats, random: np.random.Generator) -> Floats:
    """Return what one nucleus emits: its profile, texture, nucleoli, brightness."""
    brightness = float(np.clip(random.lognormal(-0.1, 0.38), 0.3, 2.2))
    roundness = random.uniform(0.15, 0.45)  # 0 is a flat disc, 0.5 a sphere seen whole
    light = np.clip(1 - level**2, 0, 1) ** roundness
    grain = random.normal(size=level.shape).astype(np.float32)
    for sigma, strength in ((1.0, 0.07), (2.4, 0.13)):
        texture = ndimage.gaussian_filter(grain, sigma)
        light = light * (1 + strength * texture / (texture.std() + 1e-6))
    for _ in range(random.integers(0, 4)):
        place = random.normal(0, 0.33, position.shape[-1])
        size = random.uniform(0.1, 0.2)
        distance = np.sum((position - place) ** 2, axis=-1)
        light = light * (1 - 0.4 * np.exp(-distance / (2 * size**2)))
    emitted: Floats = (brightness * np.clip(light, 0, None)).astype(np.float32)
    return emitted


def _photograph(scene: _Scene, random: np.random.Generator) -> npt.NDArray[np.uint16]:
    """Return the image that a microscope and its camera take of a scene."""
    shape = scene.glow.shape
    volume = len(shape) == 3
    # The point spread function is longer along z.
    psf = (1.8, 1.0, 1.0) if volume else (1.15, 1.15)
    focused = ndimage.gaussian_filter(scene.glow, psf)
    haze = ndimage.gaussian_filter(scene.glow, 9.0, mode="nearest", truncate=2)
    medium = 0.05 + 0.02 * _smooth(shape, random)
    light = 1 + 0.12 * _smooth(shape, random)
    if volume:
        depth = np.linspace(0, 1, shape[0], dtype=np.float32).reshape(-1, 1, 1)
        light = light * np.exp(-0.5 * depth)
    signal = np.clip(light * (focused + 0.12 * haze + medium), 0, None)
    electrons = random.poisson(ELECTRONS * signal)
    noise = random.normal(0, READ_NOISE, shape)
    grey = np.rint(OFFSET + GAIN * electrons + noise)
    image: npt.NDArray[np.uint16]
    image = np.clip(grey, 0, np.iinfo(np.uint16).max).astype(np.uint16)
    return image


def _smooth(shape: tuple[int, ...], random: np.random.Generator) -> Floats:
    """Return a slowly varying field between about -2 and 2, whatever the size."""
    field = random.normal(size=(5,) * len(shape)).clip(-2, 2)
    for axis, size in enumerate(shape):
        field = CubicSpline(np.arange(5), field, axis=axis)(np.linspace(0.5, 3.5, size))
    smooth: Floats = field.astype(np.float32)
    return smooth


def _number(labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Keep the largest piece of every nucleus and number them without a gap."""
    numbered = np.zeros_like(labels)
    count = 0
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        pieces, _ = ndimage.label(labels[box] == number)
        largest = np.argmax(np.bincount(pieces.ravel())[1:]) + 1
        count += 1
        numbered[box][pieces == largest] = count
    return numbered
