"""Collecting corrections: from the chosen layers into the training set."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Labels, Shapes
from napari.utils.notifications import show_info
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QPushButton, QVBoxLayout, QWidget

from napari_attunet.corrections import Sample, TrainingSet, background_brush
from napari_attunet.errors import AttUnetError, DataError
from napari_attunet.progress import Progress, Steps
from napari_attunet.spec import ModelSpec
from napari_attunet.widgets.choices import Choices, beside
from napari_attunet.widgets.counting import Counting
from napari_attunet.widgets.docks import DockPart, unwrapped
from napari_attunet.widgets.feedback import complain, wrapped_label
from napari_attunet.widgets.gathering import (
    Taken,
    correction_of,
)
from napari_attunet.widgets.jobs import Job
from napari_attunet.widgets.layers import array_of
from napari_attunet.widgets.making import layers_of
from napari_attunet.widgets.question import Question
from napari_attunet.widgets.sample_table import SampleTable
from napari_attunet.widgets.suggestions import (
    next_label,
    sample_for,
)

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["BRUSH_KEY", "CollectPanel", "paint_background"]

#: Neither the viewer nor a Labels layer has it. A new object is napari's own M.
BRUSH_KEY = "Shift-B"

LOOKS = {
    "classes": "These labels look like classes: many pieces share a number.",
    "objects": "These labels look like objects: each piece has its own number.",
}

Reopened = tuple[Sample, tuple[Image, Labels, Shapes | None]]


def paint_background(viewer: napari.viewer.Viewer) -> None:
    """Paint the active labels with the number that says "background"."""
    labels = viewer.layers.selection.active
    if not isinstance(labels, Labels):
        show_info("Select a Labels layer first.")
        return
    labels.selected_label = background_brush(array_of(labels).dtype)
    labels.mode = "paint"


class CollectPanel(DockPart):
    """Takes corrected labels into a training set.

    ::

        (the choices)
        [ Background brush ] [ New object   ]
        12 objects · 3 410 of 81 920 pixels count
        [ Update           ] [ Add as new   ]
        “tissue” was added.
        (the training set)

    Parameters
    ----------
    napari_viewer : Viewer
    training_set : TrainingSet
    parent : QWidget, optional
    """

    #: The training set on disk has changed, or another one was chosen.
    changed = Signal()

    #: The user said what the labels are: ``"objects"`` or ``"classes"``.
    output_chosen = Signal(str)

    def __init__(
        self,
        napari_viewer: napari.viewer.Viewer,
        training_set: TrainingSet,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        viewer = unwrapped(napari_viewer)
        self._viewer_ref = weakref.ref(viewer)
        self._sample: Sample | None = None  # of the chosen image
        self._job: Job | None = None
        self._build(viewer, training_set)
        self._connect(viewer)
        self._on_choice()

    # --- building -------------------------------------------------------------------

    def _build(self, viewer: napari.viewer.Viewer, training_set: TrainingSet) -> None:
        self.choices = Choices(viewer)
        self.brush = QPushButton("Background brush")
        self.brush.setToolTip(
            f"Paint where there is nothing ({BRUSH_KEY.replace('-', '+')})"
        )
        self.new_object = QPushButton()
        self.count = wrapped_label()
        self.question = Question()
        self.renew = QPushButton("Update")
        self.renew.setToolTip("Replace the sample of this image by what is here now")
        self.add = QPushButton()
        self.message = wrapped_label()
        self.table = SampleTable(training_set)
        self.counting = Counting(self.choices, self)

        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.choices)
        layout.addWidget(beside(self.brush, self.new_object))
        layout.addWidget(self.count)
        layout.addWidget(self.question)
        layout.addWidget(beside(self.renew, self.add))
        layout.addWidget(self.message)
        layout.addWidget(self.table)
        layout.addStretch(1)

    def _connect(self, viewer: napari.viewer.Viewer) -> None:
        self.choices.changed.connect(self._on_choice)
        self.choices.edited.connect(self.counting.later)
        self.choices.repainted.connect(self._on_repainted)
        self.choices.labels_added.connect(self._on_new_object)
        self.brush.clicked.connect(self._on_brush)
        self.new_object.clicked.connect(self._on_new_object)
        self.question.answered.connect(self._on_answered)
        self.add.clicked.connect(self._on_add)
        self.renew.clicked.connect(self._on_renew)
        self.table.opened.connect(self._on_opened)
        self.table.changed.connect(self._on_table_changed)
        self.counting.told.connect(self._show_findings)
        viewer.bind_key(BRUSH_KEY, paint_background, overwrite=True)

    # --- from outside ---------------------------------------------------------------

    @property
    def training_set(self) -> TrainingSet:
        """Where corrections go."""
        return self.table.training_set

    @training_set.setter
    def training_set(self, training_set: TrainingSet) -> None:
        self.table.training_set = training_set
        self._show_state()

    @property
    def output(self) -> str:
        """What is to be learned: ``"objects"`` or ``"classes"``."""
        return self.choices.aim.output

    def model_spec(self, spec: ModelSpec) -> None:
        """Tell what is going to learn."""
        self.choices.follow(spec)

    def select(self, image: Image, labels: Labels | None = None) -> None:
        """Choose an image, and its labels."""
        self.choices.select(image, labels)

    def reset_choices(self, event: Any = None) -> None:
        """List the layers anew; it happens by itself when they change."""
        self.choices.reset_choices()

    # --- painting -------------------------------------------------------------------

    def _paint(self, number: int) -> None:
        viewer, labels = self._viewer_ref(), self.choices.corrected
        if viewer is None or labels is None:
            return
        viewer.layers.selection.active = labels
        labels.selected_label = number
        labels.mode = "paint"

    def _on_brush(self) -> None:
        labels = self.choices.corrected
        if labels is not None:
            self._paint(background_brush(array_of(labels).dtype))

    def _on_new_object(self) -> None:
        labels = self.choices.corrected
        if labels is None:
            return
        try:
            self._paint(next_label(labels, max(1, len(self.choices.aim.classes))))
        except DataError as error:
            self._complain(error)

    # --- counting -------------------------------------------------------------------

    def _on_choice(self) -> None:
        """Know nothing of what was counted: something else is chosen now."""
        self.counting.restart()
        self._say("")
        self._show_state()

    def _on_repainted(self) -> None:
        self.counting.forget()
        self._on_choice()

    def _show_findings(self, text: str) -> None:
        self.count.setText(text)
        self.count.setVisible(bool(text))
        self._ask_kind()
        self._show_state()

    def _ask_kind(self) -> None:
        counted = self.counting.result
        if (
            counted is None
            or counted.findings.kind == counted.aim.output
            or counted.predicted
            or self.choices.output_was_chosen
        ):
            self.question.hide()
            return
        self.question.ask(
            LOOKS[counted.findings.kind],
            f"Train {counted.findings.kind} instead",
            f"No, they are {counted.aim.output}",
        )

    def _on_answered(self, yes: bool) -> None:
        counted, labels = self.counting.result, self.choices.corrected
        if counted is None or labels is None:
            return
        output = counted.findings.kind if yes else self.choices.aim.output
        self.choices.say(labels, output=output)
        self.output_chosen.emit(output)

    # --- the training set -----------------------------------------------------------

    def _show_state(self) -> None:
        """Offer what can be done, such as to update the sample of this image."""
        self._sample = None
        if (counted := self.counting.result) is not None:
            self._sample = sample_for(
                self.table.samples,
                counted.source,
                counted.aim.output,
                counted.findings.digest,
            )
        thing = "object" if self.choices.aim.output == "objects" else "class"
        self.new_object.setText(f"New {thing}")
        self.new_object.setToolTip(f"Paint with the next free number, a new {thing}")
        ready = None not in (self.choices.source, self.choices.corrected)
        for button in (self.brush, self.new_object):
            button.setEnabled(ready)
        for button in (self.renew, self.add):
            button.setEnabled(ready and self._job is None)
        self.renew.setVisible(self._sample is not None)
        self.add.setText("Add as new" if self._sample else "Add to training set")

    def _on_table_changed(self) -> None:
        self._show_state()
        self.changed.emit()

    def _on_add(self) -> None:
        self._keep(None)

    def _on_renew(self) -> None:
        self._keep(self._sample)

    def _keep(self, sample: Sample | None) -> None:
        """Write what is chosen into the training set."""
        if self._job is not None:
            return
        try:
            taken = self.choices.take()
        except AttUnetError as error:
            self._complain(error)
            return
        if taken is None:
            show_info("Choose an image and its labels first.")
            return
        self._say("Saving …")
        self._start(
            functools.partial(_keep, self.training_set, taken, sample), self._on_kept
        )

    def _on_opened(self, sample: Sample) -> None:
        if self._job is None:
            self._say("Opening …")
            reading = functools.partial(_read, self.training_set, sample)
            self._start(reading, self._on_read)

    def _start(
        self, make_steps: Callable[[], Steps[Any]], on_success: Callable[..., None]
    ) -> None:
        self._job = Job(make_steps, self)
        self._job.succeeded.connect(on_success)
        self._job.failed.connect(self._complain)
        self._job.ended.connect(self._on_ended)
        self._show_state()
        self._job.start()

    def _on_kept(self, outcome: tuple[Sample, bool]) -> None:
        sample, is_new = outcome
        done = "was added" if is_new else "was updated"
        parts = [f"“{sample.name}” {done}. Later painting doesn't change it."]
        held, known = sample.count.get("held", 0), sample.count["known"]
        if held:
            parts.append(
                f"{held / known:.0%} of what counts is held out: it tells how good "
                "models are, and none learns from it."
            )
        self._say(" ".join(parts))
        self.table.refresh()
        self.table.select(sample)
        self._show_state()
        self.changed.emit()

    def _on_read(self, outcome: Reopened) -> None:
        viewer = self._viewer_ref()
        if viewer is None:
            return
        sample, (image, labels, shapes) = outcome
        viewer.layers.extend(at for at in (image, labels, shapes) if at is not None)
        self.choices.select(image, labels)
        if shapes is not None:
            self.choices.choose_regions(shapes)
        self.choices.say(labels, output=sample.output, extent=sample.extent)
        self.choices.take_whole()

    def _on_ended(self) -> None:
        self._job = None
        self._show_state()

    def _say(self, text: str) -> None:
        self.message.setText(text)
        self.message.setVisible(bool(text))

    def _complain(self, error: Exception) -> None:
        self._say(complain(error))

    # --- the end --------------------------------------------------------------------

    def close_down(self) -> None:
        """Stop all work and let go of the viewer and its layers."""
        self.counting.stop()
        if self._job is not None:
            self._job.cancel()
        self.choices.release()


def _keep(
    training_set: TrainingSet, taken: Taken, sample: Sample | None
) -> Steps[tuple[Sample, bool]]:
    correction = yield from correction_of(taken)
    yield Progress(0, 0, "Writing the sample")
    if sample is None:
        return training_set.add(correction), True
    return training_set.update(sample, correction), False


def _read(training_set: TrainingSet, sample: Sample) -> Steps[Reopened]:
    yield Progress(0, 0, "Reading the sample")
    return sample, layers_of(training_set.read(sample))
