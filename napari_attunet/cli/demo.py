"""``demo``: the plugin at work on a sample, on a screen or without one."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from napari_attunet.errors import DataError, DeviceError

if TYPE_CHECKING:
    from napari_attunet.cli.console import Commands

__all__ = ["add_to", "run"]


def add_to(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "demo",
        parents=[common],
        help="open napari with a sample, segment it, show the gates",
    )
    parser.add_argument(
        "--screenshot",
        type=Path,
        metavar="FILE",
        help="write a picture of the window (PNG) and close it; needs no screen, but "
        "then Xvfb",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> bool:
    """Show the demo, on a virtual screen if there is none and a picture suffices."""
    if importlib.util.find_spec("napari") is None:
        raise DeviceError(
            'The demo needs napari: run  pip install "napari-attunet[all]"'
        )
    picture: Path | None = args.screenshot
    if picture is not None:
        if picture.suffix.lower() != ".png":
            raise DataError(f"The picture is written as PNG, got {picture}.")
        picture.parent.mkdir(parents=True, exist_ok=True)
    from napari_attunet.widgets.demo import run as show

    show(picture)
    return True
