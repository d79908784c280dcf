"""A sample on disk: a folder that anything can read.

::

    nuclei-1f3a90bc/
        image.ome.tif
        labels.ome.tif
        regions.ome.tif      where there are regions
        prediction.ome.tif   where a model had gone before
        sample.json          what it all means; written last
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_attunet.atomic import replacing
from napari_attunet.axes import AXES, frame_axes
from napari_attunet.corrections.correction import Correction
from napari_attunet.corrections.split import (
    Split,
    Validation,
    guarded,
    split_mask,
)
from napari_attunet.corrections.truth import Extent, Output
from napari_attunet.errors import DataError, ModelError
from napari_attunet.images import read_image
from napari_attunet.schema import check, check_choices, from_json

__all__ = [
    "Description",
    "Sample",
    "array_file",
    "read_arrays",
    "read_description",
    "write_description",
]

#: Raised whenever an older program could no longer read newer samples rightly.
FORMAT_VERSION = 1
DESCRIPTION = "sample.json"
REQUIRED = {"image", "labels"}
OPTIONAL = {"regions", "prediction"}


@dataclass(frozen=True, kw_only=True)
class Description:
    """What ``sample.json`` says; see `Sample`."""

    id: str
    name: str
    axes: str
    ndim: int
    output: Output
    extent: Extent
    background: int | None
    model: str | None
    source: dict[str, Any]
    created: str
    updated: str
    shape: tuple[int, ...]
    image_shape: tuple[int, ...]
    image_sha256: str
    dtypes: dict[str, str]
    sizes: dict[str, int]
    count: dict[str, int]
    pixels: dict[str, int]
    used: bool = True
    validation: Validation = "none"
    block: tuple[int, ...] = ()
    held: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        check_choices(self)
        check(
            self.ndim in (2, 3) and (self.background is None or self.background > 0),
            f"ndim must be 2 or 3 and a brush count from 1, got {self.ndim} and "
            f"{self.background}.",
        )
        axes = self.axes.replace("C", "")
        check(
            len(axes) == len(self.shape)
            and len(self.axes)
            == len(self.image_shape)
            == len(set(self.axes) & {*AXES}),
            f"The axes {self.axes!r} don't name a shape of {self.image_shape} with "
            f"labels of {self.shape}.",
        )
        check(
            REQUIRED <= self.sizes.keys() == self.dtypes.keys() <= REQUIRED | OPTIONAL
            and all(np.dtype(d).kind in "buif" for d in self.dtypes.values()),
            f"Arrays are {sorted(REQUIRED | OPTIONAL)} of numbers, got {self.dtypes} "
            f"in files of {self.sizes} bytes.",
        )
        grid = (self.block, *self.held) if self.validation == "blocks" else ()
        check(
            all(len(cell) == len(self.shape) for cell in grid)
            and min(self.block, default=1) > 0,
            f"Blocks of {self.block} at {self.held} don't cut a shape of {self.shape}.",
        )


@dataclass(frozen=True, kw_only=True)
class Sample(Description):
    """A correction on disk, without its pixels.

    Attributes
    ----------
    folder : Path
        Where it lies.
    id : str
        Name of the folder; never changes.
    name, axes, ndim, output, extent, background, model, source
        As of `Correction`.
    created, updated : str
        ISO 8601, UTC; when it was added, and when its pixels last changed.
    shape, image_shape : tuple of int
        Of the labels and of the image.
    image_sha256 : str
        Of the image's content.
    dtypes : dict of str to str
        Element types of the arrays as they were given.
    sizes : dict of str to int
        Bytes of each file.
    count : dict of str to int
        ``known``, ``total``, ``objects`` and ``changed`` of `Count`, and how many
        known pixels are ``held`` out.
    pixels : dict of str to int
        Known pixels by class, as of `Count`.
    used : bool
        Whether to train on it.
    validation : {"none", "all", "blocks"}
        What of it is held out: nothing, all of it, or blocks.
    block : tuple of int
        Shape of the blocks along the labels' axes.
    held : tuple of tuple of int
        Which blocks are held out, by their index along the labels' axes.
    """

    folder: Path

    @property
    def label_axes(self) -> str:
        """Axes of the labels."""
        return self.axes.replace("C", "")

    @property
    def split(self) -> Split:
        """What of it is held out."""
        return Split(self.validation, self.block, self.held)

    def validation_mask(self) -> npt.NDArray[np.bool_]:
        """Return which pixels are held out, in the labels' shape."""
        return split_mask(self.split, self.shape)

    def training_mask(self) -> npt.NDArray[np.bool_]:
        """Return which pixels may be trained on: none held out, none too near."""
        return ~guarded(self.validation_mask(), frame_axes(self.label_axes, self.ndim))


