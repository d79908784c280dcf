"""What a few corrected images teach, against what else a user would do with them.

For k corrected images: the model as it was, a quick round of learning as the viewer
runs it (what it proposes, and each of its contenders), and a pixel classifier (random
forest on scikit-image's multiscale features, which needs scikit-learn). All are scored
on the same images, none of which was corrected. Sparse: of one image only a tenth of
the objects is painted into the prediction of the model, any of them, some that it had
got wrong, or those that the list of places to check begins with; the gain in Dice is
compared with that of the same image corrected whole.

    python benchmarks/learning.py --data DIR
        [--sets histology,cytology,membranes,sparse]
        [--seeds 3] [--threads 2] [--json FILE]

DIR holds the folders nuclei-histology and cytology-brightfield (train and val, with
images, labels and index.csv) and em-vnc (train and val, images.tif and labels.tif).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage
from skimage.feature import multiscale_basic_features
from sklearn.ensemble import RandomForestClassifier

from napari_attunet.corrections import Correction, TrainingSet
from napari_attunet.images import read_image, read_labels
from napari_attunet.model import Model, load_model
from napari_attunet.progress import drain
from napari_attunet.review import doubt_steps
from napari_attunet.segmenter import Segmenter
from napari_attunet.training.rounds import run_round
from napari_attunet.training.samples import Pair
from napari_attunet.training.settings import RoundSettings
from napari_attunet.training.validation import validate

PARENT = "nuclei-fluorescence"

#: Overlap (intersection over union) below which an object of a prediction is wrong: it
#: is what a user sees to.
WRONG = 0.7

#: Of all objects, those that are painted where few are; and from how many pixels away a
#: place to check leads to one.
SHARE, NEAR = 0.1, 16


@dataclasses.dataclass(frozen=True)
class Task:
    """Images to correct, in order, and others to judge by."""

    name: str
    output: str
    learn: list[Pair]
    held: list[Pair]
    counts: tuple[int, ...]


def folder_pairs(folder: Path) -> list[Pair]:
    with (folder / "index.csv").open() as file:
        names = [row["file"] for row in csv.DictReader(file)]
    pairs = []
    for name in names:
        image = read_image(folder / "images" / name)
        labels = read_labels((folder / "labels" / name).with_suffix(".tif"))
        pairs.append(Pair(np.asarray(image.data[...]), labels, image.axes, name))
    return pairs


def histology(data: Path) -> Task:
    pack = data / "nuclei-histology"
    train, val = folder_pairs(pack / "train"), folder_pairs(pack / "val")
    return Task("histology", "objects", train[:5], train[5:] + val, (1, 2, 5))


def cytology(data: Path) -> Task:
    pack = data / "cytology-brightfield"
    train, val = folder_pairs(pack / "train"), folder_pairs(pack / "val")
    return Task("cytology", "objects", train[:2], train[2:] + val, (1, 2))


def membranes(data: Path) -> Task:
    def sections(part: str) -> list[Pair]:
        images = tifffile.imread(data / "em-vnc" / part / "images.tif")
        labels = tifffile.imread(data / "em-vnc" / part / "labels.tif")
        return [
            Pair(i, (m == 1).astype(np.uint8), "YX", f"{part} {n}")
            for n, (i, m) in enumerate(zip(images, labels, strict=True))
        ]

    return Task("membranes", "classes", sections("train")[:5], sections("val"), (1, 5))


TASKS = {"histology": histology, "cytology": cytology, "membranes": membranes}


def scores(model: Model, task: Task, threads: int) -> dict[str, float]:
    if model.spec.output != task.output:
        return {}
    found = validate(model, task.held, threads=threads)
    return {k: found[k] for k in ("dice", "ap50") if k in found}


def learn(
    corrections: Sequence[Correction],
    seed: int,
    threads: int,
    starts: tuple[str, ...] = (),
) -> tuple[dict[str, Model], str, float]:
    """Run a round as the viewer does; return its contenders, proposal and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        training_set = TrainingSet(folder)
        for correction in corrections:
            training_set.add(correction)
        work = Path(folder, ".rounds", "round")
        began = time.perf_counter()
        outcome = drain(
            run_round(
                training_set,
                PARENT,
                RoundSettings(seed=seed, starts=starts),
                work,
                thread_count=threads,
            )
        )
        seconds = time.perf_counter() - began
        models = {
            c.name: load_model(work / c.file if c.file else PARENT)
            for c in outcome.contenders
        }
        return models, outcome.proposed, seconds


