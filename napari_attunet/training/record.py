"""What is kept of a round of learning: which models it compared, and how they fared.

It lies in the round's folder, beside the models, and is read without PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from napari_attunet.atomic import replacing
from napari_attunet.corrections import TrainingSet
from napari_attunet.errors import DataError, ModelError, TrainingError
from napari_attunet.schema import from_json, to_json

__all__ = [
    "ROUNDS",
    "Contender",
    "Record",
    "Round",
    "claimed",
    "is_claimed",
    "read_record",
    "unfinished",
]

#: Folder of the rounds, in that of the training set; samples don't begin with a dot.
ROUNDS = ".rounds"

#: In the folder of a round.
FILE, LOCK = "round.json", "round.lock"

#: Seconds to wait for a folder: others may just be looking whether it is claimed.
PATIENCE = 1.0

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A model that was compared.

    Attributes
    ----------
    name : str
        ``"parent"``, ``"tuned"`` or ``"scratch"``.
    model : str
        ``"name@version"``, of those that were trained without a meaningful version.
    scores : dict
        ``"validation"``: on what no training ever saw; ``"corrections"``: on all that
        was corrected. Each a dict of scores by name, empty if nothing could be scored.
    merit : float
        What the proposal goes by.
    file : str, optional
        Of the model, in the round's folder; none for the parent.
    """

    name: str
    model: str
    scores: dict[str, Any]
    merit: float
    file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What came of a round.

    Attributes
    ----------
    contenders : tuple of Contender
        The parent first, if there is one.
    proposed : str
        Name of the best.
    reason : str
        Why, in a sentence or two.
    trusted : bool
        Whether enough was held out for a meaningful number.
    """

    contenders: tuple[Contender, ...]
    proposed: str
    reason: str
    trusted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Where a round stands.

    Attributes
    ----------
    identity : str
        Hash of what it starts from, learns from and is told; the same round goes on,
        another begins anew.
    done, total : int
        Steps of training.
    outcome : Round, optional
        Once it is over.
    format : int
    """

    identity: str = ""
    done: int = 0
    total: int = 0
    outcome: Round | None = None
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Keep it in the round's folder."""
        with replacing(folder / FILE) as temporary:
            temporary.write_text(to_json(self), "utf-8")


def read_record(folder: Path) -> Record:
    """Read where a round stands; one that has not begun has done nothing.

    Raises
    ------
    DataError
        If the record is damaged or from a newer version.
    """
    path = folder / FILE
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return Record()
    try:
        version = json.loads(text).get("format")
        if isinstance(version, int) and version <= FORMAT:
            return from_json(Record, text)
    except (ValueError, AttributeError, ModelError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): delete its folder to begin anew."
        ) from error
    raise DataError(
        f"{path} has format {version}, this version reads up to {FORMAT}: update "
        "napari-attunet."
    )


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep a round's folder for oneself; the system gives it back after a kill.

    Raises
    ------
    TrainingError
        If another process is at work there.
    """
    lock = FileLock(folder / LOCK, thread_local=False)  # generators change threads
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise TrainingError(
            f"Another process is training in {folder}: wait for it, or choose another "
            "folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_claimed(folder: Path) -> bool:
    """Return whether a process is at work in a round's folder."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):  # somebody else's, in any case
        return True
    lock.release()
    return False


def unfinished(training_set: TrainingSet) -> list[Path]:
    """Return the folders of rounds neither accepted nor dropped, the newest first.

    Rounds that another process is at work on are its own affair.
    """
    rounds = training_set.folder / ROUNDS
    if not rounds.is_dir():
        return []
    folders = [f for f in rounds.iterdir() if f.is_dir() and f.name[0] != "."]
    folders.sort(key=lambda f: f.stat().st_mtime, reverse=True)
    return [f for f in folders if not is_claimed(f)]
