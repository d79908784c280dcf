"""A round of learning: train on corrections, compare with what was, propose the best.

Nothing of the library is changed before `accept`. All that a round makes lies in a
folder of its own, from which it goes on if it was interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_attunet.corrections import Sample, TrainingSet
from napari_attunet.errors import DataError, ModelError
from napari_attunet.library import Entry, Library
from napari_attunet.model import Model, load_model, save_model
from napari_attunet.progress import Enough, Progress, Steps
from napari_attunet.spec import ModelSpec, NetworkSpec
from napari_attunet.training.record import Contender, Record, Round, read_record
from napari_attunet.training.samples import Pair, data_hash
from napari_attunet.training.settings import RoundSettings
from napari_attunet.training.trainer import merit_of, train, validation_steps
from napari_attunet.training.transfer import adapted_spec, best_adapted, blend

__all__ = ["accept", "run_round"]

#: How far a model goes from its start to where training led it.
SHARE = 0.75

#: Fewer objects, or pixels of classes, make no meaningful number.
MEANINGFUL_OBJECTS, MEANINGFUL_PIXELS = 20, 20_000

#: By so much a model from scratch must be better than one that had seen more images
#: before, where little is held out to tell.
MARGIN = 0.03

#: A new model that nobody described: small and quick.
FEATURES = (16, 32, 64, 128, 256)


@dataclass(frozen=True, eq=False)
class _Data:
    """What a round learns from and judges by."""

    learn: list[Pair]
    validation: list[Pair]
    everything: list[Pair]
    output: str
    ndim: int
    classes: int
    trusted: bool


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
    """
    enough = yield from _tell(Progress(0, 0, "Reading the training set"))
    old = None if parent is None else load_model(parent)
    data = _read(training_set, settings, old)
    starts = [s for s in settings.starts if s == "scratch" or old is not None]
    if not starts:
        raise DataError("There is no model to start from: choose one, or from scratch.")
    spec = _spec(old, data, settings)
    plan = settings.training(spec.network.ndim)
    total = plan.steps * len(starts)
    record = Record(identity=_identity(old, data, settings), total=total)
    folder.mkdir(parents=True, exist_ok=True)
    if read_record(folder).identity != record.identity:
        _clear(folder)
    record.write(folder)

    models: dict[str, Model] = {} if old is None else {"parent": old}
    for number, start in enumerate(starts):
        name = {"parent": "tuned", "scratch": "scratch"}[start]
        file = folder / f"{name}.safetensors"
        if file.exists():
            models[name] = load_model(file)
            continue
        if enough:
            continue
        before = number * plan.steps
        steps = _learn(
            start, old, spec, data, settings, file, device, thread_count, preview
        )
        try:
            progress = next(steps)
            while True:
                done = before + progress.done
                if progress.values and progress.done % plan.validate_every == 0:
                    dataclasses.replace(record, done=done).write(folder)
                said = f"{progress.message} ({name})"
                if (yield from _tell(Progress(done, total, said, progress.values))):
                    enough = True
                    progress = steps.throw(Enough())
                else:
                    progress = next(steps)
        except StopIteration as end:
            models[name] = end.value
        except Enough:  # it had not begun
            continue
        finally:
            steps.close()
        save_model(models[name], file)

    contenders = []
    for name, model in models.items():
        yield from _tell(Progress(total, total, f"Comparing ({name})"))
        scores = yield from _scores(model, data, total, device, thread_count)
        contenders.append(
            Contender(
                name=name,
                model=model.spec.key,
                scores=scores,
                merit=_merit(scores, trusted=data.trusted),
                file=None if name == "parent" else f"{name}.safetensors",
            )
        )
    outcome = _propose(contenders, trusted=data.trusted)
    dataclasses.replace(record, done=total, outcome=outcome).write(folder)
    return outcome


def _tell(progress: Progress) -> Generator[Progress, None, bool]:
    """Yield a progress, and return whether `Enough` was thrown in."""
    try:
        yield progress
    except Enough:
        return True
    return False


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


# --- what is learnt from --------------------------------------------------------------


def _read(
    training_set: TrainingSet, settings: RoundSettings, old: Model | None
) -> _Data:
    """Return the samples in use as pairs: to learn from, held out, and both."""
    samples = [s for s in training_set.samples() if s.used]
    if not samples:
        raise DataError(
            "The training set is empty: add an image with its corrected labels first."
        )
    output = _the_one(samples, "output", "show", settings.output)
    ndim = _the_one(samples, "ndim", "are for networks of dimensions", None)
    learn: list[Pair] = []
    validation: list[Pair] = []
    everything: list[Pair] = []
    top = held_pixels = held_objects = 0
    for sample in samples:
        correction = training_set.read(sample)
        truth = correction.truth()
        held = sample.validation_mask()
        top = max(top, int(truth.labels.max(initial=0)))

        def pair(weight: Any, correction: Any = correction, truth: Any = truth) -> Pair:
            return Pair(
                np.asarray(correction.image),
                truth.labels,
                correction.axes,
                correction.name,
                np.asarray(weight, np.float32),
            )

        known = truth.weight > 0
        held_pixels += int(np.count_nonzero(known & held))
        held_objects += int(np.count_nonzero(np.unique(truth.labels[known & held])))
        for pairs, weight in (
            (learn, truth.weight * sample.training_mask()),
            (validation, known & held),
            (everything, known),
        ):
            if weight.any():
                pairs.append(pair(weight))
    if not learn:
        raise DataError(
            "All of the training set is held out for validation: add another image."
        )
    return _Data(
        learn,
        validation,
        everything,
        output,
        ndim,
        top + 1,
        held_pixels >= MEANINGFUL_PIXELS
        if output == "classes"
        else held_objects >= MEANINGFUL_OBJECTS,
    )


