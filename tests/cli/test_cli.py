"""The other commands, and what all commands share."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from napari_attunet.cli import main
from napari_attunet.cli.console import Bar, report, table
from napari_attunet.devices import Device, choose_dtype
from napari_attunet.errors import DataError
from napari_attunet.evaluation import score
from napari_attunet.images import read_image, write_labels
from napari_attunet.library import Library
from napari_attunet.model import Model, load_model, save_model
from napari_attunet.progress import Progress
from napari_attunet.segmenter import Segmenter
from napari_attunet.spec import ModelSpec, NetworkSpec

Call = Callable[..., tuple[int, str, str]]


# --- shared ---------------------------------------------------------------------------


def test_help_waits_for_nothing() -> None:
    code = (
        "import sys; from napari_attunet.cli import main\n"
        "try: main(['segment', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'zarr', 'napari', 'tqdm'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "--attention" in ended.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["segment"], ["nosuch"], ["models"], ["doctor", "--threads", "0"]]
)
def test_wrong_arguments_exit_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    report(DataError("two\n  lines"), subject="a.tif")
    report(KeyError("x"))
    report(MemoryError())
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "napari-attunet: a.tif: two lines",
        "napari-attunet: Unexpected KeyError: 'x' (--verbose tells more)",
        "napari-attunet: The memory does not suffice.",
    ]


def test_table_is_aligned() -> None:
    text = table(("name", "Dice"), [("a", 0.5), ("longer", 1)])
    assert text == "name    Dice\na       0.500\nlonger  1"


def test_bar_shows_where_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, watched in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with Bar(2) as bar:
            bar.job(1, "b.tif")(Progress(1, 2, "Working"))
            bar._bar.refresh()
        assert ("b.tif: Working:  75%" in stream.getvalue()) is watched


# --- evaluate -------------------------------------------------------------------------


def test_evaluate_prints_the_scores(
    call: Call, folder: Path, truths: Path, model_file: Path
) -> None:
    arguments = ("evaluate", "--model", model_file, "--images", folder)
    arguments += ("--labels", truths)
    code, told, errors = call(*arguments, "--json")
    assert (code, errors) == (0, "")
    segmenter = Segmenter(load_model(model_file))
    wanted = score(
        (segmenter.segment(read_image(i).data).labels, read_image(t).data)
        for i, t in ((folder / "a.tif", truths / "a.png"),
                     (folder / "b.ome.tif", truths / "b.png"))
    )  # fmt: skip
    scores = json.loads(told)
    for name in ("dice", "ap50", "ap50_pooled", "ap70"):
        assert scores[name] == pytest.approx(getattr(wanted, name))
    assert [i["name"] for i in scores["images"]] == ["a.tif", "b.ome.tif"]
    assert scores["model"] == "tiny@1"
    code, told, _ = call(*arguments)
    assert code == 0
    head, *rows = (line.split() for line in told.splitlines())
    assert head[:4] == ["image", "Dice", "AP50", "AP70"]
    assert [r[0] for r in rows] == ["a.tif", "b.ome.tif", "mean", "pooled"]
    assert float(rows[2][1]) == pytest.approx(wanted.dice, abs=1e-3)


def test_evaluate_as_precisely_as_it_is_asked(
    call: Call, folder: Path, truths: Path, model_file: Path, monkeypatch
) -> None:
    asked: list[str] = []

    def noted(precision: str, device: Device) -> tuple[object, str]:
        asked.append(precision)
        return choose_dtype(precision, device)

    monkeypatch.setattr("napari_attunet.segmenter.choose_dtype", noted)
    arguments = ("evaluate", "--model", model_file, "--images", folder)
    code, *_ = call(*arguments, "--labels", truths, "--precision", "exact")
    assert (code, set(asked)) == (0, {"exact"})


def test_evaluate_goes_on_after_a_bad_image(
    call: Call, folder: Path, truths: Path, model_file: Path
) -> None:
    write_labels(truths / "a.png", np.ones((3, 3), np.int32), axes="YX")
    code, told, errors = call(
        *("evaluate", "--model", model_file, "--images", folder, "--labels", truths)
    )
    assert code == 1
    assert "a.png has the shape (3, 3), its image (48, 40)" in errors
    assert "b.ome.tif" in told


def test_evaluate_classes(
    call: Call, tmp_path: Path, folder: Path, truths: Path
) -> None:
    spec = ModelSpec(
        name="c", network=NetworkSpec(features=(4, 8)), classes=("ground", "cell")
    )
    path = save_model(Model.fresh(spec), tmp_path / "c.safetensors")
    code, told, _ = call(
        *("evaluate", "--model", path, "--images", folder, "--labels", truths, "--json")
    )
    assert code == 0
    assert set(json.loads(told)["dice"]) == {"ground", "cell"}


# --- models ---------------------------------------------------------------------------


def test_models_come_and_go(
    call: Call, tmp_path: Path, model_file: Path, shelf: Library
) -> None:
    assert call("models", "import", model_file) == (0, "tiny@1\n", "")
    code, _, errors = call("models", "import", model_file)
    assert code == 1
    assert "tiny@1 already" in errors
    assert call("models", "import", model_file, "--name", "other")[:2] == (
        0,
        "other@1\n",
    )
    code, told, _ = call("models", "list")
    assert code == 0
    assert (
        sum(line.startswith(("tiny@1 ", "other@1 ")) for line in told.split("\n")) == 2
    )
    assert json.loads(call("models", "show", "other")[1])["name"] == "other"
    assert json.loads(call("models", "show", model_file)[1])["name"] == "tiny"
    copy = tmp_path / "copies" / "copy.safetensors"
    assert call("models", "export", "tiny", copy)[0] == 0
    assert copy.read_bytes() == model_file.read_bytes()
    assert call("models", "export", "tiny", copy)[0] == 1
    assert call("models", "export", "tiny", copy, "--overwrite")[0] == 0
    assert call("models", "remove", "tiny@1")[0] == 0
    assert shelf.find("other").spec.name == "other"
    assert call("models", "show", "tiny")[0] == 1


def test_a_damaged_model_is_not_let_in(
    call: Call, tmp_path: Path, model_file: Path, shelf: Library
) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(model_file.read_bytes()[:-100])
    code, _, errors = call("models", "import", cut)
    assert code == 1
    assert "cut.safetensors" in errors
    assert not shelf.folder.exists()
    shelf.folder.mkdir()
    (shelf.folder / "bad.safetensors").write_bytes(b"x")
    code, _, errors = call("models", "list")
    assert code == 1
    assert "bad.safetensors" in errors


# --- doctor ---------------------------------------------------------------------------


def test_doctor_tells_why_cuda_is_not_used(call: Call, shelf: Library) -> None:
    from napari_attunet.devices import choose_device

    code, told, errors = call("doctor")
    assert (code, errors) == (0, "")
    facts = dict(line.split("  ", 1) for line in told.splitlines())
    assert choose_device().reason in facts["runs on"]
    assert str(shelf.folder) in facts["your models"]
    assert facts["fast mode"].strip() in ("none", "bfloat16", "float16")
    assert facts["numpy"].strip() == np.__version__


# --- demo -----------------------------------------------------------------------------


def test_demo_hands_over_to_the_viewer(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Path | None] = []
    window = types.ModuleType("demo")
    window.run = shown.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "napari_attunet.widgets.demo", window)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    picture = tmp_path / "new" / "a.png"
    assert call("demo", "--screenshot", picture) == (0, "", "")
    assert call("demo") == (0, "", "")
    assert shown == [picture, None]
    assert picture.parent.is_dir()
    assert "PNG" in call("demo", "--screenshot", tmp_path / "a.txt")[2]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "needs napari" in call("demo")[2]
    assert len(shown) == 2