def whole(pair: Pair, task: Task) -> Correction:
    return Correction(
        image=pair.image,
        axes=pair.axes,
        labels=pair.labels,
        output=task.output,
        name=pair.name,
    )


def pixel_classifier(pairs: Sequence[Pair], seed: int) -> Callable[[Pair], np.ndarray]:
    """Train a random forest on pixel features; return what labels an image."""

    def features(pair: Pair) -> np.ndarray:
        colour = -1 if pair.axes.endswith("C") else None
        return multiscale_basic_features(
            pair.image, sigma_min=1, sigma_max=16, channel_axis=colour
        )

    x = np.concatenate([features(p).reshape(p.labels.size, -1) for p in pairs])
    y = np.concatenate([p.labels.ravel() > 0 for p in pairs])
    some = np.random.default_rng(seed).permutation(len(y))[:100_000]
    forest = RandomForestClassifier(50, n_jobs=-1, random_state=seed, max_depth=15)
    forest.fit(x[some], y[some])

    def label(pair: Pair) -> np.ndarray:
        found = features(pair)
        mask = forest.predict(found.reshape(-1, found.shape[-1]))
        return mask.reshape(pair.labels.shape)

    return label


def classifier_scores(task: Task, k: int, seed: int) -> tuple[dict[str, float], float]:
    from napari_attunet import evaluation

    began = time.perf_counter()
    label = pixel_classifier(task.learn[:k], seed)
    seconds = time.perf_counter() - began
    results = [(label(p), p.labels) for p in task.held]
    if task.output == "classes":
        values = [evaluation.class_dice(f, t, 2)[1] for f, t in results]
        return {"dice": float(np.mean(values))}, seconds
    numbered = [(ndimage.label(f)[0], t) for f, t in results]
    found = evaluation.score(numbered)
    return {"dice": found.dice, "ap50": found.ap50}, seconds


def compare(task: Task, args: argparse.Namespace) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []

    def tell(k: int, who: str, seed: int, found: dict[str, float], seconds: float):
        row = {"set": task.name, "k": k, "who": who, "seed": seed, **found}
        rows.append(row | {"seconds": round(seconds, 1)})
        print(json.dumps(rows[-1]), flush=True)

    tell(0, "model before", 0, scores(load_model(PARENT), task, args.threads), 0)
    for k in task.counts:
        for seed in range(args.seeds):
            found, seconds = classifier_scores(task, k, seed)
            tell(k, "pixel classifier", seed, found, seconds)
            corrections = [whole(p, task) for p in task.learn[:k]]
            models, proposed, seconds = learn(corrections, seed, args.threads)
            for name in sorted(models.keys() - {"parent"}):
                tell(k, name, seed, scores(models[name], task, args.threads), 0)
            chosen = (
                next(r for r in reversed(rows) if r["who"] == proposed)
                if (proposed != "parent")
                else rows[0]
            )
            best = {n: chosen[n] for n in ("dice", "ap50") if n in chosen}
            tell(k, "proposed", seed, best | {"is": proposed}, seconds)
    return rows


