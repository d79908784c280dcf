"""Learning from the corrections: one press, a live plot, and a decision at the end."""

from __future__ import annotations

import functools
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_info
from qtpy.QtCore import QSignalBlocker, Signal
from qtpy.QtWidgets import (
    QHBoxLayout,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_attunet.corrections import TrainingSet
from napari_attunet.errors import AttUnetError
from napari_attunet.library import Entry, Library
from napari_attunet.progress import Progress
from napari_attunet.widgets import rounds
from napari_attunet.widgets.compare import CompareView
from napari_attunet.widgets.feedback import JobBar, complain, wrapped_label
from napari_attunet.widgets.jobs import Job
from napari_attunet.widgets.learn_form import WATCH, LearnForm
from napari_attunet.widgets.plot import LossPlot
from napari_attunet.widgets.preferences import preferred_threads
from napari_attunet.widgets.preview import Preview
from napari_attunet.widgets.question import Question

if TYPE_CHECKING:
    import napari.viewer

    from napari_attunet.training.record import Round

__all__ = ["LearnPanel"]


class LearnPanel(QWidget):
    """Starts a round of learning, shows how it goes, and asks what to keep.

    ::

        Start from [ nuclei-histology    v ]
        Effort     [ Quick (a minute or few) v ]
        Show on    [ tissue              v ]
        [x] Watch it learn
        ▸ Advanced
        Learns from 3 images.
        A training was interrupted at step 120 of 300.
        [     Resume     ] [     Drop     ]
        [   Train   ] [  Stop  ] [ Cancel ]
        [########              ] about 20 s left
        Training the model further
        (the plot)
        (the comparison, when it is done)

    Parameters
    ----------
    viewer : Viewer
    training_set : TrainingSet
        What to learn from.
    library : Library
        Where models are found and new versions stored.
    """

    #: A new version was stored; its `Entry`.
    accepted = Signal(object)

    def __init__(
        self,
        viewer: napari.viewer.Viewer,
        training_set: TrainingSet,
        library: Library,
    ) -> None:
        super().__init__()
        self._viewer_ref = weakref.ref(viewer)
        self._training_set = training_set
        self._library = library
        self._samples = 0
        self._open: rounds.Open | None = None
        self._request: rounds.Request | None = None  # of the round under way
        self._outcome: Round | None = None
        self._enough = threading.Event()
        self._giving_up = False  # the user pressed Cancel
        self._job: Job | None = None  # trains
        self._errand: Job | None = None  # stores or drops
        self._build(viewer)
        self._connect(viewer)
        self.refresh_samples()
        self._look_around()

    # --- building -------------------------------------------------------------------

    def _build(self, viewer: napari.viewer.Viewer) -> None:
        self.form = LearnForm(viewer, self._library)
        self.samples_line = wrapped_label()
        self.open_round = Question()
        self.train = QPushButton("Train")
        self.stop = QPushButton("Stop")
        self.stop.setToolTip("Keep the best so far")
        self.cancel = QPushButton("Cancel")
        self.cancel.setToolTip("Leave all as it was before")
        font = self.train.font()
        font.setBold(True)
        self.train.setFont(font)
        for button in (self.train, self.stop, self.cancel):
            button.setMinimumHeight(36)
        self.bar = JobBar()
        self.message = wrapped_label()
        self.plot = LossPlot(viewer.theme)
        self.preview = Preview(viewer, self)
        self.compare = CompareView(viewer)

        buttons = QHBoxLayout()
        buttons.addWidget(self.train, 2)
        buttons.addWidget(self.stop, 1)
        buttons.addWidget(self.cancel, 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.form)
        layout.addWidget(self.samples_line)
        layout.addWidget(self.open_round)
        layout.addLayout(buttons)
        layout.addWidget(self.bar)
        layout.addWidget(self.message)
        layout.addWidget(self.plot)
        layout.addWidget(self.compare)
        layout.addStretch(1)
        self.plot.setVisible(False)

    def _connect(self, viewer: napari.viewer.Viewer) -> None:
        self.form.image.chosen.connect(self._on_image_changed)
        self.form.watch.toggled.connect(self._on_watch_toggled)
        self.train.clicked.connect(self.start)
        self.stop.clicked.connect(self.stop_training)
        self.cancel.clicked.connect(self.cancel_training)
        self.open_round.answered.connect(self._on_open_answered)
        self.preview.dismissed.connect(self._on_preview_dismissed)
        self.preview.failed.connect(self.form.watch.setToolTip)
        self.compare.accepted.connect(self._on_accept)
        self.compare.discarded.connect(self._on_discard)
        self.compare.shown.connect(self.preview.remove)  # the new one shows the same
        self.compare.told.connect(self.message.setText)
        self.compare.failed.connect(self._complain)
        viewer.events.theme.connect(self._on_theme)

    # --- what there is --------------------------------------------------------------

    def follow(self, training_set: TrainingSet) -> None:
        """Learn from another training set, or from what is in this one by now."""
        moved = training_set.folder != self._training_set.folder
        self._training_set = training_set
        self.refresh_samples()
        if moved and not self.busy:
            self._open = None
            self._look_around()

    def refresh_samples(self) -> None:
        """Count again what there is to learn from."""
        samples = self._training_set.samples()
        self._samples = sum(sample.used for sample in samples)
        if not samples:
            text = "There is nothing to learn from yet: add corrections first."
        elif not self._samples:
            text = "All corrections are switched off: tick one to learn from it."
        else:
            plural = "s" * (self._samples != 1)
            text = f"Learns from {self._samples} corrected image{plural}."
        self.samples_line.setText(text)
        self._show_state()

    def reset_choices(self, event: Any = None) -> None:
        """List the images anew."""
        self.form.image.refresh()

    def _on_image_changed(self) -> None:
        self.compare.choose_image(self.form.source)
        if self._job is not None:
            self._watch_again()

    def _on_theme(self, event: Any) -> None:
        self.plot.follow_theme(event.value)

    # --- what was left open ---------------------------------------------------------

    def _look_around(self) -> None:
        job = Job(functools.partial(rounds.look_around, self._training_set), self)
        job.succeeded.connect(self._on_looked_around)
        job.failed.connect(self._complain)
        job.start()

    def _on_looked_around(
        self, found: tuple[tuple[str, ...], rounds.Open | None]
    ) -> None:
        devices, left_open = found
        self.form.options.offer_devices(devices)
        if not self.busy:  # else it may be the one that has just begun
            self._open = left_open
            self._show_state()

    def _on_open_answered(self, go_on: bool) -> None:
        found, self._open = self._open, None
        if found is None or self.busy:
            return
        self._request = found.request
        if not go_on:
            self._drop(found.request.folder)
        elif found.outcome is not None:
            self._on_learnt(found.outcome)
        else:
            self._run(found.request)

    # --- a round --------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether a training is under way."""
        return self._job is not None

    @property
    def busy(self) -> bool:
        """Whether a round is under way, up to the user's decision."""
        return any(x is not None for x in (self._job, self._errand, self._outcome))

    def start(self) -> None:
        """Train."""
        if self.busy:
            return
        if not self._samples:
            show_info(self.samples_line.text())
            return
        entry, options = self.form.entry, self.form.options
        try:
            request = rounds.Request.new(
                self._training_set,
                None if entry is None else entry.path,
                self.form.settings(),
                device=options.device.currentText(),
                threads=options.threads.value() or preferred_threads(),
            )
        except (AttUnetError, OSError) as error:
            self._complain(error)
            return
        self._run(request)

    def _run(self, request: rounds.Request) -> None:
        self._request = request
        self._enough = threading.Event()
        self._giving_up = False
        self.bar.restart()
        self._job = Job(functools.partial(rounds.learn, request, self._enough), self)
        self._job.progressed.connect(self._on_progressed)
        self._job.succeeded.connect(self._on_learnt)
        self._job.failed.connect(self._on_failed)
        self._job.ended.connect(self._on_ended)
        self.plot.clear()
        self.plot.setVisible(True)
        self._on_progressed(Progress(0, 0, "Starting"))
        self._job.start()
        self._watch_again()
        self._show_state()

    def stop_training(self) -> None:
        """End the training under way, and keep the best so far."""
        if self._job is not None and not self._enough.is_set():
            self._enough.set()
            self.message.setText("Stopping: the best so far is kept …")
            self._show_state()

    def cancel_training(self) -> None:
        """End the training under way, and leave all as it was."""
        if self._job is not None and not self._job.cancelled:
            self._giving_up = True
            self._job.cancel()
            self.preview.remove()
            self.message.setText("Cancelling …")
            self._show_state()

    def _on_progressed(self, progress: Progress) -> None:
        self.bar.follow(progress)
        stopping = self._enough.is_set() and progress.done < progress.total
        if not stopping:
            self.message.setText(progress.message)
        if progress.values:
            name = rounds.contender_of(progress)
            self.plot.add(name, progress.done, progress.values)
        self.preview.poll()

    def _on_learnt(self, outcome: Round) -> None:
        if self._request is None:
            return
        self._outcome = outcome
        self.preview.stop()
        self.message.setText("")
        self.compare.present(
            outcome,
            self._request.folder,
            parent=self._request.parent,
            image=self.form.source,
            device=self._request.device,
        )
        self._show_state()

    def _on_failed(self, error: Exception) -> None:
        request = self._request
        self._finish()
        if request is not None and not rounds.has_begun(request.folder):
            self._drop(request.folder)
        else:
            self._look_around()  # there is something to go on from
        self._complain(error)

    def _on_ended(self) -> None:
        self._job = None
        if self._giving_up and self._request is not None:
            self.message.setText("Cancelled: all is as it was.")
            self._drop(self._request.folder)
            self._finish()
        self._show_state()

    # --- watching -------------------------------------------------------------------

    def _watch_again(self) -> None:
        if self._request is not None and self.form.watch.isChecked():
            device = self._request.device
            self.form.watch.setToolTip(WATCH)
            self.preview.start(self._request.preview, self.form.source, device)

    def _on_watch_toggled(self, on: bool) -> None:
        if not on:
            self.preview.remove()
        elif self.running:
            self._watch_again()

    def _on_preview_dismissed(self) -> None:
        with QSignalBlocker(self.form.watch):
            self.form.watch.setChecked(False)

    # --- the decision ---------------------------------------------------------------

    def _on_accept(self, name: str) -> None:
        if self._request is None or self._errand is not None:
            return
        work = functools.partial(
            rounds.accept, self._request.folder, name, self._library
        )
        self._errand = Job(work, self)
        self._errand.succeeded.connect(self._on_accepted)
        self._errand.failed.connect(self._complain)
        self._errand.ended.connect(self._on_errand_ended)
        self._errand.start()
        self.message.setText("Storing the new version …")
        self._show_state()

    def _on_accepted(self, entry: Entry) -> None:
        self._finish()
        spec = entry.spec
        parent = f"; its parent is {spec.parent}" if spec.parent else ""
        self.message.setText(f"{spec.key} is now in use{parent}.")
        show_info(self.message.text())
        self.form.model.refresh()
        self.form.model.choose(spec.name)
        self.accepted.emit(entry)

    def _on_discard(self) -> None:
        if self._request is not None and self._errand is None:
            folder = self._request.folder
            self._finish()
            self.message.setText("Discarded: the old model stays in use.")
            self._drop(folder)

    def _finish(self) -> None:
        """Take away what was there for the decision."""
        self._outcome = self._request = None
        self.compare.clear()
        self.preview.remove()
        self.plot.setVisible(False)

    def _drop(self, folder: Path) -> None:
        self._errand = Job(functools.partial(rounds.drop, folder), self)
        self._errand.failed.connect(self._complain)
        self._errand.ended.connect(self._on_errand_ended)
        self._errand.start()
        self._show_state()

    def _on_errand_ended(self) -> None:
        self._errand = None
        self._show_state()

    # --- what is shown --------------------------------------------------------------

    def _complain(self, error: Exception) -> None:
        self.message.setText(complain(error))

    def _show_state(self) -> None:
        running, busy = self.running, self.busy
        cancelled = self._giving_up
        self.train.setEnabled(self._samples > 0 and not busy)
        self.stop.setEnabled(running and not cancelled and not self._enough.is_set())
        self.cancel.setEnabled(running and not cancelled)
        self.bar.setVisible(running)
        deciding = self._outcome is not None  # which needs the room
        for widget in (self.samples_line, self.train, self.stop, self.cancel):
            widget.setVisible(not deciding)
        self.form.set_busy(busy, deciding=deciding)
        self.compare.set_busy(self._errand is not None)
        self._show_open()

    def _show_open(self) -> None:
        found = None if self.busy else self._open
        if found is None:
            self.open_round.hide()
        elif found.outcome is not None:
            text = "A trained model waits for your decision."
            self.open_round.ask(text, "Look at it", "Drop")
        else:
            text = f"A training was interrupted at step {found.done} of {found.total}."
            self.open_round.ask(text, "Resume", "Drop")

    def close_down(self) -> None:
        """Stop all work: the dock is being closed."""
        for job in (self._job, self._errand):
            if job is not None:
                job.blockSignals(True)  # nothing is dropped: it can be resumed
                job.cancel()
        self._job = self._errand = None
        self.preview.remove()
        self.compare.clear()
        self.form.image.let_go()
        viewer = self._viewer_ref()
        if viewer is not None:
            viewer.events.theme.disconnect(self._on_theme)
