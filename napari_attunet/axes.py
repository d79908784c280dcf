"""Which axis of an array is what, by letters.

Everything downstream thinks in channels first and spatial axes in the order Z, Y, X;
`napari_attunet.view` translates that from and to the array as the user has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from napari_attunet.errors import DataError

__all__ = ["AXES", "check_axes", "frame_axes", "guess_axes"]

#: Every axis letter: time, channel, depth, row, column.
AXES = "TCZYX"
#: A last axis of 3 or 4 is colour if the two axes before it are at least this long;
#: pictures are never smaller, thin crops of stacks may be.
SMALLEST_PICTURE = 16


def guess_axes(
    shape: Sequence[int], *, ndim: int, in_channels: int = 1, rgb: bool = False
) -> str:
    """Name the axes of an array nobody has named.

    The channel axis is looked for first: the last axis if `rgb` is set, if its length
    is `in_channels` (above 1), or if it is 3 or 4 behind two axes long enough for a
    picture; else the last of the axes before Y and X (Z, Y and X for a 3D model) whose
    length is `in_channels` (above 1). The other axes are, from the end, X, Y, Z, T.
    Five axes are ``"TCZYX"`` unless the last one is the channel.

    Parameters
    ----------
    shape : sequence of int
        Length of every axis.
    ndim : {2, 3}
        Spatial dimensions of the model.
    in_channels : int
        Channels the model takes.
    rgb : bool
        Whether the last axis is known to be colour; False means that it is not known.

    Returns
    -------
    str
        One letter of ``"TCZYX"`` for each axis.

    Raises
    ------
    DataError
        If there are too few axes for the model, or more than can be told apart.
    """
    shape = tuple(shape)
    if rgb and (not shape or shape[-1] not in (3, 4)):
        raise DataError(
            f"An image of shape {shape} was said to be RGB, but its last axis does not "
            "have 3 or 4 channels. Name its axes instead, for example 'CYX'."
        )
    channel = len(shape) - 1 if rgb else _find_channel(shape, ndim, in_channels)
    rest = len(shape) - (channel is not None)
    if rest < ndim:
        wanted = "Y and X" if ndim == 2 else "Z, Y and X"
        advice = " or use a 2D model" if ndim == 3 and rest == 2 else ""
        raise DataError(
            f"A {ndim}D model needs the axes {wanted}, but the image has the shape "
            f"{shape}{' with colour last' if channel is not None else ''}. Open an "
            f"image with these axes{advice}."
        )
    if rest > 4:
        raise DataError(
            f"The axes of an image of shape {shape} cannot be guessed. Name them with "
            f"one letter each of {', '.join(AXES)}, and select a part of the image if "
            "it has more axes than these."
        )
    names = "TZYX"[4 - rest :]
    return names if channel is None else names[:channel] + "C" + names[channel:]


def _find_channel(shape: tuple[int, ...], ndim: int, in_channels: int) -> int | None:
    """Position of the channel axis, if there seems to be one."""
    last = len(shape) - 1
    if last < ndim:  # no axis to spare
        return None
    picture = shape[-1] in (3, 4) and min(shape[-3:-1]) >= SMALLEST_PICTURE
    if picture or shape[-1] == in_channels > 1:
        return last
    if len(shape) == len(AXES):
        return AXES.index("C")
    matches = [i for i in range(last - ndim + 1) if shape[i] == in_channels > 1]
    return matches[-1] if matches else None


def frame_axes(label_axes: str, ndim: int) -> list[int]:
    """Return which of the labels' axes lie within one frame.

    Parameters
    ----------
    label_axes : str
        A letter for each, without the channel.
    ndim : {2, 3}
        Spatial dimensions of the model.
    """
    return [i for i, axis in enumerate(label_axes) if axis in "ZYX"[3 - ndim :]]


def check_axes(axes: str, shape: tuple[int, ...], spatial_axes: str) -> None:
    """Refuse names that don't fit the array or the model.

    Parameters
    ----------
    axes : str
    shape : tuple of int
        Of the array.
    spatial_axes : str
        Those that the model needs.

    Raises
    ------
    DataError
        If a letter is unknown, twice or missing, or an axis is empty.
    """
    advice = f"Name every axis once, with the letters {', '.join(AXES)}."
    if unknown := sorted(set(axes) - set(AXES)):
        raise DataError(f"The axes {axes!r} contain {', '.join(unknown)}. {advice}")
    if len(set(axes)) != len(axes):
        raise DataError(f"The axes {axes!r} name an axis twice. {advice}")
    if len(axes) != len(shape):
        raise DataError(
            f"The axes {axes!r} name {len(axes)} axes, but the image has the shape "
            f"{shape}. {advice}"
        )
    if missing := [a for a in spatial_axes if a not in axes]:
        raise DataError(
            f"A {len(spatial_axes)}D model needs the axes {', '.join(spatial_axes)}, "
            f"but {axes!r} lacks {', '.join(missing)}. Correct the axes, or choose "
            "another model."
        )
    for axis, size in zip(axes, shape, strict=True):
        if math.isnan(size):
            raise DataError(
                f"The length of axis {axis} is not known yet; for a dask array, call "
                "compute_chunk_sizes() first."
            )
        if size == 0:
            raise DataError(
                f"The image has the shape {shape}: axis {axis} is empty. Select at "
                "least one pixel along every axis."
            )
