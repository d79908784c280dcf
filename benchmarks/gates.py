"""Attention U-Net against plain U-Net at equal budget, and where the gates look.

Trains both with the same data, steps, augmentation and seeds, and prints Dice, AP50,
parameters, time of a training step, and for every gate the mean of α on and off the
objects of the validation images. Trained models are kept in ``--work``, so that a
stopped run goes on where it was.

    python benchmarks/gates.py --data DIR --work DIR [--seeds 3] [--steps 600]
    python benchmarks/gates.py --data DIR --model nuclei-fluorescence

DIR holds train/images, train/labels, val/images and val/labels. The second form trains
nothing and looks at a model that is there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from skimage.measure import block_reduce

from napari_attunet import evaluation
from napari_attunet.images import pair_files, read_image, read_labels
from napari_attunet.model import Model, load_model, save_model
from napari_attunet.segmenter import Segmenter
from napari_attunet.spec import GateSpec, ModelSpec, NetworkSpec
from napari_attunet.training.samples import Pair
from napari_attunet.training.settings import TrainingSettings
from napari_attunet.training.trainer import train


def read(folder: Path) -> list[Pair]:
    """Return the labelled images of a folder."""
    pairs = []
    for image_path, labels_path in pair_files(folder / "images", folder / "labels"):
        image = read_image(image_path)
        pairs.append(
            Pair(np.asarray(image.data[...]), read_labels(labels_path), image.axes)
        )
    return pairs


def trained(
    gate: GateSpec | None, seed: int, args: argparse.Namespace
) -> tuple[Model, float]:
    """Return a trained model and the median seconds of a training step."""
    name = f"{'plain' if gate is None else 'attention'}-{seed}"
    path = args.work / f"{name}.safetensors"
    timing = args.work / f"{name}.json"
    if not path.exists():
        train_pairs, val_pairs = read(args.data / "train"), read(args.data / "val")
        spec = ModelSpec(
            name=name,
            network=NetworkSpec(
                in_channels=1, out_channels=3, features=tuple(args.features), gate=gate
            ),
            channels=("grey",),
            output="objects",
        )
        settings = TrainingSettings(
            steps=args.steps, seed=seed, validate_every=args.steps
        )
        steps = train(
            spec,
            train_pairs,
            val_pairs,
            settings,
            thread_count=args.threads,
            checkpoint=path.with_suffix(".checkpoint"),
        )
        times = []
        while True:
            start = time.perf_counter()
            try:
                next(steps)
            except StopIteration as stop:
                save_model(stop.value, path)
                break
            times.append(time.perf_counter() - start)
        timing.write_text(json.dumps(float(np.median(times))))
    return load_model(path), json.loads(timing.read_text())


def look(model: Model, pairs: list[Pair], threads: int) -> tuple[dict, list]:
    """Return scores, and per gate the mean of α on and off the objects."""
    segmenter = Segmenter(model, threads=threads)
    results, on, off = [], [], []
    for pair in pairs:
        result = segmenter.segment(pair.image, axes=pair.axes, attention=True)
        truth = np.asarray(pair.labels)
        results.append((result.labels, truth))
        if not truth.any():
            continue
        for values, keep in ((truth > 0, on), (truth == 0, off)):
            means = []
            for attention in result.attention:
                share = block_reduce(values.astype(float), attention.scale, np.mean)
                means.append((attention.values * share).sum() / share.sum())
            keep.append(means)
    scores = evaluation.score(results)
    named = {
        "dice": scores.dice,
        "ap50": scores.ap50,
        "pooled": scores.ap50_pooled,
    }
    return named, [np.mean(on, axis=0), np.mean(off, axis=0)]


def main() -> None:
    """Train, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True)
    add("--work", type=Path, default=Path("gates"))
    add("--model")
    add("--seeds", type=int, default=3)
    add("--steps", type=int, default=600)
    add("--features", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    add("--threads", type=int, default=None)
    args = parser.parse_args()
    val = read(args.data / "val")
    if args.model:
        scores, (on, off) = look(load_model(args.model), val, args.threads)
        print(args.model, {k: round(v, 4) for k, v in scores.items()})
        for level, (a, b) in enumerate(zip(on, off, strict=True), start=1):
            print(f"| level {level} | {a:.2f} | {b:.2f} | {a / b:.2f} |")
        return
    args.work.mkdir(parents=True, exist_ok=True)
    print("| network | seed | parameters | step (s) | Dice | AP50 | AP50 pooled |")
    print("|---|---|---|---|---|---|---|")
    attention = []
    for seed in range(args.seeds):
        for name, gate in (("plain", None), ("attention", GateSpec())):
            model, seconds = trained(gate, seed, args)
            scores, alpha = look(model, val, args.threads)
            size = sum(p.numel() for p in model.network.parameters())
            print(
                f"| {name} | {seed} | {size:,} | {seconds:.3f} | "
                + " | ".join(f"{v:.3f}" for v in scores.values())
                + " |",
                flush=True,
            )
            if gate is not None:
                attention.append(alpha)
    heads = " | ".join(f"α on/off, seed {s}" for s in range(args.seeds))
    print(f"\n| gate | {heads} |")
    print("|---|" + "---|" * args.seeds)
    for level in range(len(args.features) - 1):
        cells = (f"{on[level]:.2f} / {off[level]:.2f}" for on, off in attention)
        print(f"| level {level + 1} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
