"""How the results of a segmentation come home, whatever the user did meanwhile.

Nothing here knows Qt. `deliver` brings layers to the viewer, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from napari_attunet.widgets.layers import attention_name, labels_name, set_mark
from napari_attunet.widgets.poses import Pose
from napari_attunet.widgets.results import Outcome, Result, Task

if TYPE_CHECKING:
    from napari.components import LayerList
    from napari.layers import Image, Layer

__all__ = ["EditWatch", "deliver"]


class EditWatch:
    """Notices which labels are edited while a task is under way.

    What was edited before, the fingerprints tell; but the work reads the pixels at
    some moment, and what comes after it must not be lost either.
    """

    def __init__(self, layers: Sequence[Layer], task: Task) -> None:
        known = {layer_id: data for layer_id, data, _ in task.earlier}
        self._watched = [
            (layer, known[layer.unique_id], _history(layer))
            for layer in layers
            if layer.unique_id in known
        ]
        self._edited: set[Any] = set()
        for layer, _, _ in self._watched:
            layer.events.labels_update.connect(self._on_edit)
            layer.events.paint.connect(self._on_edit)

    def _on_edit(self, event: Any) -> None:
        self._edited.add(event.source.unique_id)

    def has_edited(self, layer: Layer) -> bool:
        """Return whether the user painted on a layer or gave it other data."""
        changed = any(
            w is layer and (w.data is not data or _history(w) != history)
            for w, data, history in self._watched
        )
        return changed or layer.unique_id in self._edited

    def stop(self) -> None:
        """Watch no more, and let go of the layers."""
        for layer, _, _ in self._watched:
            layer.events.labels_update.disconnect(self._on_edit)
            layer.events.paint.disconnect(self._on_edit)
        self._watched = []


def _history(layer: Layer) -> tuple[int, ...]:
    """Return how much could be undone and done again, of which no event tells."""
    names = ("_undo_history", "_redo_history")
    return tuple(len(getattr(layer, name, ())) for name in names)


def deliver(
    outcome: Outcome, layers: LayerList, source: Image, watch: EditWatch
) -> Iterator[Layer]:
    """Bring results to the viewer; yields after each, for the window to breathe.

    Ends early if the source is gone by then.

    Parameters
    ----------
    outcome : Outcome
    layers : LayerList
        The viewer's.
    source : Image
        Where it lies and what it is called is looked up now: it may have been moved
        and renamed meanwhile.
    watch : EditWatch
        Since the task was planned. It is stopped at the end.
    """
    try:
        for result in outcome.results:
            if source not in layers:
                return
            yield _deliver(result, outcome.task, layers, source, watch)
    finally:
        watch.stop()


def _deliver(
    result: Result, task: Task, layers: LayerList, source: Image, watch: EditWatch
) -> Layer:
    now = Pose.of(source)
    values, place = result.fit(task, now if now.ndim == task.pose.ndim else task.pose)
    found = next((at for at in layers if at.unique_id == result.reuse), None)
    usable = found is not None and found.ndim == values.ndim
    if found is not None and usable and not watch.has_edited(found):
        layer = found
        layer.data = values
    else:
        layer = result.fresh or result.make(task, now)
        name = attention_name if result.title else labels_name
        layer.name = name(source.name, *result.title)
    place.apply_to(layer)
    set_mark(layer, replace(result.mark, layer=layer.unique_id))
    if layer is not found:
        layers.append(layer)
    return layer
