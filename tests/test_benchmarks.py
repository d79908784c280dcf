"""The benchmark of speed, on very small images: that it runs, not what it says."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from napari_attunet.spec import NetworkSpec

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BENCHMARKS.exists(), reason="needs a checkout"),
]


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    small = NetworkSpec(in_channels=3, features=(64, 128))
    for part in ("forwards", "images"):
        monkeypatch.setattr(import_module(f"timing.{part}"), "REFERENCE", small)
    monkeypatch.setattr("timing.images.FAST", 0.05)  # of a few pixels
    gated = ((8, 16), small.features)
    monkeypatch.setattr(import_module("timing.steps"), "GATED", gated)
    for rival in ("onnxruntime", "openvino"):  # theirs are not ours to test
        monkeypatch.setitem(sys.modules, rival, None)
    return import_module("speed")


def run(speed, monkeypatch, tmp_path, parts):
    file = tmp_path / "rows.json"
    options = f"--parts {parts} --threads 1 --rounds 1 --size 64 --image 128 --areas 64"
    options += " --steps 8"
    argv = ["speed.py", *options.split(), "--json", str(file)]
    monkeypatch.setattr(sys, "argv", argv)
    speed.main()
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    "half",
    [
        pytest.param(True, id="with 16 bits"),
        pytest.param(False, id="without"),
    ],
)
def test_every_part_says_something(speed, monkeypatch, tmp_path, half):
    if half and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no bfloat16 on this processor, not even emulated")
    dtype = torch.bfloat16 if half else None
    monkeypatch.setattr("timing.forwards.fast_type", lambda device: dtype)
    parts = "checks,forward,image,reference,frames,gates,training,curve"
    rows = run(speed, monkeypatch, tmp_path, parts)
    assert all(row["seconds"] > 0 for row in rows)
    errors = [(row["who"], row["error"]) for row in rows if "error" in row]
    ours = [error for who, error in errors if who == "ours"]
    assert len(ours) == 3
    assert max(ours) < 1e-4
    assert sum("bfloat16" in who for who, _ in errors) == (3 if half else 0)
    assert max(error for _, error in errors) < 0.2
    whole = [row for row in rows if row["what"].startswith(("image of", "64 frames"))]
    assert [row["labels"] for row in whole if row["who"] == "ours"] == [0, 0, 0]


def test_areas_and_starts_have_processes_of_their_own(speed, monkeypatch, tmp_path):
    rows = run(speed, monkeypatch, tmp_path, "area,start")
    told = [row["what"] for row in rows]
    assert "64 x 64 to classes" in told
    assert "64 x 64 to objects" in told
    assert "import napari_attunet" in told
    assert sum("dock" in what for what in told) == 3


def test_what_differs_from_the_cpu_fails(speed, monkeypatch, tmp_path):
    monkeypatch.setattr("timing.images.EXACT", -1.0)
    with pytest.raises(SystemExit, match="exact mode differs"):
        run(speed, monkeypatch, tmp_path, "checks")
