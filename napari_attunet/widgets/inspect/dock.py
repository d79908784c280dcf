"""The dock "Attention U-Net: attention": look, measure, probe, ask what if, compare."""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Labels
from qtpy.QtCore import QSignalBlocker, QTimer, Signal
from qtpy.QtWidgets import (
    QComboBox,
    QHBoxLayout,
    QPushButton,
    QTabWidget,
    QVBoxLayout,
)

from napari_attunet.errors import AttUnetError
from napari_attunet.library import Library
from napari_attunet.progress import Progress
from napari_attunet.widgets.boxes import ImageBox, ModelBox
from napari_attunet.widgets.docks import DockPart, scrolling, unwrapped
from napari_attunet.widgets.feedback import JobBar, complain, wrapped_label
from napari_attunet.widgets.inspect.blocks import BlocksPanel
from napari_attunet.widgets.inspect.gates import GatesPanel
from napari_attunet.widgets.inspect.look import Look, last_run
from napari_attunet.widgets.inspect.pointer import Pointer
from napari_attunet.widgets.inspect.probe import ProbePanel
from napari_attunet.widgets.inspect.seen import Seen
from napari_attunet.widgets.inspect.session import Session
from napari_attunet.widgets.inspect.versions import VersionsPanel
from napari_attunet.widgets.inspect.what_if import WhatIfPanel
from napari_attunet.widgets.jobs import Job
from napari_attunet.widgets.layers import is_answer, results_of
from napari_attunet.widgets.options import let_shrink, make_form
from napari_attunet.widgets.results import last_settings
from napari_attunet.widgets.segment import PLUGIN

if TYPE_CHECKING:
    import napari.viewer
    from napari.layers import Layer

__all__ = ["DOCK", "AttentionWidget", "look_at_attention"]

DOCK = "Attention U-Net: attention"

#: Pixels; narrower, the tabs are cut.
MINIMUM_WIDTH = 340

#: Milliseconds of quiet after layers come and go.
SETTLE = 150

#: What masks are compared with if the user chooses nothing else.
SAID = "what the model said"


def look_at_attention(viewer: napari.viewer.Viewer) -> None:
    """Open the dock, as a tab among the other docks; a command of the viewer."""
    viewer = unwrapped(viewer)
    viewer.window.add_plugin_dock_widget(PLUGIN, DOCK, tabify=True)


