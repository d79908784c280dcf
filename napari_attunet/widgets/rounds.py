"""A round of learning, as the threads of the viewer go about it; no Qt.

The training itself is a process of its own; what it leaves in the round's folder,
`napari_attunet.training.record` reads without PyTorch.
"""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from napari_attunet.atomic import replacing
from napari_attunet.corrections import TrainingSet
from napari_attunet.errors import DataError, TrainingError
from napari_attunet.library import Entry, Library
from napari_attunet.progress import Progress, Steps
from napari_attunet.schema import to_json
from napari_attunet.training.process import child_steps
from napari_attunet.training.record import (
    ROUNDS,
    Round,
    is_claimed,
    read_record,
    unfinished,
)
from napari_attunet.training.settings import RoundSettings
from napari_attunet.widgets.warmup import load_engine

__all__ = [
    "Open",
    "Request",
    "accept",
    "contender_of",
    "drop",
    "has_begun",
    "learn",
    "look_around",
]

logger = logging.getLogger(__name__)

#: Files in the folder of a round, beside those of the training.
REQUEST, PREVIEW, LOG = "request.json", "preview.safetensors", "log.txt"

#: Seconds after which a round that has done nothing will never do anything.
BEGINS_WITHIN = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for; kept in the round's folder, to be asked for again.

    Attributes
    ----------
    folder : Path
        Of the round.
    training_set : Path
    parent : Path, optional
        File of the model to start from; a new model has none.
    settings : str
        JSON.
    device : str
    threads : int, optional
    """

    folder: Path
    training_set: Path
    parent: Path | None
    settings: str
    device: str = "auto"
    threads: int | None = None

    @classmethod
    def new(
        cls,
        training_set: TrainingSet,
        parent: Path | None,
        settings: RoundSettings,
        *,
        device: str,
        threads: int | None,
    ) -> Request:
        """Make the folder of a round and write down what it is to do."""
        folder = training_set.folder / ROUNDS / uuid.uuid4().hex[:12]
        request = cls(
            folder=folder,
            training_set=training_set.folder,
            parent=parent,
            settings=to_json(settings),
            device=device,
            threads=threads,
        )
        facts = {
            "parent": None if parent is None else str(parent),
            "settings": request.settings,
            "device": device,
            "threads": threads,
        }
        with replacing(folder) as temporary:
            temporary.mkdir()
            (temporary / REQUEST).write_text(json.dumps(facts), "utf-8")
        return request

    @classmethod
    def read(cls, training_set: TrainingSet, folder: Path) -> Request:
        """Return what was asked for in the round of a folder."""
        facts = json.loads((folder / REQUEST).read_text("utf-8"))
        parent = facts.pop("parent")
        return cls(
            folder=folder,
            training_set=training_set.folder,
            parent=None if parent is None else Path(parent),
            **facts,
        )

    @property
    def preview(self) -> Path:
        """Where the training writes the weights of the moment."""
        return self.folder / PREVIEW

    def arguments(self) -> list[str]:
        """Return the arguments of the command ``train``."""
        found = ["--set", str(self.training_set), "--round", str(self.folder)]
        if self.parent is not None:
            found += ["--from", str(self.parent)]
        found += ["--settings", self.settings]
        found += ["--preview", str(self.preview), "--device", self.device]
        if self.threads is not None:
            found += ["--threads", str(self.threads)]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A round that nobody has brought to its end.

    Attributes
    ----------
    request : Request
    done, total : int
        Steps, where the training was interrupted.
    outcome : Round, optional
        What it came to, where only the decision is missing.
    """

    request: Request
    done: int = 0
    total: int = 0
    outcome: Round | None = None


def learn(request: Request, enough: threading.Event) -> Steps[Round]:
    """Train in a process of its own; returns what came of it.

    Parameters
    ----------
    request : Request
    enough : Event
        Set it to have the best so far.
    """
    yield from child_steps(request.arguments(), enough=enough, log=request.folder / LOG)
    outcome = read_record(request.folder).outcome
    if outcome is None:
        raise TrainingError(
            "The training came to an end without saying what came of it: start it "
            f"again. It left all it had in {request.folder}."
        )
    return outcome


def has_begun(folder: Path) -> bool:
    """Return whether the training in a folder has got as far as to learn something."""
    try:
        return read_record(folder).total > 0
    except DataError:
        return True  # told by whoever looks closer


def contender_of(progress: Progress) -> str:
    """Return which contender a step of training belongs to."""
    return "scratch" if "(scratch)" in progress.message else "tuned"


def look_around(
    training_set: TrainingSet,
) -> Steps[tuple[tuple[str, ...], Open | None]]:
    """Return what devices there are, and the round that is still open, if any."""
    yield Progress(0, 0)
    load_engine()  # there may be no layer yet
    yield Progress(0, 0)
    importlib.import_module("pyqtgraph")  # so that the plot need not
    yield Progress(0, 0)
    from napari_attunet.devices import available_devices

    return available_devices(), _open_round(training_set)


def _open_round(training_set: TrainingSet) -> Open | None:
    for folder in unfinished(training_set):
        if not (folder / REQUEST).is_file():  # not begun in the viewer
            continue
        try:
            record = read_record(folder)
            request = Request.read(training_set, folder)
        except (DataError, OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("A round of learning cannot be gone on with: %s", error)
            continue
        if record.total:
            return Open(
                request=request,
                done=record.done,
                total=record.total,
                outcome=record.outcome,
            )
        # Begun just now in another window, or closed before it did anything.
        if time.time() - (folder / REQUEST).stat().st_mtime > BEGINS_WITHIN:
            shutil.rmtree(folder, ignore_errors=True)
    return None


def accept(folder: Path, name: str, library: Library) -> Steps[Entry]:
    """Make a contender the next version of its model, and clear the round away."""
    yield Progress(0, 0, "Storing the new version")
    load_engine()
    from napari_attunet.training import rounds

    entry: Entry = rounds.accept(folder, name, library)
    shutil.rmtree(folder, ignore_errors=True)
    return entry


def drop(folder: Path) -> Steps[None]:
    """Clear a round away.

    Raises
    ------
    TrainingError
        If another process is at work on it.
    """
    yield Progress(0, 0)
    if is_claimed(folder):
        raise TrainingError(
            "This round is being trained in another window: stop it there."
        )
    shutil.rmtree(folder, ignore_errors=True)
