"""The dock "Attention U-Net: learn": correct, train, compare, accept or go back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import QTabWidget, QVBoxLayout, QWidget

from napari_attunet.corrections import TrainingSet, last_folder
from napari_attunet.library import Library
from napari_attunet.widgets.collect import CollectPanel
from napari_attunet.widgets.docks import DockPart, scrolling, unwrapped
from napari_attunet.widgets.history import HistoryPanel
from napari_attunet.widgets.learn import LearnPanel
from napari_attunet.widgets.places import PlacesPanel
from napari_attunet.widgets.segment import PLUGIN

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["DOCK", "TrainWidget", "learn_from_corrections"]

DOCK = "Attention U-Net: learn"

#: Pixels; narrower, the tabs are cut.
MINIMUM_WIDTH = 340


def learn_from_corrections(viewer: napari.viewer.Viewer) -> None:
    """Open the dock, as a tab among the other docks; a command of the viewer."""
    viewer = unwrapped(viewer)
    viewer.window.add_plugin_dock_widget(PLUGIN, DOCK, tabify=True)


class TrainWidget(DockPart):
    """What learning from corrections takes, each part under its tab.

    ::

        | 1 Correct | 2 Learn | 3 Versions | 4 Check |

    Parameters
    ----------
    napari_viewer : Viewer
    library : Library, optional
        Where models are found and stored.
    folder : path, optional
        Of the training set; by default the one that was worked on last.
    """

    def __init__(
        self,
        napari_viewer: napari.viewer.Viewer,
        library: Library | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        viewer = unwrapped(napari_viewer)
        self._library = library or Library()
        self._training_set = TrainingSet(folder or last_folder())
        self._build(viewer)
        self._connect()

    def _build(self, viewer: napari.viewer.Viewer) -> None:
        self.corrections = CollectPanel(viewer, self._training_set)
        self.learning = LearnPanel(viewer, self._training_set, self._library)
        self.versions = HistoryPanel(self._library)
        self.places = PlacesPanel(viewer, self._library)
        self.tabs = QTabWidget()
        self.tabs.setUsesScrollButtons(False)
        for title, panel, tip in (
            ("1 Corrections", self.corrections, "Collect corrected images"),
            ("2 Learn", self.learning, "Train, compare and accept"),
            ("3 Versions", self.versions, "Go back, rename, duplicate, delete"),
            ("4 Check", self.places, "Where to look next"),
        ):
            self.tabs.addTab(scrolling(panel), title)
            self.tabs.setTabToolTip(self.tabs.count() - 1, tip)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 4, 0, 0)
        layout.addWidget(self.tabs)
        self.setMinimumWidth(MINIMUM_WIDTH)

    def _connect(self) -> None:
        self.corrections.changed.connect(self._on_corrections_changed)
        self.corrections.output_chosen.connect(self.learning.form.choose_output)
        self.learning.form.model_changed.connect(self._on_model_changed)
        # The boxes of models look for themselves; this is only sooner.
        self.learning.accepted.connect(self.versions.refresh)
        self.versions.changed.connect(self.learning.form.model.refresh)
        self._on_model_changed()

    @property
    def panels(self) -> tuple[QWidget, ...]:
        """The parts, in order."""
        return self.corrections, self.learning, self.versions, self.places

    def reset_choices(self, event: Any = None) -> None:
        """List layers anew; napari calls this when its layers change."""
        for panel in (self.corrections, self.learning, self.places):
            panel.reset_choices(event)

    def _on_corrections_changed(self) -> None:
        self.learning.follow(self.corrections.training_set)

    def _on_model_changed(self) -> None:
        """Count corrections as what is going to learn from them takes them."""
        spec = self.learning.form.spec
        if spec is not None:
            self.corrections.model_spec(spec)

    def close_down(self) -> None:
        """Stop all work: the dock is being closed."""
        for panel in (self.corrections, self.learning, self.places):
            panel.close_down()
