"""Files go in, label files come out, and what went wrong is told at the end."""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile

from napari_attunet.cli import segment as command
from napari_attunet.errors import DataError
from napari_attunet.images import read_image, write_labels, writing
from napari_attunet.model import Model, load_model, save_model
from napari_attunet.segmenter import Segmenter
from napari_attunet.spec import ModelSpec, NetworkSpec

Call = Callable[..., tuple[int, str, str]]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_folder_gives_what_the_segmenter_gives(
    call: Call, tmp_path: Path, folder: Path, model_file: Path
) -> None:
    out = tmp_path / "out"
    options = ("--attention", "--probabilities", "--min-size", "3", "--threads", "1")
    code, told, errors = call(
        "segment", folder, "--model", model_file, "-o", out, *options
    )
    assert (code, errors) == (0, "")
    what = ("alpha_level_1", "alpha_level_2", "labels", "probabilities")
    wanted = itertools.product((("a", ".tif"), ("b", ".ome.tif")), what)
    assert names(out) == [f"{n}_{w}{s}" for (n, s), w in wanted]
    assert told.count(" -> ") == 2

    model = load_model(model_file)
    settings = type(model.spec.objects)(min_size=3)
    image = read_image(folder / "a.tif")
    result = Segmenter(model, threads=1).segment(
        image.data, axes="YX", attention=True, probabilities=True, objects=settings
    )
    labels = read_image(out / "a_labels.tif")
    np.testing.assert_array_equal(labels.data, result.labels)
    assert labels.pixel_size == pytest.approx({"Y": 0.5, "X": 0.25})
    np.testing.assert_allclose(
        read_image(out / "a_probabilities.tif").data, result.probabilities, atol=1e-6
    )
    coarse = read_image(out / "a_alpha_level_2.tif")
    np.testing.assert_allclose(coarse.data, result.attention[1].values, atol=1e-6)
    assert coarse.pixel_size == pytest.approx({"Y": 1.0, "X": 0.5})
    assert coarse.origin == pytest.approx({"Y": 0.25, "X": 0.125})


def test_what_is_empty_can_be_skipped(
    call: Call, tmp_path: Path, folder: Path, model_file: Path
) -> None:
    arguments = ("segment", folder / "a.tif", "--model", model_file, "--skip-empty")
    assert call(*arguments, "-o", tmp_path / "quick.tif")[0] == 0
    image = read_image(folder / "a.tif").data
    segmenter = Segmenter(load_model(model_file))
    wanted = segmenter.segment(image, axes="YX", skip_empty=True).labels
    np.testing.assert_array_equal(read_image(tmp_path / "quick.tif").data, wanted)
    code, _, errors = call(*arguments, "-o", tmp_path / "b.tif", "--attention")
    assert code != 0
    assert "without attention" in errors


def test_thresholds_and_holes(
    call: Call, tmp_path: Path, folder: Path, model_file: Path
) -> None:
    arguments = ("segment", folder / "a.tif", "--model", model_file)
    options = ("--threshold", "0.3", "--no-fill-holes", "--min-size", "0")
    assert call(*arguments, "-o", tmp_path / "objects.tif", *options)[0] == 0
    classes = ("--output", "classes", "--threshold", "0.3")
    assert call(*arguments, "-o", tmp_path / "classes.tif", *classes)[0] == 0
    model, image = load_model(model_file), read_image(folder / "a.tif").data
    settings = dataclasses.replace(
        model.spec.objects, foreground_threshold=0.3, fill_holes=False, min_size=0
    )
    wanted = Segmenter(model).segment(image, axes="YX", objects=settings).labels
    np.testing.assert_array_equal(read_image(tmp_path / "objects.tif").data, wanted)
    wanted = Segmenter(model).segment(image, axes="YX", output="classes", threshold=0.3)
    np.testing.assert_array_equal(
        read_image(tmp_path / "classes.tif").data, wanted.labels
    )


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("png", ["a_alpha_level_1.tif", "a_alpha_level_2.tif", "a_labels.png"]),
        (
            "ome-zarr",
            [f"a_{w}.ome.zarr" for w in ("alpha_level_1", "alpha_level_2", "labels")],
        ),
    ],
)
def test_formats(
    call: Call,
    tmp_path: Path,
    folder: Path,
    model_file: Path,
    kind: str,
    files: list[str],
) -> None:
    out = tmp_path / "out"
    call(
        *("segment", folder / "a.tif", "--model", model_file, "-o", out),
        *("--format", kind, "--attention"),
    )
    assert names(out) == files


