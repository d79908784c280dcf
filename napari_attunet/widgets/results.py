"""One segmentation of a layer: what it takes along, and what it does.

Nothing here knows Qt. A `Task` is put together in the thread of the GUI and holds all
that the work needs; `compute` does the work in any thread, down to making new layers,
which is slow for napari. How results come home is `napari_attunet.widgets.delivery`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from napari.layers import Image, Labels, Layer

from napari_attunet.channels import ChannelChoice
from napari_attunet.library import Entry
from napari_attunet.progress import Progress, Steps
from napari_attunet.spec import ModelSpec, ObjectSettings
from napari_attunet.widgets.layers import (
    Mark,
    Snapshot,
    array_of,
    attention_look,
    axes_of,
    fingerprint,
    label_colours,
    mark_of,
    results_of,
)
from napari_attunet.widgets.poses import Pose, fit
from napari_attunet.widgets.warm import segmenter_for, used
from napari_attunet.widgets.warmup import warm_up

#: Of numbers that are no class of the model: of new classes that the user paints, in
#: colours that most people can tell apart (https://jfly.uni-koeln.de/color), and of any
#: other, such as the background brush.
MORE_COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00")
MORE_CLASSES = 24
UNKNOWN = "#a0a0a0"

if TYPE_CHECKING:
    from napari_attunet.segmenter import Segmenter

__all__ = [
    "Outcome",
    "Result",
    "Settings",
    "Task",
    "compute",
    "last_settings",
    "plan",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the user chose.

    Attributes
    ----------
    model : str
        Path of the model's file.
    device, channels, output, objects, threshold
        As the segmenter takes them; a threshold is of classes.
    threads, tile : int, optional
        As the segmenter takes them.
    precision : str
        As the segmenter takes it.
    axes : str
        Axes of the image; empty to find out.
    attention : bool
        Whether to show the gates.
    skip_empty : bool
        As the segmenter takes it.
    """

    model: str
    device: str = "auto"
    threads: int | None = None
    tile: int | None = None
    precision: str = "auto"
    axes: str = ""
    channels: ChannelChoice = "auto"
    output: Literal["classes", "objects"] | None = None
    objects: ObjectSettings | None = None
    threshold: float | None = None
    attention: bool = True
    skip_empty: bool = False

    def segmenter(self) -> Segmenter:
        """Return the segmenter, which may be loaded already; call it in a thread."""
        return segmenter_for(
            self.model,
            device=self.device,
            threads=self.threads,
            tile=self.tile,
            precision=self.precision,
        )


