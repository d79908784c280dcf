"""``doctor``: what runs where, and why CUDA is not used."""

from __future__ import annotations

import argparse
import os
import platform
from typing import TYPE_CHECKING

from napari_attunet.cli.console import version

if TYPE_CHECKING:
    from napari_attunet.cli.console import Commands

__all__ = ["add_to", "run"]

#: Packages whose versions matter when something goes wrong.
PACKAGES = (
    "napari-attunet",
    "torch",
    "numpy",
    "scikit-image",
    "tifffile",
    "imagecodecs",
    "zarr",
    "monai",
    "napari",
    "PyQt6",
    "PySide6",
)


def add_to(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "doctor",
        parents=[common],
        help="what runs where, and why CUDA is not used",
        description="Tell versions, devices, threads and models.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> bool:
    """Print what a report of a problem should hold."""
    from napari_attunet.devices import (
        available_devices,
        choose_device,
        default_threads,
        fast_type,
    )
    from napari_attunet.library import Library, bundled_models

    device, library = choose_device(), Library()
    entries, damaged = library.entries(), library.damaged()
    bundled = [e.spec.key for e in entries if e.bundled]
    own = [e.spec.key for e in entries if not e.bundled]
    facts = [
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        *((name, version(name)) for name in PACKAGES),
        ("devices", ", ".join(available_devices())),
        ("runs on", f"{device}. {device.reason}"),
        ("threads", f"{default_threads()} of {os.cpu_count()} logical cores"),
        ("fast mode", str(fast_type(device.name) or "none").removeprefix("torch.")),
        ("bundled models", f"{', '.join(bundled) or 'none'} in {bundled_models()}"),
        ("your models", f"{', '.join(own) or 'none'} in {library.folder}"),
        *(("damaged", reason) for reason in damaged.values()),
    ]
    width = max(len(name) for name, _ in facts)
    for name, fact in facts:
        print(f"{name:<{width}}  {fact}")
    return True
