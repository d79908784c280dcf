"""Training from the command line, on labelled images and on corrections."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile

from napari_attunet import devices
from napari_attunet.architecture import ATTENTION, FEATURES, WHERE
from napari_attunet.cli import train
from napari_attunet.corrections import Correction, TrainingSet
from napari_attunet.errors import DataError, ModelError
from napari_attunet.header import read_spec
from napari_attunet.images import write_labels
from napari_attunet.library import Library
from napari_attunet.model import Model, load_model, save_model
from napari_attunet.progress import Progress, Steps, drain
from napari_attunet.samples import synthetic_nuclei
from napari_attunet.spec import (
    AttentionSpec,
    GateSpec,
    ModelSpec,
    NetworkSpec,
    TransformerSpec,
)
from napari_attunet.training.process import COMMAND, child_steps
from napari_attunet.training.record import Contender, Round, read_record
from napari_attunet.training.samples import Pair
from napari_attunet.training.settings import RoundSettings

Call = Callable[..., tuple[int, str, str]]


def test_hold_out() -> None:
    hashes = [f"{17 * i % 256:02x}" for i in range(256)]
    kept, held = train.hold_out(hashes, 0.25)
    assert sorted(kept + held) == list(range(256))
    assert {hashes[i] for i in held} == {f"{i:02x}" for i in range(64)}
    # whatever else there is
    few, some = train.hold_out(hashes[::3], 0.25)
    assert {3 * i for i in some} == {i for i in held if i % 3 == 0}
    assert len(few) + len(some) == 86
    assert train.hold_out(["ff", "fe"], 0.01) == ([0], [1])
    assert train.hold_out(["00", "01"], 0.9) == ([1], [0])
    assert train.hold_out(["00"], 0.5) == ([0], [])
    assert train.hold_out(["00", "01", "02"], 0) == ([0, 1, 2], [])
    with pytest.raises(DataError, match="from 0 to below 1"):
        train.hold_out(["00", "01"], 1)


def test_a_model_learns_other_channels_and_classes(
    call: Call, tmp_path: Path, rng: np.random.Generator
) -> None:
    network = NetworkSpec(features=(4, 8), out_channels=2)
    grey = ModelSpec(name="grey", network=network, channels=("grey",))
    parent = save_model(Model.fresh(grey), tmp_path / "grey.safetensors")
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    image = rng.integers(0, 255, (32, 32, 3), np.uint8)
    imageio.imwrite(tmp_path / "images" / "a.png", image // 4)  # no stained tissue
    write_labels(tmp_path / "labels" / "a.png", image[..., 0] // 64, axes="YX")
    folders = ("--images", tmp_path / "images", "--labels", tmp_path / "labels")
    out = tmp_path / "new.safetensors"
    code, _, errors = call(
        "train", *folders, "--from", parent, "-o", out, "--steps", "1"
    )
    assert (code, errors) == (0, "")
    spec = read_spec(out)
    assert spec.channels == ("red", "green", "blue")
    assert len(spec.classes) == spec.network.out_channels == 4
    assert spec.classes[:2] == grey.classes
    assert spec.parent == "grey@1"
    # a mask is no image of 256 classes
    mask = (image[..., 0] > 100).astype(np.uint8) * 255
    write_labels(tmp_path / "labels" / "a.png", mask, axes="YX")
    options = ("--steps", "1", "--overwrite")
    code, _, errors = call("train", *folders, "--from", parent, "-o", out, *options)
    assert code == 1
    assert "0 and 1" in errors


def test_recipes(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"training": {"steps": 7}}')
    spec, settings = train.read_recipe(path)
    assert (spec, settings.steps) == (None, 7)
    path.write_text('{"model": {"name": "x", "network": {"features": [4, 8]}}}')
    spec, _ = train.read_recipe(path)
    assert spec is not None
    assert spec.network.features == (4, 8)
    for text in ("{", "[]", '{"steps": 7}', '{"training": {"stepz": 7}}'):
        path.write_text(text)
        with pytest.raises(ModelError, match=r"recipe\.json"):
            train.read_recipe(path)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.json"
    settings = {"crop": [32, 32], "batch_size": 1, "validate_every": 2}
    path.write_text(json.dumps({"training": settings}))
    return path


def test_train_writes_a_new_version(
    call: Call,
    tmp_path: Path,
    folder: Path,
    truths: Path,
    model_file: Path,
    recipe: Path,
    shelf: Library,
) -> None:
    out = tmp_path / "better.safetensors"
    arguments = ("train", "--images", folder, "--labels", truths, "-o", out)
    arguments += (
        "--config",
        recipe,
        "--from",
        model_file,
        "--steps",
        "3",
        "--threads",
        1,
    )
    code, told, errors = call(*arguments, "--json")
    assert (code, errors) == (0, "")
    events = [json.loads(line) for line in told.splitlines()]
    steps, result = events[:-1], events[-1]
    assert {e["event"] for e in steps} == {"progress"}
    validated = [e for e in steps if "ap50" in e["values"]]
    assert [(e["done"], e["total"]) for e in validated] == [(2, 3), (3, 3)]
    facts = {"event", "model", "file", "best_step", "scores", "parent_scores"}
    assert set(result) == facts
    assert set(result["parent_scores"]) == set(result["scores"])
    assert (result["event"], result["model"]) == ("result", "tiny@2")
    assert result["file"] == str(out)
    spec = read_spec(out)
    assert (spec.key, spec.parent) == ("tiny@2", "tiny@1")
    assert spec.training["settings"]["steps"] == 3
    assert spec.training["data"]["validation_images"] == 1
    assert sorted(p.name for p in tmp_path.glob("better*")) == [out.name]
    old, new = (load_model(p).network.state_dict() for p in (model_file, out))
    assert any((old[k] != new[k]).any() for k in old)
    code, told, errors = call(*arguments, "--json")
    assert code == 1
    assert "--overwrite" in errors
    event = json.loads(told)
    assert event["event"] == "error"
    assert "--overwrite" in event["message"]
    code, told, errors = call(*arguments, "--overwrite", "--learning-rate", 0.5)
    assert (code, errors) == (0, "")
    lines = told.splitlines()
    assert [" dice " in line for line in lines] == [True, True, False]
    assert lines[-1].startswith(f"{out}: tiny@2, best at step ")
    assert read_spec(out).training["settings"]["learning_rate"] == 0.5


def test_train_from_scratch_fits_the_images(
    call: Call, tmp_path: Path, recipe: Path
) -> None:
    rng = np.random.default_rng(0)
    for name in "ab":
        rgb = rng.integers(0, 255, (32, 32, 3), np.uint8)
        (tmp_path / "rgb").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "rgb" / f"{name}.tif", rgb, photometric="rgb")
        labels = (rgb[..., 0] > 128).astype(np.int32)
        write_labels(tmp_path / "rgb-labels" / f"{name}.tif", labels, axes="YX")
    code, _, errors = call(
        *("train", "--images", tmp_path / "rgb", "--labels", tmp_path / "rgb-labels"),
        *("-o", tmp_path / "mine.safetensors", "--config", recipe, "--steps", 1),
        *("--output", "classes", "--val-fraction", 0, "--threads", 1, "--half"),
    )
    assert (code, errors) == (0, "")
    spec = read_spec(tmp_path / "mine.safetensors")
    assert (spec.key, spec.parent, spec.output) == ("mine@1", None, "classes")
    assert spec.channels == ("red", "green", "blue")
    assert spec.n_classes == 2


NETWORKS: dict[str, dict[str, Any]] = {
    "--gate none": {"gate": None},
    "--gate grid": {"gate": GateSpec(kind="grid")},
    "--gate multiplicative --signal coarse": {
        "gate": GateSpec(kind="multiplicative", signal="coarse")
    },
    "--signal bottleneck": {"gate": GateSpec(signal="bottleneck")},
    "--attention se --attention self@bottleneck": {
        "attention": (
            AttentionSpec(kind="se"),
            AttentionSpec(kind="self", where="bottleneck"),
        )
    },
    "--transformer --residual": {"transformer": TransformerSpec(), "residual": True},
    "--ndim 3": {"ndim": 3},
} | {
    f"--attention {k}@{w}": {"attention": (AttentionSpec(kind=k, where=w),)}
    for k, w in zip(ATTENTION, itertools.cycle(WHERE), strict=False)
}


@pytest.mark.parametrize(("options", "expected"), NETWORKS.items(), ids=NETWORKS)
def test_every_mechanism_trains_and_segments(
    call: Call, tmp_path: Path, options: str, expected: dict[str, Any]
) -> None:
    ndim = expected.get("ndim", 2)
    axes = "ZYX"[3 - ndim :]
    rng = np.random.default_rng(0)
    for name in "ab":
        image = rng.integers(0, 255, (16,) * ndim, np.uint8)
        (tmp_path / "in").mkdir(exist_ok=True)
        tifffile.imwrite(
            tmp_path / "in" / f"{name}.tif", image, metadata={"axes": axes}
        )
        labels = (image > 128).astype(np.int32)
        write_labels(tmp_path / "labels" / f"{name}.tif", labels, axes=axes)
    recipe = tmp_path / "recipe.json"
    crop = [16] * ndim
    recipe.write_text(
        json.dumps({"training": {"steps": 1, "batch_size": 2, "crop": crop}})
    )
    model = tmp_path / "m.safetensors"
    code, _, errors = call(
        *("train", "--images", tmp_path / "in", "--labels", tmp_path / "labels"),
        *("--config", recipe, "-o", model, "--val-fraction", 0, "--threads", 1),
        *("--output", "classes", "--features", "8,16", *options.split()),
    )
    assert (code, errors) == (0, "")
    network = read_spec(model).network
    wanted = NetworkSpec(out_channels=2, features=(8, 16), **expected)
    assert network == wanted
    code, _, errors = call(
        *("segment", tmp_path / "in" / "a.tif", "--model", model, "--threads", 1),
        *("-o", tmp_path / "out", "--axes", axes),
        *(["--attention"] if options != "--gate none" else []),
    )
    assert (code, errors) == (0, "")
    written = {p.name for p in (tmp_path / "out").iterdir()}
    if network.gate is not None:
        assert "a_alpha_level_1.tif" in written
    assert ("a_attention.json" in written) == (
        network.transformer is not None
        or any(
            a.kind in ("se", "eca", "cbam", "cbam-channel") for a in network.attention
        )
    )


def test_volumes_need_no_recipe(call: Call, tmp_path: Path) -> None:
    image, labels = synthetic_nuclei((16, 64, 64), seed=0)
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "a.tif", image, metadata={"axes": "ZYX"})
    write_labels(tmp_path / "labels" / "a.tif", labels, axes="ZYX")
    folders = ("--images", tmp_path / "in", "--labels", tmp_path / "labels")
    short = ("--steps", 1, "--threads", 1)
    one, two = (tmp_path / f"{name}.safetensors" for name in ("one", "two"))
    new = ("--ndim", 3, "--features", "4,8", "-o", one)
    code, _, errors = call("train", *folders, *new, *short)
    assert (code, errors) == (0, "")
    code, told, errors = call("train", *folders, "--from", one, "-o", two, *short)
    assert (code, errors) == (0, "")
    assert "it was not compared with one@1" in told  # nothing is held out of one
    settings = read_spec(two).training["settings"]
    assert (settings["crop"], settings["batch_size"]) == ([16, 64, 64], 2)


def test_a_model_that_became_worse_is_told(
    call: Call,
    tmp_path: Path,
    folder: Path,
    truths: Path,
    model_file: Path,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def validate(model: Model, *_: Any, **__: Any) -> dict[str, float]:
        asked.append(model.spec.key)
        return {"dice": 0.9, "ap50": 0.9}

    monkeypatch.setattr("napari_attunet.training.validation.validate", validate)
    code, told, errors = call(
        *("train", "--images", folder, "--labels", truths, "--from", model_file),
        *("-o", tmp_path / "new.safetensors", "--config", recipe, "--steps", 1),
    )
    assert (code, errors, asked) == (0, "", ["tiny@1"])
    assert told.endswith("tiny@1: 0.900. It became worse: keep that.\n")


def test_what_lies_outside_the_regions_does_not_count(
    call: Call,
    tmp_path: Path,
    folder: Path,
    truths: Path,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taught: list[Pair] = []

    def spy(start: Any, pairs: list[Pair], *_: Any, **__: Any) -> Steps[Model]:
        taught.extend(pairs)
        yield Progress(1, 1)
        raise DataError("seen enough")

    monkeypatch.setattr("napari_attunet.training.trainer.train", spy)
    mask = np.zeros((48, 40), np.uint8)
    mask[:24] = 255
    for name in ("a", "b"):
        write_labels(tmp_path / "regions" / f"{name}.png", mask, axes="YX")
    arguments = ("train", "--images", folder, "--labels", truths)
    arguments += ("-o", tmp_path / "m.safetensors", "--val-fraction", 0)
    regions = ("--regions", tmp_path / "regions")
    assert "seen enough" in call(*arguments, *regions)[2]
    assert len(taught) == 2
    for pair in taught:
        assert pair.weight is not None
        np.testing.assert_array_equal(pair.weight, (mask > 0).astype(np.float32))
    taught.clear()
    assert "seen enough" in call(*arguments)[2]
    assert [p.weight for p in taught] == [None, None]
    write_labels(tmp_path / "regions" / "b.png", mask * 0, axes="YX")
    assert "b.png marks no region" in call(*arguments, *regions)[2]
    write_labels(tmp_path / "regions" / "b.png", mask[:9], axes="YX")
    assert "b.png has the shape (9, 40)" in call(*arguments, *regions)[2]
    (tmp_path / "regions" / "b.png").unlink()
    assert "b.ome.tif" in call(*arguments, *regions)[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "x", "--effort", "quick"], "--effort: goes with --set only"),
        (["--images", "x", "--labels", "y"], "needs --labels and -o"),
        (["--set", "x", "--regions", "y"], "--regions: goes with --images only"),
        (["--set", "x"], "--round"),
        (["--images", "x", "--from", "m", "--gate", "grid"], "goes without --from"),
        (["--set", "x", "--from", "m", "--residual"], "goes without --from"),
        (["--set", "x", "-o", "y.pt"], "ends in .safetensors"),
        (["--set", "x", "--round", "y"], "no folder x"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    call: Call, arguments: list[str], message: str
) -> None:
    code, told, errors = call("train", *arguments)
    assert (code, told) == (1, "")
    assert message in errors


def test_a_surprise_is_told_as_an_event_too(
    call: Call,
    tmp_path: Path,
    folder: Path,
    truths: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any, **__: Any) -> Steps[Model]:
        yield Progress(1, 1, "Training")
        raise RuntimeError("CUDA is tired")

    monkeypatch.setattr("napari_attunet.training.trainer.train", broken)
    code, told, _ = call(
        *("train", "--images", folder, "--labels", truths, "--json"),
        *("-o", tmp_path / "m.safetensors"),
    )
    assert code == 1
    progress, error = map(json.loads, told.splitlines())
    assert (progress["message"], progress["values"]) == ("Training", {})
    assert error == {
        "event": "error",
        "message": "Unexpected RuntimeError: CUDA is tired",
    }


# --- corrections ----------------------------------------------------------------------


@pytest.fixture
def corrections(tmp_path: Path) -> TrainingSet:
    """Two corrected images."""
    training_set = TrainingSet(tmp_path / "set")
    for seed in (0, 1):
        image, labels = synthetic_nuclei((64, 64), seed=seed)
        training_set.add(
            Correction(
                image=image, axes="YX", labels=labels, output="objects", name=f"n{seed}"
            )
        )
    return training_set


@pytest.fixture
def rounds(
    monkeypatch: pytest.MonkeyPatch, model_file: Path
) -> Callable[[str], list[dict[str, Any]]]:
    """Rounds that somebody else decides; returns with what they are called."""

    def decide(proposed: str) -> list[dict[str, Any]]:
        calls = []

        def run_round(
            training_set: TrainingSet,
            parent: str | None,
            settings: RoundSettings,
            folder: Path,
            **options: Any,
        ) -> Steps[Round]:
            calls.append({"parent": parent, "settings": settings, **options})
            values = {"loss": 0.25, "learning_rate": 0.1}
            yield Progress(1, 2, "Training (tuned)", values)
            yield Progress(2, 2, "Training (tuned)", values | {"dice": 0.75})
            model = load_model(model_file)
            spec = dataclasses.replace(model.spec, parent="tiny@1")
            save_model(Model(spec, model.network), folder / "tuned.safetensors")
            contenders = (
                Contender(
                    name="parent",
                    model="tiny@1",
                    scores={"validation": {"dice": 0.5}, "corrections": {"dice": 0.6}},
                    merit=0.5,
                ),
                Contender(
                    name="tuned",
                    model="tiny@1",
                    scores={"validation": {"dice": 0.7}, "corrections": {"dice": 0.8}},
                    merit=0.7,
                    file="tuned.safetensors",
                ),
            )
            return Round(
                contenders=contenders,
                proposed=proposed,
                reason=f"Take the {proposed}.",
                trusted=True,
            )

        monkeypatch.setattr("napari_attunet.training.rounds.run_round", run_round)
        return calls

    return decide


def test_the_best_of_a_round_is_written(
    call: Call,
    tmp_path: Path,
    corrections: TrainingSet,
    rounds: Callable[[str], list[dict[str, Any]]],
    shelf: Library,
) -> None:
    calls = rounds("tuned")
    out = tmp_path / "mine.safetensors"
    arguments = ("train", "--set", corrections.folder, "--from", "tiny", "-o", out)
    code, told, errors = call(*arguments)
    assert (code, errors) == (0, "")
    assert calls[0]["parent"] == "tiny"
    assert told.splitlines() == [
        "Training (tuned), step 2: loss 0.25, learning_rate 0.1, dice 0.75",
        "        validation dice  corrections dice",
        "parent  0.500            0.600",
        "tuned   0.700            0.800",
        "",
        "Take the tuned.",
        f"{out}: tiny@2",
    ]
    spec = read_spec(out)
    assert (spec.key, spec.parent) == ("tiny@2", "tiny@1")
    assert not (tmp_path / "mine.round").exists()
    assert "--overwrite" in call(*arguments)[2]
    code, told, _ = call(*arguments, "--overwrite", "--json", "--round", tmp_path / "r")
    assert code == 0
    *steps, result = map(json.loads, told.splitlines())
    assert [e["values"].get("dice") for e in steps] == [None, 0.75]
    assert (result["event"], result["proposed"]) == ("result", "tuned")
    assert (result["model"], result["file"]) == ("tiny@2", str(out))
    assert result["contenders"][1]["scores"]["corrections"] == {"dice": 0.8}
    assert (tmp_path / "r" / "tuned.safetensors").exists()


def test_nothing_is_written_when_the_parent_stays_the_best(
    call: Call,
    tmp_path: Path,
    corrections: TrainingSet,
    rounds: Callable[[str], list[dict[str, Any]]],
) -> None:
    rounds("parent")
    out = tmp_path / "mine.safetensors"
    code, told, errors = call(
        *("train", "--set", corrections.folder, "--from", "tiny", "-o", out)
    )
    assert (code, errors) == (0, "")
    assert told.splitlines()[-2:] == [
        "Take the parent.",
        f"What was trained is in {tmp_path / 'mine.round'}.",
    ]
    assert not out.exists()
    assert (tmp_path / "mine.round" / "tuned.safetensors").exists()


def test_options_are_the_settings_of_the_round(
    call: Call,
    tmp_path: Path,
    corrections: TrainingSet,
    rounds: Callable[[str], list[dict[str, Any]]],
) -> None:
    calls = rounds("tuned")
    preview = tmp_path / "preview.safetensors"
    arguments = ("train", "--set", corrections.folder, "--round", tmp_path / "r")
    given = {"effort": "thorough", "steps": 9, "network": {"features": [4, 8]}}
    options = ("--settings", json.dumps(given), "--steps", 5, "--start", "scratch")
    options += ("--freeze", "encoder", "--learning-rate", 0.5, "--seed", 3)
    options += ("--output", "objects", "--preview", preview, "--threads", 2)
    assert call(*arguments, *options)[0] == 0
    assert calls[0] == {
        "parent": None,
        "settings": RoundSettings(
            effort="thorough",
            steps=5,
            starts=("scratch",),
            freeze="encoder",
            learning_rate=0.5,
            seed=3,
            output="objects",
            network=NetworkSpec(features=(4, 8)),
        ),
        "device": "auto",
        "thread_count": 2,
        "preview": preview,
    }
    told = ("--settings", json.dumps({"network": {"gate": {"count": 2}}}))
    call(*arguments, *told, "--signal", "coarse", "--attention", "self", "--residual")
    assert calls[-1]["settings"].network == NetworkSpec(
        gate=GateSpec(count=2, signal="coarse"),
        attention=(AttentionSpec(kind="self", where="bottleneck"),),
        residual=True,
    )
    call(*arguments, "--gate", "none")
    assert calls[-1]["settings"].network == NetworkSpec(features=FEATURES, gate=None)
    code, _, errors = call(*arguments, "--gate", "none", "--signal", "fine")
    assert (code, "no gate" in errors) == (1, True)
    for option, starts in (("parent", ("parent",)), ("both", ("parent", "scratch"))):
        call(*arguments, "--start", option)
        assert calls[-1]["settings"] == RoundSettings(starts=starts)
    call("train", "--set", corrections.folder, "-o", tmp_path / "new.safetensors")
    assert calls[-1]["settings"] == RoundSettings(name="new")
    code, _, errors = call(*arguments, "--settings", '{"stepz": 1}')
    assert code == 1
    assert "stepz" in errors


def test_a_round_that_a_viewer_watches_leaves_it_a_core(
    call: Call,
    tmp_path: Path,
    corrections: TrainingSet,
    rounds: Callable[[str], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = rounds("tuned")
    monkeypatch.setattr(train, "Supervisor", lambda: None)
    monkeypatch.setattr(devices, "default_threads", lambda spare=0: 8 - spare)
    arguments = ("train", "--set", corrections.folder, "--round", tmp_path / "r")
    for options in ((), ("--supervised",), ("--supervised", "--threads", 5)):
        assert call(*arguments, *options)[0] == 0
    assert [c["thread_count"] for c in calls] == [None, 7, 5]


def test_a_new_network_has_the_dimensions_of_the_samples(
    call: Call, tmp_path: Path, rounds: Callable[[str], list[dict[str, Any]]]
) -> None:
    calls = rounds("tuned")
    image, labels = synthetic_nuclei((8, 32, 32), seed=0)
    TrainingSet(tmp_path / "set").add(
        Correction(image=image, axes="ZYX", labels=labels, output="objects", ndim=3)
    )
    arguments = ("train", "--set", tmp_path / "set", "--round", tmp_path / "r")
    assert call(*arguments, "--gate", "grid")[0] == 0
    assert calls[0]["settings"].network.ndim == 3


@pytest.mark.slow
def test_a_round_is_orphaned_resumed_and_stopped(
    tmp_path: Path,
    corrections: TrainingSet,
    model_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder, log = tmp_path / "round", tmp_path / "log.txt"
    arguments = ["--set", str(corrections.folder), "--round", str(folder)]
    arguments += ["--from", str(model_file), "--threads", "1", "--device", "cpu"]
    arguments += ["--steps", "100000"]
    options = ["--json", "--supervised"]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*COMMAND, *arguments, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        events = map(json.loads, child.stdout)
        reached = next(e["done"] for e in events if e["done"] > 2)
        child.stdin.close()  # its viewer died
        assert child.wait(20) == 1
    assert "gone" in log.read_text()
    assert (folder / "tuned.checkpoint").exists()

    enough = threading.Event()
    steps = child_steps(arguments, enough=enough, log=log)
    first = next(p for p in steps if (p.values or {}).keys() & {"loss"})
    assert first.done > reached
    assert first.message == "Training (tuned)"
    enough.set()
    result = drain(steps)
    assert [c["name"] for c in result["contenders"]] == ["parent", "tuned"]
    tuned = result["contenders"][1]
    assert load_model(folder / tuned["file"]).spec.parent == "tiny@1"
    assert {c.name: c.scores for c in read_record(folder).outcome.contenders} == {
        c["name"]: c["scores"] for c in result["contenders"]
    }
