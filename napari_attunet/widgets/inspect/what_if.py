"""What if a gate were open, closed, or as painted: another mask, and how it differs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from napari.layers import Labels
from qtpy.QtCore import QSignalBlocker, Qt, QTimer
from qtpy.QtWidgets import QComboBox, QFormLayout, QPushButton, QVBoxLayout, QWidget

from napari_attunet.attention import alpha_on
from napari_attunet.canvas import AttentionMap
from napari_attunet.errors import AttUnetError
from napari_attunet.evaluation import match_objects
from napari_attunet.progress import Progress, Steps
from napari_attunet.widgets.comparison import GAINED, LOST, OTHER, changes
from napari_attunet.widgets.feedback import wrapped_label
from napari_attunet.widgets.inspect.figures import TABLES, NumberTable, save_as
from napari_attunet.widgets.inspect.seen import Seen
from napari_attunet.widgets.inspect.session import Asker, Session
from napari_attunet.widgets.inspect.stage import STEPS, WHAT_IF, painted_alpha
from napari_attunet.widgets.options import make_form
from napari_attunet.widgets.strokes import StrokeWatch
from napari_attunet.widgets.suggestions import grouped, plural

if TYPE_CHECKING:
    from napari_attunet.inspection import Ablation

__all__ = ["Effect", "WhatIfPanel", "answer_steps"]

LEARNT, OPEN, CLOSED, PAINTED, MASK = (
    "as learnt",
    "open",
    "closed",
    "as painted",
    "open on the mask only",
)
STATES = (
    (LEARNT, "What the gate found by itself"),
    (OPEN, "α = 1: all passes"),
    (CLOSED, "α = 0: nothing passes"),
    (PAINTED, f"Paint α: label 1 closes, {STEPS} opens, those between in tenths"),
    (MASK, "α = 1 on the chosen labels, 0 beside them"),
)

ABLATION_COLUMNS = (
    ("gate", "Level 1 is the finest"),
    ("state", "What was done to it"),
    ("Dice", "Of the foreground, against the labels that are compared with"),
    ("change", "Of Dice, compared with gates as learnt"),
    ("pixels", "That come to an object or leave one"),
)

#: Milliseconds of quiet after a stroke.
SETTLE = 150


@dataclass(frozen=True, eq=False, kw_only=True)
class Effect:
    """What edits do to the mask.

    Attributes
    ----------
    seen : Seen
        Before.
    changed : array of uint8
        As of `changes`.
    text : str
        In words.
    """

    seen: Seen
    changed: npt.NDArray[np.uint8]
    text: str


class WhatIfPanel(QWidget):
    """A choice for each gate, what it does to the mask, and the table of ablations.

    ::

        α level 1   [ as learnt  v ]
        α level 2   [ closed     v ]
        1 234 pixels change: 1 000 gained (green), 234 lost (red) ...
        [ All as learnt ]
        [ Open and close each gate in turn ]
        gate        state   Dice  change  pixels

    Parameters
    ----------
    session : Session
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._asker = Asker(session, self._on_answered, self)
        self._ablating = Asker(session, self._on_ablated, self)
        self._gates: list[AttentionMap] = []
        self.states: list[QComboBox] = []
        self._painted: list[Labels] = []
        viewer = session.viewer
        if viewer is None:
            raise RuntimeError("There is no viewer.")
        self._strokes = StrokeWatch(viewer, self)
        self.effect: Effect | None = None
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SETTLE)
        self._timer.timeout.connect(self._ask)
        self._build()
        session.changed.connect(self._on_changed)
        session.mask_changed.connect(self._on_mask_changed)
        self._strokes.edited.connect(self._timer.start)
        self._on_changed()

    def _build(self) -> None:
        self.form: QFormLayout = make_form()
        self.text = wrapped_label()
        self.reset = QPushButton("All as learnt")
        self.ablate = QPushButton("Open and close each gate in turn")
        self.ablate.setToolTip("What each gate is good for, measured on the labels")
        self.table = NumberTable(ABLATION_COLUMNS)
        self.save = QPushButton("Save table …")
        layout = QVBoxLayout(self)
        layout.addLayout(self.form)
        for widget in (self.text, self.reset, self.ablate, self.table, self.save):
            layout.addWidget(widget)
        layout.addStretch(1)
        self.reset.clicked.connect(self._on_reset)
        self.ablate.clicked.connect(self._on_ablate)
        self.save.clicked.connect(self._on_save)
        self._ablating.busy_changed.connect(self._show_state)

    def close_down(self) -> None:
        """Ask nothing more: the dock is being closed."""
        self._timer.stop()
        self._asker.stop()
        self._ablating.stop()
        self._hear_nothing()

    # --- choices --------------------------------------------------------------------

    def _on_changed(self) -> None:
        seen = self._session.seen
        able = seen is not None and seen.inspection is not None
        gates = [m for m in seen.maps if m.kind == "gate"] if able and seen else []
        before = [(m.name, m.scale) for m in self._gates]
        # Several gates on a skip are edited as one.
        self._gates = list({m.level: m for m in reversed(gates)}.values())[::-1]
        self._ablating.stop()
        self.effect = None
        if [(m.name, m.scale) for m in self._gates] != before:
            self._hear_nothing()
            while self.form.rowCount():
                self.form.removeRow(0)
            self.states = [self._state_box() for _ in self._gates]
            for gate, box in zip(self._gates, self.states, strict=True):
                self.form.addRow(f"α level {gate.level}", box)
        self.table.fill([])  # it was measured elsewhere
        if not self._gates:
            self.text.setText(
                "Look at the visible part first."
                if not able
                else "This network has no gates."
            )
        else:
            self.text.setText("Choose what a gate does: the mask follows.")
        self._show_state()
        if any(box.currentText() != LEARNT for box in self.states):
            self._prepare_paint()
            self._ask()

    def _state_box(self) -> QComboBox:
        box = QComboBox()
        for number, (state, meaning) in enumerate(STATES):
            box.addItem(state)
            box.setItemData(number, meaning, Qt.ItemDataRole.ToolTipRole)
        box.currentIndexChanged.connect(self._on_state)
        return box

    def set_state(self, level: int, state: str) -> None:
        """Choose what the gate of a level does."""
        for gate, box in zip(self._gates, self.states, strict=True):
            if gate.level == level:
                box.setCurrentText(state)

    def _on_state(self) -> None:
        self._prepare_paint()
        self._ask()

    def _on_reset(self) -> None:
        for box in self.states:
            with QSignalBlocker(box):
                box.setCurrentText(LEARNT)
        self._ask()

    def _on_mask_changed(self) -> None:
        self._ablating.stop()
        self.table.fill([])
        self._show_state()
        if any(box.currentText() == MASK for box in self.states):
            self._ask()

    def _prepare_paint(self) -> None:
        """Show a layer to paint on for each gate that is as painted."""
        seen, source = self._session.seen, self._session.source
        viewer = self._session.viewer
        if seen is None or source is None or viewer is None:
            return
        for gate, box in zip(self._gates, self.states, strict=True):
            if box.currentText() != PAINTED:
                continue
            layer = self._session.stage.show_paint(source, seen, gate)
            if layer is None or layer in self._painted:
                continue
            self._painted.append(layer)
            self._strokes.follow(self._painted)
            layer.selected_label = 1
            layer.mode = "paint"
            viewer.layers.selection.active = layer

    def _hear_nothing(self) -> None:
        self._painted = []
        self._strokes.follow([])

    # --- the answer -----------------------------------------------------------------

    def _edits(self) -> dict[int, Any]:
        edits: dict[int, Any] = {}
        for gate, box in zip(self._gates, self.states, strict=True):
            state = box.currentText()
            if state == OPEN:
                edits[gate.level] = 1.0
            elif state == CLOSED:
                edits[gate.level] = 0.0
            elif state == PAINTED:
                layer = self._session.stage.layer(f"paint {gate.name}")
                if isinstance(layer, Labels):
                    edits[gate.level] = painted_alpha(gate, layer)
            elif state == MASK:
                mask = self._session.mask()  # read where the work is done
                edits[gate.level] = functools.partial(_alpha_of, mask, gate)
        return edits

    def _ask(self) -> None:
        seen = self._session.seen
        if seen is None or seen.inspection is None:
            return
        try:
            edits = self._edits()
        except AttUnetError as error:
            self.text.setText(str(error))
            return
        if not edits:
            self.effect = None
            self._session.stage.hide(WHAT_IF)
            self.text.setText("All gates are as learnt: nothing changes.")
            return
        self._asker.ask(functools.partial(answer_steps, seen, edits))

    def _on_answered(self, effect: Effect) -> None:
        source = self._session.source
        if source is None or effect.seen is not self._session.seen:
            return
        if all(box.currentText() == LEARNT for box in self.states):
            return  # it was taken back meanwhile
        self.effect = effect
        self.text.setText(effect.text)
        self._session.stage.show_changes(source, effect.seen, effect.changed)

    # --- each gate in turn ----------------------------------------------------------

    def _on_ablate(self) -> None:
        seen = self._session.seen
        if seen is None or seen.inspection is None:
            return
        try:
            mask = self._session.mask()
        except AttUnetError as error:
            self._session.failed.emit(error)
            return
        self._ablating.ask(functools.partial(_ablate, seen, mask))

    def _on_ablated(self, answer: tuple[Seen, tuple[Ablation, ...]]) -> None:
        seen, found = answer
        if seen is not self._session.seen:
            return
        learnt = found[0].dice
        self.table.fill(
            [
                (
                    "all" if a.level == 0 else f"α level {a.level}",
                    a.state,
                    a.dice,
                    a.dice - learnt,
                    a.changed,
                )
                for a in found
            ]
        )
        self._show_state()

    def _show_state(self, *_: Any) -> None:
        busy = self._ablating.busy
        self.reset.setEnabled(bool(self._gates))
        self.ablate.setEnabled(bool(self._gates) and not busy)
        self.ablate.setText(
            "Opening and closing …" if busy else "Open and close each gate in turn"
        )
        self.save.setEnabled(self.table.rowCount() > 0)

    def _on_save(self) -> None:
        save_as(self, TABLES, "ablation.csv", self.table.save)


