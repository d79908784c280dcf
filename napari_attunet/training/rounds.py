"""A round of learning: train on corrections, compare with what was, propose the best.

Nothing of the library is changed before `accept`. All that a round makes lies in a
folder of its own, from which it goes on if it was interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_attunet.corrections import TrainingSet
from napari_attunet.errors import (
    AttUnetError,
    Cancelled,
    CheckpointError,
    DataError,
    ModelError,
)
from napari_attunet.library import Entry, Library
from napari_attunet.model import Model, load_model, save_model
from napari_attunet.progress import Enough, Progress, Steps
from napari_attunet.spec import ModelSpec
from napari_attunet.training.judging import (
    NOTHING_LEARNT,
    Judge,
    Scores,
    merit,
    propose,
)
from napari_attunet.training.lessons import (
    OWN_TRUST,
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
from napari_attunet.training.samples import Pair, data_hash
from napari_attunet.training.settings import RoundSettings, TrainingSettings
from napari_attunet.training.trainer import RECIPE, train
from napari_attunet.training.tuning import SHARE, SHARE_OF_FEW, tuning_steps

__all__ = ["accept", "run_round"]

_log = logging.getLogger(__name__)

#: What comes of a start.
NAMES = {"parent": "tuned", "scratch": "scratch"}

#: How often it is written down how far a round has come.
RECORD_SECONDS = 2.0


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
        judge = Judge(device, thread_count, learnt=_has_learnt(folder))
        try:
            return (
                yield from _round(
                    training_set, parent, settings, folder, judge, preview
                )
            )
        except Cancelled:
            if not (judge.learnt or _has_learnt(folder)):
                Record().write(folder)  # there is nothing to go on from
            raise


def _round(
    training_set: TrainingSet,
    parent: str | None,
    settings: RoundSettings,
    folder: Path,
    judge: Judge,
    preview: Path | None,
) -> Steps[Round]:
    yield from judge.tell(Progress(0, 0, "Reading the training set"))
    old = None if parent is None else load_model(parent)
    lessons = read_lessons(training_set, settings)
    models: dict[str, Model] = {}
    scores: dict[str, Scores] = {}
    knows = False
    if old is not None:
        models["parent"] = old
        scores["parent"] = yield from judge.scores(old, lessons)
        knows = yield from judge.knows(old, lessons, scores["parent"])
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
    before = read_record(folder)
    if before.identity != record.identity:
        if judge.enough:  # what is there belongs to another round: it may yet go on
            raise Cancelled(NOTHING_LEARNT)
        _clear(folder)
        if before.done:
            said = "The training set or the settings have changed: beginning anew"
            yield from judge.tell(Progress(0, total, said))
    judge.learnt = _has_learnt(folder)  # what was there may have been another's
    if judge.enough and not judge.learnt:
        raise Cancelled(NOTHING_LEARNT)
    record.write(folder)

    learn = lessons.learn
    if old is not None and knows:
        steps = anchored(lessons, old, judge.device, judge.thread_count)
        learn = yield from judge.through(steps)
    course = _Course(old, knows, spec, lessons, learn, plan, preview)
    for number, start in enumerate(starts):
        file = folder / f"{NAMES[start]}.safetensors"
        resumed = file.with_suffix(".checkpoint").exists()
        if not file.exists() and (resumed or not judge.enough):
            begun = dataclasses.replace(record, done=number * plan.steps)
            yield from _train(course, start, file, begun, judge)
        if file.exists():
            models[NAMES[start]] = load_model(file)

    contenders = []
    for name, model in models.items():
        yield from judge.tell(Progress(total, total, f"Comparing ({name})"))
        if name not in scores:
            scores[name] = yield from judge.scores(model, lessons, total)
        if name != "parent":
            _note_scores(models[name], scores[name], folder / f"{name}.safetensors")
        contenders.append(
            Contender(
                name=name,
                model=model.spec.key,
                scores=scores[name],
                merit=merit(scores[name], trusted=lessons.trusted),
                file=None if name == "parent" else f"{name}.safetensors",
            )
        )
    if not contenders:
        raise Cancelled(NOTHING_LEARNT)
    outcome = propose(contenders, trusted=lessons.trusted)
    dataclasses.replace(record, done=total, outcome=outcome).write(folder)
    return outcome


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


def _note_scores(model: Model, scores: Scores, file: Path) -> None:
    """Write into a model's record how it fared.

    Training has noted the scores of weights that lie beyond those that are kept.
    """
    told = model.spec.training | {
        "scores": scores["validation"],
        "corrections": scores["corrections"],
    }
    if told != model.spec.training:
        spec = dataclasses.replace(model.spec, training=told)
        save_model(Model(spec, model.network), file)


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


def _kept(folder: Path, suffix: str = ".safetensors") -> list[Path]:
    """Return the contenders' files that lie in a folder."""
    paths = (folder / f"{name}{suffix}" for name in NAMES.values())
    return [path for path in paths if path.exists()]