def last_settings(layers: Iterable[Layer], source: Image, entry: Entry) -> Settings:
    """Return how a model was last used on an image; else what is usual."""
    for layer in results_of(layers, source, entry.spec.key):
        mark = mark_of(layer)
        if mark is not None and isinstance(mark.settings, Settings):
            return replace(mark.settings, model=str(entry.path))
    return Settings(model=str(entry.path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """All that a segmentation needs, so that nothing the user does meanwhile matters.

    Attributes
    ----------
    image : array
        Of the source, at full resolution.
    rgb : bool
    axes : str
    pose : Pose
    source_id : hashable
        Of the source.
    spec : ModelSpec
    settings : Settings
    present : dict of str to hashable
        Layers with attention of an earlier run, by role.
    earlier : tuple of (hashable, array, str)
        Labels of earlier runs, newest first: layer, pixels, fingerprint on delivery.
    """

    image: Any
    rgb: bool
    axes: str
    pose: Pose
    source_id: Any
    spec: ModelSpec
    settings: Settings
    present: dict[str, Any]
    earlier: tuple[tuple[Any, Any, str], ...]

    @property
    def output(self) -> str:
        """What the labels are: ``"objects"`` or ``"classes"``."""
        return self.settings.output or self.spec.output


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One layer to be.

    Attributes
    ----------
    title : tuple
        Arguments of `attention_name` after the source's name; empty for labels.
    values : array
        As the segmenter made them.
    factors : tuple of int
        Source pixels in a cell, for each axis of `values`.
    mark : Mark
        To be completed by the layer's own identity.
    look : dict
        Arguments of a new layer.
    reuse : hashable, optional
        ``unique_id`` of the layer to update.
    fresh : Layer, optional
        The new layer, if there is none to update.
    """

    title: tuple[Any, ...]
    values: npt.NDArray[Any]
    factors: tuple[int, ...]
    mark: Mark
    look: dict[str, Any]
    reuse: Any = None
    fresh: Layer | None = None

    def make(self, task: Task, pose: Pose) -> Layer:
        """Return a new layer for a source that lies so."""
        values, place = self.fit(task, pose)
        kind = Image if self.title else Labels
        return kind(values, **self.look, **place.arguments())

    def fit(self, task: Task, pose: Pose) -> tuple[npt.NDArray[Any], Pose]:
        """Return the layer's values and pose for a source that lies so."""
        return fit(
            self.values, self.factors, axes=task.axes, shape=task.image.shape, pose=pose
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a task.

    Attributes
    ----------
    task : Task
    results : tuple of Result
        In the order in which they are laid over the source.
    summary : str
        A sentence for people.
    """

    task: Task
    results: tuple[Result, ...]
    summary: str


def plan(
    layers: Sequence[Layer], source: Image, spec: ModelSpec, settings: Settings
) -> Task:
    """Return the task of segmenting a layer; quick, for the thread of the GUI.

    Raises
    ------
    DataError
        If the layer's axes don't suit the model.
    """
    axes = settings.axes or axes_of(
        source, ndim=spec.network.ndim, in_channels=spec.network.in_channels
    )
    task = Task(
        image=array_of(source),
        rgb=source.rgb,
        axes=axes,
        pose=Pose.of(source),
        source_id=source.unique_id,
        spec=spec,
        settings=settings,
        present={},
        earlier=(),
    )
    present: dict[str, Any] = {}
    earlier: list[tuple[Any, Any, str]] = []
    for layer in results_of(layers, source, spec.key):
        mark = mark_of(layer)
        if mark is None:
            continue
        if isinstance(layer, Labels):
            if mark.role == task.output:
                earlier.append((layer.unique_id, layer.data, mark.fingerprint))
        else:
            present.setdefault(mark.role, layer.unique_id)
    return replace(task, present=present, earlier=tuple(earlier))


def compute(task: Task) -> Steps[Outcome]:
    """Segment, and make what layers can be made away from the viewer."""
    yield Progress(0, 0, "Loading PyTorch")
    warm_up()
    yield Progress(0, 0, f"Loading {task.spec.name}")
    settings = task.settings
    segmenter = settings.segmenter()
    try:
        found = yield from segmenter.steps(
            task.image,
            axes=task.axes,
            rgb=task.rgb,
            channels=settings.channels,
            attention=settings.attention,
            skip_empty=settings.skip_empty,
            output=settings.output,
            objects=settings.objects if task.output == "objects" else None,
            threshold=settings.threshold if task.output == "classes" else None,
        )
    finally:
        used()
    yield Progress(0, 0, "Preparing layers")
    results = list(_attention(task, found))[::-1]
    results.append(_labels(task, found))
    ready = []
    for result in results:
        if result.reuse is None:
            result = replace(result, fresh=result.make(task, task.pose))
        ready.append(result)
        yield Progress(0, 0, "Preparing layers")
    return Outcome(task=task, results=tuple(ready), summary=_summary(task, found))


def _attention(task: Task, found: Any) -> Iterator[Result]:
    """Yield what is to be shown of attention; only the finest gate is seen at once."""
    look = attention_look(rgb=task.rgb, volume=task.spec.network.ndim == 3)
    maps = found.attention
    gates = [a for a in maps if a.kind == "gate"] or maps
    for attention in maps:
        of_kind = [a.level for a in maps if a.kind == attention.kind]
        yield Result(
            title=(attention.name, attention.level, max(of_kind)),
            values=attention.values,
            factors=attention.scale,
            mark=replace(_mark(task, found, attention.name, ""), attention=attention),
            look={**look, "visible": attention is gates[0]},
            reuse=task.present.get(attention.name),
        )


def _labels(task: Task, found: Any) -> Result:
    look: dict[str, Any] = {"opacity": 0.6}
    colors = task.spec.colors
    if task.output == "classes" and colors:
        shown = dict(enumerate(colors))
        for number in range(MORE_CLASSES):
            shown[len(colors) + number] = MORE_COLORS[number % len(MORE_COLORS)]
        look["colormap"] = label_colours(shown, other=UNKNOWN)
    untouched = (
        layer for layer, data, print_ in task.earlier if fingerprint(data) == print_
    )
    result = Result(
        title=(),
        values=found.labels,
        factors=(1,) * found.labels.ndim,
        mark=_mark(task, found, task.output, ""),
        look=look,
        reuse=next(untouched, None),
    )
    values, _ = result.fit(task, task.pose)
    mark = replace(
        result.mark,
        fingerprint=fingerprint(values),
        prediction=Snapshot.of(values),
        tables=found.tables,
    )
    return replace(result, mark=mark)


def _mark(task: Task, found: Any, role: str, print_: str) -> Mark:
    return Mark(
        source=task.source_id,
        model=task.spec.key,
        role=role,
        layer=None,
        fingerprint=print_,
        record=found.record,
        settings=task.settings,
    )


def _summary(task: Task, found: Any) -> str:
    record = found.record
    if task.output == "objects":
        count = int(found.labels.max(initial=0))
        what = f"Found {count} object{'s' * (count != 1)}"
    else:
        part = np.count_nonzero(found.labels) / max(1, found.labels.size)
        what = f"{part:.0%} of the image is not {task.spec.classes[0]}"
    text = f"{what} in {record['seconds']:.1f} s on {record['device']}."
    notes = list(record["fallbacks"])
    if record["skipped"]:
        notes.append(f"Tiles skipped since they seemed empty: {record['skipped']}.")
    if record["tiles"] > 1 and not task.spec.network.is_local:
        notes.append(
            f"What pools over the image did so in each of {record['tiles']} tiles."
        )
    return " ".join([text, *notes])
