"""How hard the validation images are that bundled models are scored on.

A few images weigh much in a mean. So models that saw none of them are scored on them
and, for stained tissue, on other images that they did not see either: a quick round of
learning from five training images (learning.py) on the validation images and on the
rest of the training images. For fluorescence, the area that the bundled model finds is
compared with the area that is labelled, image by image: where images look the same, but
less is found than labelled in some and more in others, outlines were drawn in different
ways, and no model can do justice to both. The other half of the answer is a plain
training:

    napari-attunet train --config benchmarks/plain.json
        --images DIR/nuclei/train/images --labels DIR/nuclei/train/labels
        --val-images DIR/nuclei/val/images --val-labels DIR/nuclei/val/labels
        -o plain.safetensors

    python benchmarks/validation.py --data DIR [--threads 2]
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from learning import folder_pairs, histology, learn, whole

from napari_attunet import evaluation
from napari_attunet.model import load_model
from napari_attunet.segmenter import Segmenter
from napari_attunet.training.validation import validate

#: A Dice below which an image is looked at more closely.
LOW = 0.87


def outlines(data: Path, threads: int) -> None:
    """Print how much is found of what is labelled, where the Dice is low."""
    segmenter = Segmenter(load_model("nuclei-fluorescence"), threads=threads)
    rows = []
    for pair in folder_pairs(data / "nuclei" / "val"):
        found = segmenter.segment(pair.image, axes=pair.axes).labels
        rows.append(
            {
                "image": pair.name,
                "dice": round(evaluation.dice(found, pair.labels), 3),
                "labelled": int(np.count_nonzero(np.unique(pair.labels))),
                "found": int(found.max()),
                "area": round(float((found > 0).sum() / (pair.labels > 0).sum()), 2),
            }
        )
    rows.sort(key=lambda row: row["dice"])
    for row in rows:
        if row["dice"] < LOW:
            print(json.dumps(row), flush=True)
    dice = [row["dice"] for row in rows]
    summary = {
        "images": len(dice),
        "mean": round(float(np.mean(dice)), 3),
        "without the lowest": round(float(np.mean(dice[1:])), 3),
        "median": round(float(np.median(dice)), 3),
    }
    print(json.dumps(summary), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    outlines(args.data, args.threads)
    task = histology(args.data)
    with (args.data / "nuclei-histology" / "val" / "index.csv").open() as file:
        names = {row["file"] for row in csv.DictReader(file)}
    parts = {
        "validation": [p for p in task.held if p.name in names],
        "other training images": [p for p in task.held if p.name not in names],
    }
    corrections = [whole(pair, task) for pair in task.learn]
    models, _, _ = learn(corrections, 0, args.threads)
    for who, model in {
        "before": load_model("nuclei-fluorescence"),
        "five images": models["tuned"],
    }.items():
        for part, pairs in parts.items():
            found = validate(model, pairs, threads=args.threads)
            rounded = {name: round(value, 3) for name, value in found.items()}
            row = {"model": who, "part": part, "images": len(pairs), **rounded}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
