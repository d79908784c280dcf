"""Files -> arrays, with what the files say about their pixels.

OME-Zarr of versions 0.1 to 0.5 is understood (https://ngff.openmicroscopy.org), and of
TIFF the dialects of ImageJ and of OME (https://docs.openmicroscopy.org/ome-model).
"""

from __future__ import annotations

import logging
import math
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_attunet.axes import AXES
from napari_attunet.errors import AttUnetError, DataError
from napari_attunet.images.names import image_format, is_zarr
from napari_attunet.images.units import SECONDS, factor_between, unit_name

if TYPE_CHECKING:
    import tifffile

# What reads files is imported when one is read: together it takes longer than a dock
# to open.

__all__ = ["ImageFile", "read_image", "read_labels"]

#: TIFF files with more bytes of pixels than this (256 MiB) are read region by region.
LAZY_ABOVE = 2**28

#: Coarser resolutions (72, 300, 600 dpi) are habits of programs, not measurements.
_COARSEST_PIXEL = 25e-6  # metres

#: Pillow's names of colours in other channels.
NO_RGB = ("CMYK", "HSV", "LAB", "YCbCr")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class ImageFile:
    """Pixels of a file and what the file says about them.

    Attributes
    ----------
    data : array
        numpy, a memory map, or a zarr array that reads what is asked of it.
    axes : str, optional
        A letter of T, C, Z, Y, X for each axis of `data` (RGB is C); None where the
        file leaves it open.
    pixel_size : dict of str to float
        By axis letter, of Z, Y and X in `unit` and of T in seconds; only the known.
    unit : str
        Unit of length by its OME-Zarr name, such as ``"micrometer"``; or ``"pixel"``.
    origin : dict of str to float
        Where the centre of the first pixel lies, in `unit`; 0 where it isn't told.
    """

    data: Any
    axes: str | None = None
    pixel_size: dict[str, float] = field(default_factory=dict)
    unit: str = "pixel"
    origin: dict[str, float] = field(default_factory=dict)


