"""A round of learning: train on corrections, compare with what was, propose the best.

Nothing of the library is changed before `accept`. All that a round makes lies in a
folder of its own, from which it goes on if it was interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from napari_attunet.corrections import TrainingSet
from napari_attunet.errors import Cancelled, CheckpointError, DataError, ModelError
from napari_attunet.library import Entry, Library
from napari_attunet.model import Model, load_model, save_model
from napari_attunet.progress import Enough, Progress, Steps
from napari_attunet.spec import ModelSpec
from napari_attunet.training.lessons import (
    Lessons,
    anchored,
    fresh_spec,
    read_lessons,
    spec_for,
)
from napari_attunet.training.record import (
    Contender,
    Record,
    Round,
    claimed,
    read_record,
)
from napari_attunet.training.samples import data_hash
from napari_attunet.training.settings import RoundSettings, TrainingSettings
from napari_attunet.training.trainer import RECIPE, train
from napari_attunet.training.tuning import tuning_steps
from napari_attunet.training.validation import merit_of, validation_steps

__all__ = ["accept", "run_round"]

R = TypeVar("R")

#: By part (validation, corrections), then by name.
Scores = dict[str, dict[str, float]]

#: How often it is written down how far a round has come.
RECORD_SECONDS = 2.0

#: A Dice from which a model knows this kind of image, so that it is the start to take.
KNOWN = 0.6

#: By so much a model from scratch must be better than one that had seen more images
#: before, where little is held out to tell.
MARGIN = 0.03


def run_round(
    training_set: TrainingSet,
    parent: str | None,
    settings: RoundSettings,
    folder: Path,
    *,
    device: str = "auto",
    thread_count: int | None = None,
    preview: Path | None = None,
) -> Steps[Round]:
    """Learn from a training set, and say whether that was for the better.

    Parameters
    ----------
    training_set : TrainingSet
        Samples that are in use are learnt from, but for what is held out.
    parent : str, optional
        Name, key or path of the model to start from and to compare with.
    settings : RoundSettings
    folder : Path
        Of the round. What an interrupted one left there is gone on from.
    device, thread_count
        As in `train`.
    preview : Path, optional
        Model file that gets the weights as they are, every few seconds.

    Returns
    -------
    generator
        Yields `Progress`, its message naming the contender that is trained; returns
        the `Round`. `Enough` may be thrown in: what is being trained then stays as
        good as it is, nothing else is trained, and all are compared.

    Raises
    ------
    DataError, ModelError
        If there is nothing to learn from, or it doesn't fit the parent.
    TrainingError
        If another process is at work in that folder.
    Cancelled
        If `Enough` comes before there is any model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder):
        return (
            yield from _round(
                training_set, parent, settings, folder, device, thread_count, preview
            )
        )


