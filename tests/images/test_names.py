"""Names tell the format; pairs are found by stem."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from napari_attunet.errors import DataError
from napari_attunet.images import (
    find_images,
    image_format,
    image_stem,
    image_suffix,
    pair_files,
    write_labels,
)


@pytest.mark.parametrize(
    ("name", "stem", "suffix", "kind"),
    [
        ("a.tif", "a", ".tif", "tif"),
        ("a.b.OME.TIFF", "a.b", ".OME.TIFF", "tif"),
        ("a.ome.zarr", "a", ".ome.zarr", "ome-zarr"),
        ("a.zarr", "a", ".zarr", "ome-zarr"),
        ("a.jpg", "a", ".jpg", "png"),
    ],
)
def test_names(name: str, stem: str, suffix: str, kind: str) -> None:
    path = Path("folder.tif") / name
    assert image_stem(path) == stem
    assert image_suffix(path) == suffix
    assert image_format(path) == kind


def test_an_unknown_suffix_is_answered_with_the_known_ones() -> None:
    assert image_suffix("notes.txt") == ""
    assert image_suffix(".tif") == ""
    with pytest.raises(DataError, match=r"notes\.txt.*\.ome\.zarr.*\.png"):
        image_format("notes.txt")


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        write_labels(folder / name, np.eye(4, dtype=np.int32), axes="YX")
    return folder


def test_images_of_a_folder_are_sorted_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path, "b.tif", "a.ome.zarr", "c.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.tif").write_text("x")
    (tmp_path / "folder.tif").mkdir()
    assert [p.name for p in find_images(tmp_path)] == ["a.ome.zarr", "b.tif", "c.png"]


def test_pairs_are_matched_by_stem(tmp_path: Path) -> None:
    images = fill(tmp_path / "images", "b.tif", "a.png")
    labels = fill(tmp_path / "labels", "a.ome.zarr", "b_labels.png", "unused.tif")
    pairs = [(i.name, t.name) for i, t in pair_files(images, labels)]
    assert pairs == [("a.png", "a.ome.zarr"), ("b.tif", "b_labels.png")]


def test_pairs_may_lie_in_one_folder(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "a_labels.tif")
    pairs = [(i.name, t.name) for i, t in pair_files(tmp_path, tmp_path)]
    assert pairs == [("a.png", "a_labels.tif")]


def test_a_missing_or_doubtful_pair_is_an_error(tmp_path: Path) -> None:
    images = fill(tmp_path / "images", "a.tif")
    (tmp_path / "none").mkdir()
    both = fill(tmp_path / "both", "a.tif", "a_labels.tif")
    with pytest.raises(DataError, match=r"no label image fits a\.tif"):
        pair_files(images, tmp_path / "none")
    with pytest.raises(DataError, match=r"2 label images fit a\.tif"):
        pair_files(images, both)
    with pytest.raises(DataError, match="no images"):
        pair_files(tmp_path / "none", both)
    with pytest.raises(DataError, match="no folder"):
        pair_files(images, tmp_path / "nowhere")
