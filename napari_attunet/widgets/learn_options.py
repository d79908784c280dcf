"""How a model learns, folded away until somebody wants to have a say in it."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtGui import QIcon
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QLineEdit,
    QSpinBox,
    QWidget,
)
from superqt import QCollapsible

from napari_attunet.architecture import (
    ATTENTION,
    FEATURES,
    GATES,
    SIGNALS,
    WHERE,
    AttentionSpec,
    GateSpec,
    NetworkSpec,
    TransformerSpec,
)
from napari_attunet.errors import ModelError
from napari_attunet.spec import ModelSpec
from napari_attunet.training.settings import RoundSettings
from napari_attunet.widgets.options import let_shrink, make_form

__all__ = ["LearnOptions"]

OPEN, CLOSED = "▾  Advanced", "▸  Advanced"

NONE, AUTO = "none", "auto"

FREEZE = (("nothing", "nothing"), ("encoder", "encoder"))

#: Strength of augmentation.
AUGMENTATION = (
    ("auto", None),
    ("off", 0.0),
    ("weak", 0.5),
    ("normal", 1.0),
    ("strong", 1.5),
)

#: Channels of each level, fine to coarse.
EXAMPLE = ", ".join(map(str, FEATURES))


class LearnOptions(QCollapsible):
    """What can be chosen beside model and effort.

    ::

        ▾ Advanced
          Name             [ my-model      ]   of a new model
          Finds            [ objects     v ]
          Dimensions       [ 2D          v ]
          Features         [ 16, 32, ...   ]
          Attention gates  [ additive    v ]
          Gating signal    [ auto        v ]
          Attention        [ none        v ]
          Attention in     [ all         v ]
          Transformer      [ ]
          Residual         [ ]
          Steps            [-  auto       +]
          Learning rate    [-  auto       +]
          Frozen           [ nothing     v ]
          Augmentation     [ auto        v ]
          From scratch too [ ]
          Device           [ auto        v ]
          CPU threads      [-  auto      +]
          Seed             [-  0         +]
    """

    #: The new model is described otherwise.
    described = Signal()

    def __init__(self) -> None:
        # Its own arrows are painted once, in a colour that may not suit the theme.
        super().__init__(CLOSED, expandedIcon=QIcon(), collapsedIcon=QIcon())
        self.setDuration(120)
        self._new_model = False
        self._build()
        self.toggled.connect(lambda opened: self.setText(OPEN if opened else CLOSED))

    def _build(self) -> None:
        self.name = QLineEdit("my-model")
        self.name.setToolTip("What the new model is called")
        self.output = QComboBox()
        self.output.addItems(["objects", "classes"])
        self.output.setToolTip("One label for each object, or one for each class")
        self.dimensions = QComboBox()
        self.dimensions.addItem("2D", 2)
        self.dimensions.addItem("3D", 3)
        self.dimensions.setToolTip("2D models walk through stacks, 3D ones see volumes")
        self.features = QLineEdit(EXAMPLE)
        self.features.setToolTip(
            "Channels of each level of the network, fine to coarse"
        )
        self.gates = QComboBox()
        self.gates.addItems([*GATES, NONE])
        self.gates.setToolTip(
            "What guards the skip connections; none makes a plain U-Net"
        )
        self.signal = QComboBox()
        self.signal.addItems([AUTO, *SIGNALS])
        self.signal.setToolTip("From where in the network gates are told what to pass")
        self.attention = QComboBox()
        self.attention.addItems([NONE, *ATTENTION])
        self.attention.setToolTip(
            "Attention inside the blocks: of channels (se, eca, cbam-channel), of "
            "places (cbam-spatial), of both (cbam), or between places (self)"
        )
        self.where = QComboBox()
        self.where.addItems(WHERE)
        self.where.setToolTip("In which blocks; between places, take the bottleneck")
        self.transformer = QCheckBox()
        self.transformer.setToolTip(
            "Let the network turn, shift and scale the image before it looks"
        )
        self.residual = QCheckBox()
        self.residual.setToolTip("Blocks add what came in to what they make of it")
        self.steps = QSpinBox()
        self.steps.setRange(0, 10**6)
        self.steps.setSingleStep(50)
        self.steps.setToolTip("How many batches to learn from, whatever the effort")
        self.learning_rate = QDoubleSpinBox()
        self.learning_rate.setRange(0, 1)
        self.learning_rate.setDecimals(5)
        self.learning_rate.setStepType(QDoubleSpinBox.StepType.AdaptiveDecimalStepType)
        self.freeze = QComboBox()
        for text, value in FREEZE:
            self.freeze.addItem(text, value)
        self.freeze.setToolTip("What stays as it is: less changes, less is forgotten")
        self.augmentation = QComboBox()
        for text, strength in AUGMENTATION:
            self.augmentation.addItem(text, strength)
        self.augmentation.setToolTip(
            "How much images are varied each time; auto: normal, but weak where the "
            "model does not know such images"
        )
        self.scratch = QCheckBox()
        self.scratch.setToolTip(
            "Always train a fresh network as well, and propose the better one. Without "
            "it that is done only where the model does badly."
        )
        self.device = QComboBox()
        self.device.addItems(["auto", "cpu"])
        self.threads = QSpinBox()
        self.threads.setRange(0, 256)
        self.threads.setToolTip(
            "How many cores of the CPU to keep busy; auto leaves one to the viewer"
        )
        for number in (self.steps, self.learning_rate, self.threads):
            number.setSpecialValueText("auto")
        self.seed = QSpinBox()
        self.seed.setRange(0, 2**31 - 1)
        self.seed.setToolTip("The same seed, data and device give the same model")
        for box in (
            *(self.output, self.dimensions, self.freeze, self.augmentation),
            *(self.gates, self.signal, self.attention, self.where),
        ):
            let_shrink(box)
        self.attention.currentTextChanged.connect(self._on_attention)
        let_shrink(self.device)
        form = make_form()
        for text, field in (
            ("Name", self.name),
            ("Finds", self.output),
            ("Dimensions", self.dimensions),
            ("Features", self.features),
            ("Attention gates", self.gates),
            ("Gating signal", self.signal),
            ("Attention", self.attention),
            ("Attention in", self.where),
            ("Transformer", self.transformer),
            ("Residual", self.residual),
            ("Steps", self.steps),
            ("Learning rate", self.learning_rate),
            ("Frozen", self.freeze),
            ("Augmentation", self.augmentation),
            ("From scratch too", self.scratch),
            ("Device", self.device),
            ("CPU threads", self.threads),
            ("Seed", self.seed),
        ):
            form.addRow(text, field)
        content = QWidget()
        content.setLayout(form)
        self.addWidget(content)
        described = (
            self.name,
            self.output,
            self.dimensions,
            self.features,
            self.gates,
            self.signal,
            self.attention,
            self.where,
            self.transformer,
            self.residual,
        )
        self._of_new: list[Any] = [*described, *map(form.labelForField, described)]
        only_old = self.freeze, self.scratch
        self._of_old: list[Any] = [*only_old, *map(form.labelForField, only_old)]
        self.output.currentIndexChanged.connect(self.described)
        self.dimensions.currentIndexChanged.connect(self.described)
        self.follow(new_model=False)

    def follow(self, *, new_model: bool) -> None:
        """Offer what a new model needs, or what an old one allows."""
        self._new_model = new_model
        for widget in self._of_new:
            widget.setVisible(new_model)
        for widget in self._of_old:
            widget.setVisible(not new_model)
        if new_model:
            self.expand(animate=False)
        elif self.isExpanded():
            self.expand(animate=False)  # to its new height

    def offer_devices(self, names: tuple[str, ...]) -> None:
        """Let these devices be chosen too."""
        for name in names:
            if self.device.findText(name) < 0:
                self.device.insertItem(1, name)

    def settings(self, effort: Any) -> RoundSettings:
        """Return what a round of learning is told.

        Raises
        ------
        ModelError
            If a new model is described wrongly.
        """
        settings = RoundSettings(
            effort=effort,
            steps=self.steps.value() or None,
            learning_rate=self.learning_rate.value() or None,
            augmentation=self.augmentation.currentData(),
            seed=self.seed.value(),
        )
        if not self._new_model:
            return dataclasses.replace(
                settings,
                starts=("parent", "scratch") if self.scratch.isChecked() else (),
                freeze=self.freeze.currentData(),
            )
        spec = self.described_spec()
        return dataclasses.replace(
            settings,
            starts=("scratch",),
            network=spec.network,
            output=spec.output,
            name=spec.name,
        )

    def described_spec(self) -> ModelSpec:
        """Return the new model; its channels and classes are those of the data.

        Raises
        ------
        ModelError
            If it cannot be.
        """
        output: Any = self.output.currentText()
        return ModelSpec(
            name=self.name.text().strip(), network=self._network(), output=output
        )

    def _network(self) -> NetworkSpec:
        text = self.features.text()
        numbers = re.findall(r"\d+", text)
        if not re.fullmatch(r"[\d\s,;]+", text):
            raise ModelError(
                f"Features are numbers with commas between them, such as {EXAMPLE}; "
                f"got {text!r}."
            )
        return NetworkSpec(
            ndim=self.dimensions.currentData(),
            out_channels=3 if self.output.currentText() == "objects" else 2,
            features=tuple(map(int, numbers)),
            gate=self._gate(),
            attention=self._attention(),
            transformer=TransformerSpec() if self.transformer.isChecked() else None,
            residual=self.residual.isChecked(),
        )

    def _gate(self) -> GateSpec | None:
        kind, signal = self.gates.currentText(), self.signal.currentText()
        if kind == NONE:
            return None
        return GateSpec(kind=kind, signal=None if signal == AUTO else signal)  # type: ignore[arg-type]

    def _attention(self) -> tuple[AttentionSpec, ...]:
        kind, where = self.attention.currentText(), self.where.currentText()
        if kind == NONE:
            return ()
        return (AttentionSpec(kind=kind, where=where),)  # type: ignore[arg-type]

    def _on_attention(self, kind: str) -> None:
        """Self-attention of fine levels takes more memory than machines have."""
        if kind == "self":
            self.where.setCurrentText("bottleneck")
