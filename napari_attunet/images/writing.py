"""Arrays -> files, whole or not at all.

OME-Zarr is written as version 0.4 on zarr 2, which all of today's readers open; TIFF
as OME-TIFF.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_attunet.atomic import replacing
from napari_attunet.axes import AXES
from napari_attunet.errors import DataError
from napari_attunet.images.names import image_format, image_stem
from napari_attunet.images.units import UNITS

if TYPE_CHECKING:
    from napari_attunet.canvas import AttentionMap, AttentionTable

__all__ = [
    "write_attention",
    "write_image",
    "write_labels",
    "write_probabilities",
    "write_tables",
]

#: Up to here float64 has every whole number.
LARGEST_WHOLE = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """Where the pixels of an array to be written lie."""

    size: Mapping[str, float]
    unit: str
    origin: Mapping[str, float]

    def coarser(
        self, axes: str, scale: Sequence[float], shift: Sequence[float]
    ) -> _Grid:
        """Return a grid of pixels `scale` times as large, moved by `shift` pixels."""
        size, origin = dict(self.size), dict(self.origin)
        for axis, factor, move in zip(axes, scale, shift, strict=True):
            if factor != 1 or move != 0:
                step = self.size.get(axis, 1.0)
                size[axis] = step * factor
                origin[axis] = self.origin.get(axis, 0.0) + step * move
        return _Grid(size=size, unit=self.unit, origin=origin)


def _grid(
    size: Mapping[str, float] | None, unit: str, origin: Mapping[str, float] | None
) -> _Grid:
    """Return a grid; where no pixel size is known, lengths count in pixels."""
    known = any(axis in "ZYX" for axis in size or ())
    return _Grid(size=size or {}, unit=unit if known else "pixel", origin=origin or {})


def write_image(
    path: str | os.PathLike[str],
    image: npt.NDArray[Any],
    *,
    axes: str,
    pixel_size: Mapping[str, float] | None = None,
    unit: str = "pixel",
    origin: Mapping[str, float] | None = None,
) -> None:
    """Write an image as TIFF or OME-Zarr, without loss.

    The axes are stored in the order TCZYX, whichever they had. OME-TIFF knows neither
    bool, float16 nor integers of 64 bits: those become uint8, float32, and the first of
    uint32, int32 and float64 that holds all values.

    Parameters
    ----------
    path : path
        Its suffix tells the format; its folder is made where it is missing. What was
        there is replaced.
    image : array
        bool, integers or floating point numbers.
    axes : str
        A letter of T, C, Z, Y, X for each axis.
    pixel_size, unit, origin
        As of `ImageFile`.

    Raises
    ------
    DataError
        If the format cannot hold the values.
    """
    image = np.asarray(image)
    if image.dtype.kind not in "buif":
        raise TypeError(f"An image has real numbers, got {image.dtype}.")
    kind = image_format(path)
    if kind == "png":
        raise DataError("PNG doesn't hold every image; choose TIFF or OME-Zarr.")
    if kind == "tif":
        image = _for_tiff(image)
    _write(Path(path), image, axes, _grid(pixel_size, unit, origin), {})


def _for_tiff(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the same values as a type that OME-TIFF has a name for."""
    if image.dtype.kind == "b":
        return image.astype(np.uint8)
    if image.dtype == np.float16:
        return image.astype(np.float32)
    if image.dtype.itemsize > 8:
        raise DataError(
            f"TIFF doesn't hold {image.dtype} values; convert the image to float64."
        )
    if image.dtype.kind == "f" or image.dtype.itemsize < 8:
        return image
    low, high = int(image.min(initial=0)), int(image.max(initial=0))
    for smaller in (np.uint32, np.int32):
        if np.iinfo(smaller).min <= low and high <= np.iinfo(smaller).max:
            return image.astype(smaller)
    if max(-low, high) > LARGEST_WHOLE:
        raise DataError(
            f"TIFF doesn't hold whole numbers from {low} to {high}; choose OME-Zarr, "
            "or convert the image to float64."
        )
    return image.astype(np.float64)


