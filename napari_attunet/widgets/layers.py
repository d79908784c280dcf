"""What a layer means, and which are ours: layers to arrays and back, no Qt."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from napari.layers import Image, Labels, Layer
from napari.utils.colormaps import DirectLabelColormap

from napari_attunet.axes import guess_axes
from napari_attunet.canvas import AttentionMap, AttentionTable

__all__ = [
    "ORIGIN",
    "Mark",
    "Snapshot",
    "array_of",
    "attention_look",
    "attention_name",
    "axes_of",
    "fingerprint",
    "is_answer",
    "is_result",
    "label_colours",
    "labels_name",
    "mark_of",
    "prediction_of",
    "results_of",
    "set_mark",
]


#: Where a layer's metadata tells what we know of it.
KEY = "napari-attunet"

#: The same of an image that was read from a sample: the layer's own `unique_id`, its
#: name there, and where all of it had come from.
ORIGIN = "napari-attunet sample"

#: What people write on the axes of a layer.
AXIS_NAMES = {
    **dict.fromkeys(("t", "time", "frame"), "T"),
    **dict.fromkeys(("c", "ch", "channel"), "C"),
    **dict.fromkeys(("z", "depth", "plane"), "Z"),
    **dict.fromkeys(("y", "row"), "Y"),
    **dict.fromkeys(("x", "column", "col"), "X"),
}

#: Longer than any colour axis and any number of channels.
SURELY_NO_CHANNEL = 1 << 20


# --- a layer as an array ---------------------------------------------------------


def array_of(layer: Image | Labels) -> Any:
    """Return a layer's pixels at full resolution, as lazy as they are.

    The array has ``layer.ndim`` axes, and a last one of colours if the layer is RGB.
    """
    return layer.data[0] if layer.multiscale else layer.data


def axes_of(layer: Image, *, ndim: int, in_channels: int = 1) -> str:
    """Name the axes of `array_of` a layer.

    The layer's own axis labels count if all of them are known ones (such as
    ``("t", "y", "x")``). Else they are guessed from the shape; as the viewer shows the
    last two axes of a layer as a picture, they are always Y and X unless it is RGB.

    Parameters
    ----------
    layer : Image
    ndim, in_channels : int
        Spatial dimensions and input channels of the model.

    Raises
    ------
    DataError
        If the layer has too few or too many axes for the model.
    """
    named = [AXIS_NAMES.get(label.strip().lower(), "") for label in layer.axis_labels]
    if all(named) and len(set(named)) == len(named) and {"Y", "X"} <= set(named):
        if layer.rgb and "C" not in named:
            return "".join(named) + "C"
        if not layer.rgb:
            return "".join(named)
    shape = tuple(array_of(layer).shape)
    axes = guess_axes(shape, ndim=ndim, in_channels=in_channels, rgb=layer.rgb)
    if axes.endswith("C") and not layer.rgb:
        shape = (*shape[:-1], SURELY_NO_CHANNEL)
        axes = guess_axes(shape, ndim=ndim, in_channels=in_channels)
    return axes


# --- names and looks -------------------------------------------------------------


def labels_name(source: str) -> str:
    """Return the name of the labels of an image."""
    return f"{source} · labels"


def attention_name(source: str, name: str, level: int, levels: int) -> str:
    """Return the name of a gate's layer, such as ``"cells · α level 1 (fine)"``."""
    note = {1: " (fine)", levels: " (coarse)"}.get(level, "") if levels > 1 else ""
    return f"{source} · {name}{note}"


def attention_look(*, rgb: bool, volume: bool) -> dict[str, Any]:
    """Return how attention is drawn over its source.

    Light adds up on the dark ground of fluorescence; on the white ground of stained
    tissue it would vanish, so there it is a veil. Volumes are projections of light.
    """
    covering = rgb and not volume
    return {
        "colormap": "inferno" if covering else "magma",
        "contrast_limits": (0.0, 1.0),
        "interpolation2d": "nearest",
        "interpolation3d": "nearest",
        "blending": "translucent" if covering else "additive",
        "opacity": 0.35 if covering else 0.4,
    }


def label_colours(
    of_labels: Mapping[int, Any], other: Any = "transparent"
) -> DirectLabelColormap:
    """Return a colormap of labels in which 0 is transparent, whatever it is told."""
    colours: dict[int | None, Any] = {None: other}
    colours.update(of_labels.items())
    colours[0] = "transparent"
    return DirectLabelColormap(color_dict=colours)


