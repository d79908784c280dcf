"""``train``: a model from labelled images."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_attunet.cli.console import Bar, add_device, positive
from napari_attunet.errors import DataError, ModelError
from napari_attunet.progress import Progress, drain

if TYPE_CHECKING:
    from napari_attunet.cli.console import Commands
    from napari_attunet.model import Model
    from napari_attunet.spec import ModelSpec
    from napari_attunet.training.samples import Pair
    from napari_attunet.training.settings import TrainingSettings

__all__ = ["add_to", "hold_out", "read_recipe", "run"]

#: Channels of each level of a network that nobody described: small and quick.
FEATURES = (16, 32, 64, 128, 256)


def add_to(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "train",
        parents=[common],
        help="train a model on labelled images",
        description="Train on images and the label images of the same name (NAME or "
        "NAME_labels). Stopped training goes on where it was when the same command is "
        "given again.",
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--images", required=True, type=Path, metavar="DIR")
    add("--labels", required=True, type=Path, metavar="DIR")
    add("--val-images", type=Path, metavar="DIR", help="to choose the best weights by")
    add("--val-labels", type=Path, metavar="DIR")
    add(
        "--val-fraction",
        type=float,
        default=0.1,
        metavar="F",
        help="of the images, held out where there are no others (default: %(default)s)",
    )
    add("--from", dest="start", metavar="MODEL", help="weights to go on from")
    add("-o", "--out", required=True, type=Path, help="model file, .safetensors")
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help='JSON with "model" (what to build) and "training" (how), each optional',
    )
    add(
        "--output",
        choices=("objects", "classes"),
        default="objects",
        help="what labels stand for in a model from scratch (default: %(default)s)",
    )
    add("--steps", type=positive, metavar="N")
    add("--seed", type=int, metavar="N")
    add("--json", action="store_true", help="print losses and scores as JSON lines")
    add("--overwrite", action="store_true", help="replace the model file")
    add("--half", action="store_true", help="store weights as float16, half the size")
    add_device(parser)


def run(args: argparse.Namespace) -> bool:
    """Train, tell the scores, write the model."""
    from napari_attunet.library import SUFFIX
    from napari_attunet.model import save_model
    from napari_attunet.training.trainer import train

    if args.out.suffix != SUFFIX:
        raise ModelError(f"A model file ends in {SUFFIX}, got {args.out}.")
    if args.out.exists() and not args.overwrite:
        raise ModelError(f"{args.out} is there already; --overwrite replaces it.")
    described, settings = read_recipe(args.config)
    asked = {"steps": args.steps, "seed": args.seed}
    settings = dataclasses.replace(
        settings, **{k: v for k, v in asked.items() if v is not None}
    )
    pairs, validation = _pairs(args, settings.seed)
    start, parent = _start(args, described, pairs, settings)
    checkpoint = args.out.with_suffix(".checkpoint")
    steps = train(
        start,
        pairs,
        validation,
        settings,
        device=args.device,
        thread_count=args.threads,
        checkpoint=checkpoint,
    )
    with Bar(1) as bar:
        show = bar.job(0, args.out.name)

        def tell(progress: Progress) -> None:
            show(progress)
            values = progress.values or {}
            if values.keys() - {"loss", "learning_rate"} or (
                progress.done == progress.total
            ):
                bar.say(_line(progress.done, values, args.json))

        model = drain(steps, tell)
    model = _named(model, parent)
    save_model(model, args.out, half=args.half)
    checkpoint.unlink(missing_ok=True)
    best = {k: model.spec.training.get(k) for k in ("best_step", "scores")}
    if args.json:
        print(json.dumps({"model": model.spec.key, "file": str(args.out), **best}))
    else:
        print(f"{args.out}: {model.spec.key}, best at step {best['best_step']}")
    return True


def _line(step: int, values: dict[str, float], as_json: bool) -> str:
    if as_json:
        return json.dumps({"step": step, **values})
    return f"step {step}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items())


def read_recipe(path: Path | None) -> tuple[ModelSpec | None, TrainingSettings]:
    """Read what to build, if that is said, and how to train it.

    Raises
    ------
    ModelError
        If the file cannot be read, or something in it is unknown or wrong.
    """
    from napari_attunet.schema import from_json
    from napari_attunet.spec import ModelSpec
    from napari_attunet.training.settings import TrainingSettings

    if path is None:
        return None, TrainingSettings()
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(recipe, dict) or set(recipe) - {"model", "training"}:
        raise ModelError(f'{path} should hold "model" and "training", nothing else.')
    try:
        settings = from_json(TrainingSettings, json.dumps(recipe.get("training", {})))
        model = recipe.get("model")
        spec = None if model is None else from_json(ModelSpec, json.dumps(model))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return spec, settings


def hold_out(count: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide so many images at random into those to learn from and those to judge by.

    At least one image is left to learn from, and at least one is held out where the
    fraction is above 0 and there are two.
    """
    import numpy as np

    if not 0 <= fraction < 1:
        raise DataError(f"The fraction to hold out lies in [0, 1), got {fraction}.")
    held = min(count - 1, max(round(count * fraction), int(fraction > 0)))
    order = np.random.default_rng(seed).permutation(count).tolist()
    return sorted(order[held:]), sorted(order[:held])


