"""``train``: a model from labelled images or from corrections."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from napari_attunet.architecture import FEATURES
from napari_attunet.cli import architecture, learn
from napari_attunet.cli.console import add_device, positive
from napari_attunet.cli.training import (
    Teller,
    check_out,
    given,
    launched,
    named,
    refuse,
)
from napari_attunet.errors import (
    AttUnetError,
    ChannelError,
    DataError,
    ModelError,
)
from napari_attunet.progress import drain
from napari_attunet.training.process import Stream, Supervisor

if TYPE_CHECKING:
    from napari_attunet.cli.console import Commands
    from napari_attunet.model import Model
    from napari_attunet.spec import ModelSpec
    from napari_attunet.training.samples import Pair
    from napari_attunet.training.settings import TrainingSettings

__all__ = ["add_to", "hold_out", "read_recipe", "run"]

#: Of the images, to choose the best weights by, where nothing else is said.
HELD_OUT = 0.1


def add_to(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "train",
        parents=[common],
        help="train a model on labelled images or on corrections",
        description="Train on images and the label images of the same name (NAME or "
        "NAME_labels), or on a set of corrections. Stopped training goes on where it "
        "was when the same command is given again. Several processes or cards share "
        "a training on images, with one batch and one result: torchrun "
        "--nproc-per-node N -m napari_attunet train ...",
        epilog="With --json there is one object on each line of stdout, whose "
        '"event" is "progress", and at last "result" or "error".',
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, metavar="DIR")
    source.add_argument(
        "--set", dest="training_set", type=Path, metavar="DIR", help="of corrections"
    )
    add("--from", dest="parent", metavar="MODEL", help="weights to go on from")
    add("-o", "--out", type=Path, help="model file, .safetensors")
    add("--overwrite", action="store_true", help="replace the model file")
    add("--half", action="store_true", help="store weights as float16, half the size")
    add(
        "--output",
        choices=("objects", "classes"),
        help="what labels stand for in a model from scratch (default: objects)",
    )
    add("--steps", type=positive, metavar="N")
    add("--learning-rate", type=float, metavar="RATE")
    add("--seed", type=int, metavar="N")
    add("--json", action="store_true", help="print losses and scores as JSON lines")
    add(
        "--supervised",
        action="store_true",
        help='hear a line "stop" on stdin, which keeps the best so far, and end when '
        "stdin does",
    )
    add_device(parser)
    labelled = parser.add_argument_group("labelled images")
    add = labelled.add_argument
    add("--labels", type=Path, metavar="DIR")
    add(
        "--regions",
        type=Path,
        metavar="DIR",
        help="masks of the same name; what lies outside is left out",
    )
    add("--val-images", type=Path, metavar="DIR", help="to choose the best weights by")
    add("--val-labels", type=Path, metavar="DIR")
    add(
        "--val-fraction",
        type=float,
        metavar="F",
        help=f"of the images, held out where there are no others (default: {HELD_OUT})",
    )
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help='JSON with "model" (what to build) and "training" (how), each optional',
    )
    learn.add_options(parser)
    architecture.add_options(parser)


def run(args: argparse.Namespace) -> bool:
    """Train, tell the scores, write the model."""
    rank, _ = launched()
    supervisor = Supervisor() if args.supervised and rank == 0 else None
    stream = Stream(sys.stdout) if args.json and rank == 0 else None
    train = _train if args.training_set is None else _train_on_set
    try:
        if args.parent is not None:
            refuse(args, architecture.OPTIONS, "goes without --from only")
        train(args, Teller(stream, supervisor))
    except Exception as error:
        if stream is not None:
            with contextlib.suppress(OSError):  # nobody listens any more
                stream.error(_sentence(error))
        raise
    return True


def _sentence(error: Exception) -> str:
    if isinstance(error, (AttUnetError, OSError)):
        return str(error)
    return f"Unexpected {type(error).__name__}: {error}"


def _train_on_set(args: argparse.Namespace, teller: Teller) -> None:
    if launched()[1] > 1:
        raise DataError("--set: a round runs in one process; start no more than one.")
    learn.train(args, teller)


def _train(args: argparse.Namespace, teller: Teller) -> None:
    from napari_attunet.model import save_model
    from napari_attunet.training.distributed import joined
    from napari_attunet.training.trainer import train

    refuse(args, learn.OPTIONS, "goes with --set only")
    if args.labels is None or args.out is None:
        raise DataError("Training on --images needs --labels and -o as well.")
    check_out(args)
    described, settings = read_recipe(args.config)
    if described is not None:
        refuse(args, architecture.OPTIONS, f"the model is described in {args.config}")
    asked = given(args, ("steps", "learning_rate", "seed"))
    settings = dataclasses.replace(settings, **asked)
    pairs, validation = _pairs(args)
    start, parent, settings = _start(args, described, pairs, validation, settings)
    checkpoint = args.out.with_suffix(".checkpoint")
    with joined(args.device) as team:
        steps = train(
            start,
            pairs,
            validation,
            settings,
            device=team.device,
            thread_count=args.threads,
            checkpoint=checkpoint,
            team=team,
        )
        if not team.leads:
            drain(steps)
            return
        trained = teller.drain(steps, args.out.name)
    model = named(trained, None if parent is None else parent.spec.key)
    save_model(model, args.out, half=args.half)
    checkpoint.unlink(missing_ok=True)
    best = {k: model.spec.training.get(k) for k in ("best_step", "scores")}
    before, told = _compared(parent, model, validation, args)
    teller.result(
        {
            "model": model.spec.key,
            "file": str(args.out),
            **best,
            "parent_scores": before,
        },
        f"{args.out}: {model.spec.key}, best at step {best['best_step']}.{told}",
    )


def _compared(
    parent: Model | None, model: Model, validation: list[Pair], args: argparse.Namespace
) -> tuple[dict[str, float], str]:
    """Return how the parent fares on what was held out, and whether that was better."""
    from napari_attunet.training.validation import merit_of, validate

    if parent is None:
        return {}, ""
    if not validation:
        return {}, (
            f" Nothing was held out, so that it was not compared with "
            f"{parent.spec.key}: give --val-images, or more images."
        )
    if parent.spec.output != model.spec.output:
        return {}, ""
    try:
        found = validate(
            parent, validation, device=args.device or "auto", threads=args.threads
        )
    except ChannelError:  # it could not even look at them
        return {}, ""
    before, now = merit_of(found), merit_of(model.spec.training["scores"])
    told = f" On what was held out {now:.3f}; {parent.spec.key}: {before:.3f}."
    return found, told + " It became worse: keep that." * (now < before)


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


def hold_out(hashes: Sequence[str], fraction: float) -> tuple[list[int], list[int]]:
    """Divide images, by their content, into those to learn from and those held out.

    So that the same image fares the same whatever lies beside it.

    Parameters
    ----------
    hashes : sequence of str
        Of the images, in hexadecimal.
    fraction : float
        About how many are held out; above 0 and of two or more, at least one is.

    Returns
    -------
    tuple of list of int
        Which are learnt from, and which are held out.

    Raises
    ------
    DataError
        If the fraction is none.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"A part from 0 to below 1 can be held out, got {fraction}.")
    everything = list(range(len(hashes)))
    if fraction == 0 or len(hashes) < 2:
        return everything, []
    lots = [int(digest, 16) / 16 ** len(digest) for digest in hashes]
    order = sorted(everything, key=lots.__getitem__)
    count = sum(lot < fraction for lot in lots)
    held = order[: min(max(1, count), len(order) - 1)]
    return [i for i in everything if i not in held], sorted(held)