def _alpha_of(
    mask: Callable[[], npt.NDArray[Any]], gate: AttentionMap
) -> npt.NDArray[np.float32]:
    return alpha_on(mask() > 0, gate.scale)


def _ablate(
    seen: Seen, mask: Callable[[], npt.NDArray[Any]]
) -> Steps[tuple[Seen, tuple[Ablation, ...]]]:
    if seen.inspection is None:
        raise RuntimeError("Only an inspection can be asked.")
    return seen, (yield from seen.inspection.ablations(mask()))


def answer_steps(seen: Seen, edits: dict[int, Any]) -> Steps[Effect]:
    """Return what edited gates do to the mask.

    Parameters
    ----------
    seen : Seen
    edits : dict
        As of `Inspection.answer`, or what gives them.
    """
    yield Progress(0, 0, "Asking")
    if seen.inspection is None:
        raise RuntimeError("Only an inspection can be asked.")
    found = {level: e() if callable(e) else e for level, e in edits.items()}
    after = seen.inspection.answer(found).labels
    output = seen.output
    changed = changes(seen.labels, after, output=output, ndim=seen.spec.network.ndim)
    counts = np.bincount(changed.ravel(), minlength=OTHER + 1)
    text = (
        f"{grouped(int(changed.size - counts[0]))} pixels change: "
        f"{grouped(int(counts[GAINED]))} gained (green), "
        f"{grouped(int(counts[LOST]))} lost (red), "
        f"{grouped(int(counts[OTHER]))} otherwise (yellow)."
    )
    if output == "objects":
        pairs = match_objects(after, seen.labels)
        text += (
            f" Of {plural(pairs.tp + pairs.fn, 'object')} {grouped(pairs.fn)} are no "
            f"longer there, {grouped(pairs.fp)} are new."
        )
    return Effect(seen=seen, changed=changed, text=text)