def write_description(sample: Sample, folder: Path) -> None:
    """Write what a sample is into that folder."""
    names = [f.name for f in dataclasses.fields(Description)]
    data = {"format": FORMAT_VERSION} | {n: getattr(sample, n) for n in names}
    text = json.dumps(data, ensure_ascii=False, indent=1)
    with replacing(folder / DESCRIPTION) as temporary:
        temporary.write_text(text, "utf-8")


def read_description(folder: Path) -> Sample:
    """Read what a folder holds, and see by the files' sizes that it is all there.

    Raises
    ------
    DataError
        If it is no sample, or a damaged one.
    """
    path = folder / DESCRIPTION
    try:
        data = json.loads(path.read_text("utf-8"))
        version = data.pop("format")
    except FileNotFoundError:
        raise DataError(
            f"{folder} holds no {DESCRIPTION}: it is no sample, or the file was lost. "
            "Move the folder elsewhere, or add the image again."
        ) from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged: {error!r}. Remove the folder and add the image again."
        ) from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise DataError(
            f"{path} was written in format {version}, this version reads up to "
            f"{FORMAT_VERSION}: update napari-attunet."
        )
    try:
        said = from_json(Description, json.dumps(data))
    except ModelError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if said.id != folder.name:
        raise DataError(
            f"{folder} holds the sample {said.id}: it was renamed or copied. Give the "
            "folder this name, or remove the copy."
        )
    for name, size in said.sizes.items():
        file = folder / array_file(name)
        try:
            there = file.stat().st_size
        except OSError:  # gone, perhaps this very moment
            there = None
        if there != size:
            what = "is missing" if there is None else f"has {there} bytes, not {size}"
            raise DataError(
                f"{file} {what}: it was changed or lost after it was kept. Restore the "
                "file, or remove the folder and add the image again."
            )
    values = {f.name: getattr(said, f.name) for f in dataclasses.fields(said)}
    return Sample(folder=folder, **values)


def array_file(name: str) -> str:
    """Return the file that holds an array, such as ``"labels"``."""
    return f"{name}.ome.tif"


def read_arrays(sample: Sample) -> Correction:
    """Read a sample's arrays, just as they were given.

    Raises
    ------
    DataError
        If a file is missing or damaged.
    """
    arrays = {}
    for name, dtype in sample.dtypes.items():
        is_image = name == "image"
        arrays[name] = _read_array(
            sample.folder / array_file(name),
            sample.axes if is_image else sample.label_axes,
            sample.image_shape if is_image else sample.shape,
            dtype,
        )
    return Correction(
        axes=sample.axes,
        output=sample.output,
        extent=sample.extent,
        background=sample.background,
        ndim=sample.ndim,
        name=sample.name,
        source=sample.source,
        model=sample.model,
        **arrays,
    )


def _read_array(
    path: Path, axes: str, shape: tuple[int, ...], dtype: str
) -> npt.NDArray[Any]:
    stored = np.asarray(read_image(path).data[...])
    order = sorted(range(len(axes)), key=lambda i: AXES.index(axes[i]))
    try:  # axes of length 1 are not all kept
        array = stored.reshape([shape[i] for i in order])
    except ValueError as error:
        raise DataError(
            f"{path} holds an image of shape {stored.shape}, not {shape}, so it is not "
            "the one that was kept. Remove its folder and add the image again."
        ) from error
    return np.ascontiguousarray(array.transpose(np.argsort(order)), dtype)