def _pairs(args: argparse.Namespace) -> tuple[list[Pair], list[Pair]]:
    import numpy as np

    if (args.val_images is None) != (args.val_labels is None):
        raise DataError("--val-images and --val-labels belong together.")
    pairs = _read(args.images, args.labels, args.regions)
    if args.val_images is not None:
        return pairs, _read(args.val_images, args.val_labels)
    fraction = HELD_OUT if args.val_fraction is None else args.val_fraction
    contents = (np.ascontiguousarray(pair.image).data for pair in pairs)
    hashes = [hashlib.sha256(content).hexdigest() for content in contents]
    kept, held = hold_out(hashes, fraction)
    return [pairs[i] for i in kept], [pairs[i] for i in held]


def _read(images: Path, labels: Path, regions: Path | None = None) -> list[Pair]:
    import numpy as np

    from napari_attunet.images import pair_files, read_image, read_labels
    from napari_attunet.training.samples import Pair

    masks = {} if regions is None else dict(pair_files(images, regions))
    pairs = []
    for path, labels_path in pair_files(images, labels):
        image = read_image(path)
        pixels = np.asarray(image.data[...])  # trained on from memory
        truth = read_labels(labels_path, image.axes)
        weight = None
        if path in masks:
            weight = (read_labels(masks[path], image.axes) > 0).astype(np.float32)
            if not weight.any():
                raise DataError(
                    f"{masks[path]} marks no region; leave out what is not to count."
                )
            if weight.shape != truth.shape:
                raise DataError(
                    f"{masks[path]} has the shape {weight.shape}, the labels of its "
                    f"image {truth.shape}."
                )
        pairs.append(
            Pair(pixels, truth, axes=image.axes, name=path.name, weight=weight)
        )
    return pairs


