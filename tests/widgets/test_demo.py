"""The demonstration, whole: its picture shows the tissue, the nuclei and every gate."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import pytest

from napari_attunet.errors import DeviceError
from napari_attunet.model import Model, save_model
from napari_attunet.spec import ModelSpec, NetworkSpec
from napari_attunet.widgets import demo

CODE = """
import sys
from pathlib import Path
from napari_attunet.widgets.demo import run
run(Path(sys.argv[1]))
"""


@pytest.mark.gl
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("Xvfb"), reason="needs Xvfb")
def test_a_picture_without_a_screen(tmp_path):
    spec = ModelSpec(
        name="nuclei-histology",
        version=999,
        network=NetworkSpec(in_channels=3, out_channels=3, features=(4, 8, 16)),
        output="objects",
    )
    save_model(Model.fresh(spec), tmp_path / f"{spec.key}.safetensors")
    screens = {"DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"}
    environment = {k: v for k, v in os.environ.items() if k not in screens}
    environment["NAPARI_ATTUNET_MODELS"] = str(tmp_path)
    picture = tmp_path / "demo.png"
    subprocess.run(
        [sys.executable, "-c", CODE, str(picture)],
        check=True,
        env=environment,
        timeout=200,
    )
    pixels = iio.imread(picture)
    assert pixels.shape[:2] == demo.WINDOW[::-1]
    middle = pixels[100:-100, 500:-500, :3]
    assert (middle.std(axis=(0, 1)) > 20).all()  # tissue and attention, not one colour
    assert Path(picture).stat().st_size > 200_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
@pytest.mark.parametrize(("virtual", "xvfb"), [(False, "Xvfb"), (True, None)])
def test_no_screen_is_an_error_and_no_abort(monkeypatch, virtual, xvfb):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: xvfb)
    with pytest.raises(DeviceError, match="no screen"):
        demo.run(Path("demo.png") if virtual else None)