def write_labels(
    path: str | os.PathLike[str],
    labels: npt.NDArray[Any],
    *,
    axes: str,
    pixel_size: Mapping[str, float] | None = None,
    unit: str = "pixel",
    origin: Mapping[str, float] | None = None,
) -> None:
    """Write a label image in the format of the path's suffix.

    Numbers are stored as uint16 where that suffices, since ImageJ shows those as they
    are, else as uint32; in PNG as uint8 or uint16. TIFF and OME-Zarr store the axes in
    the order TZYX, whichever they had.

    Parameters
    ----------
    path : path
        Ends in ``.tif``, ``.tiff``, ``.png``, ``.zarr`` or ``.ome.zarr``; its folder is
        made where it is missing. What was there is replaced.
    labels : array of integers
    axes : str
        A letter of T, Z, Y, X for each axis.
    pixel_size, unit, origin
        As of `ImageFile`. PNG has room for the pixel size only.

    Raises
    ------
    DataError
        If the format cannot hold the labels, or they are negative.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iub":
        raise TypeError(f"Labels are integers, got {labels.dtype}.")
    top = int(labels.max(initial=0))
    if int(labels.min(initial=0)) < 0:
        raise DataError(f"Labels count from 0, got {labels.min()}.")
    if top > np.iinfo(np.uint32).max:
        raise DataError(f"Labels up to {top} fit in no image format; renumber them.")
    small = np.uint8 if top <= 255 and image_format(path) == "png" else np.uint16
    dtype = small if top <= 65535 else np.uint32
    grid = _grid(pixel_size, unit, origin)
    _write(
        Path(path),
        labels.astype(dtype),
        axes,
        grid,
        {"image-label": {"version": "0.4"}},
    )


def write_probabilities(
    path: str | os.PathLike[str],
    probabilities: npt.NDArray[np.floating[Any]],
    *,
    axes: str,
    classes: Sequence[str] = (),
    pixel_size: Mapping[str, float] | None = None,
    unit: str = "pixel",
    origin: Mapping[str, float] | None = None,
) -> None:
    """Write class probabilities as float32, one channel for each class; not as PNG.

    Parameters
    ----------
    path : path
    probabilities : array of float, shape (classes, *labels)
    axes : str
        Of the labels, without the leading class axis.
    classes : sequence of str
        Names of the channels.
    pixel_size, unit, origin
        As of `ImageFile`.
    """
    names: dict[str, Any] = {}
    if classes:
        names["omero"] = {"channels": [_omero_channel(name) for name in classes]}
    grid = _grid(pixel_size, unit, origin)
    _write(Path(path), np.asarray(probabilities, np.float32), "C" + axes, grid, names)


def write_attention(
    path: str | os.PathLike[str],
    attention: AttentionMap,
    *,
    axes: str,
    pixel_size: Mapping[str, float] | None = None,
    unit: str = "pixel",
    origin: Mapping[str, float] | None = None,
) -> None:
    """Write an attention map on its own coarse grid, placed where the image lies.

    Its pixel size is the image's times the map's scale, its origin the centre of its
    first cell; without a pixel size both count in the image's pixels.

    Parameters
    ----------
    path : path
        Not PNG, which holds neither floats nor places.
    attention : AttentionMap
    axes : str
        Of the labels of the same segmentation.
    pixel_size, unit, origin
        Of the image, as of `ImageFile`.
    """
    grid = _grid(pixel_size, unit, origin)
    grid = grid.coarser(axes, attention.scale, attention.translate)
    _write(Path(path), np.asarray(attention.values, np.float32), axes, grid, {})


def write_tables(
    path: str | os.PathLike[str], tables: Sequence[AttentionTable]
) -> None:
    """Write attention that lies on no grid as JSON: channels, and transforms.

    A list of objects with the fields of `AttentionTable`; the region that a row of
    values comes from is given by its first and last-plus-one pixel along each axis.
    """
    told = [
        {
            "name": table.name,
            "level": table.level,
            "kind": table.kind,
            "values": np.round(table.values.astype(float), 6).tolist(),
            "regions": [[[s.start, s.stop] for s in r] for r in table.regions],
        }
        for table in tables
    ]
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(told, ensure_ascii=False), "utf-8")


def _omero_channel(name: str) -> dict[str, Any]:
    window = {"min": 0.0, "max": 1.0, "start": 0.0, "end": 1.0}
    return {"label": name, "color": "FFFFFF", "active": True, "window": window}


def _write(
    path: Path, array: npt.NDArray[Any], axes: str, grid: _Grid, extra: dict[str, Any]
) -> None:
    if len(axes) != array.ndim or set(axes) - set(AXES) or len(set(axes)) < len(axes):
        raise ValueError(f"Axes {axes!r} don't name an array of shape {array.shape}.")
    order = sorted(range(len(axes)), key=lambda i: AXES.index(axes[i]))
    axes = "".join(axes[i] for i in order)
    array = np.ascontiguousarray(array.transpose(order))
    write = {"tif": _write_tiff, "png": _write_png, "ome-zarr": _write_zarr}[
        image_format(path)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=False) as temporary:
        write(temporary, array, axes, grid, extra | {"name": image_stem(path)})


def _write_png(
    path: Path, array: npt.NDArray[Any], axes: str, grid: _Grid, extra: dict[str, Any]
) -> None:
    if array.dtype.kind == "f":
        raise DataError(
            "PNG holds no probabilities or α maps; choose TIFF or OME-Zarr."
        )
    if array.dtype.itemsize > 2:
        raise DataError(
            f"PNG numbers at most 65535 labels, these go up to {array.max()}; "
            "choose TIFF or OME-Zarr."
        )
    stack = [n for n, axis in zip(array.shape, axes, strict=True) if axis not in "YX"]
    if math.prod(stack) != 1:
        raise DataError(
            f"PNG holds one 2D image, these labels are {axes} of shape {array.shape}; "
            "choose TIFF or OME-Zarr."
        )
    import imageio.v3 as imageio

    metres = UNITS[grid.unit][0] if grid.unit in UNITS else 0.0
    options: dict[str, Any] = {}
    if metres and {"X", "Y"} <= set(grid.size):
        options["dpi"] = tuple(0.0254 / (grid.size[a] * metres) for a in "XY")
    picture = array.reshape(array.shape[-2:])
    path.write_bytes(
        imageio.imwrite(
            "<bytes>", picture, extension=".png", plugin="pillow", **options
        )
    )


def _write_tiff(
    path: Path, array: npt.NDArray[Any], axes: str, grid: _Grid, extra: dict[str, Any]
) -> None:
    symbol = UNITS[grid.unit][1] if grid.unit in UNITS else "pixel"
    metadata: dict[str, Any] = {"axes": axes, "Name": extra["name"]}
    for axis in set(axes) & set(grid.size) & set("ZYX"):
        metadata[f"PhysicalSize{axis}"] = grid.size[axis]
        metadata[f"PhysicalSize{axis}Unit"] = symbol
    if "T" in axes and "T" in grid.size:
        metadata |= {"TimeIncrement": grid.size["T"], "TimeIncrementUnit": "s"}
    if "omero" in extra:
        metadata["Channel"] = {"Name": [c["label"] for c in extra["omero"]["channels"]]}
    planes = math.prod(array.shape[:-2])
    places: dict[str, list[Any]] = {}
    for axis in (a for a in "XYZ" if a in axes and grid.origin.get(a)):
        position = np.full(array.shape[:-2], grid.origin[axis])
        if axis == "Z":  # of each slice its own, in the order of the planes
            slices = grid.size.get("Z", 1.0) * np.arange(array.shape[axes.index("Z")])
            position = position + slices  # Z is the last of the axes before YX
        places[f"Position{axis}"] = position.ravel().tolist()
        places[f"Position{axis}Unit"] = [symbol] * planes
    if places:
        metadata["Plane"] = places
    import tifffile

    tifffile.imwrite(
        path,
        array,
        ome=True,
        bigtiff=array.nbytes > 2**31,
        photometric="minisblack",
        compression="zlib",
        metadata=metadata,
    )


def _write_zarr(
    path: Path, array: npt.NDArray[Any], axes: str, grid: _Grid, extra: dict[str, Any]
) -> None:
    import numcodecs  # type: ignore[import-untyped]
    import zarr

    kinds = {"T": "time", "C": "channel"}
    described: list[dict[str, str]] = []
    for axis in axes:
        described.append({"name": axis.lower(), "type": kinds.get(axis, "space")})
        if axis == "T" and "T" in grid.size:
            described[-1]["unit"] = "second"
        elif axis in "ZYX" and grid.unit in UNITS:
            described[-1]["unit"] = grid.unit
    place: list[dict[str, Any]] = [
        {"type": "scale", "scale": [float(grid.size.get(a, 1.0)) for a in axes]}
    ]
    shift = [float(grid.origin.get(a, 0.0)) for a in axes]
    if any(shift):
        place.append({"type": "translation", "translation": shift})
    group = zarr.open_group(path, mode="w", zarr_format=2)
    stored = group.create_array(
        "0",
        shape=array.shape,
        dtype=array.dtype,
        chunks=(1,) * (array.ndim - 2)
        + tuple(min(1024, max(1, n)) for n in array.shape[-2:]),
        compressors=numcodecs.Blosc(),  # zarr's first and best-known one
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )
    stored[...] = array
    name = extra.pop("name")
    datasets = [{"path": "0", "coordinateTransformations": place}]
    multiscale = {
        "version": "0.4",
        "name": name,
        "axes": described,
        "datasets": datasets,
    }
    group.attrs.put({"multiscales": [multiscale], **extra})