# --- which layers are ours -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Labels as they were, compressed to a few hundredths of their size.

    Attributes
    ----------
    shape : tuple of int
    parts : tuple of bytes
        Each along the first axis of a stack, so that one can be had alone; a single
        one of a picture.
    """

    shape: tuple[int, ...]
    parts: tuple[bytes, ...]

    @classmethod
    def of(cls, labels: npt.NDArray[Any]) -> Snapshot:
        """Return a copy of labels; call it in a thread if there are many."""
        pieces = labels if labels.ndim > 2 else [labels]
        return cls(
            tuple(labels.shape),
            tuple(
                zlib.compress(np.ascontiguousarray(piece, np.int32).data, level=1)
                for piece in pieces
            ),
        )

    def array(self, first: int | None = None) -> npt.NDArray[np.int32]:
        """Return the labels, or those at one index along the first axis."""
        if len(self.shape) <= 2:
            whole = self._part(0, self.shape)
            return whole if first is None else whole[first]
        if first is not None:
            return self._part(first, self.shape[1:])
        labels = np.empty(self.shape, np.int32)
        for index in range(len(self.parts)):
            labels[index] = self._part(index, self.shape[1:])
        return labels

    def _part(self, index: int, shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
        pixels = bytearray(zlib.decompress(self.parts[index]))  # can be written to
        return np.frombuffer(pixels, np.int32).reshape(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a result layer knows about itself.

    Attributes
    ----------
    source : hashable
        ``unique_id`` of the layer that was segmented.
    model : str
        Key of the model.
    role : str
        ``"objects"``, ``"classes"`` or the name of an attention map.
    layer : hashable
        ``unique_id`` of the result layer; a duplicate that the user made carries a
        copy of the original's mark, and is told apart by this.
    fingerprint : str
        Of labels as they were delivered; see `fingerprint`.
    record : dict
        How the segmentation was run.
    prediction : Snapshot, optional
        Labels as they were delivered: the layer's own are painted in place.
    attention : AttentionMap, optional
        What a layer with attention shows.
    tables : tuple of AttentionTable
        With labels: what the same run attended to that has no place.
    settings : Settings, optional
        What the user had chosen.
    """

    source: Any
    model: str
    role: str
    layer: Any
    fingerprint: str
    record: dict[str, Any]
    prediction: Snapshot | None = None
    attention: AttentionMap | None = None
    tables: tuple[AttentionTable, ...] = ()
    settings: Any = None


def set_mark(layer: Layer, mark: Mark) -> None:
    """Write a mark into a layer's metadata."""
    layer.metadata = {**layer.metadata, KEY: mark}


def mark_of(layer: Layer) -> Mark | None:
    """Return a layer's own mark."""
    mark = layer.metadata.get(KEY)
    if isinstance(mark, Mark) and mark.layer == layer.unique_id:
        return mark
    return None


def prediction_of(layer: Layer) -> Mark | None:
    """Return the mark that tells what a model had said where these labels are now.

    That of a duplicate tells it too: it was copied along with the labels. Labels that
    the user gave another shape have none.
    """
    mark = layer.metadata.get(KEY)
    if not isinstance(layer, Labels) or not isinstance(mark, Mark):
        return None
    if mark.prediction is None or mark.prediction.shape != tuple(array_of(layer).shape):
        return None
    return mark


def is_result(layer: Layer) -> bool:
    """Return whether a layer is a result, or a copy of one."""
    return KEY in layer.metadata


def is_answer(layer: Layer) -> bool:
    """Return whether we made a layer only to show something for the moment."""
    return is_result(layer) and not isinstance(layer.metadata[KEY], Mark)


def results_of(layers: Iterable[Layer], source: Layer, model: str) -> list[Layer]:
    """Return what this model has made of this source, newest first.

    These may be updated in place, labels only if their fingerprint still holds.
    """
    found = []
    for layer in layers:
        mark = mark_of(layer)
        if mark and (mark.source, mark.model) == (source.unique_id, model):
            found.append(layer)
    return found[::-1]


def fingerprint(labels: Any) -> str:
    """Return a short text that differs if any pixel, the shape or the dtype does.

    Anything but a NumPy array gets an empty one, which matches no labels of ours.
    """
    if not isinstance(labels, np.ndarray):
        return ""
    digest = hashlib.blake2b(f"{labels.dtype} {labels.shape}".encode(), digest_size=16)
    for part in labels if labels.ndim > 2 else [labels]:  # no copy of a whole volume
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def is_untouched(layer: Layer) -> bool:
    """Return whether labels still are as they were delivered; reads every pixel."""
    mark = mark_of(layer)
    return (
        isinstance(layer, Labels)
        and mark is not None
        and fingerprint(layer.data) == mark.fingerprint
    )
