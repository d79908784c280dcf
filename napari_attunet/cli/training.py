"""What trainings share on the command line: how they tell of themselves and end."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import TYPE_CHECKING, Any, TypeVar

from napari_attunet.cli.console import Bar
from napari_attunet.errors import DataError, ModelError
from napari_attunet.progress import Progress, Steps, drain
from napari_attunet.training.process import Stream, Supervisor, has_scores

if TYPE_CHECKING:
    from napari_attunet.model import Model

__all__ = ["Teller", "check_out", "given", "launched", "named", "refuse"]

R = TypeVar("R")


class Teller:
    """Drains a training and tells of it, people or a program.

    Parameters
    ----------
    stream : Stream, optional
        For a program; without one there are a bar and lines for people.
    supervisor : Supervisor, optional
        Whoever may stop the training.
    """

    def __init__(
        self, stream: Stream | None = None, supervisor: Supervisor | None = None
    ) -> None:
        self._stream = stream
        self._drain = drain if supervisor is None else supervisor.drain

    def drain(self, steps: Steps[R], name: str) -> R:
        """Run the steps and return their result."""
        if self._stream is not None:
            return self._drain(steps, self._stream.progress)
        with Bar(1) as bar:
            show = bar.job(0, name)

            def tell(progress: Progress) -> None:
                show(progress)
                if has_scores(progress):
                    bar.say(_line(progress))

            return self._drain(steps, tell)

    def result(self, facts: dict[str, Any], text: str) -> None:
        """Tell what came of it, as facts or as text."""
        if self._stream is not None:
            self._stream.result(facts)
        else:
            print(text)


def _line(progress: Progress) -> str:
    values = (f"{k} {v:.4g}" for k, v in (progress.values or {}).items())
    return f"{progress.message}, step {progress.done}: {', '.join(values)}"


def launched() -> tuple[int, int]:
    """Return the number of this process, from 0, among those of ``torchrun``."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """Return those of the options that were given."""
    return {n: getattr(args, n) for n in names if getattr(args, n) is not None}


def refuse(args: argparse.Namespace, names: tuple[str, ...], reason: str) -> None:
    """Raise a `DataError` if options were given that mean nothing here."""
    flags = ", ".join(f"--{n.replace('_', '-')}" for n in given(args, names))
    if flags:
        raise DataError(f"{flags}: {reason}.")


def check_out(args: argparse.Namespace) -> None:
    """Raise a `ModelError` if the model could not be written where it should."""
    from napari_attunet.header import SUFFIX

    if args.out.suffix != SUFFIX:
        raise ModelError(f"A model file ends in {SUFFIX}, got {args.out}.")
    if args.out.exists() and not args.overwrite:
        raise ModelError(f"{args.out} is there already; --overwrite replaces it.")


def named(model: Model, parent: str | None) -> Model:
    """Give a model that was trained further the next version of its name."""
    from napari_attunet.library import Library

    if parent is None:
        return model
    version = Library().next_version(model.spec.name, parent)
    training = model.spec.training | {"started_from": parent}
    spec = dataclasses.replace(
        model.spec, parent=parent, version=version, training=training
    )
    return dataclasses.replace(model, spec=spec)