def _round(
    training_set: TrainingSet,
    parent: str | None,
    settings: RoundSettings,
    folder: Path,
    device: str,
    thread_count: int | None,
    preview: Path | None,
) -> Steps[Round]:
    enough = yield from _tell(Progress(0, 0, "Reading the training set"))
    old = None if parent is None else load_model(parent)
    lessons = read_lessons(training_set, settings)
    models: dict[str, Model] = {}
    scores: dict[str, Scores] = {}
    knows = False
    if old is not None:
        models["parent"] = old
        scores["parent"], stopped = yield from _scores(
            old, lessons, 0, device, thread_count
        )
        enough |= stopped
        knows, stopped = yield from _knows(
            old, lessons, scores["parent"], device, thread_count
        )
        enough |= stopped
    starts = settings.starts or (("parent",) if knows else ("parent", "scratch"))
    starts = tuple(s for s in starts if s == "scratch" or old is not None)
    if not starts:
        raise DataError("There is no model to start from: choose one, or from scratch.")
    spec = spec_for(old, lessons, settings)
    if not knows:
        spec = fresh_spec(spec, lessons)
    plan = settings.training(spec.network.ndim, known=knows)
    total = plan.steps * len(starts)
    identity = _identity(old, lessons, (settings, plan, spec), starts)
    record = Record(identity=identity, total=total)
    if read_record(folder).identity != record.identity:
        _clear(folder)
    record.write(folder)

    if old is not None and knows:
        learn, stopped = yield from _through(
            anchored(lessons, old, device, thread_count)
        )
        enough |= stopped
        lessons = dataclasses.replace(lessons, learn=learn)
    for number, start in enumerate(starts):
        name = {"parent": "tuned", "scratch": "scratch"}[start]
        file = folder / f"{name}.safetensors"
        if file.exists():
            models[name] = load_model(file)
            continue
        if enough:
            continue
        how = (
            start,
            old,
            spec,
            knows,
            lessons,
            plan,
            file,
            device,
            thread_count,
            preview,
        )
        begun = dataclasses.replace(record, done=number * plan.steps)
        try:
            model, stopped = yield from _watched(_learn(*how), name, begun, folder)
        except CheckpointError:  # on another device the parent's opinion may differ
            file.with_suffix(".checkpoint").unlink()
            model, stopped = yield from _watched(_learn(*how), name, begun, folder)
        enough |= stopped
        if model is not None:
            models[name] = model
            save_model(model, file)

    contenders = []
    for name, model in models.items():
        yield from _tell(Progress(total, total, f"Comparing ({name})"))
        if name not in scores:
            scores[name], _ = yield from _scores(
                model, lessons, total, device, thread_count
            )
        contenders.append(
            Contender(
                name=name,
                model=model.spec.key,
                scores=scores[name],
                merit=_merit(scores[name], trusted=lessons.trusted),
                file=None if name == "parent" else f"{name}.safetensors",
            )
        )
    if not contenders:
        raise Cancelled("Stopped before anything was learnt.")
    outcome = _propose(contenders, trusted=lessons.trusted)
    dataclasses.replace(record, done=total, outcome=outcome).write(folder)
    return outcome


def _tell(progress: Progress) -> Generator[Progress, None, bool]:
    """Yield a progress, and return whether `Enough` was thrown in."""
    try:
        yield progress
    except Enough:
        return True
    return False


def _watched(
    steps: Steps[Model], name: str, begun: Record, folder: Path
) -> Generator[Progress, None, tuple[Model | None, bool]]:
    """Train a contender as a part of the round, and keep down how far it is.

    Returns the model, if there is one, and whether `Enough` was thrown in.
    """
    told, enough = time.monotonic(), False
    try:
        progress = next(steps)
        while True:
            done = begun.done + progress.done
            if time.monotonic() - told > RECORD_SECONDS:
                dataclasses.replace(begun, done=done).write(folder)
                told = time.monotonic()
            said = f"{progress.message} ({name})"
            if (yield from _tell(Progress(done, begun.total, said, progress.values))):
                enough = True
                progress = steps.throw(Enough())
            else:
                progress = next(steps)
    except StopIteration as end:
        return end.value, enough
    except Enough:  # it had not begun
        return None, True
    finally:
        steps.close()


def _through(
    steps: Steps[R], total: int = 0
) -> Generator[Progress, None, tuple[R, bool]]:
    """Go through steps that cannot end early.

    Returns their result, and whether `Enough` was thrown in.
    """
    enough = False
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            return end.value, enough
        enough |= yield from _tell(Progress(total, total, progress.message))


def accept(folder: Path, name: str, library: Library) -> Entry:
    """Store a contender of a round as the next version of its model.

    Raises
    ------
    ModelError
        If the round has no such contender to store, or it cannot be stored.
    """
    outcome = read_record(folder).outcome
    for contender in outcome.contenders if outcome else ():
        if contender.name == name and contender.file is not None:
            return library.add(folder / contender.file)
    raise ModelError(f"The round in {folder} has no model {name!r} to accept.")