def _start(
    args: argparse.Namespace,
    described: ModelSpec | None,
    pairs: list[Pair],
    validation: list[Pair],
    settings: TrainingSettings,
) -> tuple[Model | ModelSpec, Model | None, TrainingSettings]:
    """Return what training starts from, the model it was, if any, and fitting crops."""
    from napari_attunet.model import load_model
    from napari_attunet.training.transfer import (
        adapted_spec,
        best_adapted,
        with_classes,
    )

    if args.parent is None:
        spec = described or _default_spec(args, pairs + validation)
        return spec, None, settings.fitting(spec.network.ndim)
    old = load_model(args.parent)
    settings = settings.fitting(old.spec.network.ndim)
    if described is None:
        described = with_classes(old.spec, (pair.labels for pair in pairs + validation))
        # Images of several kinds are taken as the model takes each.
        with contextlib.suppress(DataError):
            described = adapted_spec(described, pairs)
        if described == old.spec:
            return old, old, settings
    return best_adapted(old, described, pairs, settings), old, settings


def _default_spec(args: argparse.Namespace, pairs: list[Pair]) -> ModelSpec:
    """Return a network that fits the first image and all labels, by default small."""
    from napari_attunet.spec import ModelSpec, NetworkSpec

    first = pairs[0]
    axes = first.axes or ""
    count = first.image.shape[axes.index("C")] if "C" in axes else 1
    names: dict[int, tuple[str, ...]] = {1: ("grey",)}
    if axes.endswith("C"):  # elsewhere channels are stains or markers, not colours
        names |= dict.fromkeys((3, 4), ("red", "green", "blue"))
    channels = names.get(count, ())
    output: Literal["objects", "classes"] = args.output or "objects"
    objects = output == "objects"
    top = max(int(pair.labels.max(initial=0)) for pair in pairs)
    classes: tuple[str, ...] = ("background", "interior", "boundary") if objects else ()
    network = NetworkSpec(
        in_channels=len(channels) or count,
        out_channels=3 if objects else max(2, top + 1),
        features=FEATURES,
    )
    return ModelSpec(
        name=args.out.stem,
        network=architecture.described(args, network) or network,
        channels=channels,
        classes=classes,
        output=output,
    )
