"""From layers to a correction: what is taken along, which slices, what counts; no Qt.

`take` runs in the thread of the GUI: it copies what the user may paint on meanwhile.
`correction_of` and `examine` then do the work, in any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from napari_attunet.corrections import (
    Correction,
    Count,
    Extent,
    Output,
    brush_in,
)
from napari_attunet.corrections.split import hash_image
from napari_attunet.errors import DataError
from napari_attunet.progress import Progress, Steps
from napari_attunet.widgets.layers import (
    ORIGIN,
    Snapshot,
    array_of,
    axes_of,
    prediction_of,
)
from napari_attunet.widgets.poses import Pose, in_units_of
from napari_attunet.widgets.regions import Drawing, mask_of

if TYPE_CHECKING:
    from napari.components import Dims
    from napari.layers import Image, Labels, Shapes

__all__ = [
    "Aim",
    "Findings",
    "Slices",
    "Taken",
    "correction_of",
    "examine",
    "frame_shown",
    "image_axes",
    "label_axes_of",
    "leading_axes",
    "shape_shown",
    "take",
    "without_channels",
]

#: Which slices of a stack: the one that is shown, all, or those with something in them.
Slices = Literal["shown", "all", "filled"]

#: Bytes of labels that are copied in the thread of the GUI, which takes up to 30 ms.
#: More are read by the thread that works: a stroke may then be taken by half, but what
#: is painted is counted again anyway.
COPIED_AT_ONCE = 64 << 20

#: Bytes of an image that are read to find out whether there is a sample of it already.
HASHED_AT_ONCE = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What is going to learn, as far as its samples need to know.

    Attributes
    ----------
    output : {"objects", "classes"}
    ndim : {2, 3}
        Spatial dimensions.
    in_channels : int
    classes : tuple of str
        Names; background first.
    """

    output: Output = "objects"
    ndim: int = 2
    in_channels: int = 1
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taken:
    """All that a correction needs, so that nothing the user does meanwhile matters.

    Attributes
    ----------
    image : array
        All of it, as lazy as it is.
    axes : str
        Of the image.
    labels : array
        Of the frame that is shown, or of all.
    label_axes : str
        Of these labels; with C if they are labels of each channel.
    prediction : Snapshot, optional
        What a model had said, of all labels.
    model : str, optional
        Key of that model.
    drawing : Drawing, optional
        The regions that count.
    pose : Pose
        Of the image.
    aim : Aim
    extent : Extent
    slices : Slices
    shown : dict of str to int
        The frame that is shown: an index for each axis that the model walks.
    name : str
    source : dict
        Where all this is from, as plain data.
    reopened : bool
        Whether it was read from a sample.
    """

    image: Any
    axes: str
    labels: Any
    label_axes: str
    prediction: Snapshot | None
    model: str | None
    drawing: Drawing | None
    pose: Pose
    aim: Aim
    extent: Extent
    slices: Slices
    shown: dict[str, int]
    name: str
    source: dict[str, Any]
    reopened: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a look at a correction told.

    Attributes
    ----------
    count : Count, optional
        None if there is a problem.
    kind : {"objects", "classes"}
        What the labels look like.
    digest : str
        Of the image's pixels; empty if there are very many.
    problem : str
        Why nothing can be learnt from it; empty if something can.
    warnings : tuple of str
        What may not be meant, a sentence each.
    """

    kind: Output
    digest: str
    count: Count | None = None
    problem: str = ""
    warnings: tuple[str, ...] = ()


# --- in the thread of the GUI ----------------------------------------------------


def leading_axes(axes: str, ndim: int) -> str:
    """Return the axes that a model of so many dimensions walks."""
    return "".join(axis for axis in axes if axis not in "C" + "ZYX"[3 - ndim :])


def image_axes(image: Image, labels: Labels | None, aim: Aim) -> str:
    """Name the axes of an image; as its segmentation has, if there is one.

    Raises
    ------
    DataError
        If it has too few or too many axes for the model.
    """
    mark = prediction_of(labels) if labels is not None else None
    if mark is not None and mark.source == image.unique_id:
        known = str(mark.record.get("axes", ""))
        suits = set("ZYX"[3 - aim.ndim :]) <= set(known)
        if suits and len(known) == len(array_of(image).shape):
            return known
    return axes_of(image, ndim=aim.ndim, in_channels=aim.in_channels)


def frame_shown(image: Image, dims: Dims, axes: str, ndim: int) -> dict[str, int]:
    """Return at which index along each leading axis the viewer shows an image."""
    point = in_units_of(image, dims, dims.point)
    place, shape = np.round(image.world_to_data(point)), shape_shown(image)
    at = {axis: axes.index(axis) for axis in leading_axes(axes, ndim)}
    return {axis: int(np.clip(place[i], 0, shape[i] - 1)) for axis, i in at.items()}


def take(
    image: Image,
    labels: Labels,
    *,
    aim: Aim,
    extent: Extent,
    regions: Shapes | None,
    slices: Slices,
    dims: Dims,
) -> Taken:
    """Return what a correction needs, as it is now.

    Raises
    ------
    DataError
        If the labels don't fit the image, the image doesn't fit the model, or there
        are no regions where they are what counts.
    """
    axes = image_axes(image, labels, aim)
    label_axes = label_axes_of(image, labels, axes)
    if extent == "regions" and regions is None:
        raise DataError(
            "There are no regions. Add a Shapes layer and draw around what is "
            "finished, or choose something else that counts."
        )
    mark = prediction_of(labels)
    if mark is not None and mark.role != aim.output:
        mark = None  # it said something else
    shown = frame_shown(image, dims, axes, aim.ndim)
    pixels = array_of(labels)
    # What was read from a sample is still called as it is there.
    owner, name, origin = image.metadata.get(ORIGIN, (None, "", None))
    if owner != image.unique_id:  # not so what was made of it
        name, origin = image.name, None
    if not shown:
        slices = "all"
    elif slices == "shown":
        pixels, label_axes = _select(pixels, label_axes, shown)
        name += "".join(f", {axis.lower()} {i}" for axis, i in shown.items())
    source = {
        "image": image.name,
        "labels": labels.name,
        "path": image.source.path,
        "shape": [int(n) for n in array_of(image).shape],
        "slices": slices,
        "shown": shown if slices == "shown" else None,
    }
    if origin is not None:
        source = origin if slices == "all" else source | {"sample": origin}
    if isinstance(pixels, np.ndarray) and pixels.nbytes <= COPIED_AT_ONCE:
        pixels = pixels.copy()
    return Taken(
        image=array_of(image),
        axes=axes,
        labels=pixels,
        label_axes=label_axes,
        prediction=mark.prediction if mark else None,
        model=mark.model if mark else None,
        drawing=Drawing.of(regions) if extent == "regions" else None,
        pose=Pose.of(image),
        aim=aim,
        extent=extent,
        slices=slices,
        shown=shown,
        name=name,
        source=source,
        reopened=origin is not None,
    )


def shape_shown(image: Image) -> tuple[int, ...]:
    """Return the shape of an image without its colours."""
    return tuple(array_of(image).shape[: image.ndim])


def label_axes_of(image: Image, labels: Labels, axes: str) -> str:
    """Name the axes of labels, or refuse them."""
    shape = tuple(array_of(labels).shape)
    sizes = dict(zip(axes, array_of(image).shape, strict=True))
    plain = axes.replace("C", "")
    wanted = tuple(sizes[axis] for axis in plain)
    if shape == wanted:
        return plain
    if "C" in axes[: image.ndim] and len(shape) == len(axes):
        # One cell along the channels; or as napari makes labels, in each channel.
        own = dict(zip(axes, shape, strict=True))
        if own["C"] in (1, sizes["C"]) and own | {"C": 0} == sizes | {"C": 0}:
            return axes
    raise DataError(
        f"“{labels.name}” has the shape {shape}, but labels of “{image.name}” need "
        f"{wanted}. Choose other labels; or select the image in the layer list and "
        "press the button for new labels above it."
    )


# --- in any thread ---------------------------------------------------------------


def correction_of(taken: Taken) -> Steps[Correction]:
    """Make a correction of what was taken.

    Raises
    ------
    DataError
        If the regions or the slices hold nothing.
    """
    yield Progress(0, 0, "Reading the labels")
    labels = without_channels(np.array(taken.labels), taken.label_axes)
    prediction = _prediction(taken)
    regions = _regions(taken)
    yield Progress(0, 0, "Reading the image")
    image, axes, source = taken.image, taken.axes, taken.source
    walked = leading_axes(axes, taken.aim.ndim)
    if taken.slices == "shown":
        image, axes = _select(image, axes, taken.shown)
    elif taken.slices == "filled":
        plain = axes.replace("C", "")
        frames = _filled(taken, labels, prediction, regions, plain)
        labels, _ = _stack(labels, plain, frames)
        prediction, regions = (
            part if part is None else _stack(part, plain, frames)[0]
            for part in (prediction, regions)
        )
        image, axes = _stack(image, axes, frames)
        source = source | {"frames": [[f[axis] for axis in walked] for f in frames]}
    return Correction(
        image=image,
        axes=axes,
        labels=labels,
        output=taken.aim.output,
        extent=taken.extent,
        regions=regions,
        prediction=prediction,
        background=brush_in(labels),
        ndim=taken.aim.ndim,
        name=taken.name,
        source=source,
        model=taken.model,
    )


def examine(taken: Taken, digest: str = "") -> Steps[Findings]:
    """Tell what a correction would hold.

    Parameters
    ----------
    taken : Taken
    digest : str
        Of the image's pixels, where it is known already.
    """
    yield Progress(0, 0)
    kind = taken.aim.output
    try:
        correction = yield from correction_of(taken)
        yield Progress(0, 0, "Counting")
        if not digest and correction.image.nbytes <= HASHED_AT_ONCE:
            digest = hash_image(np.asarray(correction.image), correction.axes)
        yield Progress(0, 0, "Counting")
        found = correction.truth()
        yield Progress(0, 0, "Counting")
        kind = correction.kind()
        correction.check(found)
        yield Progress(0, 0, "Counting")
        count = correction.count(found)
    except DataError as error:
        return Findings(kind=kind, digest=digest, problem=str(error))
    warnings = count.warnings
    if kind != taken.aim.output:
        warnings = warnings[:-1]  # that it looks so; the user is asked instead
    return Findings(count=count, kind=kind, digest=digest, warnings=warnings)


def _select(array: Any, axes: str, places: dict[str, int]) -> tuple[Any, str]:
    """Return one frame of an array, and its axes."""
    index = tuple(places.get(axis, slice(None)) for axis in axes)
    return array[index], "".join(axis for axis in axes if axis not in places)


def _stack(
    array: Any, axes: str, frames: Sequence[dict[str, int]]
) -> tuple[npt.NDArray[Any], str]:
    """Return some frames of an array along its first axis; a single one by itself."""
    parts = [np.asarray(_select(array, axes, frame)[0]) for frame in frames]
    rest = _select(array, axes, frames[0])[1]
    if len(parts) == 1:
        return parts[0], rest
    walked = list(frames[0])
    return np.stack(parts), (walked[0] if len(walked) == 1 else "T") + rest


def without_channels(labels: npt.NDArray[Any], axes: str) -> npt.NDArray[Any]:
    """Return labels whatever channel they were painted in; a view where it can be."""
    if "C" not in axes:
        return labels
    channel = axes.index("C")
    if labels.shape[channel] == 1:
        return labels.squeeze(channel)
    merged: npt.NDArray[Any] = labels.max(axis=channel)
    return merged


def _prediction(taken: Taken) -> npt.NDArray[Any] | None:
    snapshot = taken.prediction
    if snapshot is None:
        return None
    plain = taken.axes.replace("C", "")
    axes = plain if len(snapshot.shape) == len(plain) else taken.axes
    places = dict(taken.shown) if taken.slices == "shown" else {}
    first = places.pop(axes[0], None)
    axes = axes if first is None else axes[1:]
    return without_channels(*_select(snapshot.array(first), axes, places))


def _regions(taken: Taken) -> npt.NDArray[np.bool_] | None:
    if taken.drawing is None:
        return None
    axes = taken.axes[: taken.pose.ndim]
    places = taken.shown if taken.slices == "shown" else {}
    sizes = zip(axes, taken.image.shape[: len(axes)], strict=True)  # colour is last
    mask = mask_of(
        taken.drawing,
        taken.pose,
        [1 if axis in places else size for axis, size in sizes],
        origin=[places.get(axis, 0) for axis in axes],
    )
    mask, axes = _select(mask, axes, dict.fromkeys(places, 0))
    return without_channels(mask, axes)


def _filled(
    taken: Taken,
    labels: npt.NDArray[Any],
    prediction: npt.NDArray[Any] | None,
    regions: npt.NDArray[np.bool_] | None,
    axes: str,
) -> list[dict[str, int]]:
    """Return the frames with something in them: regions, changes or labels."""
    if regions is not None:
        there, what = regions, "regions"
    elif prediction is not None and taken.extent == "painted":
        there, what = labels != prediction, "changes"
    else:
        there, what = labels != 0, "labels"
    walked = [i for i, axis in enumerate(axes) if axis in taken.shown]
    others = tuple(i for i in range(len(axes)) if i not in walked)
    indices = np.argwhere(there.any(axis=others)).tolist()
    if not indices:
        raise DataError(f"There are no {what} in any slice of {taken.name} yet.")
    return [dict(zip([axes[i] for i in walked], at, strict=True)) for at in indices]