def read_image(path: str | os.PathLike[str]) -> ImageFile:
    """Read an image file; OME-Zarr and large TIFF stay on disk.

    Parameters
    ----------
    path : path
        TIFF (ImageJ's and OME's axes and pixel sizes are understood), PNG, JPEG, BMP,
        or an OME-Zarr folder, of which the finest level is opened. Of a TIFF with
        several images the first is read.

    Raises
    ------
    DataError
        If there is no such file, its format is unknown, or it is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"There is no file {path}.")
    kind = "ome-zarr" if is_zarr(path) else image_format(path)
    read = {"tif": _read_tiff, "png": _read_picture, "ome-zarr": _read_zarr}[kind]
    try:
        return read(path)
    except (AttUnetError, MemoryError):
        raise
    # A damaged file makes the libraries raise nearly anything: struct, zlib and codec
    # errors, KeyError, SyntaxError (Pillow).
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if "imagecodecs" in reason:
            reason += "; run: pip install imagecodecs"
        name = {"tif": "TIFF", "png": "a picture", "ome-zarr": "OME-Zarr"}[kind]
        raise DataError(f"{path} cannot be read as {name}: {reason}") from error


def read_labels(
    path: str | os.PathLike[str], axes: str | None = None
) -> npt.NDArray[Any]:
    """Read a label image: whole numbers, 0 is background; no channel axis.

    Parameters
    ----------
    path : path
    axes : str, optional
        Axes of its image. If the label file names the same axes in another order, it
        is transposed to theirs.

    Raises
    ------
    DataError
        If the file cannot be read, has channels, or holds other than whole numbers.
    """
    image = read_image(path)
    labels = np.asarray(image.data[...])
    if image.axes and "C" in image.axes:
        axis = image.axes.index("C")
        if labels.shape[axis] != 1:
            raise DataError(
                f"{path} has {labels.shape[axis]} channels; a label image has one "
                "number for each pixel. Save it as grey, without a colour map."
            )
        labels = labels.squeeze(axis)
    theirs = (image.axes or "").replace("C", "")
    ours = (axes or "").replace("C", "")
    if sorted(theirs) == sorted(ours):
        labels = labels.transpose([theirs.index(a) for a in ours]) if ours else labels
    if labels.dtype.kind == "b":
        return labels.astype(np.uint8)
    if labels.dtype.kind not in "iu":
        whole = labels.dtype.kind == "f" and bool(np.all(labels == np.floor(labels)))
        if not (whole and bool(np.isfinite(labels).all())):
            raise DataError(
                f"{path} holds {labels.dtype} values, wanted whole numbers."
            )
        labels = labels.astype(np.int64)
    if labels.size and labels.min() < 0:
        raise DataError(f"{path} holds negative labels, down to {labels.min()}.")
    return labels


def _read_picture(path: Path) -> ImageFile:
    import imageio.v3 as imageio

    # One plugin by name: in search of one, imageio leaves damaged files open.
    with imageio.imopen(path, "r", plugin="pillow") as file:
        told = file.metadata(index=0)
        # Four inks are no red, green, blue and alpha.
        how: dict[str, Any] = {"mode": "RGB"} if told["mode"] in NO_RGB else {}
        pixels = file.read(index=0, **how)
        dpi = told.get("dpi", (0, 0))
    if pixels.ndim == 3 and pixels.shape[2] in (1, 2):  # grey, grey with transparency
        pixels = pixels[..., 0]
    size = _measured({a: d / 0.0254 for a, d in zip("XY", dpi, strict=True)}, 1.0)
    axes = "YXC" if pixels.ndim == 3 else "YX"
    return ImageFile(data=pixels, axes=axes, pixel_size=size, unit=_unit_of(size))


def _read_tiff(path: Path) -> ImageFile:
    import tifffile

    with tifffile.TiffFile(path) as tif:
        if not tif.series:
            raise DataError(f"{path} holds no image.")
        if len(tif.series) > 1:
            _log.warning("%s holds %d images; the first is read", path, len(tif.series))
        series = tif.series[0]
        letters = series.axes
        size, unit, origin = _tiff_grid(tif)
        data: Any = None
        if series.nbytes <= LAZY_ABOVE:
            data = series.asarray()
        contiguous = series.dataoffset is not None
    if data is None and contiguous:
        data = tifffile.memmap(path, mode="r", series=0)
    elif data is None:
        import zarr

        store = tifffile.imread(path, aszarr=True, series=0, level=0)
        data = zarr.open_array(store, mode="r")
        weakref.finalize(data, store.close)  # the file stays open as long as it is used
    if "S" in letters and isinstance(data, np.ndarray):  # colours, stored one by one
        data = np.moveaxis(data, letters.index("S"), -1)
        letters = letters.replace("S", "") + "S"
    axes = _tiff_axes(letters)
    return ImageFile(data=data, axes=axes, pixel_size=size, unit=unit, origin=origin)


def _tiff_axes(letters: str) -> str | None:
    """Translate tifffile's axis letters (S samples, I pages, Q unknown), or give up."""
    axes = letters.replace("S", "C")
    unknown = sorted(set(axes) - set(AXES))
    if len(unknown) == 1 and "C" in axes and "Z" not in axes:
        axes = axes.replace(unknown[0], "Z")  # pages of colour pictures are a stack
        unknown = []
    return None if unknown or len(set(axes)) < len(axes) else axes


def _tiff_grid(
    tif: tifffile.TiffFile,
) -> tuple[dict[str, float], str, dict[str, float]]:
    """Return pixel size, unit and origin as OME-XML, ImageJ or the tags tell them."""
    if tif.is_ome and tif.ome_metadata:
        from tifffile import xml2dict

        return _ome_grid(xml2dict(tif.ome_metadata))
    tags = tif.pages.first.tags
    per_unit = {}
    for axis in "XY":
        tag = tags.get(f"{axis}Resolution")
        numerator, denominator = tag.value if tag else (0, 1)
        per_unit[axis] = numerator / denominator if denominator else 0.0
    if tif.is_imagej:
        metadata = tif.imagej_metadata or {}
        unit = unit_name(metadata.get("unit", ""))
        size = {a: 1 / p for a, p in per_unit.items() if p > 0} if unit else {}
        if unit and _positive(metadata.get("spacing")):
            size["Z"] = float(metadata["spacing"])
        if _positive(metadata.get("finterval")):
            size["T"] = float(metadata["finterval"])
        return size, unit or "pixel", {}
    unit_tag = tags.get("ResolutionUnit")
    metres = {2: 0.0254, 3: 0.01}.get(int(unit_tag.value) if unit_tag else 1, 0.0)
    size = _measured(per_unit, metres)
    return size, _unit_of(size), {}


