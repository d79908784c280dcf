"""What every command says to people: errors, progress, tables, arguments."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from napari_attunet.architecture import PRECISIONS
from napari_attunet.errors import AttUnetError
from napari_attunet.progress import Progress

if TYPE_CHECKING:
    from tqdm import tqdm

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = [
    "Bar",
    "add_device",
    "add_precision",
    "for_later",
    "numbers",
    "positive",
    "report",
    "table",
    "version",
]


def report(
    error: BaseException | str, *, subject: object = None, verbose: bool = False
) -> None:
    """Print an error as one line on stderr, and its traceback if wanted."""
    if verbose and isinstance(error, BaseException):
        traceback.print_exception(error)
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        text = f"The memory does not suffice. {text}".strip()
    elif not isinstance(error, (AttUnetError, OSError, str)):
        more = "" if verbose else " (--verbose tells more)"
        text = f"Unexpected {type(error).__name__}: {text}{more}"
    if subject is not None and str(subject) not in text:
        text = f"{subject}: {text}"
    print(f"napari-attunet: {text}", file=sys.stderr)


def for_later(error: Exception) -> Exception:
    """Return an error to be told later, without the images that its frames hold."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    return error


class Bar:
    """One progress bar on stderr for a number of jobs; silent where nobody watches.

    Parameters
    ----------
    jobs : int
        How many jobs of equal length there are.
    """

    def __init__(self, jobs: int) -> None:
        from tqdm import tqdm

        self._bar: tqdm[Any] = tqdm(
            total=jobs,
            disable=None,  # unless stderr is a terminal
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
            dynamic_ncols=True,
            leave=False,
        )

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def job(self, index: int, name: str) -> Callable[[Progress], None]:
        """Return what shows the progress of one job in the bar."""

        def show(progress: Progress) -> None:
            self._bar.set_description_str(f"{name}: {progress.message}", refresh=False)
            done = index + progress.done / max(1, progress.total)
            self._bar.update(done - self._bar.n)

        return show

    def say(self, text: str) -> None:
        """Print a line on stdout without tearing the bar."""
        self._bar.write(text, file=sys.stdout)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows as aligned columns; numbers with a fraction have three digits."""
    cells = [
        list(head),
        *([f"{c:.3f}" if isinstance(c, float) else str(c) for c in r] for r in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def version(package: str) -> str:
    """Return the installed version of a package, or ``"not installed"``."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def positive(text: str) -> int:
    """Return an argument that is a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def numbers(text: str) -> tuple[int, ...]:
    """Return an argument of whole numbers with commas between them."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 256 or 32,256,256")
    return tuple(int(part) for part in parts)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where a network runs."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="auto (default), cpu, cuda, cuda:1 or mps",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="threads of the CPU"
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add the option that says how exactly a network computes."""
    parser.add_argument(
        "--precision",
        default="auto",
        choices=PRECISIONS,
        help="exact: float32; fast: float16 on CUDA, bfloat16 on processors that have "
        "it; auto (default): fast on CUDA, else exact",
    )
