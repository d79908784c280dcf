"""Watch it learn: the weights of the moment on the part of the image one looks at."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from napari.layers import Image, Labels
from qtpy.QtCore import QObject, Signal

from napari_attunet.errors import AttUnetError
from napari_attunet.header import read_spec
from napari_attunet.progress import Progress, Steps
from napari_attunet.spec import ModelSpec
from napari_attunet.widgets.jobs import Job
from napari_attunet.widgets.layers import KEY, array_of, axes_of, label_colours
from napari_attunet.widgets.poses import Pose, fit, in_units_of
from napari_attunet.widgets.warmup import warm_up

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["Glimpse", "Preview", "look_at", "visible_region"]

#: Seconds between two looks at least, and how often the time that one takes: the
#: training shares the machine.
INTERVAL, REST = 3.0, 4.0

#: Seconds between two looks at the file.
POLL = 0.25

#: Pixels along Z, Y and X that are segmented at most, in the plane and in a volume.
LARGEST = {2: (1, 512, 512), 3: (16, 160, 160)}

#: Somebody who has zoomed far in still sees whole objects.
SMALLEST = 96

#: Seen on grey and on stained tissue.
OUTLINES = "cyan"


# --- what is looked at -----------------------------------------------------------


def visible_region(
    layer: Image,
    displayed: Sequence[int],
    point: npt.ArrayLike,
    *,
    axes: str,
    ndim: int,
) -> tuple[slice, ...]:
    """Return the part of a layer's array that one looks at, within `LARGEST`.

    Parameters
    ----------
    layer : Image
    displayed : sequence of int
        Axes that the viewer displays, counted from the last one as -1.
    point : array
        Where the viewer's sliders stand, in the layer's units.
    axes : str
        Of the layer's array.
    ndim : {2, 3}
        Of the model. Of axes that it walks along, such as time, one frame is taken;
        of channels, all.

    Returns
    -------
    tuple of slice
        One for each of `axes`.
    """
    shape = array_of(layer).shape
    corners = np.asarray(layer.corner_pixels, float)
    if layer.multiscale:
        corners = corners * layer.downsample_factors[layer.data_level]
    here = layer.world_to_data(point)
    largest = dict(zip("ZYX", LARGEST[ndim], strict=True))
    region = []
    for axis, letter in enumerate(axes):
        size = shape[axis]
        if letter == "C":
            region.append(slice(0, size))
            continue
        if axis - layer.ndim in displayed:
            low, high = corners[:, axis]
        else:
            low = high = here[axis]
        wanted = 1.0
        if letter in "ZYX"[-ndim:]:
            wanted = min(max(high - low + 1, SMALLEST), largest[letter])
        length = min(size, int(wanted))
        start = round((low + high + 1 - length) / 2)
        start = min(max(start, 0), size - length)
        region.append(slice(start, start + length))
    return tuple(region)


@dataclass(frozen=True, slots=True, kw_only=True)
class Glimpse:
    """One look: what is segmented, and where the result belongs.

    Attributes
    ----------
    weights : Path
        A model file.
    spec : ModelSpec
        Of that model.
    image : array
        The whole, at full resolution.
    rgb : bool
    axes : str
    region : tuple of slice
        The part of it, one slice for each of `axes`.
    pose : Pose
        Of the whole.
    device : str
    """

    weights: Path
    spec: ModelSpec
    image: Any
    rgb: bool
    axes: str
    region: tuple[slice, ...]
    pose: Pose
    device: str = "auto"

    def compute(self) -> Steps[tuple[Labels, Pose]]:
        """Segment the part; returns a layer that nobody has yet, and its pose."""
        yield Progress(0, 0)
        warm_up()
        from napari_attunet.model import load_model
        from napari_attunet.segmenter import Segmenter

        # One thread: the training has the others.
        segmenter = Segmenter(load_model(self.weights), device=self.device, threads=1)
        places = zip(self.axes, self.region, strict=True)
        found = yield from segmenter.steps(
            self.image,
            axes=self.axes,
            rgb=self.rgb,
            region=[part for letter, part in places if letter != "C"],
        )
        part = [s.stop - s.start for s in self.region]
        offset = [s.start for s in self.region][: self.pose.ndim]
        values, pose = fit(
            found.labels,
            (1,) * found.labels.ndim,
            axes=self.axes,
            shape=part,
            pose=self.pose.shifted(offset),
        )
        return _make_layer(self.spec, values, pose), pose


def look_at(
    viewer: napari.viewer.Viewer, layer: Image, weights: Path, *, device: str = "auto"
) -> Glimpse:
    """Return a look at what the viewer shows of a layer; for the thread of the GUI.

    Raises
    ------
    ModelError
        If the weights cannot be read.
    DataError
        If the layer's axes don't suit them.
    """
    spec = read_spec(weights)
    network = spec.network
    axes = axes_of(layer, ndim=network.ndim, in_channels=network.in_channels)
    displayed = [axis - viewer.dims.ndim for axis in viewer.dims.displayed]
    region = visible_region(
        layer,
        displayed,
        in_units_of(layer, viewer.dims, viewer.dims.point),
        axes=axes,
        ndim=network.ndim,
    )
    return Glimpse(
        weights=weights,
        spec=spec,
        image=array_of(layer),
        rgb=layer.rgb,
        axes=axes,
        region=region,
        pose=Pose.of(layer),
        device=device,
    )


def preview_name(source: str) -> str:
    """Return the name of the layer in which an image is seen being learnt."""
    return f"{source} · learning"


# --- looking again and again -----------------------------------------------------


class Preview(QObject):
    """Keeps a layer that shows what the latest weights make of the visible part.

    Parameters
    ----------
    viewer : Viewer
    parent : QObject
    clock : callable
        Returns seconds.
    """

    #: The user took the layer away, and gets no other one.
    dismissed = Signal()
    #: A sentence why there is nothing to see.
    failed = Signal(str)

    def __init__(
        self,
        viewer: napari.viewer.Viewer,
        parent: QObject,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(parent)
        self._viewer_ref = weakref.ref(viewer)
        self._clock = clock
        self._weights: Path | None = None
        self._source: Image | None = None
        self._device = "auto"
        self._layer: Labels | None = None
        self._job: Job | None = None
        self._seen = 0  # when the file was written that was looked at last
        self._next = 0.0
        self._began = 0.0

    @property
    def layer(self) -> Labels | None:
        """The layer, where there is one."""
        return self._layer

    @property
    def looking(self) -> bool:
        """Whether it is at work."""
        return self._job is not None

    def start(self, weights: Path, source: Image | None, device: str = "auto") -> None:
        """Look at an image whenever this file is written anew."""
        self.stop()
        if source is not self._source:
            self.remove()
        self._weights, self._source, self._device = weights, source, device
        self._seen, self._next = 0, 0.0

    def poll(self) -> None:
        """Look again if there are new weights and it is time; quick."""
        now = self._clock()
        if self._weights is None or self._job is not None or now < self._next:
            return
        self._next = now + POLL
        viewer, source = self._viewer_ref(), self._source
        if viewer is None or source is None or source not in viewer.layers:
            return
        if self._layer is not None and self._layer not in viewer.layers:
            self._layer = None
            self.stop()
            self.dismissed.emit()
            return
        try:
            written = self._weights.stat().st_mtime_ns
        except OSError:
            return  # not yet
        if written == self._seen:
            return
        self._seen = written
        try:
            glimpse = look_at(viewer, source, self._weights, device=self._device)
        except AttUnetError as error:
            self._on_failed(error)
            return
        self._began = now
        self._job = Job(glimpse.compute, self)
        self._job.succeeded.connect(self._on_succeeded)
        self._job.failed.connect(self._on_failed)
        self._job.ended.connect(self._on_ended)
        self._job.start()

    def stop(self) -> None:
        """Look no more; what is seen stays."""
        self._weights = None
        if self._job is not None:
            self._job.cancel()

    def remove(self) -> None:
        """Look no more, and take the layer away."""
        self.stop()
        self._drop_layer()

    def _on_succeeded(self, seen: tuple[Labels, Pose]) -> None:
        viewer, source = self._viewer_ref(), self._source
        if viewer is None or source is None or source not in viewer.layers:
            return
        fresh, pose = seen
        layer = self._layer
        if layer is not None and layer in viewer.layers and layer.ndim == fresh.ndim:
            layer.data = fresh.data
            pose.apply_to(layer)
            return
        self._drop_layer()
        fresh.name = preview_name(source.name)
        selection = set(viewer.layers.selection)
        self._layer = fresh
        viewer.layers.append(fresh)
        viewer.layers.selection = selection  # the user may be painting on another

    def _drop_layer(self) -> None:
        viewer, layer, self._layer = self._viewer_ref(), self._layer, None
        if viewer is not None and layer is not None and layer in viewer.layers:
            viewer.layers.remove(layer)

    def _on_failed(self, error: Exception) -> None:
        self.stop()  # the next weights would fare no better
        self.failed.emit(f"There is no preview: {error}")

    def _on_ended(self) -> None:
        self._job = None
        now = self._clock()
        self._next = self._began + max(INTERVAL, REST * (now - self._began))


def _make_layer(spec: ModelSpec, values: npt.NDArray[Any], pose: Pose) -> Labels:
    """Return outlines, or a veil of classes, that nobody can paint on by mistake."""
    look: dict[str, Any] = {"opacity": 0.4}
    if spec.output == "objects":
        look = {"opacity": 1.0, "colormap": label_colours({}, other=OUTLINES)}
    layer = Labels(
        values,
        metadata={KEY: "preview"},
        **look,
        **pose.arguments(),
    )
    if spec.output == "objects" and spec.network.ndim == 2:
        layer.contour = 1
    layer.editable = False
    return layer