def _ome_grid(ome: dict[str, Any]) -> tuple[dict[str, float], str, dict[str, float]]:
    image = _first(ome.get("OME", {}).get("Image"))
    pixels = _first(image.get("Pixels"))
    plane = _first(pixels.get("Plane"))
    unit = unit_name(pixels.get("PhysicalSizeXUnit", "µm")) or "pixel"
    size, origin = {}, {}
    for axis in "ZYX":
        key = f"PhysicalSize{axis}"
        factor = factor_between(pixels.get(f"{key}Unit", "µm"), unit)
        if factor and _positive(pixels.get(key)):
            size[axis] = float(pixels[key]) * factor
        key = f"Position{axis}"
        factor = factor_between(plane.get(f"{key}Unit", "reference frame"), unit)
        if factor and isinstance(plane.get(key), (int, float)):
            origin[axis] = float(plane[key]) * factor
    seconds = SECONDS.get(str(pixels.get("TimeIncrementUnit", "s")), 0.0)
    if seconds and _positive(pixels.get("TimeIncrement")):
        size["T"] = float(pixels["TimeIncrement"]) * seconds
    return (
        size,
        unit if set(size) & set("ZYX") else "pixel",
        {a: o for a, o in origin.items() if o},
    )


def _first(value: Any) -> dict[str, Any]:
    """Return the first of the elements of that name; XML has none, one or a list."""
    if isinstance(value, list):
        value = value[0] if value else {}
    return value if isinstance(value, dict) else {}


def _read_zarr(path: Path) -> ImageFile:
    import zarr

    node = zarr.open(path, mode="r")
    if isinstance(node, zarr.Array):
        return ImageFile(data=node)
    attributes = dict(node.attrs)
    said: Any = attributes.get("ome", attributes)
    if "multiscales" not in said and "bioformats2raw.layout" in said:
        if "1" in node:
            _log.warning("%s holds several images; the first, 0, is read", path)
        return _read_zarr(path / "0")
    if not said.get("multiscales"):
        kind = "a plate: give one of its images" if "plate" in said else "not OME-Zarr"
        raise DataError(f"{path} is a zarr group without an image; it is {kind}.")
    multiscale = said["multiscales"][0]
    finest = multiscale["datasets"][0]
    array = node[finest["path"]]
    if not isinstance(array, zarr.Array):
        raise DataError(f"{path} is damaged: {finest['path']} in it is no array.")
    axes = _zarr_axes(multiscale.get("axes"), array.ndim)
    scale, shift = np.ones(array.ndim), np.zeros(array.ndim)
    for step in (
        *finest.get("coordinateTransformations", ()),
        *multiscale.get("coordinateTransformations", ()),
    ):
        if step["type"] == "scale":
            scale, shift = scale * step["scale"], shift * step["scale"]
        elif step["type"] == "translation":
            shift = shift + step["translation"]
    if axes is None:
        return ImageFile(data=array)
    listed = multiscale.get("axes") or [{}] * len(axes)
    units = {
        letter: axis.get("unit", "")
        for letter, axis in zip(axes, listed, strict=True)
        if isinstance(axis, dict)  # version 0.3 has names alone
    }
    unit = unit_name(units.get("X", "")) or "pixel"
    factors = {a: factor_between(units.get(a) or "pixel", unit) for a in "ZYX"}
    factors["T"] = SECONDS.get(units.get("T", "") or "second", 0.0)
    size, origin = {}, {}
    for axis, step, start in zip(axes, scale.tolist(), shift.tolist(), strict=True):
        if axis != "C" and factors[axis] and step > 0:
            size[axis] = step * factors[axis]
            if start:
                origin[axis] = start * factors[axis]
    return ImageFile(data=array, axes=axes, pixel_size=size, unit=unit, origin=origin)


def _zarr_axes(axes: Sequence[Any] | None, ndim: int) -> str | None:
    """Return the axes' letters; versions 0.1 and 0.2 have none and mean TCZYX."""
    if axes is None:
        return AXES if ndim == len(AXES) else None
    letters = ""
    for axis in axes:
        name = str(axis["name"] if isinstance(axis, dict) else axis).upper()
        kind = axis.get("type") if isinstance(axis, dict) else None
        letters += {"time": "T", "channel": "C"}.get(str(kind), name)
    known = len(letters) == ndim == len(set(letters)) and set(letters) <= set(AXES)
    return letters if known else None


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


def _measured(per_unit: Mapping[str, float], metres: float) -> dict[str, float]:
    """Turn pixels in a unit of so many metres into micrometres, if it was measured."""
    size = {a: metres / p for a, p in per_unit.items() if p > 0 and metres > 0}
    fine = len(size) == len(per_unit) and max(size.values()) < _COARSEST_PIXEL
    return {a: s * 1e6 for a, s in size.items()} if fine else {}


def _unit_of(size: Mapping[str, float]) -> str:
    return "micrometer" if size else "pixel"