def sparse(data: Path, args: argparse.Namespace) -> list[dict[str, object]]:
    """Correct a tenth of the objects of one image, chosen in several ways; and all."""
    task = histology(data)
    before = load_model(PARENT)
    start = scores(before, task, args.threads)
    rows: list[dict[str, object]] = []
    for number, pair in enumerate(task.learn):
        segmenter = Segmenter(before, threads=args.threads)
        predicted = segmenter.segment(pair.image, axes=pair.axes).labels
        for seed in range(args.seeds):
            for kind in args.kinds.split(","):
                if kind == "whole":
                    correction = whole(pair, task)
                else:
                    chosen = WAYS[kind](pair, predicted, segmenter, seed)
                    correction = corrected(pair, predicted, chosen)
                models, proposed, seconds = learn(
                    [correction], seed, args.threads, ("parent",)
                )
                found = scores(models["tuned"], task, args.threads)
                row = {
                    "set": "sparse",
                    "image": number,
                    "who": kind,
                    "seed": seed,
                    **found,
                    "gain": found["dice"] - start["dice"],
                    "is": proposed,
                    "seconds": round(seconds, 1),
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def objects_of(pair: Pair) -> tuple[np.ndarray, int]:
    """Return the numbers of all objects, and how many of them are painted."""
    numbers = np.unique(pair.labels[pair.labels > 0])
    return numbers, max(1, round(SHARE * len(numbers)))


def any_of(
    pair: Pair, predicted: np.ndarray, segmenter: Segmenter, seed: int
) -> list[int]:
    """Choose some objects, whatever became of them."""
    numbers, count = objects_of(pair)
    return list(np.random.default_rng(seed).choice(numbers, count, replace=False))


def wrong_ones(
    pair: Pair, predicted: np.ndarray, segmenter: Segmenter, seed: int
) -> list[int]:
    """Choose among those that the prediction got wrong, as far as there are enough."""
    numbers, count = objects_of(pair)
    bad = [n for n in numbers if overlap(pair.labels == n, predicted) < WRONG]
    numbers = np.array(bad) if len(bad) >= count else numbers
    return list(np.random.default_rng(seed).choice(numbers, count, replace=False))


def suggested(
    pair: Pair, predicted: np.ndarray, segmenter: Segmenter, seed: int
) -> list[int]:
    """Choose those that lie where the list of places to check begins."""
    _, count = objects_of(pair)
    doubt = drain(doubt_steps(segmenter, pair.image, axes=pair.axes))
    away, nearest = ndimage.distance_transform_edt(
        pair.labels == 0, return_indices=True
    )
    chosen: list[int] = []
    for place in doubt.places(count=100):
        at = tuple(round(x) for x in place.position)
        number = pair.labels[tuple(nearest[(slice(None), *at)])]
        if away[at] <= NEAR and number not in chosen:
            chosen.append(number)
    return chosen[:count]


WAYS = {"tenth": any_of, "tenth wrong": wrong_ones, "tenth suggested": suggested}


def corrected(pair: Pair, predicted: np.ndarray, chosen: Sequence[int]) -> Correction:
    """Return a prediction in which some objects were painted as they truly are."""
    labels = predicted.copy()
    for number in chosen:
        here = pair.labels == number
        for other in np.unique(labels[here]):
            # Wipe out what was found instead of it, but not a neighbour it only grazes.
            if other and (here & (labels == other)).sum() * 2 > (labels == other).sum():
                labels[labels == other] = 0
        labels[here] = labels.max() + 1
    return Correction(
        image=pair.image,
        axes=pair.axes,
        labels=labels,
        output="objects",
        extent="painted",
        prediction=predicted,
        name=pair.name,
    )


def overlap(here: np.ndarray, predicted: np.ndarray) -> float:
    """Return the intersection over union of an object and what was found of it."""
    found = np.bincount(predicted[here])
    found[0] = 0
    there = predicted == found.argmax()
    return (here & there).sum() / (here | there).sum() if found.any() else 0.0


def table(rows: Sequence[dict[str, object]]) -> str:
    """Return means and standard deviations over seeds."""
    groups: dict[tuple[object, ...], list[dict[str, object]]] = {}
    for row in rows:
        key = (row["set"], row.get("k", row.get("image")), row["who"])
        groups.setdefault(key, []).append(row)
    lines = ["| set | k | | Dice | AP50 | seconds |", "|---|---|---|---|---|---|"]
    for (name, k, who), some in groups.items():
        cells = [str(name), str(k), str(who)]
        for column in ("dice", "ap50"):
            values = [r[column] for r in some if column in r]
            spread = f" ± {np.std(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}" if values else "–")
        cells.append(f"{np.median([r['seconds'] for r in some]):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", default="histology,cytology,membranes,sparse")
    parser.add_argument(
        "--kinds",
        default="whole,tenth,tenth wrong,tenth suggested",
        help="of sparse: which objects are painted",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    makers = {name: functools.partial(make, args.data) for name, make in TASKS.items()}
    rows = []
    for name in args.sets.split(","):
        rows += (
            sparse(args.data, args)
            if name == "sparse"
            else compare(makers[name](), args)
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
