"""What skipping empty tiles saves, and what it overlooks.

An image with cells on a part of its area is segmented with and without, in turns. With
--data, what is overlooked in the validation images of the bundled models, too: they are
cut into tiles of 128, so that some are empty, and what is found then is compared with
what is found without skipping.

    python benchmarks/skipping.py [--data DIR] [--size 4096] [--rounds 3] [--threads 2]

DIR holds the folders nuclei and nuclei-histology (val, with images, labels and
index.csv).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import skimage.data
from learning import folder_pairs

from napari_attunet.model import load_model
from napari_attunet.segmenter import Segmenter

MODEL = "nuclei-fluorescence"
SHARES = (0.03, 0.1, 0.3)
PACKS = {"nuclei-fluorescence": "nuclei", "nuclei-histology": "nuclei-histology"}


def partly(share: float, size: int) -> np.ndarray:
    """Return a dark, noisy image with cells on about that share of it, scattered."""
    cell = skimage.data.cell()[:512, :512]
    rng = np.random.default_rng(0)
    image = np.full((size, size), int(np.median(cell)), np.int16)
    image += rng.integers(-2, 3, image.shape).astype(np.int16)
    places = [(y, x) for y in range(0, size, 512) for x in range(0, size, 512)]
    chosen = rng.permutation(len(places))[: round(share * len(places))]
    for number in chosen:
        y, x = places[number]
        height, width = image[y : y + 512, x : x + 512].shape
        image[y : y + height, x : x + width] = cell[:height, :width]
    return image.clip(0, 255).astype(np.uint8)


def times(size: int, rounds: int, threads: int) -> None:
    segmenter = Segmenter(load_model(MODEL), threads=threads)
    for share in SHARES:
        image, ratios = partly(share, size), []
        for _ in range(rounds):
            seconds, found = [], []
            for skip in (False, True):
                began = time.perf_counter()
                found.append(segmenter.segment(image, axes="YX", skip_empty=skip))
                seconds.append(time.perf_counter() - began)
            ratios.append(seconds[0] / seconds[1])
        whole, quick = (f.labels > 0 for f in found)
        row = {
            "image": size,
            "occupied": share,
            "seconds without, with": [round(s, 1) for s in seconds],
            "times as fast": [
                round(f(ratios), 2) for f in (statistics.median, min, max)
            ],
            "skipped": f"{found[1].record['skipped']} of {found[1].record['tiles']}",
            "other pixels": int((whole != quick).sum()),
        }
        print(json.dumps(row), flush=True)


def overlooked(data: Path, threads: int) -> None:
    for name, pack in PACKS.items():
        segmenter = Segmenter(load_model(name), threads=threads, tile=128)
        pixels = missed = objects = gone = skipped = tiles = 0
        for pair in folder_pairs(data / pack / "val"):
            whole = segmenter.segment(pair.image, axes=pair.axes)
            quick = segmenter.segment(pair.image, axes=pair.axes, skip_empty=True)
            there = whole.labels > 0
            lost = there & (quick.labels == 0)
            pixels, missed = pixels + int(there.sum()), missed + int(lost.sum())
            sizes = np.bincount(whole.labels.ravel())
            left = np.bincount(whole.labels[~lost], minlength=len(sizes))
            objects += int((sizes[1:] > 0).sum())
            gone += int((2 * left[1:] < sizes[1:]).sum())
            skipped += quick.record["skipped"]
            tiles += quick.record["tiles"]
        row = {
            "model": name,
            "tiles skipped": f"{skipped} of {tiles}",
            "pixels lost": f"{missed} of {pixels}",
            "objects lost": f"{gone} of {objects}",
        }
        print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.data:
        overlooked(args.data, args.threads)
    times(args.size, args.rounds, args.threads)


if __name__ == "__main__":
    main()
