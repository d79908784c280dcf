"""Several processes train as one would: the same losses, the same model.

Run as a script, this file is one of those processes.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from napari_attunet.errors import (
    Cancelled,
    DataError,
    DeviceError,
    ModelError,
    TrainingError,
)
from napari_attunet.header import read_spec
from napari_attunet.images import write_labels
from napari_attunet.model import Model, load_model, save_model
from napari_attunet.progress import Enough, drain
from napari_attunet.samples import synthetic_nuclei
from napari_attunet.spec import GateSpec, ModelSpec, NetworkSpec
from napari_attunet.training.distributed import Team, joined
from napari_attunet.training.samples import CropSampler, Pair
from napari_attunet.training.settings import TrainingSettings
from napari_attunet.training.trainer import train

PAIRS = [Pair(*synthetic_nuclei((64, 64), seed=s)) for s in (0, 1)]
HELD_OUT = [Pair(*synthetic_nuclei((64, 64), seed=2))]

#: What is trained: the normalisation, fields of the network and of the settings.
CASES = {
    "group": ("group", {}, {"batch_size": 4}),
    "instance": ("instance", {}, {}),
    "uneven": ("group", {}, {"batch_size": 3, "class_weights": (1.0, 2.0, 3.0)}),
    "deep supervision": (
        "group",
        {"deep_supervision": True, "features": (4, 8, 8)},
        {"freeze": "encoder"},
    ),
    "batch": ("batch", {}, {}),
}


def make_spec(case):
    norm, network, _ = CASES[case]
    network = {"features": (4, 8), "out_channels": 3, "norm": norm} | network
    network["gate"] = GateSpec(norm=norm)
    return ModelSpec(name="m", network=NetworkSpec(**network), output="objects")


def begin(case="group", validation=(), **options):
    common = {"steps": 4, "crop": (32, 32), "batch_size": 2, "validate_every": 2}
    common |= {"warmup": 1, "learning_rate": 1e-2, "half_precision": False}
    return train(
        make_spec(case),
        options.pop("pairs", PAIRS),
        validation,
        TrainingSettings(**common | CASES[case][2]),
        device="cpu",
        thread_count=1,
        **options,
    )


def losses_and_model(steps):
    losses = []
    model = drain(steps, lambda p: losses.append((p.values or {}).get("loss")))
    return losses[1:], model


def gradients(team):
    """How long they are, after something that all of three crops have a part in."""
    network = Model.fresh(make_spec("group")).network.train()
    images = torch.rand((3, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    explain = team.parallel(network)
    logits = team.gather(explain(images[list(team.part(3))]).logits, 3)
    (logits.std() * team.size).backward()
    return [float(p.grad.norm()) for p in network.parameters()]


def close_at(steps, step):
    next(p for p in steps if p.done == step)
    steps.close()


def one_of_two(folder):
    """Do all of it, and write down what came of it."""
    found = {}

    def keep(name, model):
        save_model(model, folder / f"{name}{team.rank}.safetensors")

    with joined("cpu") as team:
        found["gradients"] = gradients(team)
        for case in CASES:
            found[case], model = losses_and_model(begin(case, team=team))
            keep(case, model)
        model = drain(begin(validation=HELD_OUT, team=team))
        found["history"] = model.spec.training["history"]
        # one process has begun, two go on
        one, two = folder / "one.checkpoint", folder / "two.checkpoint"
        keep("resumed", drain(begin(checkpoint=one, team=team)))
        # the first one stops: all do
        steps = begin(checkpoint=two, team=team)
        if team.leads:
            close_at(steps, 2)
        else:
            with pytest.raises(Cancelled):
                drain(steps)
        steps = begin(team=team)
        if team.leads:
            next(p for p in steps if p.done == 2)
            with pytest.raises(StopIteration) as end:
                steps.throw(Enough())
            keep("enough", end.value.value)
        else:
            keep("enough", drain(steps))
        # what the first one cannot read, nobody waits for
        two.with_name("junk").write_bytes(b"junk")
        try:
            drain(begin(checkpoint=two.with_name("junk"), team=team))
        except (Cancelled, ModelError) as error:
            found["junk"] = f"{type(error).__name__}: {error}"
        # one of them is given other data, and dies of it
        try:
            drain(begin(pairs=PAIRS[: 2 - team.rank], team=team))
        except (DataError, TrainingError) as error:
            found["other data"] = f"{type(error).__name__}: {error}"
    (folder / f"{team.rank}.json").write_text(json.dumps(found))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def weights(model):
    return model.network.state_dict()


def assert_close(a, b):
    image = torch.rand(1, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(
            a.network(image), b.network(image), atol=1e-4, rtol=0
        )
    for name, tensor in weights(a).items():
        if a.spec.network.norm == "instance" and name.endswith("bias"):
            continue  # taken away again: drifts with what is left of rounding
        torch.testing.assert_close(weights(b)[name], tensor, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What both of two processes found, and the folder of their files."""
    folder = tmp_path_factory.mktemp("two")
    close_at(begin(checkpoint=folder / "one.checkpoint"), 2)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    where |= {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env=os.environ | where | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [p.communicate(timeout=240)[1] for p in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0, 0], "\n".join(said)
    return [json.loads((folder / f"{r}.json").read_text()) for r in (0, 1)], folder


def of_both(two, name):
    return [load_model(two[1] / f"{name}{rank}.safetensors") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(CASES.keys() - {"batch"}))
def test_two_processes_train_as_one(two, case):
    losses, model = losses_and_model(begin(case))
    assert two[0][0][case] == pytest.approx(losses, abs=1e-4)
    for other in of_both(two, case):
        assert_close(other, model)


@pytest.mark.slow
def test_gradients_are_those_of_the_whole_batch(two):  # Adam would not care for length
    for found in two[0]:
        assert found["gradients"] == pytest.approx(gradients(Team()), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["batch", "enough"])
def test_both_return_the_model_of_the_first(two, name):
    a, b = map(weights, of_both(two, name))
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_the_first_validates_for_both(two):
    ours = drain(begin(validation=HELD_OUT)).spec.training["history"]
    for found in two[0]:
        assert [h.keys() for h in found["history"]] == [h.keys() for h in ours]
        for theirs, mine in zip(found["history"], ours, strict=True):
            assert theirs == pytest.approx(mine, abs=1e-3)


@pytest.mark.slow
def test_checkpoints_are_those_of_one_process(two):
    whole = drain(begin())
    for model in of_both(two, "resumed"):
        assert_close(model, whole)
    steps = begin(checkpoint=two[1] / "two.checkpoint")
    assert next(p.done for p in steps if p.done) == 3
    assert_close(drain(steps), whole)


@pytest.mark.slow
def test_what_ends_one_ends_the_other(two):
    first, second = two[0]
    assert first["junk"].startswith("CheckpointError")
    assert second["junk"].startswith("Cancelled")
    assert first["other data"].startswith("TrainingError")
    assert second["other data"].startswith("DataError")


@pytest.mark.slow
def test_torchrun_trains_one_model(tmp_path):
    for seed in (0, 1):
        image, labels = synthetic_nuclei((64, 64), seed=seed)
        for kind, array in (("images", image), ("labels", labels)):
            write_labels(tmp_path / kind / f"{seed}.tif", array, axes="YX")
    recipe = {"training": {"crop": [32, 32], "batch_size": 2, "validate_every": 2}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    out = tmp_path / "m.safetensors"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--master-addr", "127.0.0.1", "--master-port", str(free_port())),
            *("-m", "napari_attunet", "train", "--device", "cpu", "--json"),
            *("--images", tmp_path / "images", "--labels", tmp_path / "labels"),
            *("-o", out, "--config", tmp_path / "recipe.json", "--steps", "2"),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [e["event"] for e in events].count("result") == 1
    assert events[-1]["file"] == str(out)
    record = read_spec(out).training
    assert record["processes"] == 2
    assert set(record["scores"]) == {"dice", "ap50", "ap50_pooled", "ap70"}
    assert not out.with_suffix(".checkpoint").exists()


def test_every_crop_is_drawn_once_and_by_itself():
    spec = ModelSpec(name="m", network=NetworkSpec(features=(2, 3)), output="classes")
    pairs = [Pair(p.image, (p.labels > 0).astype(int)) for p in PAIRS]
    sampler = CropSampler(pairs, spec, TrainingSettings(crop=(32, 32), batch_size=5))
    whole = sampler.batch(3)
    parts = [Team(rank, 2).part(5) for rank in (0, 1)]
    assert sorted(i for part in parts for i in part) == [0, 1, 2, 3, 4]
    for part in parts:
        batch = sampler.batch(3, part)
        for name in ("images", "targets", "weights"):
            assert torch.equal(getattr(batch, name), getattr(whole, name)[list(part)])


def test_more_processes_than_crops_are_refused():
    with pytest.raises(DataError, match=r"2 crops .* 3 processes"):
        next(begin("batch", team=Team(0, 3)))


def test_one_process_is_a_team_of_its_own(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("cpu") as team:
        assert (team.leads, team.size, team.device) == (True, 1, "cpu")


def test_devices_that_cannot_be_shared_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DeviceError, match="cuda:1"), joined("cuda:1"):
        pass
    monkeypatch.setattr(
        "napari_attunet.training.distributed.available_devices", lambda: ("cuda", "cpu")
    )
    monkeypatch.setattr(
        "napari_attunet.training.distributed.choose_device", lambda device: None
    )
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(DeviceError, match=r"2 CUDA .* 4 processes"), joined("auto"):
        pass


if __name__ == "__main__":
    one_of_two(Path(sys.argv[1]))
