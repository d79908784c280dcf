"""From labelled objects to the three classes that a network learns.

`napari_attunet.objects` turns predicted ones back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from napari_attunet.errors import DataError
from napari_attunet.objects import BOUNDARY, INTERIOR

__all__ = ["object_targets"]


def object_targets(
    labels: npt.NDArray[Any], *, boundary_width: float = 2.0, fraction: float = 0.4
) -> npt.NDArray[np.uint8]:
    """Return the three classes that a network learns from a label image.

    Parameters
    ----------
    labels : ([Z,] Y, X) array of int
        One number for each object; 0 and below is background.
    boundary_width : float
        Width of the boundary in pixels. It lies inside the object, next to other
        objects and to the background, but not along the image's border.
    fraction : float
        Part of the object's inner radius that the boundary may take at most, so that
        small objects keep an interior. It is one pixel wide at least, except that the
        innermost pixels of an object always are interior.

    Returns
    -------
    classes : ([Z,] Y, X) array of uint8
        0 background, 1 interior, 2 boundary.

    Raises
    ------
    DataError
        If the labels are no whole numbers.
    """
    from skimage.segmentation import find_boundaries

    if labels.dtype.kind not in "biu":
        raise DataError(
            f"Labels must be whole numbers, one for each object, but these are "
            f"{labels.dtype}. Convert the label image to an integer type."
        )
    inside = labels > 0
    targets = inside.astype(np.uint8)  # all of it INTERIOR for now
    if not inside.any():
        return targets
    objects = np.where(inside, labels, 0)
    if objects.max() > objects.size:  # SciPy's filters compare numbers as floats
        _, objects = np.unique(objects, return_inverse=True)
        objects = objects.reshape(labels.shape) + int(inside.all())
    objects = objects.astype(np.int32)
    edge = find_boundaries(objects, mode="inner")
    if not edge.any():
        return targets
    distance = ndimage.distance_transform_edt(~edge)[inside] + 1.0
    numbers = objects[inside]
    radius = np.zeros(int(numbers.max()) + 1)
    np.maximum.at(radius, numbers, distance)
    limit = np.maximum(1.0, np.minimum(boundary_width, fraction * radius))
    is_boundary = (distance <= limit[numbers]) & (distance < radius[numbers])
    targets[inside] = np.where(is_boundary, BOUNDARY, INTERIOR)
    return targets
