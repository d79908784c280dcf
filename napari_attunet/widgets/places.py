"""Where to look next: the most doubtful places of an image, one click away."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_info
from qtpy.compat import isalive
from qtpy.QtCore import QSignalBlocker, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QHBoxLayout,
    QListWidget,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_attunet.errors import AttUnetError
from napari_attunet.library import Library
from napari_attunet.progress import Progress
from napari_attunet.review import Place
from napari_attunet.widgets.boxes import ImageBox, ModelBox
from napari_attunet.widgets.docks import DockPart, unwrapped
from napari_attunet.widgets.feedback import JobBar, complain, wrapped_label
from napari_attunet.widgets.jobs import Job
from napari_attunet.widgets.options import make_form
from napari_attunet.widgets.results import last_settings
from napari_attunet.widgets.search import find_places, plan_search, show

if TYPE_CHECKING:
    import napari.viewer
    from napari.layers import Image

__all__ = ["PlacesPanel"]

#: No command of napari's own has it.
NEXT_SHORTCUT = "Control-Shift-N"


class PlacesPanel(DockPart):
    """Finds the places where a model is most in doubt, and goes there.

    ::

        Image    [ tissue                  v ]
        Model    [ nuclei-histology        v ]
        [ ] Compare with flipped copies
        [ ] Only what is shown of the stack
        [ Find places to check   ] [ Cancel  ]
        [###########          ] about 10 s left
        1 · 41 % · background or nucleus
        2 · 38 % · nucleus or boundary
        [    < Back    ] [     Next >        ]

    Parameters
    ----------
    napari_viewer : Viewer
    library : Library
    parent : QWidget, optional
    """

    #: A search is over; whether there are places.
    finished = Signal(bool)

    def __init__(
        self,
        napari_viewer: napari.viewer.Viewer,
        library: Library,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        viewer = unwrapped(napari_viewer)
        self._viewer_ref = weakref.ref(viewer)
        self._job: Job | None = None
        self._places: tuple[Place, ...] = ()
        self._source: Callable[[], Image | None] = _nothing  # whose places they are
        self._axes = ""  # of the source
        self._build(viewer, library)
        self._connect(viewer)
        self._show_state()

    def _build(self, viewer: napari.viewer.Viewer, library: Library) -> None:
        self.image = ImageBox(viewer)
        self.model = ModelBox(library)
        self.flips = QCheckBox("Compare with flipped copies")
        self.flips.setToolTip(
            "Also look where the answer changes when the image is flipped; takes three "
            "times as long"
        )
        self.only_shown = QCheckBox("Only what is shown of the stack")
        self.only_shown.setToolTip(
            "Quicker; intensities are then measured in this part alone"
        )
        self.look = QPushButton("Find places to check")
        self.look.setToolTip("Look where the model is most in doubt")
        self.cancel = QPushButton("Cancel")
        self.bar = JobBar()
        self.places = QListWidget()
        self.places.setMinimumHeight(120)
        self.back = QPushButton("< Back")
        self.forward = QPushButton("Next >")
        self.forward.setToolTip(
            f"Go to the next place ({NEXT_SHORTCUT.replace('-', '+')})"
        )
        self.message = wrapped_label()

        form = make_form()
        form.addRow("Image", self.image)
        form.addRow("Model", self.model)
        start = QHBoxLayout()
        start.addWidget(self.look, 2)
        start.addWidget(self.cancel, 1)
        walk = QHBoxLayout()
        walk.addWidget(self.back)
        walk.addWidget(self.forward)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(form)
        layout.addWidget(self.flips)
        layout.addWidget(self.only_shown)
        layout.addLayout(start)
        layout.addWidget(self.bar)
        layout.addWidget(self.message)
        layout.addWidget(self.places, 1)
        layout.addLayout(walk)

    def _connect(self, viewer: napari.viewer.Viewer) -> None:
        self.image.chosen.connect(self._on_choice)
        self.model.chosen.connect(self._on_choice)
        self.look.clicked.connect(self.start)
        self.cancel.clicked.connect(self.stop)
        self.places.itemClicked.connect(self._go)  # a second click goes there again
        self.places.currentRowChanged.connect(self._go)
        self.back.clicked.connect(self.go_back)
        self.forward.clicked.connect(self.go_on)
        viewer.layers.events.removed.connect(self._on_layer_removed)
        viewer.bind_key(NEXT_SHORTCUT, _going_on(self), overwrite=True)
        self._on_choice()

    # --- choices --------------------------------------------------------------------

    def select(self, layer: Image) -> None:
        """Choose an image."""
        self.image.select(layer)

    def choose_model(self, name: str) -> bool:
        """Choose a model by name or key; return whether there is one."""
        return self.model.choose(name)

    def reset_choices(self, event: Any = None) -> None:
        """List the images anew; napari calls this when its layers change."""
        self.image.refresh()

    def _on_choice(self) -> None:
        source = self.image.source
        if source is not None:
            self.model.suggest(rgb=source.rgb)
        self._show_state()

    # --- a search -------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether a search is under way."""
        return self._job is not None

    def start(self) -> None:
        """Look for the places of the chosen image."""
        viewer, layer, entry = self._viewer_ref(), self.image.source, self.model.entry
        if self.running or viewer is None or layer is None or entry is None:
            return
        try:
            search = plan_search(
                layer,
                entry.spec,
                last_settings(viewer.layers, layer, entry),
                flips=self.flips.isChecked(),
                point=viewer.dims.point if self.only_shown.isChecked() else None,
            )
        except AttUnetError as error:
            self._complain(error)
            return
        self._show_places(())
        self._source, self._axes = weakref.ref(layer), search.layer_axes
        self.bar.restart()
        self._job = Job(functools.partial(find_places, search), self)
        self._job.progressed.connect(self._on_progressed)
        self._job.succeeded.connect(self._on_found)
        self._job.failed.connect(self._complain)
        self._job.ended.connect(self._on_ended)
        self._on_progressed(Progress(0, 0, "Starting"))
        self._show_state()
        self._job.start()

    def stop(self) -> None:
        """Stop the search under way at its next step."""
        if self._job is not None:
            self._job.cancel()
            self.message.setText("Stopping …")
            self._show_state()

    def _on_progressed(self, progress: Progress) -> None:
        self.bar.follow(progress)
        self.message.setText(progress.message)

    def _on_found(self, places: tuple[Place, ...]) -> None:
        source = self._source()
        if source is None:
            return
        self._show_places(places)
        self.message.setText(
            f"Where the model is most in doubt in “{source.name}”:"
            if places
            else f"The model is in no doubt anywhere in “{source.name}”."
        )

    def _on_ended(self) -> None:
        if self._job is not None and self._job.cancelled:
            self.message.setText("Stopped.")
        self._job = None
        self._show_state()
        self.finished.emit(bool(self._places))

    def _on_layer_removed(self, event: Any) -> None:
        if not _alive(self):
            return
        source = self._source()
        if source is None or source is not event.value:
            return
        name = source.name
        if self._job is not None:
            self.stop()
            show_info(f"“{name}” was removed: the search in it was stopped.")
        elif self._places:
            self.message.setText(f"“{name}” was removed.")
        self._source = _nothing
        self._show_places(())

    def _complain(self, error: Exception) -> None:
        self.message.setText(complain(error))

    # --- the places -----------------------------------------------------------------

    def _show_places(self, places: tuple[Place, ...]) -> None:
        self._places = places
        with QSignalBlocker(self.places):
            self.places.clear()
            for number, place in enumerate(places, 1):
                parts = (f"{number}", f"{place.score:.0%}", place.reason)
                self.places.addItem(" · ".join(part for part in parts if part))
            self.places.setCurrentRow(-1)
        self._show_state()

    def go_on(self) -> None:
        """Go to the next place; from the last one, to the first."""
        if self._places:
            self.places.setCurrentRow(
                (self.places.currentRow() + 1) % len(self._places)
            )

    def go_back(self) -> None:
        """Go to the previous place; from the first one, to the last."""
        if self._places:
            row = max(0, self.places.currentRow()) - 1
            self.places.setCurrentRow(row % len(self._places))

    def _go(self, _: Any = None) -> None:
        viewer, source = self._viewer_ref(), self._source()
        row = self.places.currentRow()
        if viewer is None or source is None or not 0 <= row < len(self._places):
            return
        show(viewer, source, self._axes, self._places[row])

    def _show_state(self) -> None:
        source, entry = self.image.source, self.model.entry
        running = self.running
        self.look.setEnabled(source is not None and entry is not None and not running)
        self.cancel.setEnabled(self._job is not None and not self._job.cancelled)
        self.cancel.setVisible(running)
        self.bar.setVisible(running)
        stack = (
            source is not None
            and entry is not None
            and source.ndim > entry.spec.network.ndim
        )
        self.only_shown.setVisible(stack)
        if not stack:
            self.only_shown.setChecked(False)
        for button in (self.back, self.forward):
            button.setEnabled(bool(self._places))

    # --- the end --------------------------------------------------------------------

    def close_down(self) -> None:
        """Stop all work: the dock is being closed."""
        if self._job is not None:
            self._job.cancel()
        viewer = self._viewer_ref()
        if viewer is not None:
            viewer.layers.events.removed.disconnect(self._on_layer_removed)
        self._source = _nothing
        self._places = ()
        self.image.let_go()


def _nothing() -> None:
    """Stand for a layer that is gone."""


def _alive(panel: QWidget) -> bool:
    return bool(isalive(panel))  # type: ignore[no-untyped-call]


def _going_on(panel: PlacesPanel) -> Callable[[Any], None]:
    """Return what a key calls; it holds no panel."""
    ref = weakref.ref(panel)

    def go_on(viewer: Any) -> None:
        found = ref()
        if found is not None and _alive(found):
            found.go_on()

    return go_on
