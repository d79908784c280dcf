"""What other programs write is read with its axes and pixel sizes."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import PIL.Image
import pytest
import tifffile
import zarr

from napari_attunet.errors import DataError
from napari_attunet.images import read_image, read_labels, reading


def ramp(*shape: int, dtype: str = "uint16") -> np.ndarray[Any, Any]:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize(
    ("shape", "axes", "size"),
    [
        ((4, 5, 6), "ZYX", {"Z": 3.0, "Y": 0.5, "X": 0.25}),
        ((2, 4, 3, 5, 6), "TZCYX", {"T": 1.5, "Z": 3.0, "Y": 0.5, "X": 0.25}),
    ],
)
def test_imagej_hyperstacks(
    tmp_path: Path, shape: tuple[int, ...], axes: str, size: dict[str, float]
) -> None:
    data = ramp(*shape)
    metadata = {"axes": axes, "unit": "um", "spacing": 3.0, "finterval": 1.5}
    tifffile.imwrite(
        tmp_path / "a.tif", data, imagej=True, resolution=(4, 2), metadata=metadata
    )
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.data, data)
    assert (image.axes, image.unit, image.origin) == (axes, "micrometer", {})
    wanted = size | ({"T": 1.5} if "T" not in axes else {})
    assert image.pixel_size == pytest.approx(wanted)


def test_ome_tiff_with_mixed_units_and_stage_positions(tmp_path: Path) -> None:
    data = ramp(2, 3, 5, 6)
    metadata = {
        "axes": "CZYX",
        "PhysicalSizeX": 500.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.5,
        "PhysicalSizeYUnit": "µm",
        "PhysicalSizeZ": 0.002,
        "PhysicalSizeZUnit": "mm",
        "Plane": {
            "PositionX": [12.0] * 6,
            "PositionXUnit": ["µm"] * 6,
            "PositionY": [7.0] * 6,  # in the "reference frame": means nothing to us
        },
    }
    tifffile.imwrite(
        tmp_path / "a.ome.tif", data, photometric="minisblack", metadata=metadata
    )
    image = read_image(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(image.data, data)
    assert (image.axes, image.unit) == ("CZYX", "nanometer")
    assert image.pixel_size == pytest.approx({"Z": 2000.0, "Y": 500.0, "X": 500.0})
    assert image.origin == pytest.approx({"X": 12000.0})


@pytest.mark.parametrize(
    ("shape", "options", "axes"),
    [
        ((5, 6), {}, "YX"),
        ((5, 6, 3), {"photometric": "rgb"}, "YXC"),
        ((4, 5, 6, 3), {"photometric": "rgb"}, "ZYXC"),
        ((4, 5, 6), {"photometric": "minisblack"}, None),
        ((4, 5, 6), {"photometric": "minisblack", "metadata": {"axes": "TYX"}}, "TYX"),
    ],
)
def test_plain_tiff(
    tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any], axes: str | None
) -> None:
    data = ramp(*shape, dtype="uint8")
    tifffile.imwrite(tmp_path / "a.tif", data, **options)
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.data, data)
    assert (image.axes, image.pixel_size, image.unit) == (axes, {}, "pixel")


@pytest.mark.parametrize("shape", [(3, 5, 6), (4, 3, 5, 6)])
def test_colours_stored_one_by_one_are_colours(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    data = ramp(*shape, dtype="uint8")
    tifffile.imwrite(
        tmp_path / "a.tif", data, photometric="rgb", planarconfig="separate"
    )
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.data, np.moveaxis(data, -3, -1))
    assert image.axes == ("ZYXC" if len(shape) == 4 else "YXC")


def test_inks_are_turned_into_colours(tmp_path: Path) -> None:
    ochre = np.full((8, 9, 3), (200, 120, 30), np.uint8)
    PIL.Image.fromarray(ochre).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    image = read_image(tmp_path / "a.jpg")
    assert (image.axes, image.data.shape) == ("YXC", (8, 9, 3))
    np.testing.assert_allclose(image.data, ochre, atol=4)


@pytest.mark.parametrize(
    ("unit", "size"),
    [("CENTIMETER", {"Y": 0.5, "X": 0.5}), ("INCH", {"Y": 1.27, "X": 1.27})],
)
def test_resolution_tags_count_where_they_were_measured(
    tmp_path: Path, unit: str, size: dict[str, float]
) -> None:
    options = {"resolution": (20000, 20000), "resolutionunit": unit}
    tifffile.imwrite(tmp_path / "a.tif", ramp(5, 6), **options)
    image = read_image(tmp_path / "a.tif")
    assert image.pixel_size == pytest.approx(size)
    assert image.unit == "micrometer"
    tifffile.imwrite(
        tmp_path / "b.tif", ramp(5, 6), resolution=(72, 72), resolutionunit=unit
    )
    assert read_image(tmp_path / "b.tif").pixel_size == {}


@pytest.mark.parametrize("compression", [None, "zlib"], ids=["flat", "compressed"])
@pytest.mark.filterwarnings("error::ResourceWarning")
def test_large_tiff_stays_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str | None
) -> None:
    data = ramp(3, 128, 144)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        data,
        photometric="minisblack",
        compression=compression,
        tile=(64, 64) if compression else None,
        metadata={"axes": "ZYX"},
    )
    monkeypatch.setattr(reading, "LAZY_ABOVE", 1000)
    image = read_image(path)
    assert isinstance(image.data, zarr.Array if compression else np.memmap)
    assert (image.axes, image.data.shape) == ("ZYX", data.shape)
    np.testing.assert_array_equal(image.data[1, 60:70, 100:], data[1, 60:70, 100:])
    if compression:
        assert image.data.chunks == (1, 64, 64)
    del image
    gc.collect()  # closes the file, or a ResourceWarning fails the test


def test_of_a_pyramid_the_finest_level_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ramp(64, 64)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        options: dict[str, Any] = {"tile": (16, 16), "compression": "zlib"}
        tif.write(data, subifds=1, **options)
        tif.write(data[::2, ::2], subfiletype=1, **options)
    assert read_image(tmp_path / "a.tif").data.shape == (64, 64)
    monkeypatch.setattr(reading, "LAZY_ABOVE", 1000)
    lazy = read_image(tmp_path / "a.tif").data
    np.testing.assert_array_equal(lazy[...], data)


@pytest.mark.parametrize(
    ("shape", "dtype", "axes", "read_shape"),
    [
        ((5, 6), "uint8", "YX", (5, 6)),
        ((5, 6), "uint16", "YX", (5, 6)),
        ((5, 6, 2), "uint8", "YX", (5, 6)),  # grey with transparency
        ((5, 6, 3), "uint8", "YXC", (5, 6, 3)),
        ((5, 6, 4), "uint8", "YXC", (5, 6, 4)),
    ],
)
def test_png(
    tmp_path: Path,
    shape: tuple[int, ...],
    dtype: str,
    axes: str,
    read_shape: tuple[int, ...],
) -> None:
    data = ramp(*shape, dtype=dtype)
    imageio.imwrite(tmp_path / "a.png", data)
    image = read_image(tmp_path / "a.png")
    assert (image.axes, image.pixel_size) == (axes, {})
    same = data[..., 0] if shape != read_shape else data
    np.testing.assert_array_equal(image.data, same)


def ome_zarr(path: Path, data: np.ndarray[Any, Any], version: str) -> None:
    """Write an image as the specification's own examples do."""
    modern = version == "0.5"
    group = zarr.open_group(path, mode="w", zarr_format=3 if modern else 2)
    for level in range(2):
        step = 2**level
        part = data[..., ::step, ::step]
        array = group.create_array(f"s{level}", shape=part.shape, dtype=part.dtype)
        array[...] = part
    datasets = [
        {
            "path": f"s{level}",
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0, 1.0, 2.0, 0.25 * 2**level, 0.25]},
                {"type": "translation", "translation": [0.0, 0.0, 4.0, 1.0, 0.0]},
            ],
        }
        for level in range(2)
    ]
    axes = [
        {"name": "t", "type": "time", "unit": "millisecond"},
        {"name": "c", "type": "channel"},
        *({"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"),
    ]
    whole = [{"type": "scale", "scale": [500.0, 1.0, 1.0, 2.0, 2.0]}]
    multiscale = {
        "axes": axes,
        "datasets": datasets,
        "coordinateTransformations": whole,
    }
    if modern:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
    else:
        group.attrs["multiscales"] = [multiscale | {"version": version}]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path: Path, version: str) -> None:
    data = ramp(2, 3, 4, 10, 12)
    ome_zarr(tmp_path / "a.zarr", data, version)
    image = read_image(tmp_path / "a.zarr")
    assert isinstance(image.data, zarr.Array)
    np.testing.assert_array_equal(image.data[...], data)
    assert (image.axes, image.unit) == ("TCZYX", "micrometer")
    size = {"T": 0.5, "Z": 2.0, "Y": 0.5, "X": 0.5}
    assert image.pixel_size == pytest.approx(size)
    assert image.origin == pytest.approx({"Z": 4.0, "Y": 2.0})