def test_a_stack_does_not_become_png(
    call: Call, tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = np.random.default_rng(0).integers(0, 200, (3, 20, 24), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stack, metadata={"axes": "ZYX"}, imagej=True)
    segment = ("segment", tmp_path / "a.tif", "--model", model_file, "-o")
    code, _, errors = call(*segment, tmp_path / "out", "--format", "png")
    assert (code, errors) == (0, "")
    assert names(tmp_path / "out") == ["a_labels.tif"]
    monkeypatch.setattr(Segmenter, "steps", None)  # it is told before
    code, _, errors = call(*segment, tmp_path / "mine.png")
    assert code == 1
    assert "mine.png: PNG holds one 2D image, not ZYX" in errors
    code, _, errors = call(*segment, tmp_path / "out", "--format", "png")
    assert "a_labels.tif is there already" in errors


def test_more_labels_than_png_numbers_become_tiff(
    call: Call,
    tmp_path: Path,
    folder: Path,
    model_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "PNG_LABELS", 0)
    out = tmp_path / "out"
    segment = ("segment", folder / "a.tif", "--model", model_file, "-o")
    options = ("--format", "png", "--output", "classes", "--threshold", "0")
    assert call(*segment, out, *options)[0] == 0
    assert names(out) == ["a_labels.tif"]


def test_a_stack_read_from_ome_zarr_is_written_as_ome_zarr(
    call: Call, tmp_path: Path, model_file: Path
) -> None:
    stack = np.random.default_rng(0).integers(0, 200, (3, 20, 24))
    grid: dict[str, Any] = {
        "pixel_size": {"Z": 2.0, "Y": 0.5, "X": 0.5},
        "unit": "micrometer",
        "origin": {"Z": 6.0},
    }
    write_labels(tmp_path / "a.zarr", stack, axes="ZYX", **grid)
    code, _, errors = call(
        "segment", tmp_path / "a.zarr", "--model", model_file, "-o", tmp_path / "out"
    )
    assert (code, errors) == (0, "")
    labels = read_image(tmp_path / "out" / "a_labels.zarr")
    assert (labels.axes, labels.data.shape) == ("ZYX", (3, 20, 24))
    assert labels.pixel_size == pytest.approx(grid["pixel_size"])
    assert labels.origin == pytest.approx({"Z": 6.0})


def test_a_single_image_may_go_to_a_file(
    call: Call, tmp_path: Path, folder: Path, model_file: Path
) -> None:
    single = ("segment", folder / "a.tif", "--model", model_file, "--attention", "-o")
    assert call(*single, tmp_path / "out" / "mine.png")[0] == 0
    assert names(tmp_path / "out") == [
        "mine.png",
        "mine_alpha_level_1.tif",
        "mine_alpha_level_2.tif",
    ]
    code, _, errors = call(
        "segment", folder, "--model", model_file, "-o", tmp_path / "one.tif"
    )
    assert code == 1
    assert "2 images don't fit into the file" in errors


def test_classes_channels_and_axes(
    call: Call, tmp_path: Path, model_file: Path
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (20, 24, 5), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack")
    arguments = ("segment", tmp_path / "a.tif", "--model", model_file, "-o", tmp_path)
    arguments += ("--output", "classes", "--overwrite")
    options = ("--axes", "yxc", "--channels", "3", "--tile", "16", "--device", "cpu")
    code, _, errors = call(*arguments, *options)
    assert (code, errors) == (0, "")
    wanted = Segmenter(load_model(model_file)).segment(
        image[..., 3], axes="YX", output="classes"
    )
    np.testing.assert_array_equal(
        read_image(tmp_path / "a_labels.tif").data, wanted.labels
    )
    code, _, errors = call(*arguments, "--axes", "yxc", "--channels", "luminanze")
    assert code == 1
    assert "luminanze" in errors
    code, _, errors = call(*arguments, "--min-size", "3", "--no-fill-holes")
    assert code == 1
    assert "--min-size, --fill-holes: for objects only" in errors


def test_a_bad_file_among_good_ones_is_told_at_the_end(
    call: Call, tmp_path: Path, folder: Path, model_file: Path
) -> None:
    (folder / "a2.tif").write_bytes(b"no image")
    missing = tmp_path / "missing.tif"
    code, told, errors = call(
        *("segment", folder, missing, f"{tmp_path}/*.nothing"),
        *("--model", model_file, "-o", tmp_path / "out"),
    )
    assert code == 1
    assert names(tmp_path / "out") == ["a_labels.tif", "b_labels.ome.tif"]
    assert told.count(" -> ") == 2
    lines = errors.splitlines()
    assert len(lines) == 4
    for text in ("a2.tif cannot be read", f"no file {missing}", "No images fit"):
        assert sum(text in line for line in lines) == 1
    assert "Traceback" not in errors
    verbose = call(
        *("segment", missing, "--model", model_file, "-o", tmp_path / "out"),
        "--verbose",
    )
    assert "Traceback" in verbose[2]
    assert "tiny@1 on" in verbose[1]


def test_nothing_is_overwritten_unasked(
    call: Call, tmp_path: Path, folder: Path, model_file: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a_labels.tif").write_text("precious")
    arguments = ("segment", folder, "--model", model_file, "-o", out)
    code, _, errors = call(*arguments)
    assert code == 1
    assert "a_labels.tif is there already; --overwrite" in errors
    assert (out / "a_labels.tif").read_text() == "precious"
    assert (out / "b_labels.ome.tif").exists()
    assert call(*arguments, "--overwrite")[0] == 0
    assert read_image(out / "a_labels.tif").data.shape == (48, 40)
    image = folder / "a.tif"
    code, _, errors = call(
        "segment", image, "--model", model_file, "-o", image, "--overwrite"
    )
    assert code == 1
    assert "is the image itself" in errors


def test_own_results_in_the_folder_are_no_images(
    call: Call, folder: Path, model_file: Path
) -> None:
    arguments = ("segment", folder, "--model", model_file, "-o", folder, "--overwrite")
    assert call(*arguments, "--attention")[0] == 0
    before = names(folder)
    assert call(*arguments, "--attention")[0] == 0
    assert names(folder) == before


def test_a_named_file_that_is_left_out_is_told(
    call: Call, folder: Path, model_file: Path
) -> None:
    files = [folder / "a.tif", folder / "a_labels.tif"]
    write_labels(files[1], np.ones((4, 4), int), axes="YX")
    segment = ("segment", *files, "--model", model_file, "-o", folder / "out")
    code, told, _ = call(*segment)
    assert code == 0
    assert f"{files[1]} is left out" in told
    assert names(folder / "out") == ["a_labels.tif"]


def test_errors_hold_no_images(
    call: Call,
    tmp_path: Path,
    folder: Path,
    model_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alive = []

    class Result:
        labels = np.zeros((48, 40), np.int32)
        axes, attention, tables, probabilities = "YX", (), (), None

    def steps(*_: Any, **__: Any) -> Any:
        result = Result()
        alive.append(weakref.ref(result))
        return result
        yield

    def full(*_: Any, **__: Any) -> None:
        alive.append(len([r for r in alive if callable(r) and r()]))
        raise DataError("not written") from OSError("No space left on device")

    monkeypatch.setattr(Segmenter, "steps", steps)
    monkeypatch.setattr("napari_attunet.images.write_labels", full)
    code, _, errors = call(
        "segment", folder, "--model", model_file, "-o", tmp_path / "out"
    )
    assert (code, errors.count("not written")) == (1, 2)
    assert [n for n in alive if isinstance(n, int)] == [1, 1]


def test_ctrl_c_leaves_no_half_file(
    call: Call,
    tmp_path: Path,
    folder: Path,
    model_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(path: Path, *_: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "_write_tiff", interrupted)
    out = tmp_path / "out"
    code, _, errors = call("segment", folder, "--model", model_file, "-o", out)
    assert (code, errors) == (130, "napari-attunet: stopped\n")
    assert names(out) == []


def test_errors_of_the_model_are_one_line(
    call: Call, tmp_path: Path, folder: Path
) -> None:
    code, told, errors = call("segment", folder, "--model", "nosuch", "-o", tmp_path)
    assert (code, told) == (1, "")
    assert errors.count("\n") == 1
    assert "nosuch" in errors
    spec = ModelSpec(name="plain", network=NetworkSpec(features=(4, 8), gate=None))
    plain = save_model(Model.fresh(spec), tmp_path / "plain.safetensors")
    code, _, errors = call(
        "segment", folder, "--model", plain, "-o", tmp_path, "--attention"
    )
    assert code == 1
    assert "no attention to write" in errors


def test_patterns_are_expanded(folder: Path, tmp_path: Path) -> None:
    found, problems = command.expand([f"{folder}/*.tif", str(folder / "a.tif")])
    assert [p.name for p in found] == ["a.tif", "b.ome.tif"]
    assert problems == []
    imageio.imwrite(tmp_path / "x_labels.png", np.zeros((2, 2), np.uint8))
    alone, _ = command.expand([str(tmp_path / "x_labels.png")])
    assert [p.name for p in alone] == ["x_labels.png"]


@pytest.mark.parametrize(
    ("source", "out", "kind", "target"),
    [
        ("a.tiff", "out", None, "out/a_labels.tiff"),
        ("a.ome.tif", "out", None, "out/a_labels.ome.tif"),
        ("a.ome.tif", "out", "png", "out/a_labels.png"),
        ("a.jpg", "out", None, "out/a_labels.png"),
        ("a.png", "out", "ome-zarr", "out/a_labels.ome.zarr"),
        ("a.zarr", "out", None, "out/a_labels.zarr"),
        ("a.txt", "out", None, "out/a.txt_labels.tif"),
        ("a.tif", "out.zarr", None, "out.zarr"),
    ],
)
def test_plan(source: str, out: str, kind: str | None, target: str) -> None:
    assert command.plan([Path(source)], Path(out), kind) == [
        command.Task(Path(source), Path(target), named=source == "a.tif")
    ]


def test_plans_that_cannot_be() -> None:
    both = [Path("x/a.tif"), Path("y/a.tif")]
    with pytest.raises(DataError, match="both be written"):
        command.plan(both, Path("out"))
    with pytest.raises(DataError, match="should"):
        command.plan(both[:1], Path("out.png"), "tif")
    with pytest.raises(DataError, match="damage labels"):
        command.plan(both[:1], Path("out.jpg"))


def test_precision_is_passed_on(
    call: Call, tmp_path: Path, folder: Path, model_file: Path, monkeypatch
) -> None:
    monkeypatch.setattr("napari_attunet.devices.has_bfloat16", lambda name: False)
    options = ("--model", model_file, "--device", "cpu", "--precision", "fast")
    code, told, _ = call("segment", folder, "-o", tmp_path / "out", *options)
    assert code == 0
    assert told.count("cpu has no fast mode") == 2
