"""Where results lie on their source, in the coordinates of napari; no Qt.

A result lies on its source through the source's own scale, translate, rotate, shear
and affine, in which napari maps a pixel p to ::

    world = affine @ (translate + rotate @ shear @ diag(scale) @ p)

Cell i of a grid coarser by f covers the pixels f·i ... f·i + f - 1 and is centred at
f·i + (f - 1) / 2. So a coarse layer has f times the scale, and is moved by the place
of (f - 1) / 2 in the frame between ``diag(scale)`` and ``affine``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from napari.components import Dims
    from napari.layers import Layer

__all__ = ["Pose", "fit", "in_units_of", "unit_factors"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pose:
    """Where a layer of n axes lies in the world; a snapshot.

    Attributes
    ----------
    scale, translate : (n,) array
    rotate, shear : (n, n) array
    affine : (n + 1, n + 1) array
    units : tuple
    axis_labels : tuple of str
    """

    scale: Floats
    translate: Floats
    rotate: Floats
    shear: Floats
    affine: Floats
    units: tuple[Any, ...]
    axis_labels: tuple[str, ...]

    @classmethod
    def of(cls, layer: Layer) -> Pose:
        """Return where a layer lies now; RGB counts no colour axis."""
        n = layer.ndim
        shear = np.asarray(layer.shear, float)
        if shear.ndim == 1:  # the upper triangle, row by row
            vector, shear = shear, np.eye(n)
            shear[np.triu_indices(n, 1)] = vector
        return cls(
            np.array(layer.scale, float),
            np.array(layer.translate, float),
            np.array(layer.rotate, float),
            shear,
            np.array(layer.affine.affine_matrix, float),
            tuple(layer.units),
            tuple(layer.axis_labels),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pose) and all(
            _same(value, getattr(other, name))
            for name, value in self.arguments().items()
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.scale)

    def coarser(self, factors: Sequence[float]) -> Pose:
        """Return the pose of a grid with so many pixels in a cell, for each axis."""
        f = np.asarray(factors, float)
        if f.shape != self.scale.shape:
            raise ValueError(f"{len(self.scale)} factors are needed, got {factors}")
        shift = self.rotate @ self.shear @ (self.scale * (f - 1) / 2)
        return replace(self, scale=self.scale * f, translate=self.translate + shift)

    def shifted(self, offset: Sequence[float]) -> Pose:
        """Return the pose of a part that begins so many pixels into the whole."""
        shift = self.rotate @ self.shear @ (self.scale * np.asarray(offset, float))
        return replace(self, translate=self.translate + shift)

    @property
    def matrix(self) -> Floats:
        """From pixels to the world, homogeneous; (n + 1, n + 1)."""
        n = self.ndim
        placed = np.eye(n + 1)
        placed[:n, :n] = self.rotate @ self.shear @ np.diag(self.scale)
        placed[:n, n] = self.translate
        matrix: Floats = self.affine @ placed
        return matrix

    def pixel_at(self, world: npt.ArrayLike) -> Floats:
        """Return the pixel, with its fraction, at a place of the world.

        Parameters
        ----------
        world : array
            In the layer's units. May have more axes than the layer; those in front
            are not the layer's.
        """
        place = np.append(np.asarray(world, float)[-self.ndim :], 1.0)
        found: Floats = np.linalg.solve(self.matrix, place)[: self.ndim]
        return found

    def is_close(self, other: Pose) -> bool:
        """Return whether both lie at the same place, but for rounding errors.

        napari takes a layer's matrix apart and gives back other parts of it.
        """
        same = self.ndim == other.ndim
        return same and np.allclose(self.matrix, other.matrix, atol=1e-6)

    @property
    def first_is_apart(self) -> bool:
        """Whether no rotation, shear or affine mixes the first axis with the others."""
        n = len(self.scale)
        return not any(
            m[0, 1:n].any() or m[1:n, 0].any()
            for m in (self.rotate, self.shear, self.affine)
        )

    def without_first(self) -> Pose:
        """Return the pose of a layer that lacks the first axis and fills it."""
        return Pose(
            self.scale[1:],
            self.translate[1:],
            self.rotate[1:, 1:],
            self.shear[1:, 1:],
            self.affine[1:, 1:],
            self.units[1:],
            self.axis_labels[1:],
        )

    def apply_to(self, layer: Layer) -> None:
        """Move a layer here; what is right already is left alone."""
        now = Pose.of(layer)
        for name, value in self.arguments().items():
            if not _same(value, getattr(now, name)):
                setattr(layer, name, value)

    def arguments(self) -> dict[str, Any]:
        """Return the pose as arguments of a new layer."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return bool(one == other)


def fit(
    values: npt.NDArray[Any],
    factors: Sequence[int],
    *,
    axes: str,
    shape: Sequence[int],
    pose: Pose,
) -> tuple[npt.NDArray[Any], Pose]:
    """Return values and their pose, such that they lie on their source.

    A result has no channels. Where its source shows channels along an axis of their
    own, the result lacks it if it is the first one, and is then seen in each channel;
    else it gets a single cell along it, as thick as all channels.

    Parameters
    ----------
    values : array
        Its axes are `axes` without C.
    factors : sequence of int
        Source pixels in a cell, for each axis of `values`.
    axes, shape : str, sequence of int
        Of the source's array.
    pose : Pose
        Of the source.
    """
    if "C" not in axes or len(axes) > len(pose.scale):  # grey, or RGB
        return values, pose.coarser(factors)
    channel = axes.index("C")
    if channel == 0 and pose.first_is_apart:
        return values, pose.without_first().coarser(factors)
    thick = [*factors[:channel], shape[channel], *factors[channel:]]
    return np.expand_dims(values, channel), pose.coarser(thick)


def unit_factors(units: Sequence[Any], onto: Sequence[Any]) -> tuple[float, ...]:
    """Return how many of another layer's units one of these is, for each axis.

    As in the viewer, units mean nothing if they don't measure the same on every axis
    that the layers share.
    """
    n = min(len(units), len(onto))  # axes are shared from the last
    pairs = list(zip(units[len(units) - n :], onto[len(onto) - n :], strict=True))
    if any(one.dimensionality != other.dimensionality for one, other in pairs):
        return (1.0,) * len(units)
    shared = [float((1 * one).to(other).magnitude) for one, other in pairs]
    return (*(1.0,) * (len(units) - n), *shared)


def in_units_of(layer: Layer, dims: Dims, world: npt.ArrayLike) -> Floats:
    """Return a place of the viewer's world in the units of a layer; its axes only."""
    point = np.asarray(world, float)[-layer.ndim :]
    units = getattr(dims, "units", None)  # napari before 0.9 has none
    if units is None or len(units) < layer.ndim:
        return point
    found: Floats = point * unit_factors(units[-layer.ndim :], layer.units)
    return found
