"""Where tiles are stitched: labels, probabilities and α maps of a whole image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from napari_attunet.axes import ImageView
from napari_attunet.objects import class_labels, object_labels
from napari_attunet.spec import ObjectSettings
from napari_attunet.tiling import Tile, Tiling

__all__ = ["AttentionMap", "Canvas", "ClassLabeller", "Labeller", "ObjectLabeller"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """What one mechanism attended to, on its own grid; the viewer places it.

    Attributes
    ----------
    name : str
        Such as ``"α level 1"``.
    level : int
        1 is the finest gate.
    kind : str
        ``"gate"``.
    values : array of float32
        In [0, 1]; axes as in `Segmentation.axes`, the network's spatial axes coarser.
    scale : tuple of int
        Image pixels in one cell, for each axis (1 for axes that were walked).
    translate : tuple of float
        Centre of the first cell in image pixels, ``(scale - 1) / 2``.
    """

    name: str
    level: int
    kind: str
    values: npt.NDArray[np.float32]
    scale: tuple[int, ...]
    translate: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ClassLabeller:
    """Classes need no neighbours: a tile is labelled where it stands."""

    threshold: float | None = None

    def label(self, probabilities: Floats) -> npt.NDArray[np.int32]:
        """Return the class of each pixel of (K, *spatial) probabilities."""
        return class_labels(probabilities, threshold=self.threshold)


@dataclass(frozen=True, slots=True)
class ObjectLabeller:
    """Objects are told apart on the whole frame, from two probabilities."""

    settings: ObjectSettings
    has_boundary: bool

    def keep(self, probabilities: Floats) -> Floats:
        """Return interior and boundary, (2, *spatial), of (K, *spatial).

        A model of classes has no boundary: all of its foreground is interior.
        """
        if self.has_boundary:
            return probabilities[[self.settings.interior, self.settings.boundary]]
        interior = 1 - probabilities[0]
        return np.stack((interior, np.zeros_like(interior)))

    def label(
        self, frame: npt.NDArray[np.float16], first: int
    ) -> npt.NDArray[np.int32]:
        """Return the objects of a whole frame, (2, *spatial), numbered from first."""
        labels = object_labels(frame[0], frame[1], self.settings)
        if first > 1:
            labels[labels > 0] += np.int32(first - 1)
        return labels


Labeller = ClassLabeller | ObjectLabeller


class Canvas:
    """Holds the results of a whole image while its tiles come in.

    Parameters
    ----------
    view : ImageView
    tiling : Tiling
        Of one frame.
    n_classes : int
    gates : sequence of tuple of int
        Scale of every gate whose α is to be kept, fine to coarse.
    keep_probabilities : bool
    labeller : Labeller
    """

    def __init__(
        self,
        view: ImageView,
        tiling: Tiling,
        *,
        n_classes: int,
        gates: Sequence[tuple[int, ...]],
        keep_probabilities: bool,
        labeller: Labeller,
    ) -> None:
        self._view = view
        self._labeller = labeller
        self._gates = tuple(gates)
        self._first = 1
        self.labels = np.zeros(view.label_shape, np.int32)
        self.probabilities = (
            np.zeros((n_classes, *view.label_shape), np.float32)
            if keep_probabilities
            else None
        )
        # Objects wait for their whole frame. Half precision resolves 0.0005 near one,
        # far finer than any threshold matters.
        waits = isinstance(labeller, ObjectLabeller)
        shape = (2, *view.spatial_shape) if waits else (0,)
        self._frame = np.zeros(shape, np.float16)
        self._alpha = [
            np.zeros(self._coarse_shape(tiling, scale), np.float32) for scale in gates
        ]

    def _coarse_shape(self, tiling: Tiling, scale: tuple[int, ...]) -> tuple[int, ...]:
        coarse = dict(
            zip(self._view.spatial_axes, tiling.coarse_shape(scale), strict=True)
        )
        sizes = zip(self._view.label_axes, self._view.label_shape, strict=True)
        return tuple(coarse.get(axis, size) for axis, size in sizes)

    def put(
        self,
        frame: tuple[int, ...],
        tile: Tile,
        probabilities: Floats,
        alphas: Sequence[Floats],
    ) -> None:
        """Write a tile's results where they belong.

        Parameters
        ----------
        frame : tuple of int
        tile : Tile
        probabilities : (K, *tile.read)
        alphas : of each gate that is kept, (*tile.read / scale)
        """
        view = self._view
        kept = probabilities[(slice(None), *tile.crop)]
        at = view.label_index(frame, tile.write)
        if isinstance(self._labeller, ClassLabeller):
            self.labels[at] = view.to_label_order(self._labeller.label(kept))
        else:
            self._frame[(slice(None), *tile.write)] = self._labeller.keep(kept)
        if self.probabilities is not None:
            for of_class, block in zip(self.probabilities, kept, strict=True):
                of_class[at] = view.to_label_order(block)
        for whole, scale, alpha in zip(self._alpha, self._gates, alphas, strict=True):
            crop, write = tile.on_grid(scale)
            whole[view.label_index(frame, write)] = view.to_label_order(alpha[crop])

    def finish(self, frame: tuple[int, ...]) -> None:
        """Label a frame whose tiles are all there."""
        if isinstance(self._labeller, ClassLabeller):
            return
        view = self._view
        labels = self._labeller.label(self._frame, self._first)
        self._first = max(self._first, int(labels.max(initial=0)) + 1)
        whole = tuple(slice(0, n) for n in view.spatial_shape)
        self.labels[view.label_index(frame, whole)] = view.to_label_order(labels)

    def maps(self) -> tuple[AttentionMap, ...]:
        """Return what the gates attended to, fine to coarse."""
        axes = self._view.label_axes
        maps = []
        for level, (values, scale) in enumerate(
            zip(self._alpha, self._gates, strict=True), start=1
        ):
            by_axis = dict(zip(self._view.spatial_axes, scale, strict=True))
            factors = tuple(by_axis.get(axis, 1) for axis in axes)
            maps.append(
                AttentionMap(
                    name=f"α level {level}",
                    level=level,
                    kind="gate",
                    values=values,
                    scale=factors,
                    translate=tuple((f - 1) / 2 for f in factors),
                )
            )
        return tuple(maps)
