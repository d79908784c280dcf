"""What the panels of the attention dock share: what is seen, and what is compared."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels
from qtpy.QtCore import QObject, QTimer, Signal

from napari_attunet.progress import Progress, Steps
from napari_attunet.widgets.inspect.seen import Seen
from napari_attunet.widgets.inspect.stage import Stage
from napari_attunet.widgets.jobs import Job
from napari_attunet.widgets.layers import results_of
from napari_attunet.widgets.poses import in_units_of
from napari_attunet.widgets.strokes import StrokeWatch

if TYPE_CHECKING:
    import napari.viewer
    import numpy.typing as npt
    from napari.layers import Image

__all__ = ["Asker", "Session"]

#: Milliseconds of quiet after a stroke.
SETTLE = 200


class Session(QObject):
    """What is seen now; tells when it is something else.

    Parameters
    ----------
    viewer : Viewer
    parent : QObject, optional
    """

    #: There is something else to see, or nothing.
    changed = Signal()
    #: The viewer shows another slice.
    stepped = Signal()
    #: Other labels are the mask, or they were painted on.
    mask_changed = Signal()
    #: What went wrong somewhere.
    failed = Signal(object)

    def __init__(
        self, viewer: napari.viewer.Viewer, parent: QObject | None = None
    ) -> None:
        super().__init__(parent)
        self._viewer_ref = weakref.ref(viewer)
        self._source: Callable[[], Image | None] = _nothing
        self._mask: Callable[[], Labels | None] = _nothing
        self._strokes = StrokeWatch(viewer, self)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SETTLE)
        self._strokes.edited.connect(self._timer.start)
        self._timer.timeout.connect(self.mask_changed)
        self.stage = Stage(viewer)
        self.seen: Seen | None = None
        #: Networks answer one at a time, rather than share the cores.
        self.turn = threading.Lock()

    @property
    def viewer(self) -> napari.viewer.Viewer | None:
        """The viewer, while it is there."""
        return self._viewer_ref()

    @property
    def source(self) -> Image | None:
        """The image that is looked at, while it is in the viewer."""
        viewer, source = self.viewer, self._source()
        return source if viewer is not None and source in viewer.layers else None

    def show(self, seen: Seen | None, source: Image | None) -> None:
        """See something else."""
        self._source = weakref.ref(source) if source is not None else _nothing
        self.seen = seen
        self.stage.enter(source, seen)
        self._listen()
        self.changed.emit()

    def choose_mask(self, labels: Labels | None) -> None:
        """Compare with other labels; None stands for what the model said."""
        self._mask = weakref.ref(labels) if labels is not None else _nothing
        self._listen()
        self.mask_changed.emit()

    def mask(self) -> Callable[[], npt.NDArray[np.integer[Any]]]:
        """Return what gives the labels to compare with, of the part that is seen.

        Raises
        ------
        DataError
            If they are no labels of the image.
        """
        seen = self.seen
        if seen is None:
            raise RuntimeError("Nothing is seen.")
        labels, source = self._mask(), self.source
        if labels is None or source is None:
            return lambda: seen.labels
        return seen.part_of(source, labels)

    def place(self, world: Sequence[float]) -> npt.NDArray[np.float64]:
        """Return a place of the viewer's world in the units of what is seen."""
        viewer, source = self.viewer, self.source
        if viewer is None or source is None:
            return np.asarray(world, float)
        return in_units_of(source, viewer.dims, world)

    def _listen(self) -> None:
        """Hear of strokes on the labels that are compared with."""
        labels, source, viewer = self._mask(), self.source, self.viewer
        seen = self.seen
        last_run = seen is not None and seen.inspection is None
        if labels is None and last_run and seen and source and viewer:
            # What the model said there is a layer that can be painted on.
            found = results_of(viewer.layers, source, seen.spec.key)
            labels = next((x for x in found if isinstance(x, Labels)), None)
        self._strokes.follow([labels] if labels is not None else [])

    def close_down(self) -> None:
        """Let go of everything: the dock is being closed."""
        self._timer.stop()
        self._mask = _nothing
        self.show(None, None)


class Asker(QObject):
    """Asks one question at a time; of those that come meanwhile, only the last.

    Parameters
    ----------
    session : Session
    on_answer : callable
        A method of a QObject.
    parent : QObject
    """

    #: There is no answer; the session tells why.
    failed = Signal()
    #: It began to work, or is done.
    busy_changed = Signal(bool)

    def __init__(
        self, session: Session, on_answer: Callable[[Any], None], parent: QObject
    ) -> None:
        super().__init__(parent)
        self._session = session
        self._on_answer = on_answer
        self._job: Job | None = None
        self._next: Callable[[], Steps[Any]] | None = None

    @property
    def busy(self) -> bool:
        """Whether a question is being answered."""
        return self._job is not None

    def ask(self, make_steps: Callable[[], Steps[Any]]) -> None:
        """Ask, as soon as the question before is answered."""
        if self._job is not None:
            self._next = make_steps
            return
        self._job = Job(
            functools.partial(_in_turn, self._session.turn, make_steps), self
        )
        self._job.succeeded.connect(self._on_succeeded)
        self._job.failed.connect(self._on_failed)
        self._job.ended.connect(self._on_ended)
        self.busy_changed.emit(True)
        self._job.start()

    def stop(self) -> None:
        """Ask nothing more."""
        self._next = None
        if self._job is not None:
            self._job.cancel()

    def _on_succeeded(self, answer: Any) -> None:
        if self._next is None:  # else it is out of date
            self._on_answer(answer)

    def _on_failed(self, error: Exception) -> None:
        self._session.failed.emit(error)
        self.failed.emit()

    def _on_ended(self) -> None:
        self._job = None
        waiting, self._next = self._next, None
        self.busy_changed.emit(False)
        if waiting is not None:
            self.ask(waiting)


def _in_turn(turn: threading.Lock, make_steps: Callable[[], Steps[Any]]) -> Steps[Any]:
    """Run steps while nobody else asks."""
    while not turn.acquire(timeout=0.05):
        yield Progress(0, 0, "Waiting")
    try:
        return (yield from make_steps())
    finally:
        turn.release()


def _nothing() -> None:
    """Stand for a layer that is gone."""
