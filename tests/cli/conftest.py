"""A tiny model with random weights, images for it, their labels, an empty shelf."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_attunet.cli import main
from napari_attunet.images import read_image, write_labels
from napari_attunet.library import Library
from napari_attunet.model import Model, save_model
from napari_attunet.samples import synthetic_nuclei
from napari_attunet.spec import ModelSpec, NetworkSpec


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    network = NetworkSpec(out_channels=3, features=(4, 8, 8))
    spec = ModelSpec(name="tiny", network=network, output="objects")
    return save_model(Model.fresh(spec), tmp_path / "tiny.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images with pixel sizes."""
    (tmp_path / "images").mkdir()
    for seed, name in enumerate(("a.tif", "b.ome.tif")):
        image, _ = synthetic_nuclei((48, 40), seed=seed)
        metadata = {"axes": "YX", "unit": "um"}
        tifffile.imwrite(
            tmp_path / "images" / name,
            image,
            imagej=not name.endswith("ome.tif"),
            resolution=(4, 2),
            metadata=metadata if name == "a.tif" else {"axes": "YX"},
        )
    return tmp_path / "images"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line; return the exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def truths(tmp_path: Path, folder: Path) -> Path:
    for path in folder.iterdir():
        image = read_image(path).data
        truth = (image > np.median(image)).astype(np.int32)
        write_labels(tmp_path / "labels" / f"{path.name[0]}.png", truth, axes="YX")
    return tmp_path / "labels"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.setenv("NAPARI_ATTUNET_MODELS", str(tmp_path / "shelf"))
    return Library()
