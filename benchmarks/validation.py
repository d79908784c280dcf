"""How hard the validation images are that bundled models are scored on.

A few images weigh much in a mean. So models that saw none of them are scored on them
and, for stained tissue, on other images that they did not see either: a quick round of
learning from five training images (learning.py) on the validation images and on the
rest of the training images. The other half of the answer, for fluorescence, is a plain
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

from learning import histology, learn, whole

from napari_attunet.model import load_model
from napari_attunet.training.validation import validate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
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
