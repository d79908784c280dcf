"""What attends inside blocks, and at the input: channels, pairs, transforms."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QSignalBlocker
from qtpy.QtWidgets import QComboBox, QLabel, QPushButton, QVBoxLayout, QWidget

from napari_attunet.architecture import Mechanism
from napari_attunet.attention import describe_transform, frame_corners
from napari_attunet.canvas import AttentionMap, AttentionTable
from napari_attunet.progress import Progress, Steps
from napari_attunet.widgets.feedback import wrapped_label
from napari_attunet.widgets.inspect.figures import FIGURES, TABLES, Bars, save_as
from napari_attunet.widgets.inspect.figures import save_table as write_table
from napari_attunet.widgets.inspect.pointer import Pointer
from napari_attunet.widgets.inspect.seen import Seen
from napari_attunet.widgets.inspect.session import Asker, Session
from napari_attunet.widgets.inspect.stage import ASKED
from napari_attunet.widgets.options import let_shrink

__all__ = ["BlocksPanel", "sorted_channels"]

#: Bars at either end; a bottleneck has hundreds of channels.
MOST, LEAST = 12, 8


class BlocksPanel(QWidget):
    """Sorted channels of a block, where a place looks, and the sampled frame.

    ::

        Channels [ SE encoder level 1   v ]
        channel 17  ██████████
        channel 3   ███████
        [ Save figure … ] [ Save table … ]
        Looks from a place [ self-attention ... v ]
        Click in the image to see where it looks.
        [ Show the sampled frame ]

    Parts that the network lacks are not shown.

    Parameters
    ----------
    session : Session
    pointer : Pointer
    theme : str
        Name of the viewer's theme.
    """

    def __init__(self, session: Session, pointer: Pointer, theme: str) -> None:
        super().__init__()
        self._session = session
        self._tables: list[AttentionTable] = []
        self._pairs: list[Mechanism] = []
        self._world: Sequence[float] = ()
        self._asker = Asker(session, self._on_looked, self)
        self._build(theme)
        self.block.currentIndexChanged.connect(self._show_channels)
        self.save_figure.clicked.connect(self._on_save_figure)
        self.save_table.clicked.connect(self._on_save_table)
        self.frame.clicked.connect(self._on_frame)
        pointer.moved.connect(self._on_moved)
        pointer.clicked.connect(self._on_clicked)
        session.changed.connect(self._on_changed)
        session.stepped.connect(self._on_stepped)
        self._on_changed()

    def _build(self, theme: str) -> None:
        self.nothing = wrapped_label(
            "This network has no attention inside its blocks and no transformer."
        )
        self.channels_title = QLabel("Channels")
        self.block = QComboBox()
        self.bars = Bars(theme)
        self.summary = wrapped_label()
        self.save_figure = QPushButton("Save figure …")
        self.save_table = QPushButton("Save table …")
        self.pairs_title = QLabel("Self-attention")
        self.pair = QComboBox()
        self.looked = wrapped_label()
        self.frame_title = QLabel("Spatial transformer")
        self.frame_text = wrapped_label()
        self.frame = QPushButton("Show the sampled frame")
        for box in (self.block, self.pair):
            let_shrink(box)
        layout = QVBoxLayout(self)
        self._of_channels = (
            self.channels_title,
            self.block,
            self.bars,
            self.summary,
            self.save_figure,
            self.save_table,
        )
        self._of_pairs = (self.pairs_title, self.pair, self.looked)
        self._of_frame = (self.frame_title, self.frame_text, self.frame)
        for widget in (
            self.nothing,
            *self._of_channels,
            *self._of_pairs,
            *self._of_frame,
        ):
            layout.addWidget(widget)
        layout.addStretch(1)

    def close_down(self) -> None:
        """Ask nothing more: the dock is being closed."""
        self._asker.stop()

    def _on_changed(self) -> None:
        seen = self._session.seen
        tables = seen.tables if seen is not None else ()
        self._tables = [t for t in tables if t.kind == "channel"]
        inspection = seen.inspection if seen is not None else None
        mechanisms = inspection.mechanisms if inspection is not None else ()
        self._pairs = [m for m in mechanisms if m.kind == "pairwise"]
        self._world = ()
        for box, names in (
            (self.block, [t.name for t in self._tables]),
            (self.pair, [m.label for m in self._pairs]),
        ):
            with QSignalBlocker(box):
                before = box.currentText()
                box.clear()
                box.addItems(names)
                box.setCurrentIndex(max(0, box.findText(before)))
        frames = self._frames()
        for widgets, there in (
            (self._of_channels, bool(self._tables)),
            (self._of_pairs, bool(self._pairs)),
            (self._of_frame, frames is not None),
            ((self.nothing,), not (self._tables or self._pairs or frames)),
        ):
            for widget in widgets:
                widget.setVisible(there)
        self.nothing.setText(_what_is_missing(seen))
        self.looked.setText("Click in the image to see where that place looks.")
        self._show_channels()
        self._show_turn()

    def _on_stepped(self) -> None:
        """Show what belongs to another slice."""
        self._world = ()
        self._show_channels()
        self._show_turn()

    def _show_turn(self) -> None:
        frames = self._frames()
        if frames is not None:
            matrix = frames.values[self._row(frames)]
            self.frame_text.setText(describe_transform(matrix))

    # --- channels -------------------------------------------------------------------

    def _row(self, table: AttentionTable) -> tuple[int, ...]:
        """Return the row of a table that belongs to what the viewer shows."""
        seen, viewer = self._session.seen, self._session.viewer
        if seen is None or viewer is None:
            raise RuntimeError("Nothing is seen.")
        world = self._world or viewer.dims.point
        if len(world) < seen.pose.ndim:  # the image is being removed
            return (0,) * (len(seen.label_axes) - seen.spec.network.ndim + 1)
        return seen.row_of(table, self._session.place(world))

    def _show_channels(self) -> None:
        index = self.block.currentIndex()
        if not 0 <= index < len(self._tables):
            return
        table = self._tables[index]
        weights = table.values[self._row(table)]
        names, values = sorted_channels(weights)
        self.bars.show_values(names, values)
        tiles = len(table.regions)
        where = f" of this tile, one of {tiles}" if tiles > 1 else ""
        self.summary.setText(
            f"{len(weights)} channels{where}: mean {weights.mean():.2f}, "
            f"{(weights > 0.9).sum()} above 0.9, {(weights < 0.1).sum()} below 0.1."
        )

    def _on_moved(self, world: Sequence[float]) -> None:
        seen = self._session.seen
        if (
            not self.isVisibleTo(self.window())
            or seen is None
            or seen.pixel_at(self._session.place(world)) is None
        ):
            return
        tiles = [len(t.regions) for t in self._tables]
        self._world = world
        if max(tiles, default=1) > 1:
            self._show_channels()

    def _on_save_figure(self) -> None:
        save_as(self, FIGURES, "channels.png", self.bars.save)

    def _on_save_table(self) -> None:
        rows = [
            (table.name, channel, float(weight))
            for table in self._tables
            for channel, weight in enumerate(table.values[self._row(table)])
        ]
        head = ("block", "channel", "weight")
        save_as(
            self, TABLES, "channels.csv", lambda path: write_table(path, head, rows)
        )

    # --- where a place looks --------------------------------------------------------

    def _on_clicked(self, world: Sequence[float]) -> None:
        if self.isVisibleTo(self.window()):
            self.query(world)

    def query(self, world: Sequence[float]) -> None:
        """Show where a place of the world looks."""
        seen, index = self._session.seen, self.pair.currentIndex()
        viewer = self._session.viewer
        if seen is None or viewer is None or not 0 <= index < len(self._pairs):
            return
        if viewer.dims.ndisplay != 2:
            self.looked.setText("Questions need the 2D view.")
            return
        place = seen.pixel_at(self._session.place(world))
        if place is None:
            self.looked.setText("That place was not looked at.")
            return
        self._asker.ask(functools.partial(_look, seen, self._pairs[index], place))

    def _on_looked(self, answer: tuple[Seen, AttentionMap, str]) -> None:
        seen, found, text = answer
        source = self._session.source
        if source is None or seen is not self._session.seen:
            return
        self._session.stage.show_map(source, seen, found, role=ASKED)
        self.looked.setText(text)

    # --- the transformer ------------------------------------------------------------

    def _frames(self) -> AttentionTable | None:
        seen = self._session.seen
        tables = seen.tables if seen is not None else ()
        return next((t for t in tables if t.kind == "transform"), None)

    def _on_frame(self) -> None:
        seen, source, table = self._session.seen, self._session.source, self._frames()
        if seen is None or source is None or table is None:
            return
        viewer, row = self._session.viewer, self._row(table)[:-1]
        corners = [
            seen.spread(frame_corners(matrix, region), row)
            for matrix, region in zip(table.values[row], table.regions, strict=True)
        ]
        if seen.spec.network.ndim == 3 and viewer is not None:
            # A tilted frame lies in no slice: draw it in the one that is shown.
            place = seen.pose.pixel_at(self._session.place(viewer.dims.point))
            depth = seen.axes.index("Z")
            for points in corners:
                points[:, depth] = round(place[depth])
        self._session.stage.show_frame(source, seen, corners)


def _look(
    seen: Seen, mechanism: Mechanism, place: npt.NDArray[np.float64]
) -> Steps[tuple[Seen, AttentionMap, str]]:
    yield Progress(0, 0, "Looking")
    if seen.inspection is None:
        raise RuntimeError("Only an inspection can be asked.")
    pixel = [int(p) for p in np.floor(place + 0.5)]
    at = dict(zip(seen.label_axes, pixel, strict=True))
    axes = "ZYX"[-seen.spec.network.ndim :]
    found = seen.inspection.look(mechanism, [at[axis] for axis in axes])
    corner = dict(zip(seen.label_axes, (r.start for r in seen.region), strict=True))
    where = ", ".join(f"{a.lower()} {at[a] + corner[a]}" for a in axes)
    shares = found.values / found.values.sum()
    spread = float(np.exp(-(shares[shares > 0] * np.log(shares[shares > 0])).sum()))
    text = (
        f"From {where} it looks at about {spread:.0f} of {shares.size} places; bright "
        "is where it looks most."
    )
    return seen, found, text


def sorted_channels(
    weights: npt.NDArray[np.floating[Any]],
) -> tuple[list[str], list[float]]:
    """Return names and weights of channels, falling; of many, those at either end."""
    order = np.argsort(-weights, kind="stable")
    names = [f"channel {i}" for i in order]
    values = [float(weights[i]) for i in order]
    if len(order) > MOST + LEAST + 1:
        names = [*names[:MOST], "…", *names[-LEAST:]]
        values = [*values[:MOST], 0.0, *values[-LEAST:]]
    return names, values


def _what_is_missing(seen: Seen | None) -> str:
    if seen is None:
        return "Look at the part of an image that you see."
    if seen.inspection is None and any(
        a.kind == "self" for a in seen.spec.network.attention
    ):
        return "Look at the visible part: then self-attention can be asked."
    return "This network has no attention inside its blocks and no transformer."
