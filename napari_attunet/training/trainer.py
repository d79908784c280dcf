"""Trains a network: a generator of steps that can be stopped and resumed anywhere."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import torch

from napari_attunet.devices import choose_device, threads
from napari_attunet.errors import DataError
from napari_attunet.model import Model
from napari_attunet.progress import Enough, Progress, Steps
from napari_attunet.spec import ModelSpec
from napari_attunet.training.distributed import Team
from napari_attunet.training.samples import (
    CropSampler,
    Pair,
    check_labels,
    data_hash,
    view_of,
)
from napari_attunet.training.settings import TrainingSettings
from napari_attunet.training.state import State, read_checkpoint
from napari_attunet.training.validation import validation_steps

__all__ = ["train"]

T = TypeVar("T")

#: Raised when the same settings no longer give the same training: other crops, another
#: loss. What was interrupted before then is not gone on with.
RECIPE = 6

#: At most so much work is lost if the machine stops.
CHECKPOINT_SECONDS = 15.0

#: How often whoever watches is shown the weights as they are.
PREVIEW_SECONDS = 2.0


def train(
    start: Model | ModelSpec,
    pairs: Sequence[Pair],
    validation: Sequence[Pair],
    settings: TrainingSettings,
    *,
    device: str = "auto",
    thread_count: int | None = None,
    checkpoint: Path | None = None,
    preview: Callable[[Model], object] | None = None,
    revise: Callable[[Model], Steps[Sequence[Pair]]] | None = None,
    team: Team | None = None,
) -> Steps[Model]:
    """Train a model, from given weights or from scratch.

    Parameters
    ----------
    start : Model or ModelSpec
        Weights to go on from (left untouched), or what to build.
    pairs, validation : sequence of Pair
        Images to learn from, and others to choose the best weights by. Without the
        latter the last weights are taken.
    settings : TrainingSettings
    device : str
        As in `Segmenter`.
    thread_count : int, optional
        Threads of the CPU.
    checkpoint : Path, optional
        Written at every validation, every quarter of a minute, and when the steps are
        closed, but in the middle of a validation. If it is there and belongs to the
        same data, start and settings, training goes on from it.
    preview : callable, optional
        Called with the averaged model every few seconds.
    revise : callable, optional
        Called with the averaged model halfway; returns, step by step, the pairs to go
        on with: the same images, of which the model itself may have told more. By one
        process alone.
    team : Team, optional
        Processes that share this training: each calls this function with the same
        arguments but for its own device. The first one validates, writes checkpoints
        and previews, and may stop; all return its model.

    Returns
    -------
    generator
        Yields `Progress` with ``loss`` in its values, and the scores where it
        validated; returns the best `Model`, whose ``spec.training`` is its record.
        `Enough` may be thrown in: it then returns the best so far.

    Raises
    ------
    DataError
        If images or labels cannot be used, there are fewer crops than processes, or
        the loss stops being a number.
    CheckpointError
        If the checkpoint belongs to another training.
    Cancelled, TrainingError
        If another process has stopped, or is gone.
    """
    team = team or Team()
    share = team.part(settings.batch_size)
    if revise is not None and team.size > 1:
        raise ValueError("Only a process that trains alone can revise its pairs.")
    spec = start.spec if isinstance(start, Model) else start
    yield Progress(0, settings.steps, "Preparing images")
    sampler = CropSampler(pairs, spec, settings)
    for pair in validation:
        check_labels(pair, view_of(pair, spec), spec)
    identity = _identity(start, pairs, validation, settings)
    chosen = choose_device(device, thread_count)
    first, saved = team.of_first(
        lambda: (identity, read_checkpoint(checkpoint, identity))
    )
    if first != identity:
        raise DataError(
            f"Process {team.rank} was given other images, settings or another start "
            "than the first: let all read the same files."
        )
    state = State(start, settings, chosen.name, team)
    if saved is not None:
        state.restore(saved)
    began = time.perf_counter()

    batches = sampler.batches(state.step, share)
    del sampler  # its images go with the batches that are drawn of them
    begins_again = settings.steps // 2 if revise is not None else math.inf

    def revision(revise: Callable[[Model], Steps[Sequence[Pair]]]) -> Steps[None]:
        nonlocal batches
        batches.close()
        said = Progress(state.step, settings.steps, "Looking at the rest")
        told = yield from _meanwhile(revise(state.at_half()), said, team)
        batches = CropSampler(told, spec, settings).batches(state.step, share)

    def advance() -> float:
        with threads(thread_count):
            return state.advance(next(batches))

    if not team.leads:
        with contextlib.closing(batches):
            for _ in team.follow(advance):
                yield Progress(state.step, settings.steps, "Training")
        return Model.from_weights(*team.of_first(lambda: (spec, state.best_weights)))
    with team.leading(), contextlib.ExitStack() as at_the_end:
        at_the_end.callback(lambda: batches.close())
        saved_at = shown_at = time.monotonic()
        pause = CHECKPOINT_SECONDS
        while state.step < settings.steps:
            whole = True  # half a step is not to be gone on from
            try:
                if revise is not None and state.step >= begins_again:
                    begins_again = math.inf
                    yield from revision(revise)
                with team.step():
                    loss = advance()
                if not math.isfinite(loss):
                    raise DataError(
                        f"The loss became {loss} at step {state.step}: lower the "
                        "learning rate, and look for images that hold no finite values."
                    )
                values = {"loss": loss, "learning_rate": state.rate}
                last = state.step == settings.steps
                whole = False
                if state.step % settings.validate_every == 0 or last:
                    scores: dict[str, float] = {}
                    if validation:
                        steps = validation_steps(
                            state.averaged(),
                            validation,
                            device=device,
                            threads=thread_count,
                        )
                        said = Progress(state.step, settings.steps, "Validating")
                        scores = yield from _meanwhile(steps, said, team)
                    state.keep(scores)
                    values |= scores
                    state.history.append({"step": state.step, **values})
                    saved_at = 0.0  # validated scores are dear
                whole = not last
                now = time.monotonic()
                if checkpoint is not None and now - saved_at > pause:
                    state.save(checkpoint, identity)
                    saved_at = time.monotonic()
                    # large networks take long to write: it may cost 5 % of the time
                    pause = max(CHECKPOINT_SECONDS, 20 * (saved_at - now))
                if preview is not None and now - shown_at > PREVIEW_SECONDS:
                    preview(state.averaged())
                    shown_at = time.monotonic()
                yield Progress(state.step, settings.steps, "Training", values)
            except GeneratorExit:  # stopped: go on from here the next time
                if checkpoint is not None and whole:
                    state.save(checkpoint, identity)
                raise
            except Enough:
                break
    if not (validation and state.best_step):
        state.keep({})
    record = {
        "settings": dataclasses.asdict(settings),
        "data": {
            "sha256": data_hash(pairs),
            "images": len(pairs),
            "validation_sha256": data_hash(validation),
            "validation_images": len(validation),
        },
        "started_from": start.spec.key if isinstance(start, Model) else None,
        "device": str(chosen),
        "processes": team.size,
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "best_step": state.best_step,
        "scores": state.best_scores,
        "history": state.history,
        "seconds": round(time.perf_counter() - began, 1),
    }
    trained = dataclasses.replace(spec, training=record)
    return Model.from_weights(*team.of_first(lambda: (trained, state.best_weights)))


def _meanwhile(steps: Steps[T], progress: Progress, team: Team) -> Steps[T]:
    """Go through what is a part of training, telling this at each of its steps."""
    with contextlib.closing(steps):
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: T = end.value
                return result
            team.wait()
            yield progress


def _identity(
    start: Model | ModelSpec,
    pairs: Sequence[Pair],
    validation: Sequence[Pair],
    settings: TrainingSettings,
) -> str:
    """Return what makes two trainings the same, as a hash."""
    digest = hashlib.sha256()
    spec = start.spec if isinstance(start, Model) else start
    facts = (RECIPE, dataclasses.asdict(spec), dataclasses.asdict(settings))
    digest.update(json.dumps(facts).encode())
    for data in (pairs, validation):
        digest.update(data_hash(data).encode())
    if isinstance(start, Model):
        for name, tensor in sorted(start.network.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
