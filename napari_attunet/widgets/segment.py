"""The dock "Attention U-Net": choose, press one button, see mask and gates."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Layer
from napari.utils.notifications import show_info
from qtpy.QtCore import QSignalBlocker, QTimer, Signal
from qtpy.QtWidgets import (
    QComboBox,
    QHBoxLayout,
    QPushButton,
    QToolButton,
    QVBoxLayout,
)

from napari_attunet.errors import AttUnetError
from napari_attunet.library import Entry, Library
from napari_attunet.progress import Progress, Steps
from napari_attunet.widgets.boxes import ImageBox, ModelBox
from napari_attunet.widgets.delivery import EditWatch, deliver
from napari_attunet.widgets.docks import DockPart, unwrapped
from napari_attunet.widgets.feedback import JobBar, complain, wrapped_label
from napari_attunet.widgets.jobs import Job
from napari_attunet.widgets.layers import array_of, axes_of, is_result
from napari_attunet.widgets.options import Options, let_shrink, make_form
from napari_attunet.widgets.results import Outcome, compute, plan
from napari_attunet.widgets.warm import let_go
from napari_attunet.widgets.warmup import load_engine

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["SegmentWidget", "segment_active_layer"]

#: napari ignores key bindings of manifests, so the dock binds it when it opens. No
#: command of napari's own has it.
SHORTCUT = "Control-Shift-A"

#: Pixels; narrower, the dock's title is cut.
MINIMUM_WIDTH = 320

PLUGIN, DOCK = "napari-attunet", "Attention U-Net"


def segment_active_layer(viewer: napari.viewer.Viewer) -> None:
    """Open the dock and segment the active image layer; a command of the viewer."""
    viewer = unwrapped(viewer)
    _, widget = viewer.window.add_plugin_dock_widget(PLUGIN, DOCK)
    active = viewer.layers.selection.active
    if isinstance(active, Image) and not is_result(active):
        widget.select(active)
    widget.start()


class SegmentWidget(DockPart):
    """Chooses image, model and device, runs the segmentation, shows it as layers.

    ::

        Image    [ tissue                  v ]
        Model    [ nuclei-histology      v ]⟳
        Device   [ auto                    v ]
        Runs on cpu (2 threads). CUDA is ...
        ▸ Options
        [        Segment        ] [  Cancel  ]
        [###########          ] about 40 s left
        Found 128 objects in 3.2 s ...

    Parameters
    ----------
    napari_viewer : Viewer
    library : Library, optional
        Where models are looked for.
    """

    #: A run is over; whether all its layers are there.
    finished = Signal(bool)

    def __init__(
        self, napari_viewer: napari.viewer.Viewer, library: Library | None = None
    ) -> None:
        super().__init__()
        viewer = unwrapped(napari_viewer)
        self._viewer_ref = weakref.ref(viewer)
        self._library = library or Library()
        self._source: Image | None = None  # of the run under way
        self._watch: EditWatch | None = None
        self._delivery: Iterator[Layer] | None = None
        self._job: Job | None = None
        self._device_job: Job | None = None
        self._build(viewer)
        self._connect(viewer)
        self._on_image_chosen()
        self._on_model_chosen()
        self._ask_device()

    # --- building -------------------------------------------------------------------

    def _build(self, viewer: napari.viewer.Viewer) -> None:
        self.image = ImageBox(viewer)
        self.model = ModelBox(self._library)
        self.refresh = QToolButton()
        self.refresh.setText("⟳")
        self.refresh.setToolTip("Look for models again")
        self.device = QComboBox()
        self.device.addItems(["auto", "cpu"])
        self.device_line = wrapped_label("Looking for a device …")
        self.options = Options()
        self.segment = QPushButton("Segment")
        self.segment.setToolTip(f"Segment the image ({SHORTCUT.replace('-', '+')})")
        self.segment.setMinimumHeight(36)
        font = self.segment.font()
        font.setBold(True)
        self.segment.setFont(font)
        self.cancel = QPushButton("Cancel")
        self.cancel.setMinimumHeight(36)
        self.bar = JobBar()
        self.message = wrapped_label()
        let_shrink(self.device)

        models = QHBoxLayout()
        models.addWidget(self.model, 1)
        models.addWidget(self.refresh)
        form = make_form()
        form.addRow("Image", self.image)
        form.addRow("Model", models)
        form.addRow("Device", self.device)
        buttons = QHBoxLayout()
        buttons.addWidget(self.segment, 2)
        buttons.addWidget(self.cancel, 1)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addWidget(self.device_line)
        layout.addWidget(self.options)
        layout.addLayout(buttons)
        layout.addWidget(self.bar)
        layout.addWidget(self.message)
        layout.addStretch(1)
        self.setMinimumWidth(MINIMUM_WIDTH)
        self._show_state()

    def _connect(self, viewer: napari.viewer.Viewer) -> None:
        self.image.chosen.connect(self._on_image_chosen)
        self.model.chosen.connect(self._on_model_chosen)
        self.refresh.clicked.connect(self.refresh_models)
        self.device.currentIndexChanged.connect(self._ask_device)
        self.segment.clicked.connect(self.start)
        self.cancel.clicked.connect(self.stop)
        self.options.axes.editingFinished.connect(self._guess_axes)
        self.options.release.clicked.connect(self.release_model)
        viewer.layers.events.removed.connect(self._on_layer_removed)
        viewer.bind_key(SHORTCUT, segment_active_layer, overwrite=True)

    # --- choices --------------------------------------------------------------------

    @property
    def source(self) -> Image | None:
        """The chosen image."""
        return self.image.source

    def select(self, layer: Image) -> None:
        """Choose an image."""
        self.image.select(layer)

    def reset_choices(self, event: Any = None) -> None:
        """List the images anew; napari calls this when its layers change."""
        self.image.refresh()

    @property
    def entry(self) -> Entry | None:
        """The chosen model."""
        return self.model.entry

    def choose_model(self, name: str) -> bool:
        """Choose a model by name or key; return whether there is one."""
        return self.model.choose(name)

    def refresh_models(self) -> None:
        """Look for models again."""
        self.model.refresh()

    def _on_image_chosen(self) -> None:
        if self.source is not None:
            self.model.suggest(rgb=self.source.rgb)
        self._guess_axes()
        self._show_state()

    def _on_model_chosen(self) -> None:
        if self.entry is not None:
            self.options.follow(self.entry.spec)
        self._guess_axes()
        self._show_state()

    def _guess_axes(self) -> None:
        guess, shape = "", ()
        if self.source is not None and self.entry is not None:
            shape = tuple(array_of(self.source).shape)
            network = self.entry.spec.network
            # What is wrong is told when the user presses the button.
            with contextlib.suppress(AttUnetError):
                guess = axes_of(
                    self.source, ndim=network.ndim, in_channels=network.in_channels
                )
        self.options.show_axes(guess, shape)

    # --- the device -----------------------------------------------------------------

    def _ask_device(self) -> None:
        if self._device_job is not None:
            self._device_job.cancel()
        wanted = self.device.currentText()
        self._device_job = Job(functools.partial(_describe_device, wanted), self)
        self._device_job.succeeded.connect(self._on_device_known)
        self._device_job.failed.connect(self._on_device_failed)
        self._device_job.start()

    def _on_device_known(self, answer: tuple[tuple[str, ...], str]) -> None:
        available, text = answer
        self.device_line.setText(text)
        with QSignalBlocker(self.device):
            for name in available:
                if self.device.findText(name) < 0:
                    self.device.insertItem(1, name)

    def _on_device_failed(self, error: Exception) -> None:
        self.device_line.setText(str(error))

    # --- a run ----------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether a run is under way, delivery included."""
        return self._job is not None or self._delivery is not None

    def start(self) -> None:
        """Segment the chosen image with the chosen model."""
        viewer, source, entry = self._viewer_ref(), self.source, self.entry
        if self.running or viewer is None:
            return
        if source is None or entry is None:
            show_info(
                "Open an image first."
                if source is None
                else f"There are no models. Copy some to {self._library.folder}."
            )
            return
        try:
            settings = self.options.settings(
                model=str(entry.path), device=self.device.currentText()
            )
            task = plan(viewer.layers, source, entry.spec, settings)
        except AttUnetError as error:
            self._complain(error)
            return
        self._source = source
        self._watch = EditWatch(viewer.layers, task)
        self.bar.restart()
        self._job = Job(functools.partial(compute, task), self)
        self._job.progressed.connect(self._on_progressed)
        self._job.succeeded.connect(self._on_succeeded)
        self._job.failed.connect(self._complain)
        self._job.ended.connect(self._on_ended)
        self.message.setText("")
        self._show_state()
        self._on_progressed(Progress(0, 0, "Starting"))
        self._job.start()

    def stop(self) -> None:
        """Stop the run under way at its next step."""
        if self._job is not None:
            self._job.cancel()
            self._show_state()
            self.message.setText("Stopping …")

    def release_model(self) -> None:
        """Let go of the model used last; the attention dock keeps what it shows."""
        released = let_go()
        self.message.setText(
            "The model was released." if released else "No model is loaded."
        )

    def _on_progressed(self, progress: Progress) -> None:
        self.bar.follow(progress)
        self.message.setText(progress.message)

    def _on_succeeded(self, outcome: Outcome) -> None:
        viewer = self._viewer_ref()
        if viewer is None or self._source is None or self._watch is None:
            return
        self._delivery = deliver(outcome, viewer.layers, self._source, self._watch)
        self._watch = None
        self.message.setText(outcome.summary)
        QTimer.singleShot(0, self._deliver_next)

    def _deliver_next(self) -> None:
        if self._delivery is None:
            return
        more = failed = False
        try:
            more = next(self._delivery, None) is not None
        except Exception as error:  # noqa: BLE001 - the next run must be possible
            failed = True
            self._complain(error)
        if more:
            QTimer.singleShot(0, self._deliver_next)
        else:
            self._delivery = None
            self._show_state()
            self.finished.emit(not failed)

    def _on_ended(self) -> None:
        if self._job is not None and self._job.cancelled:
            self.message.setText("Stopped.")
        if self._watch is not None:
            self._watch.stop()
        self._job = self._source = self._watch = None
        self._show_state()
        if self._delivery is None:
            self.finished.emit(False)

    def _on_layer_removed(self, event: Any) -> None:
        name = event.value.name
        if self._job is not None and event.value is self._source:
            self.stop()
            show_info(f"“{name}” was removed: its segmentation was stopped.")

    def _complain(self, error: Exception) -> None:
        self.message.setText(complain(error))

    def _show_state(self) -> None:
        ready = self.source is not None and self.entry is not None
        self.segment.setEnabled(ready and not self.running)
        self.options.release.setEnabled(not self.running)
        self.cancel.setEnabled(self._job is not None and not self._job.cancelled)
        self.bar.setVisible(self.running)

    def close_down(self) -> None:
        """Stop all work: the dock is being closed."""
        for job in (self._job, self._device_job):
            if job is not None:
                job.cancel()
        viewer = self._viewer_ref()
        if viewer is not None:
            viewer.layers.events.removed.disconnect(self._on_layer_removed)
        self._delivery = None
        self.image.let_go()
        let_go()


def _describe_device(wanted: str) -> Steps[tuple[tuple[str, ...], str]]:
    """Return the devices there are, and where the wanted one runs, in words."""
    yield Progress(0, 0)
    load_engine()  # there may be no layer yet
    from napari_attunet.devices import available_devices, choose_device

    try:
        device = choose_device(wanted)
    except AttUnetError as error:
        return available_devices(), str(error)
    return available_devices(), f"Runs on {device}. {device.reason}"
