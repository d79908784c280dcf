"""What a round of learning starts from and with: the part above the button."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from qtpy.QtCore import QSignalBlocker, Signal
from qtpy.QtWidgets import QCheckBox, QComboBox, QVBoxLayout, QWidget

from napari_attunet.corrections import Output
from napari_attunet.errors import ModelError
from napari_attunet.library import Entry, Library
from napari_attunet.spec import ModelSpec
from napari_attunet.training.settings import RoundSettings
from napari_attunet.widgets.boxes import ImageBox, ModelBox
from napari_attunet.widgets.learn_options import LearnOptions
from napari_attunet.widgets.options import let_shrink, make_form

if TYPE_CHECKING:
    import napari.viewer
    from napari.layers import Image

__all__ = ["NEW_MODEL", "WATCH", "LearnForm", "StartBox"]

EFFORTS = (("Quick (a minute or few)", "quick"), ("Thorough (minutes)", "thorough"))

NEW_MODEL = "New model …"

WATCH = "Outline every few seconds what it finds in the part of the image you see"


class StartBox(ModelBox):
    """The models of a library, and at the end a new one, which has no `entry`."""

    @property
    def is_new(self) -> bool:
        """Whether a new model is chosen."""
        return self.count() > 0 and self.currentIndex() == self.count() - 1

    def refresh(self) -> None:
        """Look for models again."""
        new = self.is_new
        with QSignalBlocker(self) if new else contextlib.nullcontext():
            super().refresh()  # which chooses another for a moment
            self.addItem(NEW_MODEL)
            if new:
                self.setCurrentIndex(self.count() - 1)
        if not new and self.count() == 1:
            self.setCurrentIndex(0)


class LearnForm(QWidget):
    """Model, effort, the image to show it on, and the rest folded away.

    ::

        Start from [ nuclei-histology    v ]
        Effort     [ Quick (a minute or few)  v ]
        Show on    [ tissue              v ]
        [x] Watch it learn
        ▸ Advanced

    Parameters
    ----------
    viewer : Viewer
    library : Library
    """

    #: Something else is going to learn; see `spec`.
    model_changed = Signal()

    def __init__(self, viewer: napari.viewer.Viewer, library: Library) -> None:
        super().__init__()
        self._library = library
        self._build(viewer, library)
        self.model.chosen.connect(self._on_model_chosen)
        self.image.chosen.connect(self._on_image_chosen)
        self.options.described.connect(self.model_changed)
        self._on_image_chosen()
        self._on_model_chosen()

    def _build(self, viewer: napari.viewer.Viewer, library: Library) -> None:
        self.model = StartBox(library)
        self.effort = QComboBox()
        for text, value in EFFORTS:
            self.effort.addItem(text, value)
        let_shrink(self.effort)
        self.image = ImageBox(viewer)
        self.image.setPlaceholderText("No image is open")
        self.watch = QCheckBox("Watch it learn")
        self.watch.setChecked(True)
        self.watch.setToolTip(WATCH)
        self.options = LearnOptions()
        form = make_form()
        form.addRow("Start from", self.model)
        form.addRow("Effort", self.effort)
        form.addRow("Show on", self.image)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(form)
        layout.addWidget(self.watch)
        layout.addWidget(self.options)

    @property
    def entry(self) -> Entry | None:
        """The model to start from; None stands for a new one."""
        return self.model.entry

    @property
    def source(self) -> Image | None:
        """The image on which learning is shown."""
        return self.image.source

    @property
    def spec(self) -> ModelSpec | None:
        """What is going to learn; None if a new model is described wrongly."""
        if self.entry is not None:
            return self.entry.spec
        try:
            return self.options.described_spec()
        except ModelError:
            return None

    def choose_output(self, output: Output) -> None:
        """Let a new model find objects or classes; others find what samples show."""
        self.options.output.setCurrentText(output)

    def settings(self) -> RoundSettings:
        """Return what a round of learning is told.

        Raises
        ------
        ModelError
            If a new model is described wrongly, or has the name of another.
        """
        settings = self.options.settings(self.effort.currentData())
        if settings.name is not None:
            self._library.check_free(settings.name)
        return settings

    def set_busy(self, busy: bool, *, deciding: bool) -> None:
        """Leave only what may be changed while a round is under way."""
        self.model.setEnabled(not busy)
        self.effort.setEnabled(not busy)
        self.options.setEnabled(not busy)
        self.options.setVisible(not deciding)
        self.watch.setVisible(not deciding)

    def _on_model_chosen(self) -> None:
        self.options.follow(new_model=self.entry is None)
        if self.entry is None:
            self.model.setToolTip("A network that knows nothing yet")
            name = self.options.name
            name.setText(self._library.free_name(name.text().strip()))
        self.model_changed.emit()

    def _on_image_chosen(self) -> None:
        if self.source is not None:
            self.model.suggest(rgb=self.source.rgb)
