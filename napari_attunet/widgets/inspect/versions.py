"""Before and after: α of two models on the same part, side by side, and its change."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from napari.utils.theme import get_theme
from qtpy.QtWidgets import QPushButton, QVBoxLayout, QWidget

from napari_attunet.canvas import AttentionMap
from napari_attunet.library import Entry, Library
from napari_attunet.progress import Progress, Steps
from napari_attunet.widgets.boxes import ModelBox
from napari_attunet.widgets.feedback import wrapped_label
from napari_attunet.widgets.inspect.figures import (
    FIGURES,
    TABLES,
    NumberTable,
    save_as,
    save_figure,
)
from napari_attunet.widgets.inspect.look import Look
from napari_attunet.widgets.inspect.seen import ON_PIXELS, Seen
from napari_attunet.widgets.inspect.session import Asker, Session
from napari_attunet.widgets.inspect.stage import CHANGED, span_of
from napari_attunet.widgets.options import make_form

__all__ = ["Change", "VersionsPanel", "changes_of", "compare_steps"]

COLUMNS = (
    ("gate", "Level 1 is the finest"),
    ("this", "Mean α of the model that is looked at"),
    ("other", "Mean α of the other model"),
    ("change", "Mean of the other minus this"),
    ("moved", "Mean of the absolute difference, pixel by pixel"),
)

#: Pixels of one picture of three.
PICTURE = 104


@dataclass(frozen=True, eq=False, kw_only=True)
class Change:
    """One map of two models.

    Attributes
    ----------
    this, other : AttentionMap
    signed : AttentionMap
        Other minus this, in [-1, 1].
    """

    this: AttentionMap
    other: AttentionMap
    signed: AttentionMap

    @property
    def row(self) -> tuple[object, ...]:
        """A line of the table."""
        this, other = float(self.this.values.mean()), float(self.other.values.mean())
        moved = float(np.abs(self.signed.values).mean())
        return self.this.name, this, other, other - this, moved


def changes_of(this: Seen, other: Seen) -> list[Change]:
    """Return what both models have, by name and grid, where both looked."""
    known = {(m.name, m.scale): m for m in other.maps}
    found = []
    for before in this.maps:
        after = known.get((before.name, before.scale))
        if before.kind not in ON_PIXELS or after is None:
            continue
        # A network with more levels looks at a part that is wider by some cells.
        first = [
            (mine.start - its.start) // factor
            for mine, its, factor in zip(
                this.region, other.region, before.scale, strict=True
            )
        ]
        cells = tuple(
            slice(at, at + n) for at, n in zip(first, before.values.shape, strict=True)
        )
        values = after.values[cells]
        if min(first) < 0 or values.shape != before.values.shape:
            continue
        found.append(
            Change(
                this=before,
                other=replace(before, values=values),
                signed=replace(before, values=values - before.values),
            )
        )
    return found


def compare_steps(seen: Seen, other: Look) -> Steps[tuple[Seen, str, list[Change]]]:
    """Let another model look at the same part; its key comes with what it saw."""
    found = yield from other.compute()
    yield Progress(0, 0, "Comparing")
    return seen, other.spec.key, changes_of(seen, found)


class VersionsPanel(QWidget):
    """The table of gates that two models share, and three pictures of one of them.

    ::

        Compare with [ nuclei-histology@1 v ]
        [ Compare ]
        gate       this  other  change  moved
        α level 1  0.76  0.71   -0.05   0.08
        [this] [other] [difference]
        [ Save figure … ] [ Save table … ]

    Parameters
    ----------
    session : Session
    library : Library
    theme : str
        Name of the viewer's theme.
    """

    def __init__(self, session: Session, library: Library, theme: str) -> None:
        super().__init__()
        self._session = session
        self._changes: list[Change] = []
        self._seen: Seen | None = None
        self._asker = Asker(session, self._on_compared, self)
        self.model = ModelBox(library)
        self.compare = QPushButton("Compare")
        self.text = wrapped_label()
        self.table = NumberTable(COLUMNS)
        self.pictures = Triptych(theme)
        self.save_figure = QPushButton("Save figure …")
        self.save_table = QPushButton("Save table …")
        form = make_form()
        form.addRow("Other", self.model)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        for widget in (
            self.compare,
            self.text,
            self.table,
            self.pictures,
            self.save_figure,
            self.save_table,
        ):
            layout.addWidget(widget)
        layout.addStretch(1)
        self.compare.clicked.connect(self.start)
        self.table.itemSelectionChanged.connect(self._on_chosen)
        self.save_figure.clicked.connect(self._on_save_figure)
        self.save_table.clicked.connect(self._on_save_table)
        self.model.chosen.connect(self._show_state)
        self._asker.busy_changed.connect(self._show_state)
        self._asker.failed.connect(self._on_failed)
        session.changed.connect(self._on_changed)
        self._on_changed()

    def close_down(self) -> None:
        """Compare no more: the dock is being closed."""
        self._asker.stop()

    def start(self) -> None:
        """Let the other model look at the same part."""
        seen, entry = self._session.seen, self.model.entry
        if seen is None or seen.look is None or entry is None:
            return
        self._forget(f"{entry.spec.key} is looking …")
        self._asker.ask(
            functools.partial(compare_steps, seen, _other(seen, seen.look, entry))
        )

    def _on_changed(self) -> None:
        self._asker.stop()
        able = self._session.seen is not None and self._session.seen.look is not None
        self._forget(
            "Choose another version or model to compare with."
            if able
            else "Look at the visible part first."
        )

    def _forget(self, text: str) -> None:
        """Show no comparison, but a text instead."""
        self._changes, self._seen = [], None
        self.table.fill([])
        self.pictures.setVisible(False)
        self._session.stage.hide(CHANGED)
        self.text.setText(text)
        self._show_state()

    def _on_failed(self) -> None:
        self._forget("The other model cannot look at this part.")

    def _on_compared(self, answer: tuple[Seen, str, list[Change]]) -> None:
        seen, other, found = answer
        if seen is not self._session.seen:
            return
        self._changes, self._seen = found, seen
        self.table.fill([change.row for change in found])
        if found:
            self.text.setText(
                f"{seen.spec.key} (this) and {other} (other). A click shows the "
                "difference: red where the other's α is higher."
            )
            self.table.choose(0)
        else:
            self.text.setText(f"{seen.spec.key} and {other} have no gate in common.")
        self._show_state()

    def _on_chosen(self) -> None:
        source, row = self._session.source, self.table.chosen
        if self._seen is None or source is None or not 0 <= row < len(self._changes):
            return
        change = self._changes[row]
        self.pictures.setVisible(True)
        self.pictures.show_change(change)
        self._session.stage.show_signed(source, self._seen, change.signed, CHANGED)

    def _show_state(self, *_: Any) -> None:
        seen = self._session.seen
        able = (
            seen is not None and seen.look is not None and self.model.entry is not None
        )
        self.compare.setEnabled(able and not self._asker.busy)
        for button in (self.save_figure, self.save_table):
            button.setEnabled(bool(self._changes))

    def _on_save_figure(self) -> None:
        save_as(self, FIGURES, "alpha-before-after.png", self.pictures.save)

    def _on_save_table(self) -> None:
        save_as(self, TABLES, "alpha-before-after.csv", self.table.save)


def _other(seen: Seen, look: Look, entry: Entry) -> Look:
    settings = replace(look.settings, model=str(entry.path), output=None, objects=None)
    parts = dict(zip(seen.label_axes, seen.region, strict=True))
    region = tuple(parts.get(axis, slice(None)) for axis in seen.axes)
    return replace(look, spec=entry.spec, settings=settings, region=region)


class Triptych(QWidget):
    """Three pictures of a map: this model, the other one, the difference.

    Parameters
    ----------
    theme : str
    """

    def __init__(self, theme: str) -> None:
        super().__init__()
        self._theme = theme
        self._canvas: Any = None
        self._items: list[Any] = []
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)

    def show_change(self, change: Change) -> None:
        """Show a map; of a volume its middle plane."""
        if self._canvas is None:
            self._build()
        three = (change.this, change.other, change.signed)
        for item, found in zip(self._items, three, strict=True):
            item.setImage(_plane(found.values), autoLevels=False)
        self._items[-1].setLevels(span_of(change.signed.values))

    def follow_theme(self, theme: str) -> None:
        """Take the colours of a theme."""
        self._theme = theme
        if self._canvas is not None:
            self._canvas.setBackground(get_theme(theme).background.as_hex())

    def save(self, path: Path) -> None:
        """Write the pictures to a PNG or SVG file."""
        if self._canvas is not None:
            save_figure(self._canvas, path)

    def _build(self) -> None:
        import pyqtgraph

        self._canvas = pyqtgraph.GraphicsLayoutWidget()
        text = get_theme(self._theme).text.as_hex()
        signed = pyqtgraph.ColorMap(
            [0.0, 0.5, 1.0], [(34, 102, 255), (128, 128, 128), (255, 64, 38)]
        )
        shared = pyqtgraph.colormap.get("inferno")
        for column, (title, levels, colours) in enumerate(
            (
                ("this", (0, 1), shared),
                ("other", (0, 1), shared),
                ("difference", (-1, 1), signed),
            )
        ):
            self._canvas.addLabel(title, row=0, col=column, color=text)
            view = self._canvas.addViewBox(
                row=1, col=column, lockAspect=True, invertY=True, enableMenu=False
            )
            view.setMouseEnabled(False, False)
            item = pyqtgraph.ImageItem(axisOrder="row-major", levels=levels)
            item.setColorMap(colours)
            view.addItem(item)
            self._items.append(item)
        self._canvas.setFixedHeight(PICTURE + 40)
        layout = self.layout()
        if layout is not None:
            layout.addWidget(self._canvas)
        self.follow_theme(self._theme)


def _plane(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a picture of a map."""
    while values.ndim > 2:
        values = values[len(values) // 2]
    return values
