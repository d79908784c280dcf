"""Objects end where their frame does: numbers that no two frames of a stack share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["number_objects"]


def number_objects(
    labels: npt.NDArray[np.integer[Any]], within: Sequence[int]
) -> npt.NDArray[np.int64]:
    """Give objects numbers of their own in every frame, about without gaps.

    Parameters
    ----------
    labels : array of int
        Numbers from 0, which stays.
    within : sequence of int
        Axes of one frame, as of `napari_attunet.axes.frame_axes`; along the others
        one frame lies behind the other.
    """
    walked = [axis for axis in range(labels.ndim) if axis not in within]
    first = range(len(walked))
    stack = np.moveaxis(labels, walked, first)
    frames = math.prod(stack.shape[: len(walked)])
    numbers = stack.reshape(frames, -1).astype(np.int64)
    top = int(numbers.max(initial=0))
    numbers += np.where(numbers > 0, np.arange(frames)[:, np.newaxis] * top, 0)
    if frames * top > numbers.size:  # tables over numbers would be larger than images
        _, numbers = np.unique(np.append(0, numbers), return_inverse=True)
        numbers = numbers[1:]
    return np.moveaxis(numbers.reshape(stack.shape), first, walked)