def _the_one(samples: Sequence[Sample], field: str, verb: str, wanted: Any) -> Any:
    """Return what all samples agree in."""
    values = {getattr(s, field) for s in samples} | ({wanted} - {None})
    if len(values) > 1:
        kinds = "; ".join(
            f"{', '.join(s.name for s in samples if getattr(s, field) == v)}: {v}"
            for v in sorted(values, key=str)
        )
        raise DataError(
            f"The samples in use {verb} different things ({kinds}): switch some of "
            "them off, and train on one kind at a time."
        )
    return values.pop()


def _spec(old: Model | None, data: _Data, settings: RoundSettings) -> ModelSpec:
    """Return what is built: like the parent, for these channels and classes."""
    objects = data.output == "objects"
    if old is not None and settings.network is None:
        spec = dataclasses.replace(old.spec, parent=old.spec.key, training={})
    else:
        network = settings.network or NetworkSpec(
            ndim=3 if data.ndim == 3 else 2, features=FEATURES
        )
        spec = ModelSpec(
            name=settings.name or (old.spec.name if old else "my-model"),
            parent=old.spec.key if old else None,
            network=dataclasses.replace(network, in_channels=1, out_channels=3),
            channels=("grey",),
            classes=("background", "interior", "boundary"),
            output="objects",
        )
    if spec.network.ndim != data.ndim:
        raise DataError(
            f"The samples are for {data.ndim}D networks, but {spec.name} has "
            f"{spec.network.ndim} dimensions: choose another model to start from."
        )
    if objects != (spec.output == "objects"):
        count = 3 if objects else max(2, data.classes)
        spec = dataclasses.replace(
            spec,
            network=dataclasses.replace(spec.network, out_channels=count),
            classes=("background", "interior", "boundary") if objects else (),
            colors=(),
            output=data.output,  # type: ignore[arg-type]
        )
    elif not objects and data.classes > spec.n_classes:
        new = tuple(f"class {i}" for i in range(spec.n_classes, data.classes))
        spec = dataclasses.replace(
            spec,
            network=dataclasses.replace(spec.network, out_channels=data.classes),
            classes=spec.classes + new,
            colors=(),
        )
    return adapted_spec(spec, data.learn)


def _identity(old: Model | None, data: _Data, settings: RoundSettings) -> str:
    """Return what makes two rounds the same, as a hash."""
    digest = hashlib.sha256()
    facts = [dataclasses.asdict(settings), data_hash(data.learn)]
    facts += [data_hash(data.validation), data_hash(data.everything)]
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


# --- learning and judging -------------------------------------------------------------


def _learn(
    start: str,
    old: Model | None,
    spec: ModelSpec,
    data: _Data,
    settings: RoundSettings,
    file: Path,
    device: str,
    thread_count: int | None,
    preview: Path | None,
) -> Steps[Model]:
    """Train one contender."""
    plan = settings.training(spec.network.ndim)
    begin: Model | ModelSpec = spec
    if start == "parent" and old is not None:
        yield Progress(0, plan.steps, "Preparing")
        begin = best_adapted(old, spec, data.learn, plan)
    else:
        plan = dataclasses.replace(plan, freeze="nothing")

    def as_it_is(model: Model) -> Model:
        return blend(begin, model, SHARE) if isinstance(begin, Model) else model

    def show(model: Model) -> None:
        if preview is not None:
            save_model(as_it_is(model), preview)

    trained = yield from train(
        begin,
        data.learn,
        data.validation,
        plan,
        device=device,
        thread_count=thread_count,
        checkpoint=file.with_suffix(".checkpoint"),
        preview=show,
    )
    return as_it_is(trained)


def _scores(
    model: Model, data: _Data, total: int, device: str, thread_count: int | None
) -> Steps[dict[str, dict[str, float]]]:
    """Score a model where nothing was learnt, and on all that was corrected."""
    if model.spec.output != data.output:  # it says something else
        return {"validation": {}, "corrections": {}}
    found: dict[str, dict[str, float]] = {}
    for part, pairs in (
        ("validation", data.validation),
        ("corrections", data.everything),
    ):
        found[part] = {}
        if not pairs:
            continue
        steps = validation_steps(model, pairs, device=device, threads=thread_count)
        while True:
            try:
                progress = next(steps)
            except StopIteration as end:
                found[part] = end.value
                break
            yield from _tell(Progress(total, total, progress.message))
    return found


def _merit(scores: dict[str, dict[str, float]], *, trusted: bool) -> float:
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
