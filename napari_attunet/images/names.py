"""File names: which format a path stands for, which files belong together."""

from __future__ import annotations

import os
from pathlib import Path

from napari_attunet.errors import DataError

__all__ = [
    "FORMATS",
    "find_images",
    "image_format",
    "image_stem",
    "image_suffix",
    "is_zarr",
    "pair_files",
]

#: Formats that can be written, and the suffix that each gets by default.
FORMATS: dict[str, str] = {"tif": ".tif", "png": ".png", "ome-zarr": ".ome.zarr"}

#: Suffixes and the format they stand for; the longest one that fits a name counts.
_SUFFIXES = {
    ".ome.tiff": "tif",
    ".ome.tif": "tif",
    ".ome.zarr": "ome-zarr",
    ".tiff": "tif",
    ".tif": "tif",
    ".btf": "tif",
    ".zarr": "ome-zarr",
    ".jpeg": "png",  # read only: what is written for them is PNG
    ".jpg": "png",
    ".bmp": "png",
    ".png": "png",
}


def image_suffix(path: str | os.PathLike[str]) -> str:
    """Return the suffix that tells the format, such as ``".ome.tif"``, or ``""``."""
    name = Path(path).name
    fits = (s for s in _SUFFIXES if name.lower().endswith(s) and len(name) > len(s))
    longest = max(fits, key=len, default="")
    return name[len(name) - len(longest) :]


def image_stem(path: str | os.PathLike[str]) -> str:
    """Return the file's name without the suffix that tells its format."""
    name = Path(path).name
    return name[: len(name) - len(image_suffix(path))]


def image_format(path: str | os.PathLike[str]) -> str:
    """Return ``"tif"``, ``"png"`` or ``"ome-zarr"``.

    Raises
    ------
    DataError
        If the suffix is none of the known ones.
    """
    suffix = image_suffix(path).lower()
    if suffix:
        return _SUFFIXES[suffix]
    if is_zarr(path):
        return "ome-zarr"
    raise DataError(
        f"{path} has no suffix of a known image format. Wanted one of "
        f"{', '.join(sorted(_SUFFIXES))}."
    )


def is_zarr(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder that holds a zarr group or array."""
    marks = (".zgroup", ".zarray", "zarr.json")
    return any((Path(path) / mark).is_file() for mark in marks)


def find_images(folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return the images in a folder (not in its subfolders), sorted by name."""
    found = (p for p in Path(folder).iterdir() if not p.name.startswith("."))
    return tuple(
        sorted(p for p in found if (image_suffix(p) and p.is_file()) or is_zarr(p))
    )


def pair_files(
    images: str | os.PathLike[str], labels: str | os.PathLike[str]
) -> tuple[tuple[Path, Path], ...]:
    """Match each image of a folder with the label image of the same stem.

    ``cell.tif`` belongs to ``cell.png`` or ``cell_labels.tif`` in the other folder.

    Raises
    ------
    DataError
        If a folder is missing or empty, an image has no labels, or has several.
    """
    for folder in (images, labels):
        if not Path(folder).is_dir():
            raise DataError(f"There is no folder {folder}.")
    candidates = find_images(labels)
    pairs = []
    for image in find_images(images):
        stem = image_stem(image)
        wanted = {stem, f"{stem}_labels"}
        same = Path(images).resolve() == Path(labels).resolve()
        if same and stem.endswith("_labels"):
            continue
        fits = [c for c in candidates if image_stem(c) in wanted and c != image]
        if len(fits) != 1:
            what = f"{len(fits)} label images fit" if fits else "no label image fits"
            raise DataError(
                f"{what} {image.name}: wanted one named {stem} or {stem}_labels "
                f"in {labels}."
            )
        pairs.append((image, fits[0]))
    if not pairs:
        raise DataError(f"There are no images in {images}.")
    return tuple(pairs)
