"""Regions drawn as shapes, as a mask of an image's pixels and back; no Qt.

Shapes have a grid of their own. Their outlines are carried over to the image's: out of
the shapes' data into the world, and from there into the image's pixels. Both ways are
affine, which leaves polygons polygons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from skimage.draw import polygon
from skimage.measure import find_contours, label, regionprops

from napari_attunet.errors import DataError
from napari_attunet.widgets.poses import Pose, unit_factors

if TYPE_CHECKING:
    from napari.layers import Shapes

__all__ = ["Drawing", "mask_of", "outlines_of"]

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Corners of the polygon that stands for an ellipse: it is nowhere farther from it than
#: a thousandth of its radius.
ELLIPSE_CORNERS = 128

#: Pixels; what varies less along an axis lies in one slice.
SAME_SLICE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawing:
    """What is drawn in a Shapes layer; a snapshot.

    Attributes
    ----------
    name : str
        Of the layer.
    outlines : tuple of (n, ndim) array
        Corners of each closed shape, in the layer's own grid.
    open_count : int
        Lines and paths, which have no inside.
    pose : Pose
    """

    name: str
    outlines: tuple[Floats, ...]
    open_count: int
    pose: Pose

    @classmethod
    def of(cls, layer: Shapes) -> Drawing:
        """Return what is drawn in a layer now."""
        outlines, open_count = [], 0
        for corners, kind in zip(layer.data, layer.shape_type, strict=True):
            corners = np.array(corners, float)
            if kind in ("line", "path"):
                open_count += 1
            else:
                outlines.append(_ellipse(corners) if kind == "ellipse" else corners)
        return cls(
            name=layer.name,
            outlines=tuple(outlines),
            open_count=open_count,
            pose=Pose.of(layer),
        )


def mask_of(
    drawing: Drawing,
    pose: Pose,
    shape: Sequence[int],
    *,
    origin: Sequence[int] | None = None,
) -> Mask:
    """Return which pixels of an image have their centre inside of a drawing.

    A shape covers the slices through which it goes, as in the viewer. A drawing with
    fewer axes than the image covers all slices along those that it lacks.

    Parameters
    ----------
    drawing : Drawing
    pose : Pose
        Of the image.
    shape : sequence of int
        Of the image without colours, or of a part of it.
    origin : sequence of int, optional
        The part's first pixel.

    Raises
    ------
    DataError
        If nothing is drawn that has an inside.
    """
    if not drawing.outlines:
        lines = drawing.open_count
        raise DataError(
            f"“{drawing.name}” holds no regions"
            + (f", only {lines} line{'s' * (lines != 1)}" if lines else "")
            + ": draw rectangles, ellipses or polygons in it, or choose something "
            "else that counts."
        )
    ndim = max(pose.ndim, drawing.pose.ndim)
    factors = unit_factors(drawing.pose.units, pose.units)
    there = _matrix(drawing.pose, ndim, factors)
    matrix = np.linalg.solve(_matrix(pose, ndim, (1.0,) * pose.ndim), there)
    mask: Mask = np.zeros(tuple(shape), bool)
    lacking = pose.ndim - drawing.pose.ndim
    for outline in drawing.outlines:
        corners = np.zeros((len(outline), ndim))
        corners[:, ndim - outline.shape[1] :] = outline
        inside = (corners @ matrix[:-1, :-1].T + matrix[:-1, -1])[:, ndim - pose.ndim :]
        inside -= np.zeros(pose.ndim) if origin is None else np.asarray(origin)
        _fill(mask, inside, lacking)
    return mask


def outlines_of(mask: Mask) -> list[Floats]:
    """Return polygons that have exactly the pixels of a mask inside.

    One around a hole goes along the hole's edge as well, over a bridge and back.
    """
    outlines = []
    for index in np.ndindex(mask.shape[:-2]):
        for part in regionprops(label(mask[index], connectivity=1)):
            # Padded, so that what touches the edge is closed too.
            outline = _outline(np.pad(part.image, 1)) + np.subtract(part.bbox[:2], 1)
            places = np.broadcast_to(index, (len(outline), len(index)))
            outlines.append(np.hstack([places, outline]))
    return outlines


def _outline(part: Mask) -> Floats:
    """Return one closed outline along all the edges of one connected part.

    From the leftmost corner of a hole a bridge leads to the left, over pixels of the
    part, to the corner of another edge. That one begins farther left: so all of them
    hang on the one that is around the others.
    """
    edges = [edge[:-1] for edge in find_contours(part.astype(float), 0.5)]
    edges.sort(key=lambda edge: -edge[:, 1].min())
    places = {
        (row, column): (which, place)
        for which, edge in enumerate(edges)
        for place, (row, column) in enumerate(edge.tolist())
    }
    hanging: list[dict[int, Floats]] = [{} for _ in edges]
    outline = np.empty((0, 2))
    for edge, holes in zip(edges, hanging, strict=True):
        first = int(edge[:, 1].argmin())
        edge = np.roll(edge, -first, axis=0)
        pieces, begin = [], 0
        for place in sorted(holes, key=lambda place: (place - first) % len(edge)):
            end = (place - first) % len(edge)
            pieces += [edge[begin : end + 1], holes[place]]
            begin = end
        outline = np.concatenate([*pieces, edge[begin:], edge[:1]])
        row, column = int(edge[0, 0]), int(edge[0, 1])
        if column == 0:  # outside of the part: this edge is around all
            break
        while part[row, column]:
            column -= 1
        which, place = places[row, column + 0.5]
        hanging[which][place] = outline
    return _corners(outline)


def _corners(outline: Floats) -> Floats:
    """Return a closed outline without the points at which it goes straight on."""
    points = outline[:-1]
    came, goes = points - np.roll(points, 1, axis=0), np.roll(points, -1, 0) - points
    turns = came[:, 0] * goes[:, 1] != came[:, 1] * goes[:, 0]
    turns |= (came * goes).sum(axis=1) < 0  # and back again
    return np.concatenate([points[turns], points[turns][:1]])


def _matrix(pose: Pose, ndim: int, factors: Sequence[float]) -> Floats:
    """Return the way from pixels to the world, with further axes in front."""
    matrix = np.eye(ndim + 1)
    matrix[ndim - pose.ndim :, ndim - pose.ndim :] = (
        np.diag([*factors, 1.0]) @ pose.matrix
    )
    return matrix


def _ellipse(corners: Floats) -> Floats:
    """Return a polygon for an ellipse given by the corners of the box around it."""
    centre = corners.mean(axis=0)
    one, other = (corners[1] - corners[0]) / 2, (corners[3] - corners[0]) / 2
    angles = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)[:, np.newaxis]
    polygon_: Floats = centre + np.cos(angles) * one + np.sin(angles) * other
    return polygon_


def _fill(mask: Mask, corners: Floats, lacking: int) -> None:
    """Set the pixels inside of a polygon, in its slices or in all it lacks an axis of.

    It may lie in any plane along two axes: the viewer can show these in any order.
    """
    spread = np.ptp(corners, axis=0)
    wide = [axis for axis in range(lacking, mask.ndim) if spread[axis] >= SAME_SLICE]
    plane = tuple(wide) if len(wide) == 2 else (mask.ndim - 2, mask.ndim - 1)
    index: list[Any] = []
    for axis in range(mask.ndim):
        if axis in plane or axis < lacking:
            index.append(slice(None))
            continue
        low, high = np.round([corners[:, axis].min(), corners[:, axis].max()])
        index.append(slice(max(0, int(low)), max(0, int(high) + 1)))
    rows, columns = polygon(
        corners[:, plane[0]],
        corners[:, plane[1]],
        shape=(mask.shape[plane[0]], mask.shape[plane[1]]),
    )
    # The plane's axes last, and in their order: a view, so that this writes the mask.
    part = np.moveaxis(mask[tuple(index)], plane, (-2, -1))
    part[..., rows, columns] = True
