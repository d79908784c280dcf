"""What is seen of a network's attention, and where on the image it lies; no Qt."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_attunet.canvas import AttentionMap, AttentionTable
from napari_attunet.spec import ModelSpec
from napari_attunet.widgets.gathering import (
    COPIED_AT_ONCE,
    label_axes_of,
    without_channels,
)
from napari_attunet.widgets.layers import array_of
from napari_attunet.widgets.poses import Pose, fit

if TYPE_CHECKING:
    from napari.layers import Image, Labels

    from napari_attunet.inspection import Inspection
    from napari_attunet.widgets.inspect.look import Look

__all__ = ["ON_PIXELS", "Probed", "Seen"]

Ints = npt.NDArray[np.integer[Any]]

#: What is compared with masks, and probed.
ON_PIXELS = ("gate", "spatial")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What there is at a pixel.

    Attributes
    ----------
    position : tuple of int
        In the whole image, along the axes of its labels.
    attention : tuple of (str, float)
        Name and coefficient of each map.
    channels : tuple of (str, float)
        Name and mean weight of each block with attention to channels, which have no
        place but the tile.
    classes : tuple of (str, float)
        Names and probabilities, where they are known.
    """

    position: tuple[int, ...]
    attention: tuple[tuple[str, float], ...]
    channels: tuple[tuple[str, float], ...]
    classes: tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Seen:
    """What a network attended to in an image or a part of it.

    Attributes
    ----------
    spec : ModelSpec
    axes : str
        Of the layer's array.
    shape : tuple of int
        Of the layer's array.
    pose : Pose
        Of the layer.
    rgb : bool
    region : tuple of slice
        The part, for each axis but the channels.
    labels : array of int
        What the model said, in the shape of the part.
    maps : tuple of AttentionMap
        Counted from the part's corner.
    tables : tuple of AttentionTable
    probabilities : array, (K, *labels.shape), optional
    output : str
        What the labels are: ``"objects"`` or ``"classes"``.
    look : Look, optional
        What led here, and the inspection to ask on; the last run, which was segmented
        in tiles, has neither.
    inspection : Inspection, optional
    """

    spec: ModelSpec
    axes: str
    shape: tuple[int, ...]
    pose: Pose
    rgb: bool
    region: tuple[slice, ...]
    labels: Ints
    maps: tuple[AttentionMap, ...]
    tables: tuple[AttentionTable, ...]
    output: str
    probabilities: npt.NDArray[np.float32] | None = None
    look: Look | None = None
    inspection: Inspection | None = None

    @property
    def label_axes(self) -> str:
        """Axes of the labels and maps."""
        return self.axes.replace("C", "")

    def fit(
        self,
        values: npt.NDArray[Any],
        scale: Sequence[int],
        translate: Sequence[float] | None = None,
    ) -> tuple[npt.NDArray[Any], Pose]:
        """Return a layer's values and pose, for values that lie on the part.

        Parameters
        ----------
        values : array
        scale : sequence of int
            Pixels in a cell.
        translate : sequence of float, optional
            Centre of the first cell in the part's pixels; by default the cell begins
            at the part's corner.
        """
        corner = {
            a: float(r.start) for a, r in zip(self.label_axes, self.region, strict=True)
        }
        if translate is not None:
            places = zip(self.label_axes, translate, scale, strict=True)
            for axis, centre, factor in places:
                corner[axis] += centre - (factor - 1) / 2
        offset = [corner.get(axis, 0.0) for axis in self.axes[: self.pose.ndim]]
        return fit(
            values,
            scale,
            axes=self.axes,
            shape=self.shape,
            pose=self.pose.shifted(offset),
        )

    def pixel_at(self, world: npt.ArrayLike) -> npt.NDArray[np.float64] | None:
        """Return where a place of the world lies in the part, or None if beside it."""
        found = dict(
            zip(self.axes[: self.pose.ndim], self.pose.pixel_at(world), strict=True)
        )
        corner = [r.start for r in self.region]
        place = np.array([found[axis] for axis in self.label_axes]) - corner
        inside = (place >= -0.5) & (place < np.array(self.labels.shape) - 0.5)
        return place if inside.all() else None

    def probe(self, world: npt.ArrayLike) -> Probed | None:
        """Return what there is at a place of the world; None beside the part."""
        place = self.pixel_at(world)
        if place is None:
            return None
        attention = []
        for found in self.maps:
            if found.kind not in ON_PIXELS:
                continue
            cell = np.floor((place - found.translate) / found.scale + 0.5).astype(int)
            at = tuple(np.clip(cell, 0, np.array(found.values.shape) - 1))
            attention.append((found.name, float(found.values[at])))
        pixel = tuple(int(i) for i in np.floor(place + 0.5))
        classes: list[tuple[str, float]] = []
        if self.probabilities is not None:
            here = [float(of_class[pixel]) for of_class in self.probabilities]
            classes = list(zip(self.spec.classes, here, strict=True))
        return Probed(
            position=tuple(
                p + r.start for p, r in zip(pixel, self.region, strict=True)
            ),
            attention=tuple(attention),
            channels=tuple(
                (table.name, float(table.values[self.row_of(table, world)].mean()))
                for table in self.tables
                if table.kind == "channel"
            ),
            classes=tuple(classes),
        )

    def row_of(self, table: AttentionTable, world: npt.ArrayLike) -> tuple[int, ...]:
        """Return the row of a table that belongs to a place of the world."""
        place = dict(
            zip(self.axes[: self.pose.ndim], self.pose.pixel_at(world), strict=True)
        )
        local = {
            axis: min(max(round(place[axis]) - r.start, 0), r.stop - r.start - 1)
            for axis, r in zip(self.label_axes, self.region, strict=True)
        }
        spatial = "ZYX"[-self.spec.network.ndim :]
        leading = tuple(local[a] for a in self.label_axes if a not in spatial)
        here = [local[axis] for axis in spatial]
        tiles = [
            number
            for number, region in enumerate(table.regions)
            if all(r.start <= p < r.stop for p, r in zip(here, region, strict=True))
        ]
        # Tiles overlap: the nearest centre is the tile that was kept there.
        nearest = min(
            tiles or range(len(table.regions)),
            key=lambda t: sum(
                abs(p - (r.start + r.stop - 1) / 2)
                for p, r in zip(here, table.regions[t], strict=True)
            ),
        )
        return (*leading, nearest)

    def spread(
        self, points: npt.NDArray[np.float64], leading: Sequence[int]
    ) -> npt.NDArray[np.float64]:
        """Return points of the part as points of the layer.

        Parameters
        ----------
        points : array, (P, n)
            Along the n spatial axes of the network.
        leading : sequence of int
            Where along the axes that are walked.
        """
        spatial = "ZYX"[-self.spec.network.ndim :]
        walked = [a for a in self.label_axes if a not in spatial]
        corner = dict(zip(self.label_axes, (r.start for r in self.region), strict=True))
        columns = {axis: points[:, i] for i, axis in enumerate(spatial)}
        for axis, at in zip(walked, leading, strict=True):
            columns[axis] = np.full(len(points), float(at))
        nowhere = np.zeros(len(points))  # along channels
        return np.stack(
            [
                columns.get(axis, nowhere) + corner.get(axis, 0)
                for axis in self.axes[: self.pose.ndim]
            ],
            axis=1,
        )

    def part_of(self, image: Image, labels: Labels) -> Callable[[], Ints]:
        """Return what gives the part of labels that belongs to what is seen.

        It is copied at once unless it is large: the user may be painting on it. Call
        what is returned in the thread that works.

        Raises
        ------
        DataError
            If they are no labels of this image.
        """
        axes = label_axes_of(image, labels, self.axes)
        parts = dict(zip(self.label_axes, self.region, strict=True))
        index = tuple(parts.get(axis, slice(None)) for axis in axes)
        part = array_of(labels)[index]
        if isinstance(part, np.ndarray) and part.nbytes <= COPIED_AT_ONCE:
            part = part.copy()
        return functools.partial(_read, part, axes)

    def describe(self) -> str:
        """Return what is seen, in words."""
        if self.inspection is None:
            return f"The last run of {self.spec.key} on the whole image."
        spans = ", ".join(
            f"{axis.lower()} {r.start}"
            + (f" to {r.stop - 1}" if r.stop - r.start > 1 else "")
            for axis, r in zip(self.label_axes, self.region, strict=True)
        )
        return f"{self.spec.key} on {spans}."


def _read(part: Any, axes: str) -> Ints:
    return without_channels(np.asarray(part), axes)
