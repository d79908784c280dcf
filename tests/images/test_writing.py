"""What is written comes back, also by other readers, or nothing is written at all."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import ome_zarr_models.v04 as ome_zarr
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_attunet.errors import DataError
from napari_attunet.images import (
    read_image,
    write_attention,
    write_image,
    write_labels,
    write_probabilities,
    writing,
)

SUFFIXES = [".tif", ".ome.zarr"]
SIZES = {"T": 2.5, "Z": 2.0, "Y": 0.5, "X": 0.25}
ORIGIN = {"Z": 3.0, "Y": -1.5, "X": 10.0}


@dataclass
class Map:
    """Stands in for an attention map."""

    values: np.ndarray[Any, Any]
    scale: tuple[int, ...]
    translate: tuple[float, ...]
    name: str = "α level 1"
    level: int = 1
    kind: str = "gate"


@pytest.fixture
def grid() -> dict[str, Any]:
    return {"pixel_size": SIZES, "unit": "micrometer", "origin": ORIGIN}


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    axes=st.sampled_from(
        [
            *("".join(p) for p in itertools.permutations("ZYX")),
            *("YX", "XY", "TYX", "TZYX", "ZTYX"),
        ]
    ),
    sizes=st.lists(st.integers(1, 7), min_size=4, max_size=4),
    top=st.sampled_from([0, 1, 255, 256, 65535, 65536, 2**31 - 1]),
    suffix=st.sampled_from(SUFFIXES),
)
def test_labels_of_any_count_and_axes_come_back(
    tmp_path: Path, axes: str, sizes: list[int], top: int, suffix: str
) -> None:
    shape = tuple(sizes[: len(axes)])
    labels = np.zeros(shape, np.int32)
    labels.flat[-1] = top
    path = tmp_path / f"a{suffix}"
    known = {a: SIZES[a] for a in axes}
    write_labels(path, labels, axes=axes, pixel_size=known, unit="micrometer")
    image = read_image(path)
    stored = "".join(a for a in "TZYX" if a in axes)
    array = np.asarray(image.data[...])
    # tifffile leaves axes of length one out
    kept = {a for a, n in zip(axes, shape, strict=True) if n > 1} | {"Y", "X"}
    assert image.axes == "".join(a for a in stored if suffix != ".tif" or a in kept)
    in_order = labels.transpose([axes.index(a) for a in stored])
    np.testing.assert_array_equal(array, in_order.reshape(array.shape))
    assert array.dtype == (np.uint16 if top <= 65535 else np.uint32)
    assert image.pixel_size == pytest.approx(known)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pixel_size_and_place_are_kept(
    tmp_path: Path, suffix: str, grid: dict[str, Any]
) -> None:
    labels = np.arange(2 * 3 * 4 * 5, dtype=np.int32).reshape(2, 3, 4, 5)
    write_labels(tmp_path / f"a{suffix}", labels, axes="TZYX", **grid)
    image = read_image(tmp_path / f"a{suffix}")
    assert (image.axes, image.unit) == ("TZYX", "micrometer")
    assert image.pixel_size == pytest.approx(SIZES)
    assert image.origin == pytest.approx(ORIGIN)


def test_labels_as_tiff_read_by_tifffile(tmp_path: Path, grid: dict[str, Any]) -> None:
    labels = np.arange(3 * 4 * 5, dtype=np.int32).reshape(3, 4, 5)
    write_labels(tmp_path / "a.tif", labels, axes="ZYX", **grid)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert (tif.is_ome, tif.series[0].axes) == (True, "ZYX")
        np.testing.assert_array_equal(tif.asarray(), labels)
        pixels = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]["Pixels"]
    assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeXUnit"]) == (0.25, "µm")
    assert pixels["PhysicalSizeZ"] == 2.0
    planes = pixels["Plane"]
    assert [p["PositionZ"] for p in planes] == [3.0, 5.0, 7.0]
    assert {(p["PositionX"], p["PositionY"]) for p in planes} == {(10.0, -1.5)}


def test_labels_as_ome_zarr_are_valid(tmp_path: Path, grid: dict[str, Any]) -> None:
    labels = np.arange(2 * 3 * 4 * 5, dtype=np.int32).reshape(2, 3, 4, 5)
    write_labels(tmp_path / "a.ome.zarr", labels, axes="TZYX", **grid)
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    image = ome_zarr.ImageLabel.from_zarr(group)  # validates the metadata
    multiscale = image.attributes.multiscales[0]
    assert [(a.name, a.type, a.unit) for a in multiscale.axes] == [
        ("t", "time", "second"),
        ("z", "space", "micrometer"),
        ("y", "space", "micrometer"),
        ("x", "space", "micrometer"),
    ]
    scale, shift = multiscale.datasets[0].coordinateTransformations
    assert scale.scale == [2.5, 2.0, 0.5, 0.25]
    assert shift.translation == [0.0, 3.0, -1.5, 10.0]
    assert image.attributes.image_label is not None
    array = group["0"]
    assert isinstance(array, zarr.Array)
    assert array.metadata.zarr_format == 2


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("sized", [True, False], ids=["micrometres", "pixels"])
def test_attention_lies_on_the_image(
    tmp_path: Path, suffix: str, sized: bool, grid: dict[str, Any]
) -> None:
    values = np.linspace(0, 1, 2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    coarse = Map(values, scale=(1, 8, 4), translate=(0.0, 3.5, 1.5))
    path = tmp_path / f"a{suffix}"
    write_attention(path, coarse, axes="ZYX", **(grid if sized else {}))  # type: ignore[arg-type]
    image = read_image(path)
    np.testing.assert_array_equal(image.data[...], values)
    if sized:
        assert image.unit == "micrometer"
        assert image.pixel_size == pytest.approx({"Z": 2.0, "Y": 4.0, "X": 1.0})
        wanted = {"Z": 3.0, "Y": -1.5 + 3.5 * 0.5, "X": 10 + 1.5 * 0.25}
        assert image.origin == pytest.approx(wanted)
    else:
        assert image.unit == "pixel"
        assert {a: image.pixel_size.get(a, 1) for a in "ZYX"} == {
            "Z": 1,
            "Y": 8,
            "X": 4,
        }
        assert image.origin == pytest.approx({"Y": 3.5, "X": 1.5})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_probabilities_are_channels(
    tmp_path: Path, suffix: str, grid: dict[str, Any]
) -> None:
    values = np.random.default_rng(0).random((3, 2, 5, 6), dtype=np.float32)
    path = tmp_path / f"a{suffix}"
    names = ("background", "interior", "boundary")
    write_probabilities(path, values, axes="TYX", classes=names, **grid)
    image = read_image(path)
    assert image.axes == "TCYX"
    np.testing.assert_array_equal(image.data[...], values.transpose(1, 0, 2, 3))
    if suffix == ".ome.zarr":
        group = zarr.open_group(path, mode="r")
        attributes = ome_zarr.Image.from_zarr(group).attributes
        assert attributes.omero is not None
        stored = [dict(c)["label"] for c in attributes.omero.channels]
        assert stored == list(names)
    else:
        with tifffile.TiffFile(path) as tif:
            ome = tifffile.xml2dict(tif.ome_metadata)
        channels = ome["OME"]["Image"]["Pixels"]["Channel"]
        assert [c["Name"] for c in channels] == list(names)


@pytest.mark.parametrize(("top", "dtype"), [(255, "uint8"), (65535, "uint16")])
def test_png_holds_labels_and_pixel_size(
    tmp_path: Path, top: int, dtype: str, grid: dict[str, Any]
) -> None:
    labels = np.array([[[0, 1, top]]], np.int32)
    write_labels(tmp_path / "a.png", labels, axes="ZYX", **grid)
    stored = imageio.imread(tmp_path / "a.png")
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored, labels[0])
    image = read_image(tmp_path / "a.png")
    assert image.pixel_size == pytest.approx({"Y": 0.5, "X": 0.25}, rel=1e-4)


def test_png_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(DataError, match="65535 labels, these go up to 65536"):
        write_labels(path, np.array([[65536]]), axes="YX")
    with pytest.raises(DataError, match="one 2D image"):
        write_labels(path, np.zeros((2, 3, 3), np.int32), axes="TYX")
    coarse = Map(np.zeros((2, 2), np.float32), (2, 2), (0.5, 0.5))
    with pytest.raises(DataError, match="choose TIFF or OME-Zarr"):
        write_attention(path, coarse, axes="YX")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_labels_must_be_counts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="-1"):
        write_labels(tmp_path / "a.tif", np.array([[-1]]), axes="YX")
    with pytest.raises(DataError, match="4294967296"):
        write_labels(tmp_path / "a.tif", np.array([[2**32]]), axes="YX")
    with pytest.raises(TypeError, match="float64"):
        write_labels(tmp_path / "a.tif", np.array([[1.0]]), axes="YX")
    with pytest.raises(ValueError, match="YX"):
        write_labels(tmp_path / "a.tif", np.zeros((1, 2, 3), np.int32), axes="YX")


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.ome.zarr"])
def test_replaces_the_whole_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / "new" / name
    write_labels(path, np.full((9, 9), 1, np.int32), axes="YX")
    write_labels(path, np.full((4, 5), 2, np.int32), axes="YX")
    assert [p.name for p in path.parent.iterdir()] == [name]

    kind = {"a.tif": "_write_tiff", "a.png": "_write_png"}.get(name, "_write_zarr")
    write = getattr(writing, kind)

    def interrupted(*args: Any) -> None:
        write(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, kind, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_labels(path, np.full((4, 5), 3, np.int32), axes="YX")
    assert [p.name for p in path.parent.iterdir()] == [name]
    np.testing.assert_array_equal(read_image(path).data[...], np.full((4, 5), 2))


# ---- images -----------------------------------------------------------------------


STORED = {  # element types, and as what TIFF holds them
    **{d: d for d in ("uint8", "int8", "uint16", "int16", "uint32", "int32")},
    **{d: d for d in ("float32", "float64")},
    ">u2": "uint16",
    ">f4": "float32",
    "bool": "uint8",
    "float16": "float32",
    "int64": "uint32",
    "uint64": "uint32",
}


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_image_of_any_type_comes_back(tmp_path, rng, grid, dtype, suffix):
    image = (rng.random((5, 3, 4, 6)) * 100).astype(dtype)
    image.flat[0] = 0
    path = tmp_path / f"a{suffix}"
    write_image(path, image, axes="YXCZ", **grid)
    file = read_image(path)
    stored = np.asarray(file.data[...])
    assert file.axes == "CZYX"
    assert file.pixel_size == {a: SIZES[a] for a in "ZYX"}
    assert np.array_equal(stored, image.transpose(2, 3, 0, 1))
    assert stored.dtype == (STORED[dtype] if suffix == ".tif" else dtype)


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ([0, 2**32 - 1], "uint32"),
        ([-1, 2**31 - 1], "int32"),
        ([-(2**31), 0], "int32"),
        ([-1, 2**31], "float64"),
        ([2**53, -(2**53)], "float64"),
    ],
)
def test_tiff_holds_whole_numbers_in_the_first_type_that_fits(tmp_path, values, stored):
    image = np.array([values], np.int64)
    write_image(tmp_path / "a.tif", image, axes="YX")
    data = np.asarray(read_image(tmp_path / "a.tif").data)
    assert data.dtype == stored
    assert np.array_equal(data.astype(np.int64), image)


@pytest.mark.parametrize(
    ("image", "name", "message"),
    [
        (np.array([[0, 2**53 + 1]]), "a.tif", "9007199254740993"),
        (np.zeros((2, 2), np.longdouble), "a.tif", "float64"),
        (np.zeros((2, 2), np.uint8), "a.png", "PNG"),
    ],
)
def test_what_a_format_cannot_hold_is_not_written(tmp_path, image, name, message):
    if image.dtype.itemsize == 8 and image.dtype.kind == "f":
        pytest.skip("long doubles are doubles here")
    with pytest.raises(DataError, match=message):
        write_image(tmp_path / name, image, axes="YX")
    assert list(tmp_path.iterdir()) == []


def test_complex_images_are_a_slip(tmp_path):
    with pytest.raises(TypeError, match="complex"):
        write_image(tmp_path / "a.tif", np.zeros((2, 2), complex), axes="YX")
