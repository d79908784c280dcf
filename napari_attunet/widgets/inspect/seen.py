"""What is seen of a network's attention, and where on the image it lies; no Qt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from napari.layers import Image, Labels, Layer

from napari_attunet.attention import GateStatistics, gate_statistics
from napari_attunet.canvas import AttentionMap, AttentionTable
from napari_attunet.progress import Progress, Steps
from napari_attunet.spec import ModelSpec
from napari_attunet.widgets.gathering import label_axes_of, without_channels
from napari_attunet.widgets.layers import array_of, axes_of, mark_of, results_of
from napari_attunet.widgets.poses import Pose, fit
from napari_attunet.widgets.preview import visible_region
from napari_attunet.widgets.results import Settings
from napari_attunet.widgets.warmup import warm_up

if TYPE_CHECKING:
    import napari.viewer

    from napari_attunet.inspection import Inspection

__all__ = ["Look", "Probed", "Seen", "last_run", "statistics_steps"]

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

    def pixel_at(self, world: Sequence[float]) -> npt.NDArray[np.float64] | None:
        """Return where a place of the world lies in the part, or None if beside it."""
        found = dict(
            zip(self.axes[: self.pose.ndim], self.pose.pixel_at(world), strict=True)
        )
        corner = [r.start for r in self.region]
        place = np.array([found[axis] for axis in self.label_axes]) - corner
        inside = (place >= -0.5) & (place < np.array(self.labels.shape) - 0.5)
        return place if inside.all() else None

    def probe(self, world: Sequence[float]) -> Probed | None:
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

    def row_of(self, table: AttentionTable, world: Sequence[float]) -> tuple[int, ...]:
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

    def part_of(self, image: Image, labels: Labels) -> Ints:
        """Return the part of labels that belongs to what is seen.

        Raises
        ------
        DataError
            If they are no labels of this image.
        """
        axes = label_axes_of(image, labels, self.axes)
        parts = dict(zip(self.label_axes, self.region, strict=True))
        index = tuple(parts.get(axis, slice(None)) for axis in axes)
        return without_channels(np.asarray(array_of(labels)[index]), axes)

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


def last_run(layers: Sequence[Layer], source: Image, spec: ModelSpec) -> Seen | None:
    """Return what the last run of a model left in the viewer, if it did."""
    labels, maps = None, []
    for layer in results_of(layers, source, spec.key):
        mark = mark_of(layer)
        if mark is None:
            continue
        if isinstance(layer, Labels):
            labels = labels or layer
        elif mark.attention is not None:
            maps.append(mark.attention)
    mark = mark_of(labels) if labels is not None else None
    shape = tuple(array_of(source).shape)
    if labels is None or mark is None or not maps or mark.settings is None:
        return None
    axes = str(mark.record["axes"])
    if len(axes) != len(shape):
        return None  # the image was given other pixels meanwhile
    sizes = dict(zip(axes, shape, strict=True))
    region = tuple(slice(0, sizes[axis]) for axis in axes if axis != "C")
    order = {kind: i for i, kind in enumerate(ON_PIXELS)}
    seen = Seen(
        spec=spec,
        axes=axes,
        shape=shape,
        pose=Pose.of(source),
        rgb=source.rgb,
        region=region,
        labels=np.zeros((0,) * len(region), np.int32),
        maps=tuple(sorted(maps, key=lambda m: (order[m.kind], m.name))),
        tables=mark.tables,
        output=str(mark.record["output"]),
    )
    return replace(seen, labels=seen.part_of(source, labels))


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A part of a layer that a network is going to see.

    Attributes
    ----------
    image : array
        The whole, at full resolution.
    axes : str
    rgb : bool
    pose : Pose
    region : tuple of slice
        For each of `axes`.
    spec : ModelSpec
    settings : Settings
    """

    image: Any
    axes: str
    rgb: bool
    pose: Pose
    region: tuple[slice, ...]
    spec: ModelSpec
    settings: Settings

    @classmethod
    def of(
        cls,
        viewer: napari.viewer.Viewer,
        layer: Image,
        spec: ModelSpec,
        settings: Settings,
    ) -> Look:
        """Take what the viewer shows of a layer; for the thread of the GUI.

        Raises
        ------
        DataError
            If the layer's axes don't suit the model.
        """
        network = spec.network
        axes = settings.axes or axes_of(
            layer, ndim=network.ndim, in_channels=network.in_channels
        )
        displayed = [axis - viewer.dims.ndim for axis in viewer.dims.displayed]
        return cls(
            image=array_of(layer),
            axes=axes,
            rgb=layer.rgb,
            pose=Pose.of(layer),
            region=visible_region(
                layer, displayed, viewer.dims.point, axes=axes, ndim=network.ndim
            ),
            spec=spec,
            settings=settings,
        )

    def compute(self) -> Steps[Seen]:
        """Run the network on the part."""
        yield Progress(0, 0, "Loading PyTorch")
        warm_up()
        import pyqtgraph  # noqa: F401 - else the first bars would wait for it

        from napari_attunet.inspection import Inspection
        from napari_attunet.model import load_model
        from napari_attunet.segmenter import Segmenter

        yield Progress(0, 0, f"Loading {self.spec.name}")
        asked = self.settings
        segmenter = Segmenter(
            load_model(asked.model), device=asked.device, threads=asked.threads
        )
        yield Progress(0, 0, "Looking")
        places = zip(self.axes, self.region, strict=True)
        output = asked.output or self.spec.output
        inspection = Inspection(
            segmenter,
            self.image,
            region=[part for axis, part in places if axis != "C"],
            axes=self.axes,
            rgb=self.rgb,
            channels=asked.channels,
            output=output,
            objects=asked.objects if output == "objects" else None,
        )
        answer = inspection.answer()
        return Seen(
            spec=self.spec,
            axes=self.axes,
            shape=tuple(self.image.shape),
            pose=self.pose,
            rgb=self.rgb,
            region=inspection.region,
            labels=answer.labels,
            maps=answer.attention,
            tables=answer.tables,
            output=output,
            probabilities=answer.probabilities,
            look=self,
            inspection=inspection,
        )


def statistics_steps(
    seen: Seen, mask: npt.NDArray[np.bool_]
) -> Steps[list[GateStatistics]]:
    """Return what each map does on a mask and beside it."""
    found = []
    maps = [m for m in seen.maps if m.kind in ON_PIXELS]
    for done, attention in enumerate(maps):
        yield Progress(done, len(maps), f"Measuring {attention.name}")
        found.append(gate_statistics(attention, mask))
    return found
