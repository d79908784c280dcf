"""``models``: what is on the shelf, and what comes and goes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from napari_attunet.atomic import replacing
from napari_attunet.cli.console import report, table
from napari_attunet.errors import ModelError

if TYPE_CHECKING:
    from napari_attunet.cli.console import Commands
    from napari_attunet.spec import ModelSpec

__all__ = ["add_to"]


def add_to(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the commands to the parser."""
    parser = commands.add_parser("models", help="list, show and move models")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")

    listing = actions.add_parser("list", parents=[common], help="what there is")
    listing.set_defaults(run=list_models)

    showing = actions.add_parser(
        "show", parents=[common], help="all about one, as JSON"
    )
    showing.add_argument("model", help="name, name@version or file")
    showing.set_defaults(run=show)

    importing = actions.add_parser("import", parents=[common], help="add a model file")
    importing.add_argument("file", type=Path)
    importing.add_argument("--name", help="put it on the shelf under another name")
    importing.set_defaults(run=import_model)

    exporting = actions.add_parser(
        "export", parents=[common], help="copy one to a file"
    )
    exporting.add_argument("model", help="name or name@version")
    exporting.add_argument("file", type=Path)
    exporting.add_argument("--overwrite", action="store_true")
    exporting.set_defaults(run=export)

    using = actions.add_parser(
        "use", parents=[common], help="take a version wherever the name alone is given"
    )
    using.add_argument("model", help="name@version, an earlier one to roll back")
    using.set_defaults(run=use)

    duplicating = actions.add_parser(
        "duplicate", parents=[common], help="copy one under another name"
    )
    duplicating.add_argument("model", help="name or name@version")
    duplicating.add_argument("name", help="of the copy")
    duplicating.set_defaults(run=duplicate)

    renaming = actions.add_parser(
        "rename", parents=[common], help="give all versions of one another name"
    )
    renaming.add_argument("model", help="name")
    renaming.add_argument("name", help="the new one")
    renaming.set_defaults(run=rename)

    removing = actions.add_parser("remove", parents=[common], help="delete one")
    removing.add_argument("model", help="name@version")
    removing.set_defaults(run=remove)


def list_models(args: argparse.Namespace) -> bool:
    """Print a line for each model."""
    from napari_attunet.library import Library

    library = Library()
    rows = [
        (
            e.spec.key,
            "current" if e.current else "",
            _kind(e.spec),
            "bundled" if e.bundled else "yours",
            e.spec.parent or "",
            e.spec.description,
        )
        for e in library.entries()
    ]
    print(table(("model", "use", "kind", "from", "parent", "description"), rows))
    damaged = library.damaged()
    for path, reason in damaged.items():
        report(reason, subject=path)
    return not damaged


def _kind(spec: ModelSpec) -> str:
    channels = ", ".join(spec.channels)
    return f"{spec.network.ndim}D, {channels} -> {spec.output}"


def show(args: argparse.Namespace) -> bool:
    """Print the specification of a model as JSON."""
    from napari_attunet.header import SUFFIX, read_spec
    from napari_attunet.library import Library

    path = Path(args.model)
    is_file = path.suffix == SUFFIX or path.is_file()
    spec = read_spec(path) if is_file else Library().find(args.model).spec
    print(json.dumps(dataclasses.asdict(spec), indent=2, ensure_ascii=False))
    return True


def import_model(args: argparse.Namespace) -> bool:
    """Put a model file on the shelf; what is there already is never replaced."""
    from napari_attunet.library import Library
    from napari_attunet.model import Model, load_model, save_model

    library = Library()
    model = load_model(args.file)  # in full, so that no broken file gets on the shelf
    spec = model.spec
    if args.name:
        spec = dataclasses.replace(spec, name=args.name)
    taken = {entry.spec.key for entry in library.entries()}
    if spec.key in taken:
        raise ModelError(
            f"The library has a model {spec.key} already: give another --name, or "
            "remove the old one."
        )
    if spec is model.spec:
        _copy(args.file, library.path_for(spec), replace=False)
    else:
        save_model(Model(spec, model.network), library.path_for(spec))
    print(spec.key)
    return True


def export(args: argparse.Namespace) -> bool:
    """Copy a model of the shelf to a file."""
    from napari_attunet.header import SUFFIX
    from napari_attunet.library import Library

    entry = Library().find(args.model)
    if args.file.suffix != SUFFIX:
        raise ModelError(f"A model file ends in {SUFFIX}, got {args.file}.")
    if args.file.exists() and not args.overwrite:
        raise ModelError(f"{args.file} is there already; --overwrite replaces it.")
    _copy(entry.path, args.file)
    print(args.file)
    return True


def use(args: argparse.Namespace) -> bool:
    """Make a version the current one of its name."""
    from napari_attunet.library import Library

    print(Library().make_current(args.model).spec.key)
    return True


def duplicate(args: argparse.Namespace) -> bool:
    """Copy a model under another name."""
    from napari_attunet.library import Library

    print(Library().duplicate(args.model, args.name).spec.key)
    return True


def rename(args: argparse.Namespace) -> bool:
    """Give the user's versions of a model another name, and print their keys."""
    from napari_attunet.library import Library

    for entry in Library().rename(args.model, args.name):
        print(entry.spec.key)
    return True


def remove(args: argparse.Namespace) -> bool:
    """Delete one of the user's models."""
    from napari_attunet.library import Library

    Library().remove(args.model)
    return True


def _copy(source: Path, target: Path, *, replace: bool = True) -> None:
    """Copy a file, whole or not at all.

    Without `replace`, of two processes that bring the same model one fails.
    """
    try:
        with replacing(target, exclusive=not replace) as temporary:
            shutil.copyfile(source, temporary)
            shutil.copymode(source, temporary)
    except FileExistsError as error:
        raise ModelError(f"{target} has just been made by another program.") from error