def _has_learnt(folder: Path) -> bool:
    """Return whether there is anything to keep or to go on from."""
    return bool(_kept(folder) or _kept(folder, ".checkpoint"))


def _clear(folder: Path) -> None:
    """Delete what another round has left in a folder; what else lies there stays."""
    for path in (*_kept(folder), *_kept(folder, ".checkpoint")):
        path.unlink()
    for left_over in folder.glob(".????????.*"):  # a kill in the middle of writing
        left_over.unlink(missing_ok=True)


# --- learning -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Course:
    """What every contender of a round is trained by."""

    old: Model | None
    knows: bool
    spec: ModelSpec
    lessons: Lessons
    learn: Sequence[Pair]
    plan: TrainingSettings
    preview: Path | None

    def steps(self, start: str, checkpoint: Path, judge: Judge) -> Steps[Model]:
        """Train one contender."""

        def show(model: Model) -> None:
            if self.preview is None:
                return
            try:
                save_model(model, self.preview)
            except (OSError, AttUnetError) as error:  # a full disk, a reader's lock
                _log.warning("The preview was not written: %s", error)

        def revised(model: Model) -> Steps[list[Pair]]:
            places = judge.device, judge.thread_count
            return anchored(self.lessons, model, *places, OWN_TRUST)

        options: dict[str, Any] = {
            "device": judge.device,
            "thread_count": judge.thread_count,
            "checkpoint": checkpoint,
            "preview": show,
        }
        pairs = self.learn, self.lessons.validation
        if start == "parent" and self.old is not None:
            share = SHARE_OF_FEW if self.lessons.few else SHARE
            # of classes it was never measured what that is good for
            told = self.knows and self.lessons.few and self.lessons.output == "objects"
            return tuning_steps(
                self.old,
                self.spec,
                *pairs,
                self.plan,
                share=share if self.knows else 1.0,  # nothing to keep
                revise=revised if told else None,
                **options,
            )
        plan = dataclasses.replace(self.plan, freeze="nothing")
        return train(self.spec, *pairs, plan, **options)


def _train(
    course: _Course, start: str, file: Path, begun: Record, judge: Judge
) -> Steps[None]:
    """Train a contender as a part of the round, and keep it in its file."""
    checkpoint = file.with_suffix(".checkpoint")

    def watched() -> Steps[Model]:
        steps = course.steps(start, checkpoint, judge)
        return _watched(steps, NAMES[start], begun, file.parent, judge)

    try:
        try:
            model = yield from watched()
        except CheckpointError:  # on another device the parent's opinion may differ
            checkpoint.unlink()
            model = yield from watched()
    except Enough:  # it had not begun
        return
    save_model(model, file)


def _watched(
    steps: Steps[Model], name: str, begun: Record, folder: Path, judge: Judge
) -> Steps[Model]:
    """Train, and keep down how far the round is.

    Raises
    ------
    Enough
        If it comes before there is a model.
    """
    told, passed_on = time.monotonic(), False
    resumed = (folder / f"{name}.checkpoint").exists()
    try:
        progress = next(steps)
        while True:
            done = begun.done + progress.done
            if time.monotonic() - told > RECORD_SECONDS:
                dataclasses.replace(begun, done=done).write(folder)
                told = time.monotonic()
            said = f"{progress.message} ({name})"
            judge.learnt = judge.learnt or progress.done > 0
            yield from judge.tell(Progress(done, begun.total, said, progress.values))
            # A training that is gone on with has something to keep once it goes on.
            ready = progress.done > 0 or not resumed
            if judge.enough and ready and not passed_on:
                passed_on = True
                progress = steps.throw(Enough())
            else:
                progress = next(steps)
    except StopIteration as end:
        model: Model = end.value
        return model
    finally:
        steps.close()