def test_older_and_other_zarr(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = ramp(1, 1, 2, 5, 6)
    group = zarr.open_group(tmp_path / "old.zarr", mode="w", zarr_format=2)
    zarr.open_group(tmp_path / "old.zarr" / "0", mode="w", zarr_format=2)
    group["0"].create_array("0", data=data)
    group["0"].attrs["multiscales"] = [{"version": "0.1", "datasets": [{"path": "0"}]}]
    group.attrs["bioformats2raw.layout"] = 3
    assert read_image(tmp_path / "old.zarr").axes == "TCZYX"
    assert read_image(tmp_path / "old.zarr").data.shape == data.shape
    assert not caplog.messages
    zarr.open_group(tmp_path / "old.zarr" / "1", mode="w", zarr_format=2)
    read_image(tmp_path / "old.zarr")
    assert "several images; the first, 0, is read" in caplog.text
    bare = read_image(tmp_path / "old.zarr" / "0" / "0")
    assert (bare.axes, bare.data.shape) == (None, data.shape)


def test_a_group_without_image_is_an_error(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    with pytest.raises(DataError, match="not OME-Zarr"):
        read_image(tmp_path / "a.zarr")
    group.attrs["ome"] = {"plate": {}}
    with pytest.raises(DataError, match="plate"):
        read_image(tmp_path / "a.zarr")


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.zarr", "cut.tif", "cut.png"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.startswith("a."):
        path.write_bytes(b"no image at all")
    elif name == "cut.tif":
        tifffile.imwrite(path, ramp(200, 200), compression="zlib")
    else:
        imageio.imwrite(path, ramp(200, 200))
    if name.startswith("cut"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        read_image(path)


def test_missing_and_unknown_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file.*a\.tif"):
        read_image(tmp_path / "a.tif")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"a\.txt has no suffix"):
        read_image(tmp_path / "a.txt")


def test_labels_are_whole_numbers_without_channels(tmp_path: Path) -> None:
    imageio.imwrite(tmp_path / "grey.png", ramp(5, 6, dtype="uint8"))
    assert read_labels(tmp_path / "grey.png").max() == 29
    tifffile.imwrite(tmp_path / "whole.tif", ramp(5, 6, dtype="float32"))
    assert read_labels(tmp_path / "whole.tif").dtype.kind == "i"
    tifffile.imwrite(tmp_path / "part.tif", ramp(5, 6, dtype="float32") / 2)
    with pytest.raises(DataError, match=r"part\.tif holds float32"):
        read_labels(tmp_path / "part.tif")
    tifffile.imwrite(tmp_path / "negative.tif", ramp(5, 6, dtype="int16") - 1)
    with pytest.raises(DataError, match="negative labels, down to -1"):
        read_labels(tmp_path / "negative.tif")
    imageio.imwrite(tmp_path / "rgb.png", ramp(5, 6, 3, dtype="uint8"))
    with pytest.raises(DataError, match="3 channels"):
        read_labels(tmp_path / "rgb.png")
