"""Layers to paint and draw on: empty ones, and those of a sample."""

from __future__ import annotations

import numpy as np
from napari.layers import Image, Labels, Shapes

from napari_attunet.corrections import Correction, background_brush
from napari_attunet.widgets.gathering import shape_shown
from napari_attunet.widgets.layers import ORIGIN, Mark, Snapshot, array_of, set_mark
from napari_attunet.widgets.poses import Pose, fit
from napari_attunet.widgets.regions import outlines_of

__all__ = ["empty_labels", "empty_regions", "layers_of"]

#: Regions are outlined, and hide nothing.
OUTLINED = {"face_color": "transparent", "edge_color": "yellow"}

#: The outline is about this part of the image's length wide.
EDGE = 1 / 250


def empty_labels(image: Image, axes: str) -> Labels:
    """Return labels of an image that lie on it, with nothing on them.

    Parameters
    ----------
    image : Image
    axes : str
        Of the image.
    """
    shape = array_of(image).shape
    plain = axes.replace("C", "")
    sizes = dict(zip(axes, shape, strict=True))
    values, pose = fit(
        np.zeros([sizes[axis] for axis in plain], np.int32),
        (1,) * len(plain),
        axes=axes,
        shape=shape,
        pose=Pose.of(image),
    )
    return Labels(values, name=f"{image.name} · painted", **pose.arguments())


def empty_regions(image: Image) -> Shapes:
    """Return shapes that lie on an image, with nothing drawn yet."""
    return Shapes(
        ndim=image.ndim,
        name=f"{image.name} · regions",
        edge_width=max(1, round(EDGE * max(shape_shown(image)))),
        **OUTLINED,
        **Pose.of(image).arguments(),
    )


def layers_of(correction: Correction) -> tuple[Image, Labels, Shapes | None]:
    """Return new layers for an image, its labels and its regions; in any thread.

    The labels still know what the model had said, so that what was changed since then
    is known too.
    """
    axes, pixels = correction.axes, np.asarray(correction.image)
    rgb = axes.endswith("C") and pixels.shape[-1] in (3, 4)
    if "C" in axes and not rgb:  # the viewer shows the last two axes
        pixels = np.moveaxis(pixels, axes.index("C"), 0)
        axes = "C" + axes.replace("C", "")
    plain = axes.replace("C", "")
    name = f"{correction.name} · sample"
    image = Image(
        pixels,
        rgb=rgb,
        name=name,
        axis_labels=tuple((plain if rgb else axes).lower()),
    )
    source = dict(correction.source)
    image.metadata = {ORIGIN: (image.unique_id, correction.name, source)}
    numbers = np.array(correction.labels)
    if correction.background is not None:  # it may have been given another number
        numbers[numbers == correction.background] = background_brush(numbers.dtype)
    labels = Labels(
        numbers,
        name=f"{name} labels",
        axis_labels=tuple(plain.lower()),
        opacity=0.6,
    )
    if correction.prediction is not None:
        mark = Mark(
            source=image.unique_id,
            model=correction.model or "",
            role=correction.output,
            layer=labels.unique_id,
            fingerprint="",  # the user's, so that no segmentation replaces it
            record={"axes": axes},
            prediction=Snapshot.of(correction.prediction),
        )
        set_mark(labels, mark)
    shapes = None
    if correction.regions is not None:
        shapes = Shapes(
            outlines_of(correction.regions),
            ndim=correction.regions.ndim,
            shape_type="polygon",
            name=f"{name} regions",
            **OUTLINED,
            axis_labels=tuple(plain.lower()),
        )
    return image, labels, shapes
