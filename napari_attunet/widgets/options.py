"""The options of a segmentation, folded away until somebody wants them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from qtpy.QtGui import QIcon
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFormLayout,
    QLineEdit,
    QPushButton,
    QSizePolicy,
    QSpinBox,
    QWidget,
)
from superqt import QCollapsible

from napari_attunet.architecture import PRECISIONS
from napari_attunet.channels import CHANNEL_CHOICES, parse_channels
from napari_attunet.spec import ModelSpec, ObjectSettings
from napari_attunet.widgets.preferences import preferred_threads
from napari_attunet.widgets.results import Settings
from napari_attunet.widgets.warm import IDLE_SECONDS

__all__ = ["Options", "let_shrink", "make_form"]

OPEN, CLOSED = "▾  Options", "▸  Options"

#: So many are offered by name; others can be typed.
MOST_CHANNELS = 32

OUTPUTS = (("auto", None), ("objects", "objects"), ("classes", "classes"))


class Options(QCollapsible):
    """What can be chosen beside image, model and device.

    ::

        ▾ Options
          Channels         [ auto      v ]
          Axes             [ auto: TYX   ]
          Output           [ auto      v ]
          Threshold        [-  0.50     +]
          Minimum size     [-  16 px    +]
          Seed threshold   [-  0.50     +]
          Part at necks    [-  1.0 px   +]
          Fill holes       [x]
          Show attention   [x]
          Skip empty parts [ ]
          Tile size        [-  auto     +]
          CPU threads      [-  auto     +]
          Precision        [ auto      v ]
          Loaded model     [  Release    ]
    """

    def __init__(self) -> None:
        # Its own arrows are painted once, in a colour that may not suit the theme.
        super().__init__(CLOSED, expandedIcon=QIcon(), collapsedIcon=QIcon())
        self._objects = ObjectSettings()
        self._threshold: float | None = None
        self._output_of_model = "objects"
        self._wants_attention = True
        self.setDuration(120)
        self._build()
        self.output.currentIndexChanged.connect(self._show_output)
        self.toggled.connect(self._on_toggled)
        self.skip_empty.toggled.connect(self._show_skipping)

    def _build(self) -> None:
        self.channels = QComboBox()
        self.channels.addItems(CHANNEL_CHOICES)
        self.channels.setEditable(True)
        self.channels.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        self.channels.setToolTip(
            "How the image's colours or channels become what the model takes; channels "
            "also by number, counted from 0, such as 2, 0"
        )
        self.axes = QLineEdit()
        self.axes.setToolTip(
            "One letter for each axis of the image: T time, C channel, Z depth, Y, X"
        )
        self.output = QComboBox()
        for text, value in OUTPUTS:
            self.output.addItem(text, value)
        self.output.setToolTip("One label for each object, or one for each class")
        self.threshold = QDoubleSpinBox()
        self.threshold.setRange(0, 1)
        self.threshold.setSingleStep(0.05)
        self.threshold.setToolTip(
            "How probable it must be that there is something; lower values find more"
        )
        self.min_size = QSpinBox()
        self.min_size.setRange(0, 10**6)
        self.min_size.setSuffix(" px")
        self.min_size.setToolTip("Smaller objects are dropped")
        self.seed_threshold = QDoubleSpinBox()
        self.seed_threshold.setRange(0, 1)
        self.seed_threshold.setSingleStep(0.05)
        self.seed_threshold.setToolTip(
            "Higher values split touching objects more, and find fewer faint ones"
        )
        self.split_depth = QDoubleSpinBox()
        self.split_depth.setRange(0, 100)
        self.split_depth.setSingleStep(0.25)
        self.split_depth.setSuffix(" px")
        self.split_depth.setSpecialValueText("never")
        self.split_depth.setToolTip(
            "Divide round objects that are joined where they narrow; lower values "
            "divide more, 0 never"
        )
        self.fill_holes = QCheckBox()
        self.fill_holes.setToolTip("Fill holes in objects")
        self.attention = QCheckBox()
        self.attention.setChecked(True)
        self.attention.setToolTip("Show what each attention gate lets through")
        self.skip_empty = QCheckBox()
        self.skip_empty.setToolTip(
            "Glance at the image first, and look closely only where there may be "
            "something; for large images that are mostly empty, without attention. "
            "Objects of a few pixels may be overlooked"
        )
        self.tile = QSpinBox()
        self.tile.setRange(0, 8192)
        self.tile.setSingleStep(64)
        self.tile.setSuffix(" px")
        self.tile.setToolTip("Smaller tiles need less memory and take longer")
        self.threads = QSpinBox()
        self.threads.setRange(0, 256)
        self.threads.setToolTip("How many cores of the CPU to keep busy")
        for number in (self.tile, self.threads):
            number.setSpecialValueText("auto")
        self.precision = QComboBox()
        self.precision.addItems(PRECISIONS)
        self.precision.setToolTip(
            "Fast computes in half the bits where the device can, and changes a few "
            "pixels at edges; auto does so on CUDA cards"
        )
        self.release = QPushButton("Release")
        self.release.setToolTip(
            f"The model used last stays loaded for {IDLE_SECONDS / 60:.0f} minutes, so "
            "that the next run begins at once. This gives its memory back now, unless "
            "the attention dock shows it"
        )
        for box in (self.channels, self.output, self.precision):
            let_shrink(box)
        form = make_form()
        for text, widget in (
            ("Channels", self.channels),
            ("Axes", self.axes),
            ("Output", self.output),
            ("Threshold", self.threshold),
            ("Minimum size", self.min_size),
            ("Seed threshold", self.seed_threshold),
            ("Part at necks", self.split_depth),
            ("Fill holes", self.fill_holes),
            ("Show attention", self.attention),
            ("Skip empty parts", self.skip_empty),
            ("Tile size", self.tile),
            ("CPU threads", self.threads),
            ("Precision", self.precision),
            ("Loaded model", self.release),
        ):
            form.addRow(text, widget)
        content = QWidget()
        content.setLayout(form)
        self.addWidget(content)

    def follow(self, spec: ModelSpec) -> None:
        """Take a model's own settings."""
        self._objects, self._output_of_model = spec.objects, spec.output
        self._threshold = spec.threshold
        self.skip_empty.setEnabled(spec.network.ndim == 2)
        self._show_skipping()
        self.min_size.setValue(spec.objects.min_size)
        self.seed_threshold.setValue(spec.objects.seed_threshold)
        self.split_depth.setValue(spec.objects.split_depth)
        self.fill_holes.setChecked(spec.objects.fill_holes)
        self._show_output()

    def show_axes(self, guess: str, shape: Sequence[int]) -> None:
        """Show which axes are taken if the user names none, and offer the channels.

        Parameters
        ----------
        guess : str
            Empty if there is none.
        shape : sequence of int
            Of the image.
        """
        self.axes.setPlaceholderText(f"auto: {guess}" if guess else "auto")
        axes = self.named_axes or guess
        known = "C" in axes and len(axes) == len(shape)
        count = min(shape[axes.index("C")], MOST_CHANNELS) if known else 0
        offered = [*CHANNEL_CHOICES, *(f"channel {i}" for i in range(count))]
        there = [self.channels.itemText(i) for i in range(self.channels.count())]
        if offered == there:
            return
        chosen = self.channels.currentText()
        self.channels.clear()
        self.channels.addItems(offered)
        # What was typed stays; what was picked of another image goes with it.
        if chosen in offered or chosen not in there:
            self.channels.setCurrentText(chosen)

    @property
    def named_axes(self) -> str:
        """The axes that the user named; empty for those that are guessed."""
        return self.axes.text().strip().upper()

    def settings(self, *, model: str, device: str) -> Settings:
        """Return all that was chosen."""
        threshold = self.threshold.value()
        objects = dataclasses.replace(
            self._objects,
            min_size=self.min_size.value(),
            seed_threshold=self.seed_threshold.value(),
            split_depth=self.split_depth.value(),
            fill_holes=self.fill_holes.isChecked(),
        )
        if self._tells_objects:
            objects = dataclasses.replace(objects, foreground_threshold=threshold)
        return Settings(
            model=model,
            device=device,
            threads=self.threads.value() or preferred_threads(),
            tile=self.tile.value() or None,
            precision=self.precision.currentText(),
            axes=self.named_axes,
            channels=parse_channels(self.channels.currentText() or "auto"),
            output=self.output.currentData(),
            objects=objects,
            threshold=None if self._tells_objects else threshold or None,
            attention=self.attention.isChecked(),
            skip_empty=self._skips,
        )

    @property
    def _tells_objects(self) -> bool:
        return (self.output.currentData() or self._output_of_model) == "objects"

    @property
    def _skips(self) -> bool:
        # Whatever becomes of what these options lie in.
        return self.skip_empty.isEnabledTo(self) and self.skip_empty.isChecked()

    def _show_skipping(self) -> None:
        """Attention is looked at everywhere: there is none where parts are skipped."""
        if self._skips != self.attention.isEnabledTo(self):
            return  # it shows already
        if self._skips:
            self._wants_attention = self.attention.isChecked()
        self.attention.setChecked(not self._skips and self._wants_attention)
        self.attention.setDisabled(self._skips)

    def _show_output(self) -> None:
        """Offer what belongs to this kind of labels, as the model has it."""
        objects = self._tells_objects
        threshold = self._objects.foreground_threshold if objects else self._threshold
        self.threshold.setSpecialValueText("" if objects else "auto")
        self.threshold.setValue(threshold or 0.0)
        for box in (
            self.min_size,
            self.seed_threshold,
            self.split_depth,
            self.fill_holes,
        ):
            box.setEnabled(objects)

    def _on_toggled(self, opened: bool) -> None:
        self.setText(OPEN if opened else CLOSED)


def make_form() -> QFormLayout:
    """Return a form whose fields take all the width there is."""
    form = QFormLayout()
    form.setContentsMargins(0, 0, 0, 0)
    form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    return form


def let_shrink(box: QComboBox) -> None:
    """Let long names be elided instead of widening the dock."""
    box.setSizeAdjustPolicy(
        QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
    )
    box.setMinimumContentsLength(8)
    box.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
