"""Choosing what is learned from: an image, its labels, what of them counts."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from napari.layers import Image, Labels, Layer, Shapes
from napari.utils.notifications import show_error
from qtpy.QtCore import QSignalBlocker, Qt, Signal
from qtpy.QtWidgets import (
    QComboBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_attunet.corrections import Extent, Output
from napari_attunet.errors import AttUnetError
from napari_attunet.spec import ModelSpec
from napari_attunet.widgets.feedback import wrapped_label
from napari_attunet.widgets.gathering import (
    Aim,
    Taken,
    image_axes,
    leading_axes,
    take,
)
from napari_attunet.widgets.layers import (
    is_answer,
    is_result,
    prediction_of,
)
from napari_attunet.widgets.making import empty_labels, empty_regions
from napari_attunet.widgets.options import let_shrink, make_form
from napari_attunet.widgets.strokes import StrokeWatch
from napari_attunet.widgets.suggestions import (
    explain,
    fits,
    suggest_extent,
    suggest_labels,
)

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["Choices", "beside"]

L = TypeVar("L", bound=Layer)

EXTENTS: tuple[tuple[str, Extent, str], ...] = (
    (
        "The whole image, checked",
        "whole",
        "Everything is labelled rightly, and what has no label is background",
    ),
    (
        "Only inside regions",
        "regions",
        "The same, but only inside of what you draw in a Shapes layer",
    ),
    (
        "Only what I painted",
        "painted",
        "Labels count, and what you changed in a prediction; all else is unknown",
    ),
)


class Choices(QWidget):
    """Chooses image, labels, what counts, and slices; hears of every stroke.

    When Qt deletes it with the dock it is in, napari by itself stops telling it.

    ::

        Image        [ tissue             v ]
        Labels       [ tissue · labels    v ] +
        Counts       [ Only what I painted v ]
        What you changed counts ...
        Regions      [ Shapes             v ] +
        Slices       [ This slice         v ]

    Parameters
    ----------
    viewer : Viewer
    """

    #: Something else is chosen.
    changed = Signal()

    #: What is chosen was painted on or drawn in.
    edited = Signal()

    #: The image has other pixels.
    repainted = Signal()

    #: There are new, empty labels to paint on.
    labels_added = Signal()

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._viewer_ref = weakref.ref(viewer)
        self._aim = Aim()
        self._images: list[Image] = []
        self._labels: list[Labels] = []
        self._shapes: list[Shapes] = []
        self._strokes = StrokeWatch(viewer, self)
        self._labels_were_chosen = False
        self._whole: Any = ""  # unique_id of a sample all of which is taken
        # By the labels' unique_id: what the user said of them.
        self._extents: dict[Any, Extent] = {}
        self._outputs: dict[Any, Output] = {}
        self._build()
        self._connect(viewer)
        self.reset_choices()

    # --- building -------------------------------------------------------------------

    def _build(self) -> None:
        self.image, self.labels = QComboBox(), QComboBox()
        self.extent, self.regions, self.slices = QComboBox(), QComboBox(), QComboBox()
        for text, extent, why in EXTENTS:
            self.extent.addItem(text, extent)
            at = self.extent.count() - 1
            self.extent.setItemData(at, why, Qt.ItemDataRole.ToolTipRole)
        for value in ("shown", "all", "filled"):
            self.slices.addItem("", value)
        for box in (self.image, self.labels, self.extent, self.regions, self.slices):
            let_shrink(box)
        self.image.setPlaceholderText("Open an image first")
        self.labels.setPlaceholderText("Segment or press +")
        self.regions.setPlaceholderText("Press + to draw some")
        self.new_labels = _plus("Add an empty Labels layer to paint on")
        self.new_regions = _plus("Add a Shapes layer to draw regions in")
        self.explanation = wrapped_label()
        self.form = make_form()
        self.form.addRow("Image", self.image)
        self.form.addRow("Labels", beside(self.labels, self.new_labels))
        self.form.addRow("Counts", self.extent)
        self.form.addRow(self.explanation)
        self.regions_row = beside(self.regions, self.new_regions)
        self.form.addRow("Regions", self.regions_row)
        self.form.addRow("Slices", self.slices)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(self.form)

    def _connect(self, viewer: napari.viewer.Viewer) -> None:
        self.image.currentIndexChanged.connect(self._on_image_changed)
        self.labels.currentIndexChanged.connect(self._on_labels_changed)
        self.extent.currentIndexChanged.connect(self._on_extent_changed)
        self.regions.currentIndexChanged.connect(self._show_choices)
        self.slices.currentIndexChanged.connect(self._show_choices)
        self.new_labels.clicked.connect(self.add_labels)
        self.new_regions.clicked.connect(self.add_regions)
        self._strokes.edited.connect(self.edited)
        self._strokes.repainted.connect(self.repainted)
        for event, slot in self._viewer_events(viewer):
            event.connect(slot)

    def _viewer_events(
        self, viewer: napari.viewer.Viewer
    ) -> list[tuple[Any, Callable[..., None]]]:
        events = viewer.layers.events
        lists = (events.inserted, events.removed, events.reordered, events.renamed)
        steps = (viewer.dims.events.current_step, self._on_step)
        return [*((event, self.reset_choices) for event in lists), steps]

    def release(self) -> None:
        """Let go of the viewer and its layers."""
        viewer = self._viewer_ref()
        if viewer is not None:
            for event, slot in self._viewer_events(viewer):
                event.disconnect(slot)
        self._strokes.follow([])
        self._images, self._labels, self._shapes = [], [], []

    # --- what is chosen -------------------------------------------------------------

    @property
    def source(self) -> Image | None:
        """The chosen image."""
        return _chosen(self.image, self._images)

    @property
    def corrected(self) -> Labels | None:
        """The chosen labels."""
        return _chosen(self.labels, self._labels)

    @property
    def aim(self) -> Aim:
        """What is going to learn, with the output that the user wants."""
        labels = self.corrected
        output = self._outputs.get(labels.unique_id) if labels is not None else None
        if output is None or output == self._aim.output:
            return self._aim
        return replace(self._aim, output=output, classes=())

    @property
    def output_was_chosen(self) -> bool:
        """Whether the user said what these labels are."""
        labels = self.corrected
        return labels is not None and labels.unique_id in self._outputs

    def follow(self, spec: ModelSpec) -> None:
        """Tell what is going to learn."""
        self._aim = Aim(
            output=spec.output,
            ndim=spec.network.ndim,
            in_channels=spec.network.in_channels,
            classes=spec.classes if spec.output == "classes" else (),
        )
        self._show_choices()

    def select(self, image: Image, labels: Labels | None = None) -> None:
        """Choose an image, and its labels."""
        if image in self._images:
            self.image.setCurrentIndex(self._images.index(image))
        if labels in self._labels:
            self.labels.setCurrentIndex(self._labels.index(labels))
            self._labels_were_chosen = True

    def say(
        self,
        labels: Labels,
        *,
        output: Output | None = None,
        extent: Extent | None = None,
    ) -> None:
        """Keep in mind what labels are, or what of them counts."""
        if output is not None:
            self._outputs[labels.unique_id] = output
        if extent is not None:
            self._extents[labels.unique_id] = extent
        self._show_choices()

    def take(self) -> Taken | None:
        """Return what is chosen as it is now; None if something is missing.

        Raises
        ------
        DataError
            If the choices don't fit together.
        """
        viewer, image, labels = self._viewer_ref(), self.source, self.corrected
        if viewer is None or image is None or labels is None:
            return None
        return take(
            image,
            labels,
            aim=self.aim,
            extent=self.extent.currentData(),
            regions=_chosen(self.regions, self._shapes),
            slices=self.slices.currentData(),
            dims=viewer.dims,
        )

    # --- what there is to choose ----------------------------------------------------

    def reset_choices(self, event: Any = None) -> None:
        """List the layers anew; called when the viewer's layers change."""
        viewer = self._viewer_ref()
        if viewer is None:
            return
        image, shapes = self.source, _chosen(self.regions, self._shapes)
        # Outlines of a preview, comparisons and questions are no labels of anything.
        layers = [at for at in viewer.layers if not is_answer(at)]
        self._images = [
            at for at in layers if isinstance(at, Image) and not is_result(at)
        ]
        self._shapes = [at for at in layers if isinstance(at, Shapes)]
        _fill(
            self.image,
            self._images,
            image if image in self._images else next(iter(self._images), None),
        )
        _fill(self.regions, self._shapes, shapes)
        if self.source is not image:
            self._labels_were_chosen = False
        self._list_labels(layers)
        self._show_choices()

    def _list_labels(self, layers: Sequence[Layer]) -> None:
        """Offer labels, those first that fit the image."""
        source, chosen = self.source, self.corrected
        found = [at for at in layers if isinstance(at, Labels)]
        fitting = [at for at in found if source is not None and fits(source, at)]
        self._labels = [*fitting, *(at for at in found if at not in fitting)]
        keep = chosen in self._labels and self._labels_were_chosen
        if not keep:
            chosen = suggest_labels(source, fitting) if source is not None else None
        _fill(self.labels, self._labels, chosen)

    def _is_stack(self) -> bool:
        if self.source is None:
            return False
        try:
            axes = image_axes(self.source, self.corrected, self._aim)
        except AttUnetError:  # told when it matters
            return False
        return bool(leading_axes(axes, self._aim.ndim))

    def _show_choices(self) -> None:
        """Show what can be chosen for this image and these labels."""
        labels, aim = self.corrected, self.aim
        for box in (self.image, self.labels, self.regions):
            box.setToolTip(box.currentText())  # long names are cut
        if labels is not None:
            wanted = self._extents.get(labels.unique_id) or suggest_extent(labels)
            with QSignalBlocker(self.extent):
                self.extent.setCurrentIndex(self.extent.findData(wanted))
        extent: Extent = self.extent.currentData()
        mark = prediction_of(labels) if labels is not None else None
        predicted = mark is not None and mark.role == aim.output
        self.explanation.setText(explain(extent, aim=aim, predicted=predicted))
        _show_row(self.form, self.regions_row, extent == "regions")
        _show_row(self.form, self.slices, self._is_stack())
        self._name_slices(extent, predicted)
        self.new_labels.setEnabled(self.source is not None)
        self.new_regions.setEnabled(self.source is not None)
        shapes = _chosen(self.regions, self._shapes)
        chosen = (self.source, labels, shapes if extent == "regions" else None)
        self._strokes.follow([layer for layer in chosen if layer is not None])
        self.changed.emit()

    def _name_slices(self, extent: Extent, predicted: bool) -> None:
        one = "slice" if self._aim.ndim == 2 else "volume"
        filled = f"{one.capitalize()}s with labels"
        if extent == "regions":
            filled = f"{one.capitalize()}s with regions"
        elif extent == "painted" and predicted:
            filled = f"{one.capitalize()}s that I changed"
        for at, text in enumerate((f"This {one}", f"All {one}s", filled)):
            self.slices.setItemText(at, text)
        label = self.form.labelForField(self.slices)
        if isinstance(label, QLabel):
            label.setText(f"{one.capitalize()}s")

    # --- changes --------------------------------------------------------------------

    def _on_image_changed(self) -> None:
        viewer, source = self._viewer_ref(), self.source
        if self._whole and source is not None and source.unique_id != self._whole:
            self._whole = ""
            self.slices.setCurrentIndex(self.slices.findData("shown"))
        self._labels_were_chosen = False
        if viewer is not None:
            self._list_labels(list(viewer.layers))
        self._show_choices()

    def _on_labels_changed(self) -> None:
        self._labels_were_chosen = True
        self._show_choices()

    def _on_extent_changed(self) -> None:
        if self.corrected is not None:
            self._extents[self.corrected.unique_id] = self.extent.currentData()
        self._show_choices()

    def _on_step(self, event: Any = None) -> None:
        if self.slices.currentData() == "shown" and self._is_stack():
            self.changed.emit()

    # --- new layers -----------------------------------------------------------------

    def add_labels(self) -> None:
        """Add empty labels to paint on, and choose them."""
        viewer, image = self._viewer_ref(), self.source
        if viewer is None or image is None:
            return
        try:
            axes = image_axes(image, None, self._aim)
        except AttUnetError as error:
            show_error(str(error))
            return
        labels = viewer.add_layer(empty_labels(image, axes))
        self.select(image, labels)
        self.labels_added.emit()

    def add_regions(self) -> None:
        """Add a Shapes layer to draw regions in, and choose it."""
        viewer, image = self._viewer_ref(), self.source
        if viewer is None or image is None:
            return
        shapes = viewer.add_layer(empty_regions(image))
        shapes.mode = "add_polygon_lasso"
        self.choose_regions(shapes)

    def choose_regions(self, shapes: Shapes) -> None:
        """Choose where regions are drawn."""
        if shapes in self._shapes:
            self.regions.setCurrentIndex(self._shapes.index(shapes))

    def take_whole(self) -> None:
        """Take all slices of the chosen image, as long as it is: it is a sample."""
        if self.source is not None and self._is_stack():
            self._whole = self.source.unique_id
            self.slices.setCurrentIndex(self.slices.findData("all"))