def _identity(
    old: Model | None, lessons: Lessons, told: Sequence[Any], starts: Sequence[str]
) -> str:
    """Return what makes two rounds the same, as a hash."""
    digest = hashlib.sha256()
    facts: list[Any] = [RECIPE, list(starts), *(dataclasses.asdict(t) for t in told)]
    facts += [
        data_hash(pairs)
        for pairs in (lessons.learn, lessons.validation, lessons.everything)
    ]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    if old is not None:
        digest.update(old.spec.key.encode())
        for name, tensor in sorted(old.network.state_dict().items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _clear(folder: Path) -> None:
    """Delete what another round has left in a folder; what else lies there stays."""
    for name in ("tuned", "scratch"):
        for suffix in (".safetensors", ".checkpoint"):
            (folder / name).with_suffix(suffix).unlink(missing_ok=True)
    for left_over in folder.glob(".????????.*"):  # a kill in the middle of writing
        left_over.unlink(missing_ok=True)


# --- learning and judging -------------------------------------------------------------


def _learn(
    start: str,
    old: Model | None,
    spec: ModelSpec,
    knows: bool,
    lessons: Lessons,
    plan: TrainingSettings,
    file: Path,
    device: str,
    thread_count: int | None,
    preview: Path | None,
) -> Steps[Model]:
    """Train one contender."""

    def show(model: Model) -> None:
        if preview is not None:
            save_model(model, preview)

    options: dict[str, Any] = {
        "device": device,
        "thread_count": thread_count,
        "checkpoint": file.with_suffix(".checkpoint"),
        "preview": show,
    }
    pairs = lessons.learn, lessons.validation
    if start == "parent" and old is not None:
        return (
            yield from tuning_steps(old, spec, *pairs, plan, known=knows, **options)
        )
    plan = dataclasses.replace(plan, freeze="nothing")
    return (yield from train(spec, *pairs, plan, **options))


def _scores(
    model: Model, lessons: Lessons, total: int, device: str, thread_count: int | None
) -> Steps[tuple[Scores, bool]]:
    """Score a model where nothing was learnt, and on all that was corrected.

    Returns the scores, and whether `Enough` was thrown in meanwhile.
    """
    found: Scores = {"validation": {}, "corrections": {}}
    enough = False
    if model.spec.output != lessons.output:  # it says something else
        return found, enough
    for part, pairs in (
        ("validation", lessons.validation),
        ("corrections", lessons.everything),
    ):
        if pairs:
            steps = validation_steps(model, pairs, device=device, threads=thread_count)
            found[part], stopped = yield from _through(steps, total)
            enough |= stopped
    return found, enough


def _knows(
    old: Model,
    lessons: Lessons,
    scores: Scores,
    device: str,
    thread_count: int | None,
) -> Steps[tuple[bool, bool]]:
    """Return whether a model does so well that starting from scratch is in vain.

    And whether `Enough` was thrown in meanwhile.
    """
    found, stopped = scores["corrections"], False
    if lessons.accepted and old.spec.output == lessons.output:
        steps = validation_steps(
            old, lessons.accepted, device=device, threads=thread_count
        )
        found, stopped = yield from _through(steps)
    return found.get("dice", 0.0) >= KNOWN, stopped


def _merit(scores: Scores, *, trusted: bool) -> float:
    """Return the number that models are ranked by.

    Where little is held out, that is the Dice, which wavers less than counts of
    objects; without anything held out, what was corrected has to do.
    """
    found = scores["validation"] or scores["corrections"]
    if not found:
        return 0.0
    return merit_of(found) if trusted else found["dice"]


def _propose(contenders: Sequence[Contender], *, trusted: bool) -> Round:
    ranks = {c.name: c.merit for c in contenders}
    if not trusted and "tuned" in ranks and "scratch" in ranks:
        ranks["scratch"] -= MARGIN
    best = max(contenders, key=lambda c: ranks[c.name])  # of equals, the first
    if best.name == "parent":
        reason = (
            f"Nothing beats {best.model} ({best.merit:.3f}): keep it. Correct more, or "
            "train thoroughly."
        )
    else:
        others = [c for c in contenders if c is not best]
        told = ", ".join(f"{c.name} {c.merit:.3f}" for c in others)
        reason = f"{best.name} is best with {best.merit:.3f}"
        reason += f" ({told})." if told else "."
    if not trusted:
        reason += (
            " Too little is held out for a meaningful number: look at what would "
            "change, and add more images."
        )
    return Round(
        contenders=tuple(contenders),
        proposed=best.name,
        reason=reason,
        trusted=trusted,
    )
