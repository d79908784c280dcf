"""Where a model is in doubt over a layer, and how the view gets there; no Qt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_attunet.progress import Progress, Steps
from napari_attunet.review import Place, doubt_steps
from napari_attunet.spec import ModelSpec
from napari_attunet.widgets.layers import array_of, axes_of
from napari_attunet.widgets.results import Settings
from napari_attunet.widgets.warmup import warm_up

if TYPE_CHECKING:
    import napari.viewer
    from napari.layers import Image

__all__ = ["Search", "find_places", "plan_search", "show", "zoom_for"]

#: Image pixels that are seen around a place, along the shorter edge of the canvas:
#: enough to tell what is there. Larger spots are seen with this many times their size.
LEAST_VIEW, VIEW_OF_SPOT = 200, 6

#: The zoom is left alone if it shows up to this many times more or less than that.
GOOD_ENOUGH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """All that is needed to find the places of an image.

    Attributes
    ----------
    image : array
    axes : str
        Of the image.
    layer_axes : str
        Of the whole layer.
    settings : Settings
        The model, and how it was used on this image before.
    flips : bool
        Whether to compare with flipped copies.
    frame : tuple of int
        Where along the leading axes `image` was taken out of the whole.
    """

    image: Any
    axes: str
    layer_axes: str
    settings: Settings
    flips: bool = False
    frame: tuple[int, ...] = ()


def plan_search(
    layer: Image,
    spec: ModelSpec,
    settings: Settings,
    *,
    flips: bool = False,
    point: npt.ArrayLike | None = None,
) -> Search:
    """Return the search in a layer; quick, for the thread of the GUI.

    Parameters
    ----------
    layer : Image
    spec : ModelSpec
    settings : Settings
    flips : bool
        Whether to compare with flipped copies.
    point : array, optional
        World coordinates of what is seen: only the frame there is searched.

    Raises
    ------
    DataError
        If the layer's axes don't suit the model.
    """
    ndim = spec.network.ndim
    axes = settings.axes or axes_of(
        layer, ndim=ndim, in_channels=spec.network.in_channels
    )
    image = array_of(layer)
    if point is None:
        return Search(
            image=image, axes=axes, layer_axes=axes, settings=settings, flips=flips
        )
    # Of RGB images the channels, which come last, are no dimension of the layer.
    here = dict(zip(axes[: layer.ndim], _pixel_at(layer, point), strict=True))
    walked = axes.replace("C", "")[:-ndim]
    index = tuple(here[a] if a in walked else slice(None) for a in axes)
    return Search(
        image=image[index],
        axes="".join(a for a in axes if a not in walked),
        layer_axes=axes,
        settings=settings,
        flips=flips,
        frame=tuple(here[a] for a in walked),
    )


def find_places(search: Search) -> Steps[tuple[Place, ...]]:
    """Find the places to check; positions are those in the whole image."""
    yield Progress(0, 0, "Loading PyTorch")
    warm_up()
    asked = search.settings
    doubt = yield from doubt_steps(
        asked.segmenter(),
        search.image,
        axes=search.axes,
        channels=asked.channels,
        flips=search.flips,
    )
    yield Progress(0, 0, "Ranking the places")
    return tuple(
        replace(place, position=(*map(float, search.frame), *place.position))
        for place in doubt.places()
    )


def _pixel_at(layer: Image, point: npt.ArrayLike) -> list[int]:
    """Return the pixel of a layer that is at or nearest to a point of the world."""
    shape = array_of(layer).shape[: layer.ndim]
    data = np.asarray(layer.world_to_data(np.asarray(point, float)))
    return [
        int(i) for i in np.clip(np.round(data), 0, np.array(shape) - 1)[-layer.ndim :]
    ]


def zoom_for(place: Place, *, zoom: float, canvas: float, pixel: float) -> float:
    """Return the zoom that shows a place: the present one if that will do.

    Parameters
    ----------
    place : Place
    zoom : float
        Canvas pixels in a unit of the world now.
    canvas : float
        Shorter edge of the canvas, in its pixels.
    pixel : float
        Edge of an image pixel in the world.
    """
    wanted = max(LEAST_VIEW, VIEW_OF_SPOT * place.size)
    seen = canvas / (zoom * pixel)
    if wanted / GOOD_ENOUGH <= seen <= wanted * GOOD_ENOUGH:
        return zoom
    return canvas / (wanted * pixel)


def show(viewer: napari.viewer.Viewer, layer: Image, axes: str, place: Place) -> None:
    """Centre the view on a place, and zoom if too little or too much would be seen.

    Parameters
    ----------
    viewer : Viewer
    layer : Image
    axes : str
        Of its array.
    place : Place
    """
    names = axes[: layer.ndim]
    data = [float(i) for i in _pixel_at(layer, viewer.dims.point)]
    for name, at in zip(axes.replace("C", ""), place.position, strict=True):
        data[names.index(name)] = at
    world = np.asarray(layer.data_to_world(data))
    point = np.array(viewer.dims.point, float)
    point[-layer.ndim :] = world
    for axis in viewer.dims.not_displayed:
        viewer.dims.set_point(axis, point[axis])
    centre = [point[axis] for axis in viewer.dims.displayed]
    # Since napari 0.9 the camera belongs to a scene, and the viewer knows its canvas.
    camera = viewer.scene.camera if hasattr(viewer, "scene") else viewer.camera
    camera.center = (0.0, *centre)[-3:]
    step = np.array(data)
    step[names.index("X")] += 1
    pixel = float(np.linalg.norm(np.asarray(layer.data_to_world(step)) - world))
    if hasattr(viewer, "canvas") and pixel:
        camera.zoom = zoom_for(
            place, zoom=camera.zoom, canvas=min(viewer.canvas.size), pixel=pixel
        )
