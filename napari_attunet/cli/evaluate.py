"""``evaluate``: how well a model does on labelled images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_attunet.cli.console import (
    Bar,
    add_device,
    add_precision,
    for_later,
    report,
    table,
)
from napari_attunet.errors import DataError
from napari_attunet.progress import drain

if TYPE_CHECKING:
    import numpy.typing as npt

    from napari_attunet.cli.console import Commands
    from napari_attunet.segmenter import Segmenter

__all__ = ["add_to", "run"]


def add_to(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "evaluate",
        parents=[common],
        help="measure a model on labelled images",
        description="Segment images and compare the labels with the true ones of the "
        "same name (NAME or NAME_labels). Objects: Dice of the foreground, average "
        "precision TP/(TP+FP+FN) at an IoU of 0.5 and 0.7; classes: Dice of each.",
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--model", required=True, help="name, name@version or file")
    add("--images", required=True, type=Path, metavar="DIR")
    add("--labels", required=True, type=Path, metavar="DIR")
    add("--json", action="store_true", help="print JSON instead of a table")
    add_device(parser)
    add_precision(parser)


def run(args: argparse.Namespace) -> bool:
    """Score every image and print the scores; a bad one doesn't stop the others."""
    from napari_attunet.images import pair_files
    from napari_attunet.model import load_model
    from napari_attunet.segmenter import Segmenter

    pairs = pair_files(args.images, args.labels)
    segmenter = Segmenter(
        load_model(args.model),
        device=args.device,
        threads=args.threads,
        precision=args.precision,
    )
    scores: dict[str, Any] = {}
    problems: list[tuple[Path, Exception]] = []
    with Bar(len(pairs)) as bar:
        for index, (image, labels) in enumerate(pairs):
            try:
                scores[image.name] = _score(segmenter, image, labels, index, bar)
            except Exception as error:  # noqa: BLE001 - told at the end
                problems.append((image, for_later(error)))
    if scores:
        summarise = _objects if segmenter.model.spec.output == "objects" else _classes
        summary, text = summarise(segmenter, scores)
        if args.json:
            print(json.dumps({"model": segmenter.model.spec.key, **summary}, indent=2))
        else:
            print(text)
    for subject, problem in problems:
        report(problem, subject=subject, verbose=args.verbose)
    return not problems


def _score(
    segmenter: Segmenter, image_path: Path, labels_path: Path, index: int, bar: Bar
) -> Any:
    from napari_attunet.axes import frame_axes
    from napari_attunet.evaluation import class_dice, score_image
    from napari_attunet.frames import number_objects
    from napari_attunet.images import read_image, read_labels
    from napari_attunet.training.samples import Pair, check_labels, view_of

    image = read_image(image_path)
    truth = read_labels(labels_path, image.axes)
    steps = segmenter.steps(image.data, axes=image.axes)
    found = drain(steps, bar.job(index, image_path.name)).labels
    truth = _same_shape(truth, found.shape, labels_path)
    spec = segmenter.model.spec
    pair = Pair(image.data, truth, image.axes, labels_path.name)
    view = view_of(pair, spec)
    check_labels(pair, view, spec)
    if spec.output == "objects":
        within = frame_axes(view.label_axes, spec.network.ndim)
        return score_image(found, number_objects(truth, within))
    return class_dice(found, truth, spec.n_classes)


def _same_shape(
    truth: npt.NDArray[Any], shape: tuple[int, ...], path: Path
) -> npt.NDArray[Any]:
    """Give or take axes of length one; formats differ in whether they keep them."""
    if [n for n in truth.shape if n > 1] != [n for n in shape if n > 1]:
        raise DataError(f"{path} has the shape {truth.shape}, its image {shape}.")
    return truth.reshape(shape)


def _objects(
    segmenter: Segmenter, by_name: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    from napari_attunet.evaluation import Scores

    scores = Scores(tuple(by_name.values()))
    summary = scores.to_dict()
    for name, image in zip(by_name, summary["images"], strict=True):
        image["name"] = name
    rows: list[list[object]] = [
        [
            name,
            s.dice,
            s.at50.ap,
            s.at70.ap,
            s.at50.tp + s.at50.fn,
            s.at50.fn,
            s.at50.fp,
        ]
        for name, s in by_name.items()
    ]
    objects, missed, invented = (sum(r[i] for r in rows) for i in (4, 5, 6))  # type: ignore[misc]
    rows.append(
        ["mean", scores.dice, scores.ap50, scores.ap70, objects, missed, invented]
    )
    rows.append(["pooled", "", scores.ap50_pooled, scores.ap70_pooled, "", "", ""])
    head = ("image", "Dice", "AP50", "AP70", "objects", "missed", "invented")
    return summary, table(head, rows)


def _classes(
    segmenter: Segmenter, by_name: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    classes = segmenter.model.spec.classes
    means = [
        sum(column) / len(by_name) for column in zip(*by_name.values(), strict=True)
    ]
    rows = [*([name, *dices] for name, dices in by_name.items()), ["mean", *means]]
    summary = {
        "dice": dict(zip(classes, means, strict=True)),
        "images": [
            {"name": name, "dice": dict(zip(classes, dices, strict=True))}
            for name, dices in by_name.items()
        ],
    }
    return summary, table(("Dice", *classes), rows)
