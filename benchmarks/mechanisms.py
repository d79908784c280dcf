"""Every attention mechanism against none: scores, cost, and where it looks.

Trains a small network with each mechanism that is registered and one without any, from
scratch, with the same data, steps, crops, augmentation and seeds; on nuclei (objects)
and on membranes (classes). Scores the validation images, and measures how much more α
lets through on the target than off it. The network forward and backward on the crops of
a step, and forward on an image, are timed against the plain network in turns, so that
other work on the machine slows both.

    python benchmarks/mechanisms.py --data DIR --work DIR [--sets nuclei,membranes]
        [--mechanisms none,additive,...] [--seeds 3] [--steps 400]
        [--features 8 16 32 64] [--threads 1]
    python benchmarks/mechanisms.py --data DIR --model nuclei-fluorescence

DIR holds the folders nuclei (train and val, with images and labels) and em-vnc (train
and val, images.tif and labels.tif). Rows are kept in ``--work``, and so are checkpoints
and models: a run that was stopped goes on where it was. The second form trains nothing
and looks at a model that is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch

from napari_attunet import evaluation, gate_statistics
from napari_attunet.architecture import (
    ATTENTION,
    GATES,
    AttentionSpec,
    GateSpec,
    NetworkSpec,
    TransformerSpec,
)
from napari_attunet.devices import choose_device, threads
from napari_attunet.images import pair_files, read_image, read_labels
from napari_attunet.model import Model, load_model, save_model
from napari_attunet.networks import AttentionUNet
from napari_attunet.segmenter import Segmenter
from napari_attunet.spec import ModelSpec
from napari_attunet.training.samples import Pair
from napari_attunet.training.settings import TrainingSettings
from napari_attunet.training.trainer import train

#: Crops of a step, pixels of an image that is timed, and how often.
BATCH, CROP, IMAGE, TURNS = 4, 128, 512, 5

#: Self-attention compares all pairs of positions, which only coarse levels can pay.
WHERE = {"self": "bottleneck"}


def mechanisms() -> dict[str, dict[str, Any]]:
    """Return what to ask of a network for each mechanism, by name."""
    found: dict[str, dict[str, Any]] = {"none": {"gate": None}}
    found |= {kind: {"gate": GateSpec(kind=kind)} for kind in GATES}
    for kind in ATTENTION:
        where = WHERE.get(kind, "all")
        blocks = (AttentionSpec(kind=kind, where=where),)
        found[kind] = {"gate": None, "attention": blocks}
    found["transformer"] = {"gate": None, "transformer": TransformerSpec()}
    return found


@dataclasses.dataclass(frozen=True)
class Task:
    """Images to learn from and to judge by, and what they ask of a model."""

    name: str
    train: list[Pair]
    val: list[Pair]
    model: dict[str, Any]


def nuclei(data: Path) -> Task:
    def read(folder: Path) -> list[Pair]:
        pairs = []
        for image_path, path in pair_files(folder / "images", folder / "labels"):
            image = read_image(image_path)
            pixels = np.asarray(image.data[...])
            pairs.append(Pair(pixels, read_labels(path), image.axes, path.stem))
        return pairs

    folder = data / "nuclei"
    model = {"output": "objects", "classes": ("background", "interior", "boundary")}
    return Task("nuclei", read(folder / "train"), read(folder / "val"), model)


def membranes(data: Path) -> Task:
    def read(part: str) -> list[Pair]:
        images = tifffile.imread(data / "em-vnc" / part / "images.tif")
        labels = tifffile.imread(data / "em-vnc" / part / "labels.tif")
        return [
            Pair(image, (classes == 1).astype(np.uint8), "YX", f"{part} {number}")
            for number, (image, classes) in enumerate(zip(images, labels, strict=True))
        ]

    model = {"output": "classes", "classes": ("background", "membrane")}
    return Task("membranes", read("train"), read("val"), model)


TASKS: dict[str, Callable[[Path], Task]] = {"nuclei": nuclei, "membranes": membranes}


def spec_of(task: Task, mechanism: str, features: Sequence[int]) -> ModelSpec:
    network = NetworkSpec(
        out_channels=len(task.model["classes"]),
        features=tuple(features),
        **mechanisms()[mechanism],
    )
    return ModelSpec(name=f"{task.name}-{mechanism}", network=network, **task.model)


def trained(
    task: Task, mechanism: str, seed: int, args: argparse.Namespace
) -> tuple[Model, float]:
    """Return a trained model, and the loss of its last steps."""
    path = args.work / f"{task.name}-{mechanism}-{seed}.safetensors"
    settings = TrainingSettings(
        steps=args.steps,
        batch_size=BATCH,
        crop=(CROP, CROP),
        average=0.99,
        half_precision=False,  # as fast as the machine is, not as its bfloat16 is
        warmup=50,
        seed=seed,
        validate_every=args.steps,
    )
    losses: list[float] = []
    steps = train(
        spec_of(task, mechanism, args.features),
        task.train,
        [],
        settings,
        device=args.device,
        thread_count=args.threads,
        checkpoint=path.with_suffix(".checkpoint"),
    )
    while True:
        try:
            losses.append((next(steps).values or {}).get("loss", math.nan))
        except StopIteration as end:
            save_model(end.value, path)
            return end.value, float(np.nanmean(losses[-50:]))


def scores(model: Model, pairs: Sequence[Pair], args: argparse.Namespace) -> dict:
    """Return scores, and for each map its mean on the target and off it."""
    segmenter = Segmenter(
        model, device=args.device, threads=args.threads, precision="exact"
    )
    results, on, off = [], {}, {}
    for pair in pairs:
        found = segmenter.segment(pair.image, axes=pair.axes, attention=True)
        truth = np.asarray(pair.labels)
        results.append((found.labels, truth))
        for attention in found.attention:
            seen = gate_statistics(attention, truth > 0)
            on.setdefault(attention.name, []).append(seen.inside)
            off.setdefault(attention.name, []).append(seen.outside)
    alpha = {
        name: (float(np.nanmean(on[name])), float(np.nanmean(off[name]))) for name in on
    }
    if model.spec.output == "classes":
        values = [evaluation.class_dice(f, t, 2)[1] for f, t in results]
        return {"dice": float(np.mean(values)), "alpha": alpha}
    found = evaluation.score(results)
    return {
        "dice": found.dice,
        "ap50": found.ap50,
        "pooled": found.ap50_pooled,
        "alpha": alpha,
    }


def costs(spec: NetworkSpec, args: argparse.Namespace) -> dict[str, float]:
    """Return parameters, and times relative to the plain network, taken in turns."""
    plain = dataclasses.replace(spec, gate=None, attention=(), transformer=None)
    device = choose_device(args.device, args.threads).name
    networks = [AttentionUNet(s).to(device) for s in (spec, plain)]
    crops = torch.randn(BATCH, spec.in_channels, CROP, CROP, device=device)
    image = torch.randn(1, spec.in_channels, IMAGE, IMAGE, device=device)
    times: dict[str, list[tuple[float, float]]] = {"step": [], "pass": []}
    with threads(args.threads):
        for turn in range(TURNS + 1):
            for what, run, x in (("step", _step, crops), ("pass", _pass, image)):
                pair = tuple(_seconds(run, n, x) for n in networks)
                if turn:  # the first one warms up
                    times[what].append(pair)
    size = [sum(p.numel() for p in n.parameters()) for n in networks]
    ratios = {k: float(np.median([a / b for a, b in v])) for k, v in times.items()}
    return {"parameters": size[0], "more": size[0] / size[1] - 1, **ratios}


def _step(network: AttentionUNet, x: torch.Tensor) -> None:
    network.train()
    network(x).square().mean().backward()
    network.zero_grad()


def _pass(network: AttentionUNet, x: torch.Tensor) -> None:
    network.eval()
    with torch.inference_mode():
        network(x)


def _seconds(
    run: Callable[[AttentionUNet, torch.Tensor], None],
    network: AttentionUNet,
    x: torch.Tensor,
) -> float:
    _wait(x.device)
    began = time.perf_counter()
    run(network, x)
    _wait(x.device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train, score and time what is not there yet; yield every row."""
    args.work.mkdir(parents=True, exist_ok=True)
    tasks = {name: TASKS[name](args.data) for name in args.sets.split(",")}
    # Seeds outermost, so that a run that is stopped early has compared everything.
    for seed in range(args.seeds):
        for mechanism in args.mechanisms.split(","):
            for task in tasks.values():
                path = args.work / f"{task.name}-{mechanism}-{seed}.json"
                known = json.loads(path.read_text()) if path.exists() else {}
                same = (args.steps, args.features)
                if (known.get("steps"), known.get("features")) != same:
                    began = time.perf_counter()
                    model, loss = trained(task, mechanism, seed, args)
                    row = {
                        "set": task.name,
                        "mechanism": mechanism,
                        "seed": seed,
                        "steps": args.steps,
                        "features": args.features,
                        "loss": loss,
                        **scores(model, task.val, args),
                        **costs(model.spec.network, args),
                        "seconds": round(time.perf_counter() - began),
                    }
                    path.write_text(json.dumps(row))
                yield json.loads(path.read_text())


