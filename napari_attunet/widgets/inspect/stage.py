"""The layers of the attention dock: made once, then moved and filled anew; no Qt."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from napari.layers import Image, Labels, Layer, Shapes
from napari.utils.colormaps import Colormap

from napari_attunet.canvas import AttentionMap
from napari_attunet.widgets.comparison import CHANGE_COLOURS
from napari_attunet.widgets.inspect.seen import Seen
from napari_attunet.widgets.layers import KEY, attention_look, label_colours, mark_of
from napari_attunet.widgets.poses import Pose

if TYPE_CHECKING:
    import napari.viewer

__all__ = [
    "ASKED",
    "CHANGED",
    "STEPS",
    "WHAT_IF",
    "Stage",
    "painted_alpha",
    "span_of",
]

#: Labels of a painted gate: 1 is closed (α = 0), this many is open (α = 1).
STEPS = 11

#: α as it is painted, from closed to open: dark violet to yellow.
CLOSED, OPEN = np.array((91, 42, 134)), np.array((255, 225, 77))

#: Of a difference: blue where it fell, nothing to see at 0, red where it rose.
SIGNED = ((0.13, 0.4, 1.0, 1.0), (0.5, 0.5, 0.5, 0.0), (1.0, 0.25, 0.15, 1.0))

#: A difference of α below this looks faint.
FAINT = 0.05

#: Roles of answers, which hold for one part and one question.
WHAT_IF, CHANGED, ASKED, FRAME = "what if", "α changed", "looks at", "sampled frame"
ANSWERS = (WHAT_IF, CHANGED, ASKED, FRAME)

#: What our layers say of themselves, so that nobody takes them for images to segment.
ROLE = "attention"


class Stage:
    """Shows things on the image.

    Parameters
    ----------
    viewer : Viewer
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        self._viewer_ref = weakref.ref(viewer)
        # By image, model and role.
        self._layers: dict[tuple[Any, str, str], Callable[[], Layer | None]] = {}
        self._owner: tuple[Any, str] = (None, "")

    def enter(self, source: Image | None, seen: Seen | None) -> None:
        """Show things on another image, of another model, or on another part.

        What belongs to others is hidden, and so is every answer to a question.
        """
        self._owner = (None, "")
        if source is not None and seen is not None:
            self._owner = (source.unique_id, seen.spec.key)
        for key in list(self._layers):
            layer = self._find(key)
            if layer is None:
                del self._layers[key]
            elif key[:2] != self._owner or key[2] in ANSWERS:
                layer.visible = False

    def layer(self, role: str) -> Layer | None:
        """Return the layer of a role, while it is in the viewer."""
        return self._find((*self._owner, role))

    def _find(self, key: tuple[Any, str, str]) -> Layer | None:
        viewer = self._viewer_ref()
        layer = self._layers.get(key, _nothing)()
        return layer if viewer is not None and layer in viewer.layers else None

    def show_map(
        self, source: Image, seen: Seen, attention: AttentionMap, role: str = ""
    ) -> Layer | None:
        """Show a map, and no other one; that of the last run if it is still there.

        Parameters
        ----------
        source : Image
        seen : Seen
        attention : AttentionMap
        role : str, optional
            By default its name.
        """
        viewer = self._viewer_ref()
        if viewer is None:
            return None
        shown = self._show_only(source, attention)
        if shown is None:
            volume = seen.spec.network.ndim == 3
            shown = self._show(
                role or attention.name,
                source,
                *seen.fit(attention.values, attention.scale, attention.translate),
                kind=Image,
                look=attention_look(rgb=seen.rgb, volume=volume),
            )
        return shown

    def _show_only(self, source: Image, attention: AttentionMap | None) -> Layer | None:
        """Hide all maps but that of the last run which is meant; return its layer."""
        viewer = self._viewer_ref()
        shown = None
        for layer in viewer.layers if viewer is not None else ():
            mark = mark_of(layer)
            if mark is None or mark.attention is None:
                continue
            if mark.source == source.unique_id:
                layer.visible = mark.attention is attention
                shown = layer if layer.visible else shown
        for layer in map(self._find, list(self._layers)):
            if isinstance(layer, Image):
                layer.visible = False
        return shown

    def show_signed(
        self, source: Image, seen: Seen, attention: AttentionMap, role: str
    ) -> Layer | None:
        """Show a difference of α, and no map: blue where it fell, red where it rose."""
        self._show_only(source, None)
        shown = self._show(
            role,
            source,
            *seen.fit(attention.values, attention.scale, attention.translate),
            kind=Image,
            look={
                "colormap": Colormap(SIGNED, name="fell and rose"),
                "interpolation2d": "nearest",
                "blending": "translucent",
                "opacity": 0.8,
            },
        )
        if isinstance(shown, Image):
            shown.contrast_limits = span_of(attention.values)
        return shown

    def show_changes(
        self, source: Image, seen: Seen, changed: npt.NDArray[Any]
    ) -> Layer | None:
        """Show where a mask would be another one."""
        return self._show(
            WHAT_IF,
            source,
            *seen.fit(changed, (1,) * changed.ndim),
            kind=Labels,
            look={"opacity": 0.8, "colormap": label_colours(CHANGE_COLOURS)},
            locked=True,
        )

    def show_paint(
        self, source: Image, seen: Seen, attention: AttentionMap
    ) -> Labels | None:
        """Show a layer to paint a gate on; empty means as learnt."""
        colours = {}
        for number in range(STEPS):
            mixed = CLOSED + (OPEN - CLOSED) * number / (STEPS - 1)
            colours[number + 1] = mixed / 255
        role = f"paint {attention.name}"
        values, pose = seen.fit(
            np.zeros(attention.values.shape, np.uint8),
            attention.scale,
            attention.translate,
        )
        before = self.layer(role)
        if (
            isinstance(before, Labels)
            and before.data.shape == values.shape
            and Pose.of(before).is_close(pose)
        ):
            before.visible = True
            return before  # with what was painted
        if isinstance(before, Labels) and np.any(before.data):
            before.visible = False  # it belongs to another part, and stays the user's
            del self._layers[(*self._owner, role)]
        layer = self._show(
            role,
            source,
            values,
            pose,
            kind=Labels,
            look={"opacity": 0.5, "colormap": label_colours(colours)},
        )
        return layer if isinstance(layer, Labels) else None

    def show_frame(
        self, source: Image, seen: Seen, corners: Sequence[npt.NDArray[np.float64]]
    ) -> Layer | None:
        """Show what a spatial transformer sampled, as outlines of frames.

        Parameters
        ----------
        source : Image
        seen : Seen
        corners : sequence of (4, n) array
            In pixels of the whole image, along the axes of the layer.
        """
        viewer = self._viewer_ref()
        if viewer is None:
            return None
        before = self.layer(FRAME)
        if before is not None:
            viewer.layers.remove(before)
        layer = Shapes(
            list(corners),
            shape_type="polygon",
            face_color="transparent",
            edge_color="#e69f00",
            edge_width=max(1.0, max(seen.shape) / 200),
            name=f"{source.name} · {FRAME}",
            metadata={KEY: ROLE},
            **seen.pose.arguments(),
        )
        layer.editable = False
        self._add(FRAME, layer)
        return layer

    def hide(self, role: str) -> None:
        """Hide the layer of a role, if there is one."""
        layer = self.layer(role)
        if layer is not None:
            layer.visible = False

    def _show(
        self,
        role: str,
        source: Image,
        values: npt.NDArray[Any],
        pose: Pose,
        *,
        kind: type[Image] | type[Labels],
        look: dict[str, Any],
        locked: bool = False,
    ) -> Layer | None:
        viewer = self._viewer_ref()
        if viewer is None:
            return None
        layer = self.layer(role)
        if layer is not None and layer.ndim == values.ndim:
            layer.data = values
            pose.apply_to(layer)
            layer.visible = True
        else:
            layer = kind(
                values,
                name=f"{source.name} · {role}",
                metadata={KEY: ROLE},
                **look,
                **pose.arguments(),
            )
            if locked:
                layer.editable = False
            self._add(role, layer)
        return layer

    def _add(self, role: str, layer: Layer) -> None:
        viewer = self._viewer_ref()
        if viewer is None:
            return
        selection = set(viewer.layers.selection)
        viewer.layers.append(layer)
        viewer.layers.selection = selection  # the user may be at work on another
        self._layers[(*self._owner, role)] = weakref.ref(layer)


def span_of(difference: npt.NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Return limits of contrast around 0, within which most of a difference lies."""
    most = float(np.quantile(np.abs(difference), 0.995)) if difference.size else 0.0
    most = max(most, FAINT)
    return -most, most


def painted_alpha(attention: AttentionMap, layer: Labels) -> npt.NDArray[np.float32]:
    """Return α as painted on its layer; NaN, which is as learnt, where nothing was.

    Parameters
    ----------
    attention : AttentionMap
    layer : Labels
        Of `Stage.show_paint`.
    """
    painted = np.asarray(layer.data).reshape(attention.values.shape)
    alpha = np.clip((painted.astype(np.float32) - 1) / (STEPS - 1), 0, 1)
    return np.where(painted > 0, alpha, np.float32(np.nan))


def _nothing() -> None:
    """Stand for a layer that was never made."""
