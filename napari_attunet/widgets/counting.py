"""A live count of what there is to learn from, as layers are chosen and painted on."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from qtpy.QtCore import QObject, QTimer, Signal

from napari_attunet.errors import AttUnetError
from napari_attunet.widgets.choices import Choices
from napari_attunet.widgets.gathering import Aim, Findings, Taken, examine
from napari_attunet.widgets.jobs import Job
from napari_attunet.widgets.suggestions import count_line

__all__ = ["Counted", "Counting"]

#: Milliseconds after the last stroke until it is counted what there is to learn.
PATIENCE = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What was counted.

    Attributes
    ----------
    findings : Findings
    aim : Aim
        What it was counted for.
    source : dict
        Where the image came from.
    predicted : bool
        Whether the labels began as a prediction.
    """

    findings: Findings
    aim: Aim
    source: dict[str, Any]
    predicted: bool


class Counting(QObject):
    """Counts in a thread, a moment after the last change.

    Parameters
    ----------
    choices : Choices
        Tell the layers.
    parent : QObject
    """

    #: What there is, or what is wrong; empty if nothing is chosen.
    told = Signal(str)

    def __init__(self, choices: Choices, parent: QObject) -> None:
        super().__init__(parent)
        self._choices = choices
        self._digests: dict[Any, str] = {}  # of images, by what was taken of them
        self._taken: Taken | None = None  # is being counted
        self._key: tuple[Any, ...] = ()
        self._job: Job | None = None
        #: What was counted last, if it still holds.
        self.result: Counted | None = None
        self.timer = QTimer(self)
        self.timer.setSingleShot(True)
        self.timer.setInterval(PATIENCE)
        self.timer.timeout.connect(self._count)

    @property
    def busy(self) -> bool:
        """Whether a count is still to come."""
        return self.timer.isActive() or self._job is not None

    def later(self) -> None:
        """Count again in a moment; till then what was counted holds."""
        self.timer.start()

    def restart(self) -> None:
        """Know nothing: something else is chosen now."""
        if self._job is not None:
            self._job.cancel()
        self._taken = self.result = None
        self.timer.start()

    def forget(self) -> None:
        """Take no image for what it was: its pixels have changed."""
        self._digests.clear()

    def stop(self) -> None:
        """Count no more."""
        self.timer.stop()
        if self._job is not None:
            self._job.cancel()

    def _count(self) -> None:
        if self._job is not None:  # of what is out of date; then this again
            self._job.cancel()
            return
        source = self._choices.source
        self._taken = self.result = None
        try:
            taken = self._choices.take()
        except AttUnetError as error:
            self.told.emit(str(error))
            return
        if taken is None or source is None:
            self.told.emit("")
            return
        self._taken = taken
        shown = tuple(taken.shown.items()) if taken.slices == "shown" else ()
        # Which slices are filled may change with every stroke.
        filled = taken.slices == "filled"
        self._key = (source.unique_id, taken.axes, shown, filled)
        digest = "" if filled else self._digests.get(self._key, "")
        self._job = Job(functools.partial(examine, taken, digest), self)
        self._job.succeeded.connect(self._on_counted)
        self._job.failed.connect(self._on_failed)
        self._job.ended.connect(self._on_ended)
        self._job.start()

    def _on_counted(self, findings: Findings) -> None:
        taken = self._taken
        if taken is None:
            return
        self.result = Counted(
            findings=findings,
            aim=taken.aim,
            # Of what was read from a sample, only the same pixels tell which it is.
            source={} if taken.reopened else taken.source,
            predicted=taken.prediction is not None,
        )
        if findings.digest:
            self._digests[self._key] = findings.digest
        text = findings.problem
        if findings.count is not None:
            line = count_line(findings.count, taken.aim)
            text = "\n".join([line, *findings.warnings])
        self.told.emit(text)

    def _on_failed(self, error: Exception) -> None:
        self.told.emit(str(error))

    def _on_ended(self) -> None:
        again = self._job is not None and self._job.cancelled
        self._job = self._taken = None  # it holds copies of pixels
        if again:
            self._count()