class AttentionWidget(DockPart):
    """Where a network looks, each question under its tab.

    ::

        Image  [ cells               v ]
        Model  [ nuclei-fluorescence v ]
        [ Look at the visible part ] [ Cancel ]
        nuclei-fluorescence@1 on y 0 to 511, x 0 to 511.
        Mask   [ what the model said v ]
        | Gates | Probe | Blocks | What if | Versions |

    It begins with what the last run left in the viewer.

    Parameters
    ----------
    napari_viewer : Viewer
    library : Library, optional
        Where models are looked for.
    """

    #: A look is over; whether there is something to see.
    finished = Signal(bool)

    def __init__(
        self, napari_viewer: napari.viewer.Viewer, library: Library | None = None
    ) -> None:
        super().__init__()
        viewer = unwrapped(napari_viewer)
        self._viewer_ref = weakref.ref(viewer)
        self._library = library or Library()
        self._job: Job | None = None
        self._looked_at: Image | None = None  # of the look under way
        self._masks: list[Labels] = []
        self._closed = False
        self._watched: list[tuple[Any, Any]] = []
        self.session = Session(viewer, self)
        self.pointer = Pointer(viewer, self)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SETTLE)
        self._build(viewer)
        self._connect(viewer)
        self._on_image()

    def _build(self, viewer: napari.viewer.Viewer) -> None:
        self.image = ImageBox(viewer)
        self.model = ModelBox(self._library)
        self.mask_box = QComboBox()
        self.mask_box.setToolTip(
            "What is on and off: gates are measured on these labels"
        )
        let_shrink(self.mask_box)
        self.look = QPushButton("Look at the visible part")
        self.look.setToolTip(
            "Run the network on what you see of the image, at most 512 x 512 pixels, "
            "and keep it for questions"
        )
        self.look.setMinimumHeight(32)
        self.cancel = QPushButton("Cancel")
        self.cancel.setMinimumHeight(32)
        self.bar = JobBar()
        self.message = wrapped_label()
        self.gates = GatesPanel(self.session)
        self.probe = ProbePanel(self.session, self.pointer, viewer.theme)
        self.blocks = BlocksPanel(self.session, self.pointer, viewer.theme)
        self.what_if = WhatIfPanel(self.session)
        self.versions = VersionsPanel(self.session, self._library, viewer.theme)
        self.tabs = QTabWidget()
        self.tabs.setUsesScrollButtons(False)
        for title, panel, tip in (
            ("Gates", self.gates, "What each gate lets through, in numbers"),
            ("Probe", self.probe, "α and classes under the cursor"),
            ("Blocks", self.blocks, "Channels, self-attention, transformer"),
            ("What if", self.what_if, "Open, close and paint gates"),
            ("Versions", self.versions, "α of two models side by side"),
        ):
            self.tabs.addTab(scrolling(panel), title)
            self.tabs.setTabToolTip(self.tabs.count() - 1, tip)
        form = make_form()
        form.addRow("Image", self.image)
        form.addRow("Model", self.model)
        mask = make_form()
        mask.addRow("Mask", self.mask_box)
        buttons = QHBoxLayout()
        buttons.addWidget(self.look, 2)
        buttons.addWidget(self.cancel, 1)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addLayout(buttons)
        layout.addWidget(self.bar)
        layout.addWidget(self.message)
        layout.addLayout(mask)
        layout.addWidget(self.tabs, 1)
        self.setMinimumWidth(MINIMUM_WIDTH)

    def _connect(self, viewer: napari.viewer.Viewer) -> None:
        self.image.chosen.connect(self._on_image)
        self.model.chosen.connect(self._on_model)
        self.mask_box.currentIndexChanged.connect(self._on_mask)
        self.look.clicked.connect(self.start)
        self.cancel.clicked.connect(self.stop)
        self._timer.timeout.connect(self._follow_last_run)
        self.session.failed.connect(self._complain)
        viewer.layers.events.removed.connect(self._on_layer_removed)
        viewer.events.theme.connect(self._on_theme)
        viewer.dims.events.current_step.connect(self._on_step)

    # --- choices --------------------------------------------------------------------

    def reset_choices(self, event: Any = None) -> None:
        """List layers anew; napari calls this when its layers change."""
        if self._closed:
            return
        self.image.refresh()
        self._list_masks()
        self._timer.start()

    def select(self, layer: Image) -> None:
        """Choose an image."""
        self.image.select(layer)

    def choose_model(self, name: str) -> bool:
        """Choose a model by name or key; return whether there is one."""
        return self.model.choose(name)

    def _on_image(self) -> None:
        if self._closed:
            return
        source = self.image.source
        if source is not None:
            self.model.suggest(rgb=source.rgb)
        self._list_masks()
        self._begin_anew()

    def _on_model(self) -> None:
        if not self._closed:
            self._begin_anew()

    def _begin_anew(self, event: Any = None) -> None:
        """Forget what was seen: it was another image, model, place or other pixels."""
        self.stop()
        self.session.show(None, None)
        self._follow_last_run()

    def _list_masks(self) -> None:
        viewer = self._viewer_ref()
        if viewer is None:
            return
        at = self.mask_box.currentIndex() - 1
        chosen = self._masks[at] if 0 <= at < len(self._masks) else None
        self._masks = [
            layer
            for layer in viewer.layers
            if isinstance(layer, Labels) and not is_answer(layer)
        ]
        with QSignalBlocker(self.mask_box):
            self.mask_box.clear()
            self.mask_box.addItems([SAID, *(layer.name for layer in self._masks)])
            row = self._masks.index(chosen) + 1 if chosen in self._masks else 0
            self.mask_box.setCurrentIndex(row)
        if chosen is not None and row == 0:
            self._on_mask()

    def choose_mask(self, layer: Labels) -> None:
        """Compare with labels."""
        self._list_masks()
        if layer in self._masks:
            self.mask_box.setCurrentIndex(self._masks.index(layer) + 1)

    def _on_mask(self) -> None:
        at = self.mask_box.currentIndex() - 1
        self.session.choose_mask(self._masks[at] if at >= 0 else None)

    def _follow_last_run(self) -> None:
        """Show what the last run left, unless something fresh is looked at."""
        viewer, source, entry = self._viewer_ref(), self.image.source, self.model.entry
        seen = self.session.seen
        if self._closed or viewer is None:
            return
        self._watch(viewer, source)
        if seen is not None and seen.inspection is not None:
            self._show_state()
            return
        found: Seen | None = None
        if source is not None and entry is not None:
            try:
                found = last_run(viewer.layers, source, entry.spec)
            except AttUnetError as error:
                self.message.setText(str(error))
        same = found is not None and seen is not None and found.maps == seen.maps
        if not same and (found is not None or seen is not None):
            self.session.show(found, source)
        if found is not None:
            self.message.setText(found.describe())
        elif self._job is None:
            self.message.setText("Press the button to see where the network looks.")
        self._show_state()

    def _watch(self, viewer: napari.viewer.Viewer, source: Image | None) -> None:
        """Hear when the image is another one or elsewhere, or was segmented again."""
        for event, slot in self._watched:
            event.disconnect(slot)
        self._watched = []
        if source is None:
            return
        events = source.events
        names = ("data", "scale", "translate", "rotate", "shear", "affine", "units")
        self._watched = [(events[name], self._begin_anew) for name in names]
        entry = self.model.entry
        for layer in results_of(viewer.layers, source, entry.spec.key) if entry else ():
            if isinstance(layer, Labels):  # it comes last
                self._watched.append((layer.events.metadata, self._on_segmented))
        for event, slot in self._watched:
            event.connect(slot)

    def _on_segmented(self, event: Any = None) -> None:
        self._timer.start()

    # --- a look ---------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the network is looking."""
        return self._job is not None

    def start(self) -> None:
        """Look at what the viewer shows of the chosen image."""
        viewer, source, entry = self._viewer_ref(), self.image.source, self.model.entry
        if self.running or viewer is None or source is None or entry is None:
            return
        settings = last_settings(viewer.layers, source, entry)
        try:
            look = Look.of(viewer, source, entry.spec, settings)
        except AttUnetError as error:
            self._complain(error)
            return
        self._looked_at = source
        self.bar.restart()
        self._job = Job(functools.partial(look.compute), self)
        self._job.progressed.connect(self._on_progressed)
        self._job.succeeded.connect(self._on_seen)
        self._job.failed.connect(self._complain)
        self._job.ended.connect(self._on_ended)
        self._show_state()
        self._job.start()

    def stop(self) -> None:
        """Stop the look under way."""
        if self._job is not None:
            self._job.cancel()
            self.message.setText("Stopping …")
            self._show_state()

    def _on_progressed(self, progress: Progress) -> None:
        self.bar.follow(progress)
        self.message.setText(progress.message)

    def _on_seen(self, seen: Seen) -> None:
        viewer, source = self._viewer_ref(), self._looked_at
        if viewer is None or source is None or source not in viewer.layers:
            return
        self.session.show(seen, source)
        self.message.setText(seen.describe())

    def _on_ended(self) -> None:
        if self._job is not None and self._job.cancelled:
            seen = self.session.seen  # of before, which is still there
            self.message.setText("Stopped." if seen is None else seen.describe())
        self._job, self._looked_at = None, None
        self._show_state()
        self.finished.emit(self.session.seen is not None)

    def _on_layer_removed(self, event: Any) -> None:
        layer: Layer = event.value
        if layer is self._looked_at:
            self.stop()
        if self.session.seen is not None and self.session.source is None:
            self.session.show(None, None)

    def _on_step(self, event: Any = None) -> None:
        self.session.stepped.emit()

    def _on_theme(self, event: Any) -> None:
        for themed in (self.probe.bars, self.blocks.bars, self.versions.pictures):
            themed.follow_theme(event.value)

    def _complain(self, error: Exception) -> None:
        self.message.setText(complain(error))

    def _show_state(self) -> None:
        ready = self.image.source is not None and self.model.entry is not None
        self.look.setEnabled(ready and not self.running)
        self.cancel.setVisible(self.running)
        self.cancel.setEnabled(self._job is not None and not self._job.cancelled)
        self.bar.setVisible(self.running)

    # --- the end --------------------------------------------------------------------

    def close_down(self) -> None:
        """Stop all work: the dock is being closed."""
        self._closed = True
        self._timer.stop()
        self.stop()
        self.session.close_down()
        for panel in (self.gates, self.blocks, self.what_if, self.versions):
            panel.close_down()
        self.pointer.release()
        viewer = self._viewer_ref()
        if viewer is not None:
            viewer.layers.events.removed.disconnect(self._on_layer_removed)
            viewer.events.theme.disconnect(self._on_theme)
            viewer.dims.events.current_step.disconnect(self._on_step)
        for event, slot in self._watched:
            event.disconnect(slot)
        self._watched = []
        self._masks = []
        self.image.let_go()
