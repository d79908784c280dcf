"""The command line: thin functions over the core, one module for each command.

Modules import what they need when they run, so that ``--help`` is quick and listing
models never waits for torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from napari_attunet.cli import demo, doctor, evaluate, models, segment, train
from napari_attunet.cli.console import report, version

__all__ = ["main"]

#: Exit codes: something asked for was not done; stopped by Ctrl-C (128 + SIGINT).
FAILED, INTERRUPTED = 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; by default those of the process.

    Returns
    -------
    int
        0 only if everything asked for was done; 1 if something was not, 130 after
        Ctrl-C. Wrong arguments exit with 2.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without Greek must not fail
            stream.reconfigure(errors="replace")
    args = _parser().parse_args(argv)
    try:
        done: bool = args.run(args)
    except KeyboardInterrupt:
        report("stopped")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - one line for people, whatever happened
        report(error, verbose=args.verbose)
        return FAILED
    return 0 if done else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="napari-attunet",
        description="Segment images with Attention U-Nets and see what they attend to.",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {version('napari-attunet')}"
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--verbose", action="store_true", help="tell more, errors with their traceback"
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (segment, train, evaluate, models, doctor, demo):
        module.add_to(commands, common)
    return parser
