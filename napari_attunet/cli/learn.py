"""``train --set``: a round of learning from corrections."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_attunet.architecture import FEATURES, NetworkSpec
from napari_attunet.cli.architecture import described
from napari_attunet.cli.console import table
from napari_attunet.cli.training import Teller, check_out, given, named, refuse
from napari_attunet.errors import DataError

if TYPE_CHECKING:
    from napari_attunet.training.record import Round
    from napari_attunet.training.settings import RoundSettings

__all__ = ["OPTIONS", "add_options", "read_settings", "train"]

#: Options that mean nothing without ``--set``, and nothing with it.
OPTIONS = ("round", "effort", "start", "freeze", "preview", "settings")
OTHERS = ("labels", "regions", "val_images", "val_labels", "val_fraction", "config")

STARTS = {
    "parent": ("parent",),
    "scratch": ("scratch",),
    "both": ("parent", "scratch"),
}

#: Working folder of a round whose model goes to a file: the same name.
SUFFIX = ".round"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a round to the parser."""
    group = parser.add_argument_group(
        "corrections",
        "What was learnt is compared with the model it started from (--from), where "
        "it can be on what no training saw. If that model stays the best, this is "
        "said, nothing is written to -o, and the exit code is 0.",
    )
    add = group.add_argument
    add(
        "--round",
        type=Path,
        metavar="DIR",
        help=f"working folder, which all is kept in (default: that of -o, {SUFFIX})",
    )
    add("--effort", choices=("quick", "thorough"), help="default: quick")
    add(
        "--start",
        choices=tuple(STARTS),
        help="what to train: the model further, a new one, or both (default: a new one "
        "too where the model does badly)",
    )
    add(
        "--freeze",
        choices=("nothing", "encoder"),
        help="what keeps its weights (default: nothing)",
    )
    add(
        "--preview",
        type=Path,
        metavar="FILE",
        help="model file that gets the weights as they are, every few seconds",
    )
    add(
        "--settings",
        metavar="JSON",
        help="all settings of a round as a JSON object; other options come before them",
    )


def train(args: argparse.Namespace, teller: Teller) -> None:
    """Run a round, tell how the contenders compare, write the best one."""
    refuse(args, OTHERS, "goes with --images only")
    if args.out is None and args.round is None:
        raise DataError(
            "Say where the model goes (-o), or the folder that keeps all (--round)."
        )
    if args.out is not None:
        check_out(args)
    if not args.training_set.is_dir():
        raise DataError(f"There is no folder {args.training_set}.")
    from napari_attunet.corrections import TrainingSet
    from napari_attunet.devices import default_threads
    from napari_attunet.training.rounds import run_round

    threads = args.threads
    if threads is None and args.supervised:  # by a viewer, which is to stay live
        threads = default_threads(spare=1)
    folder = args.round or args.out.with_suffix(SUFFIX)
    steps = run_round(
        TrainingSet(args.training_set),
        args.parent,
        read_settings(args),
        folder,
        device=args.device,
        thread_count=threads,
        preview=args.preview,
    )
    outcome = teller.drain(steps, folder.name)
    written = _write(args, outcome, folder)
    if args.round is None and written["file"] is not None:
        shutil.rmtree(folder, ignore_errors=True)  # nobody asked for it
    facts = {"round": str(folder), **dataclasses.asdict(outcome), **written}
    teller.result(facts, _text(outcome, folder, written))


def read_settings(args: argparse.Namespace) -> RoundSettings:
    """Return the settings of a round: those given one by one over ``--settings``."""
    from napari_attunet.schema import from_json
    from napari_attunet.training.settings import RoundSettings

    settings = from_json(RoundSettings, args.settings or "{}")
    names = ("effort", "freeze", "steps", "learning_rate", "output", "seed")
    asked = given(args, names)
    network = described(args, settings.network or _default_network(args))
    if network is not None:
        asked["network"] = network
    if args.start is not None:
        asked["starts"] = STARTS[args.start]
    if args.parent is None and args.out is not None and settings.name is None:
        asked["name"] = args.out.stem
    return dataclasses.replace(settings, **asked)


def _default_network(args: argparse.Namespace) -> NetworkSpec:
    """Return the network that nobody described, for the samples that there are."""
    from napari_attunet.corrections import TrainingSet

    samples = TrainingSet(args.training_set).samples()
    ndim = next((s.ndim for s in samples if s.used), 2)
    return NetworkSpec(ndim=3 if ndim == 3 else 2, features=FEATURES)


def _write(args: argparse.Namespace, outcome: Round, folder: Path) -> dict[str, Any]:
    """Write the proposed model where it is wanted; tell its name and file."""
    from napari_attunet.model import load_model, save_model

    (best,) = (c for c in outcome.contenders if c.name == outcome.proposed)
    if args.out is None or best.file is None:
        return {"model": None, "file": None}
    model = load_model(folder / best.file)
    model = named(model, model.spec.parent)
    save_model(model, args.out, half=args.half)
    return {"model": model.spec.key, "file": str(args.out)}


def _text(outcome: Round, folder: Path, written: dict[str, Any]) -> str:
    parts = ("validation", "corrections")
    columns = [
        (part, name)
        for part in parts
        for name in dict.fromkeys(
            n for c in outcome.contenders for n in c.scores.get(part, {})
        )
    ]
    rows = [
        [c.name, *(c.scores.get(part, {}).get(name, "") for part, name in columns)]
        for c in outcome.contenders
    ]
    head = ("", *(f"{part} {name}" for part, name in columns))
    where = f"What was trained is in {folder}."
    if written["file"] is not None:
        where = f"{written['file']}: {written['model']}"
    return "\n".join([table(head, rows), "", outcome.reason, where])
