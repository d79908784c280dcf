"""Where tiles are stitched: labels, probabilities and α maps of a whole image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from napari_attunet.architecture import Kind, Mechanism
from napari_attunet.objects import class_labels, objects_within
from napari_attunet.spec import ObjectSettings
from napari_attunet.tiling import Region, Tile, Tiling
from napari_attunet.view import ImageView

__all__ = [
    "AttentionMap",
    "AttentionTable",
    "Canvas",
    "ClassLabeller",
    "Labeller",
    "ObjectLabeller",
]

Floats = npt.NDArray[np.float32]

#: Labels that are widened at a time.
SLAB = 2**22


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """What one mechanism attended to, on its own grid; the viewer places it.

    Attributes
    ----------
    name : str
        Such as ``"α level 1"``.
    level : int
        1 is the finest.
    kind : {"gate", "spatial"}
        Of a skip connection, or inside a block.
    values : array of float32
        In [0, 1]; axes as in `Segmentation.axes`, the network's spatial axes coarser.
    scale : tuple of int
        Image pixels in one cell, for each axis (1 for axes that were walked).
    translate : tuple of float
        Centre of the first cell in image pixels, ``(scale - 1) / 2``.
    """

    name: str
    level: int
    kind: Kind
    values: npt.NDArray[np.float32]
    scale: tuple[int, ...]
    translate: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class AttentionTable:
    """What one mechanism attended to that has no place of its own.

    Channels and transforms come of all that the network sees at once, so there is one
    row for each tile.

    Attributes
    ----------
    name : str
        Such as ``"SE encoder level 1"``.
    level : int
        1 is the finest.
    kind : {"channel", "transform"}
    values : array of float32, (*leading, tiles, ...)
        Of ``"channel"``: (..., C), in [0, 1]. Of ``"transform"``: (..., n + 1, n + 1),
        from pixels of the sampled frame to pixels of the image, along the network's n
        spatial axes, homogeneous.
    regions : tuple of tuple of slice
        What each tile saw, in image pixels; may reach beyond the image.
    """

    name: str
    level: int
    kind: Kind
    values: npt.NDArray[np.float32]
    regions: tuple[tuple[slice, ...], ...]


@dataclass(frozen=True, slots=True)
class ClassLabeller:
    """Classes need no neighbours: a tile is labelled where it stands."""

    threshold: float | None = None

    @property
    def least(self) -> float:
        """How probable it is at least that there is something where it is labelled."""
        return 0.5 if self.threshold is None else self.threshold

    def label(self, probabilities: Floats) -> npt.NDArray[np.int32]:
        """Return the class of each pixel of (K, *spatial) probabilities."""
        return class_labels(probabilities, threshold=self.threshold)


@dataclass(frozen=True, slots=True)
class ObjectLabeller:
    """Objects are told apart on the whole frame, from interiors and foreground."""

    settings: ObjectSettings
    has_boundary: bool

    @property
    def least(self) -> float:
        """How probable it is at least that there is something where it is labelled."""
        return self.settings.foreground_threshold

    def keep(self, probabilities: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return of (K, *spatial) how probable interiors are, and where objects are.

        A model of classes has no boundary: all of its foreground is interior.
        """
        if not self.has_boundary:
            interior = found = 1 - probabilities[0]
        else:
            interior = probabilities[self.settings.interior]
            found = interior + probabilities[self.settings.boundary]
        return interior, found >= self.settings.foreground_threshold

    def label(
        self,
        interior: npt.NDArray[np.float16],
        foreground: npt.NDArray[np.bool_],
        first: int,
    ) -> npt.NDArray[np.int32]:
        """Return the objects of a whole frame, (*spatial), numbered from first."""
        labels = objects_within(foreground, interior, self.settings)
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
    mechanisms : sequence of Mechanism
        Whose coefficients are to be kept.
    keep_probabilities : bool
    labeller : Labeller
    """

    def __init__(
        self,
        view: ImageView,
        tiling: Tiling,
        *,
        n_classes: int,
        mechanisms: Sequence[Mechanism],
        keep_probabilities: bool,
        labeller: Labeller,
    ) -> None:
        self._view = view
        self._labeller = labeller
        self._tiles = list(tiling)
        self._mechanisms = tuple(mechanisms)
        self._first = 1
        waits = isinstance(labeller, ObjectLabeller)
        self._labels = self._written = np.zeros(view.label_shape, np.int32)
        if not waits:  # until the end, classes lie in the last bytes of their labels
            smallest = np.min_scalar_type(n_classes - 1)
            packed = self._labels.reshape(-1).view(smallest)[-self._labels.size :]
            self._written = packed.reshape(view.label_shape)
        self.probabilities = (
            np.zeros((n_classes, *view.label_shape), np.float32)
            if keep_probabilities
            else None
        )
        if self.probabilities is not None:
            self.probabilities[0] = 1  # where no tile is looked at
        # Objects wait for their whole frame. Half precision resolves 0.0005 near one,
        # far finer than any threshold matters.
        shape = view.spatial_shape if waits else (0,)
        self._interior = np.zeros(shape, np.float16)
        self._foreground = np.zeros(shape, bool)
        self._kept = [self._room(mechanism, tiling) for mechanism in mechanisms]

    def _room(self, mechanism: Mechanism, tiling: Tiling) -> Floats:
        """Return where a mechanism's coefficients are kept."""
        rows = (*self._view.leading_shape, len(tiling))
        if mechanism.kind == "channel":
            return np.zeros((*rows, mechanism.channels), np.float32)
        if mechanism.kind == "transform":
            size = len(mechanism.scale) + 1
            return np.zeros((*rows, size, size), np.float32)
        shape = self._coarse_shape(tiling, mechanism.scale)
        return np.zeros((mechanism.channels, *shape), np.float32)

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
        coefficients: Sequence[Floats],
    ) -> None:
        """Write a tile's results where they belong.

        Parameters
        ----------
        frame : tuple of int
        tile : Tile
        probabilities : (K, *tile.part)
        coefficients : sequence of array
            Of each mechanism that is kept, as of `Explained`, without the batch.
        """
        view = self._view
        kept = probabilities[(slice(None), *_beginning(tile.write))]
        at = view.label_index(frame, tile.write)
        if isinstance(self._labeller, ClassLabeller):
            self._written[at] = view.to_label_order(self._labeller.label(kept))
        else:
            interior, foreground = self._labeller.keep(kept)
            self._interior[tile.write] = interior
            self._foreground[tile.write] = foreground
        if self.probabilities is not None:
            for of_class, block in zip(self.probabilities, kept, strict=True):
                of_class[at] = view.to_label_order(block)
        for mechanism, room, values in zip(
            self._mechanisms, self._kept, coefficients, strict=True
        ):
            if mechanism.kind in ("gate", "spatial"):
                write = tile.on_grid(mechanism.scale)
                at = view.label_index(frame, write)
                for whole, alpha in zip(room, values, strict=True):
                    whole[at] = view.to_label_order(alpha[_beginning(write)])
                continue
            row = (*frame, self._tiles.index(tile))
            is_matrix = mechanism.kind == "transform"
            room[row] = in_pixels(values, tile) if is_matrix else values

    def finish(self, frame: tuple[int, ...]) -> None:
        """Label a frame whose tiles are all there."""
        if isinstance(self._labeller, ClassLabeller):
            return
        view = self._view
        labels = self._labeller.label(self._interior, self._foreground, self._first)
        self._first = max(self._first, int(labels.max(initial=0)) + 1)
        whole = tuple(slice(0, n) for n in view.spatial_shape)
        self._written[view.label_index(frame, whole)] = view.to_label_order(labels)
        self._interior.fill(0)  # of the next frame, tiles may be left out
        self._foreground.fill(False)

    def labels(self) -> npt.NDArray[np.int32]:
        """Return the labels of the whole image, once all of its tiles are there.

        Memory that nothing was written to costs nothing: until here, when no tile needs
        any more, classes take a quarter of what they do as labels.
        """
        if self._written is not self._labels:
            wide, packed = self._labels.reshape(-1), self._written.reshape(-1)
            for first in range(0, wide.size, SLAB):  # never beyond what was read
                wide[first : first + SLAB] = packed[first : first + SLAB].copy()
            self._written = self._labels
        return self._labels

    def maps(self) -> tuple[AttentionMap, ...]:
        """Return what lies on a grid, in the order of the mechanisms."""
        axes = self._view.label_axes
        maps = []
        for mechanism, room in zip(self._mechanisms, self._kept, strict=True):
            if mechanism.kind not in ("gate", "spatial"):
                continue
            by_axis = dict(zip(self._view.spatial_axes, mechanism.scale, strict=True))
            factors = tuple(by_axis.get(axis, 1) for axis in axes)
            for number, values in enumerate(room, start=1):
                which = f" gate {number}" if mechanism.channels > 1 else ""
                maps.append(
                    AttentionMap(
                        name=mechanism.label + which,
                        level=mechanism.level + 1,
                        kind=mechanism.kind,
                        values=values,
                        scale=factors,
                        translate=tuple((f - 1) / 2 for f in factors),
                    )
                )
        return tuple(maps)

    def tables(self) -> tuple[AttentionTable, ...]:
        """Return what lies on no grid, in the order of the mechanisms."""
        return tuple(
            AttentionTable(
                name=mechanism.label,
                level=mechanism.level + 1,
                kind=mechanism.kind,
                values=room,
                regions=tuple(tile.read for tile in self._tiles),
            )
            for mechanism, room in zip(self._mechanisms, self._kept, strict=True)
            if mechanism.kind in ("channel", "transform")
        )


def _beginning(write: Region) -> Region:
    """Return what is written of a part, which may reach beyond the image."""
    return tuple(slice(0, w.stop - w.start) for w in write)


def in_pixels(matrix: Floats, tile: Tile) -> npt.NDArray[np.float64]:
    """Return a transform's matrix for pixels.

    Parameters
    ----------
    matrix : (n, n + 1)
        For coordinates from -1 to 1 from edge to edge of the tile, last axis first.
    tile : Tile

    Returns
    -------
    array, (n + 1, n + 1)
        For pixels of the tile, to pixels of the image; axes in the image's order.
    """
    count = len(matrix)
    homogeneous = np.eye(count + 1)
    homogeneous[:count, :count] = matrix[::-1, :count][:, ::-1]
    homogeneous[:count, count] = matrix[::-1, count]
    to_unit, to_image = np.eye(count + 1), np.eye(count + 1)
    for axis, part in enumerate(tile.read):
        size = part.stop - part.start
        to_unit[axis, axis], to_unit[axis, -1] = 2 / size, 1 / size - 1
        to_image[axis, axis] = size / 2
        to_image[axis, -1] = (size - 1) / 2 + part.start
    return to_image @ homogeneous @ to_unit
