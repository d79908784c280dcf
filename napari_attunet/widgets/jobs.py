"""Long work in a thread: progress, cancel, and no trace of it afterwards.

superqt's workers are not used, for three reasons: they swallow a ``RuntimeError`` of
the work (which is what PyTorch raises) and then never end; they leave a cancelled
generator open, with all its memory; and they patch ``warnings.showwarning`` for as
long as they run, which two at a time never undo.
"""

from __future__ import annotations

import atexit
import threading
import traceback
from collections.abc import Callable
from typing import Any, ClassVar

from qtpy.QtCore import QCoreApplication, QObject, QRunnable, QThreadPool, Signal, Slot

from napari_attunet.progress import Progress, Steps, until

__all__ = ["Job"]


class Job(QObject):
    """Steps that run in a thread and tell of it in the thread of the GUI.

    Connect methods of QObjects only: Qt cuts these connections by itself when the
    receiver is deleted. A job that is deleted, as the child of a widget is with it,
    stops at its next step.

    Parameters
    ----------
    make_steps : callable
        Returns the generator; called in the thread, like everything in it.
    parent : QObject, optional
    """

    progressed = Signal(object)  # Progress
    succeeded = Signal(object)  # what the steps return
    failed = Signal(object)  # the exception
    ended = Signal()  # last of all, however it ended

    def __init__(
        self, make_steps: Callable[[], Steps[Any]], parent: QObject | None = None
    ) -> None:
        super().__init__(parent)
        self._work = _Work(make_steps)
        self._cancelled = False
        self.destroyed.connect(self._work.stop.set)
        self._work.news.progressed.connect(self._on_progressed)
        self._work.news.ended.connect(self._on_ended)
        application = QCoreApplication.instance()
        if application is not None:  # it waits for all threads when it quits
            application.aboutToQuit.connect(self.cancel)

    def start(self) -> None:
        """Start the thread."""
        self._work.launch()

    @Slot()
    def cancel(self) -> None:
        """Stop at the next step; from now on, only `ended` is emitted."""
        self._cancelled = True
        self._work.stop.set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    @Slot(object)
    def _on_progressed(self, progress: Progress) -> None:
        if not self._cancelled:
            self.progressed.emit(progress)

    @Slot(object, object)
    def _on_ended(self, result: Any, error: Exception | None) -> None:
        if not self._cancelled:
            if error is None:
                self.succeeded.emit(result)
            else:
                self.failed.emit(error)
        self.ended.emit()
        self.deleteLater()


class _News(QObject):
    """Carries what happens in a thread to the thread of the GUI."""

    progressed = Signal(object)
    ended = Signal(object, object)


class _Work(QRunnable):
    """The part of a job that lives in the thread, and may outlive the job."""

    # Held here until the thread is done, and let go in the thread of the GUI: what
    # Qt still has to deliver must not lose its sender.
    alive: ClassVar[set[_Work]] = set()

    def __init__(self, make_steps: Callable[[], Steps[Any]]) -> None:
        super().__init__()
        self.setAutoDelete(False)
        self.stop = threading.Event()
        self.news = _News()
        self._make_steps: Callable[[], Steps[Any]] | None = make_steps

    def launch(self) -> None:
        self.alive.add(self)
        self.news.ended.connect(self._let_go)
        pool: Any = QThreadPool.globalInstance()
        pool.start(self)

    def run(self) -> None:
        result = error = None
        try:
            result = self._drain()
        except BaseException as caught:  # noqa: BLE001 - Qt aborts the process otherwise
            # Its frames would keep images and tensors for as long as napari keeps
            # the message.
            traceback.clear_frames(caught.__traceback__)
            error = caught
        self.news.ended.emit(result, error)

    def _drain(self) -> Any:
        make_steps, self._make_steps = self._make_steps, None
        if self.stop.is_set() or make_steps is None:
            return None
        steps = make_steps()
        try:
            with until(self.stop.is_set):
                while not self.stop.is_set():
                    self.news.progressed.emit(next(steps))
        except StopIteration as end:
            return end.value
        finally:
            steps.close()  # frees the memory now, in this thread
        return None

    def _let_go(self, *_: object) -> None:
        self.alive.discard(self)
        self.news.deleteLater()


@atexit.register
def _wait_for_all() -> None:
    """Let no thread outlive what it tells.

    Where a script ends without Qt's event loop, nobody is told that the application
    quits, and Qt's objects go at once.
    """
    for work in list(_Work.alive):
        work.stop.set()
    pool: Any = QThreadPool.globalInstance()
    pool.waitForDone()
