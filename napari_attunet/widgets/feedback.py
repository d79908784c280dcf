"""What a dock says: text that wraps, how far a job is, and what went wrong."""

from __future__ import annotations

from napari.utils.notifications import notification_manager, show_error
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QProgressBar, QSizePolicy

from napari_attunet.errors import AttUnetError
from napari_attunet.progress import Progress, TimeLeft

__all__ = ["JobBar", "complain", "wrapped_label"]


def wrapped_label(text: str = "") -> QLabel:
    """Return text that takes as many lines as it needs."""
    label = QLabel(text)
    label.setWordWrap(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    label.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Minimum)
    return label


class JobBar(QProgressBar):
    """How far a job is, and how long it will take."""

    def __init__(self) -> None:
        super().__init__()
        self._time_left = TimeLeft()

    def restart(self) -> None:
        """Begin with another job."""
        self._time_left = TimeLeft()
        self.follow(Progress(0, 0))

    def follow(self, progress: Progress) -> None:
        """Show how far it is; a job of one step only moves, for it cannot tell."""
        self.setRange(0, progress.total if progress.total > 1 else 0)
        self.setValue(progress.done)
        seconds = self._time_left(progress)
        self.setFormat("%p %" if seconds is None else f"%p %  {_left(seconds)}")


def _left(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"


def complain(error: Exception) -> str:
    """Tell of an error as napari does, and return what the dock is to say of it.

    What users and their disks can cause is a sentence; all else comes with its
    traceback.
    """
    if isinstance(error, AttUnetError | OSError):
        show_error(str(error))
    else:
        notification_manager.receive_error(type(error), error, error.__traceback__)
    return next(iter(str(error).splitlines()), type(error).__name__)