def beside(*widgets: QWidget) -> QWidget:
    """Return a row of widgets; small buttons take no more than they need."""
    row = QWidget()
    layout = QHBoxLayout(row)
    layout.setContentsMargins(0, 0, 0, 0)
    for widget in widgets:
        layout.addWidget(widget, 0 if isinstance(widget, QToolButton) else 1)
    return row


def _plus(tip: str) -> QToolButton:
    button = QToolButton()
    button.setText("+")
    button.setToolTip(tip)
    return button


def _chosen(box: QComboBox, layers: list[L]) -> L | None:
    """Return the layer that is chosen in a box."""
    index = box.currentIndex()
    return layers[index] if 0 <= index < len(layers) else None


def _fill(box: QComboBox, layers: list[L], chosen: L | None) -> None:
    """List layers in a box, silently; the last is chosen if none is."""
    with QSignalBlocker(box):
        box.clear()
        box.addItems([layer.name for layer in layers])
        if chosen not in layers:
            chosen = layers[-1] if layers else None
        box.setCurrentIndex(-1 if chosen is None else layers.index(chosen))


def _show_row(form: QFormLayout, field: QWidget, visible: bool) -> None:
    """Show or hide a row of a form; before Qt 6.4 forms can't."""
    field.setVisible(visible)
    label = form.labelForField(field)
    if label is not None:
        label.setVisible(visible)