def _pairs(args: argparse.Namespace, seed: int) -> tuple[list[Pair], list[Pair]]:
    if (args.val_images is None) != (args.val_labels is None):
        raise DataError("--val-images and --val-labels belong together.")
    pairs = _read(args.images, args.labels)
    if args.val_images is not None:
        return pairs, _read(args.val_images, args.val_labels)
    kept, held = hold_out(len(pairs), args.val_fraction, seed)
    return [pairs[i] for i in kept], [pairs[i] for i in held]


def _read(images: Path, labels: Path) -> list[Pair]:
    import numpy as np

    from napari_attunet.images import pair_files, read_image, read_labels
    from napari_attunet.training.samples import Pair

    pairs = []
    for image_path, labels_path in pair_files(images, labels):
        image = read_image(image_path)
        pixels = np.asarray(image.data[...])  # trained on from memory
        truth = read_labels(labels_path, image.axes)
        pairs.append(Pair(pixels, truth, axes=image.axes, name=image_path.name))
    return pairs


def _start(
    args: argparse.Namespace,
    described: ModelSpec | None,
    pairs: list[Pair],
    settings: TrainingSettings,
) -> tuple[Model | ModelSpec, str | None]:
    """Return what training starts from, and the key of the model it was, if any."""
    from napari_attunet.model import load_model
    from napari_attunet.training.transfer import best_adapted

    if args.start is None:
        return described or _default_spec(args, pairs), None
    old = load_model(args.start)
    if described is None:
        return old, old.spec.key
    return best_adapted(old, described, pairs, settings), old.spec.key


def _default_spec(args: argparse.Namespace, pairs: list[Pair]) -> ModelSpec:
    """Return a small 2D network that fits the first image and all labels."""
    from napari_attunet.spec import ModelSpec, NetworkSpec

    first = pairs[0]
    axes = first.axes or ""
    count = first.image.shape[axes.index("C")] if "C" in axes else 1
    names: dict[int, tuple[str, ...]] = {1: ("grey",)}
    if axes.endswith("C"):  # elsewhere channels are stains or markers, not colours
        names |= dict.fromkeys((3, 4), ("red", "green", "blue"))
    channels = names.get(count, ())
    objects = args.output == "objects"
    top = max(int(pair.labels.max(initial=0)) for pair in pairs)
    classes: tuple[str, ...] = ("background", "interior", "boundary") if objects else ()
    network = NetworkSpec(
        in_channels=len(channels) or count,
        out_channels=3 if objects else max(2, top + 1),
        features=FEATURES,
    )
    name = args.out.stem
    return ModelSpec(
        name=name,
        network=network,
        channels=channels,
        classes=classes,
        output=args.output,
    )


def _named(model: Model, parent: str | None) -> Model:
    """Give a model that was trained further the next version of its name."""
    from napari_attunet.library import Library

    if parent is None:
        return model
    version = Library().next_version(model.spec.name)
    if parent.split("@")[0] == model.spec.name:
        version = max(version, int(parent.split("@")[1]) + 1)
    spec: Any = dataclasses.replace(
        model.spec,
        parent=parent,
        version=version,
        training=model.spec.training | {"started_from": parent},
    )
    return dataclasses.replace(model, spec=spec)
