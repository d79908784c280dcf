"""How attention comes to be seen: by a fresh look, or from what the last run left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from napari.layers import Image, Labels, Layer

from napari_attunet.attention import GateStatistics, gate_statistics_steps
from napari_attunet.progress import Progress, Steps
from napari_attunet.spec import ModelSpec
from napari_attunet.widgets.gathering import label_axes_of, without_channels
from napari_attunet.widgets.inspect.seen import ON_PIXELS, Seen
from napari_attunet.widgets.layers import array_of, axes_of, mark_of, results_of
from napari_attunet.widgets.poses import Pose, in_units_of
from napari_attunet.widgets.preview import visible_region
from napari_attunet.widgets.results import Settings
from napari_attunet.widgets.warmup import warm_up

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["Look", "last_run", "statistics_steps"]

Ints = npt.NDArray[np.integer[Any]]


def last_run(layers: Sequence[Layer], source: Image, spec: ModelSpec) -> Seen | None:
    """Return what the last run of a model left in the viewer, if it did."""
    found = results_of(layers, source, spec.key)
    labels = next((layer for layer in found if isinstance(layer, Labels)), None)
    mark = mark_of(labels) if labels is not None else None
    marks = [mark_of(layer) for layer in found]
    maps = [  # of the same run: labels are made without maps, too
        m.attention
        for m in marks
        if m is not None
        and m.attention is not None
        and mark is not None
        and m.record is mark.record
    ]
    shape = tuple(array_of(source).shape)
    if labels is None or mark is None or not maps or mark.settings is None:
        return None
    axes = str(mark.record["axes"])
    if len(axes) != len(shape):
        return None  # the image was given other pixels meanwhile
    sizes = dict(zip(axes, shape, strict=True))
    region = tuple(slice(0, sizes[axis]) for axis in axes if axis != "C")
    order = {kind: i for i, kind in enumerate(ON_PIXELS)}
    own = label_axes_of(source, labels, axes)
    return Seen(
        spec=spec,
        axes=axes,
        shape=shape,
        pose=Pose.of(source),
        rgb=source.rgb,
        region=region,
        labels=without_channels(array_of(labels), own),
        maps=tuple(sorted(maps, key=lambda m: (order[m.kind], m.name))),
        tables=mark.tables,
        output=str(mark.record["output"]),
    )


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
                layer,
                displayed,
                in_units_of(layer, viewer.dims, viewer.dims.point),
                axes=axes,
                ndim=network.ndim,
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

        yield Progress(0, 0, f"Loading {self.spec.name}")
        asked = self.settings
        segmenter = asked.segmenter()
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
            threshold=asked.threshold if output == "classes" else None,
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
    seen: Seen, mask: Callable[[], Ints]
) -> Steps[tuple[Seen, list[GateStatistics]]]:
    """Return what each map does on a mask and beside it."""
    yield Progress(0, 0, "Reading the mask")
    labels = mask()
    found: list[GateStatistics] = []
    for attention in seen.maps:
        if attention.kind in ON_PIXELS:
            measured = yield from gate_statistics_steps(attention, labels)
            found.append(measured)
    return seen, found