def contrast(row: dict[str, Any]) -> str:
    """Return α on the target over α off it, of the two finest maps of the decoder."""
    maps = [v for name, v in row["alpha"].items() if "encoder" not in name][:2]
    return " ".join(f"{on / off:.2f}" for on, off in maps) or "–"


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return Markdown: means and standard deviations over seeds."""
    heads = (
        "| set | mechanism | Dice | AP50 | pooled | α on/off, two finest, by seed"
        " | parameters | step | pass |\n|" + "---|" * 9
    )
    lines = [heads]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in found:
        groups.setdefault((row["set"], row["mechanism"]), []).append(row)
    for (name, mechanism), some in sorted(groups.items(), key=lambda g: g[0][0]):
        cells = [name, mechanism]
        for column in ("dice", "ap50", "pooled"):
            values = [r[column] for r in some if column in r]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}" if values else "–")
        seen = [contrast(r) for r in some]
        cells.append(", ".join(seen) if set(seen) != {"–"} else "–")
        cells.append(f"{some[0]['parameters']:,} ({some[0]['more']:+.1%})")
        cells += [f"{np.median([r[c] for r in some]):.2f}x" for c in ("step", "pass")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True)
    add("--work", type=Path, default=Path("mechanisms"))
    add("--model")
    add("--sets", default=",".join(TASKS))
    add("--mechanisms", default=",".join(mechanisms()))
    add("--seeds", type=int, default=3)
    add("--steps", type=int, default=400)
    add("--features", type=int, nargs="+", default=[8, 16, 32, 64])
    add("--device", default="auto")
    add("--threads", type=int)
    args = parser.parse_args()
    if args.model:
        model = load_model(args.model)
        found = scores(model, TASKS[args.sets.split(",")[0]](args.data).val, args)
        for name, (on, off) in found.pop("alpha").items():
            print(f"| {name} | {on:.2f} | {off:.2f} | {on / off:.2f} |")
        print(args.model, {k: round(v, 4) for k, v in found.items()})
        return
    found = []
    for row in rows(args):
        found.append(row)
        shown = {k: round(v, 4) for k, v in row.items() if isinstance(v, float)}
        print(row["set"], row["mechanism"], row["seed"], shown, flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
