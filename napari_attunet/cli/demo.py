"""``demo``: the plugin at work on a sample, on a screen or without one."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from napari_attunet.errors import DataError, DeviceError

if TYPE_CHECKING:
    from napari_attunet.cli.console import Commands

__all__ = ["add_to", "run"]

#: The virtual screen that a screenshot is taken on.
SCREEN = "-screen 0 1600x1000x24"


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
    if args.screenshot is not None and args.screenshot.suffix.lower() != ".png":
        raise DataError(f"The picture is written as PNG, got {args.screenshot}.")
    if not has_screen(os.environ, sys.platform):
        return _on_virtual_screen(args)
    from napari_attunet.widgets import demo

    demo.run(args.screenshot)
    return True


def has_screen(environment: Mapping[str, str], system: str) -> bool:
    """Whether windows can be shown; only Linux may be without a display server."""
    if not system.startswith("linux"):
        return True
    return bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


def _on_virtual_screen(args: argparse.Namespace) -> bool:
    if args.screenshot is None:
        raise DeviceError(
            "There is no screen to show napari on; --screenshot FILE writes a picture."
        )
    xvfb = shutil.which("xvfb-run")
    if xvfb is None:
        raise DeviceError(
            "There is no screen and no virtual one: install Xvfb, on Debian and Ubuntu "
            "with  apt install xvfb  (on Fedora xorg-x11-server-Xvfb)."
        )
    command = [xvfb, "--auto-servernum", f"--server-args={SCREEN}"]
    command += [sys.executable, "-m", "napari_attunet", "demo"]
    command += ["--screenshot", str(args.screenshot), *["--verbose"] * args.verbose]
    # A platform without OpenGL may have been set for lack of a screen.
    environment = {k: v for k, v in os.environ.items() if k != "QT_QPA_PLATFORM"}
    ended = subprocess.run(command, env=environment, check=False)  # noqa: S603
    return ended.returncode == 0
