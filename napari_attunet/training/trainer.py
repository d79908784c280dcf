"""Trains a network: a generator of steps that can be stopped and resumed anywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from napari_attunet import evaluation
from napari_attunet.atomic import replacing
from napari_attunet.devices import choose_device, threads
from napari_attunet.errors import DataError, ModelError
from napari_attunet.model import Model
from napari_attunet.progress import Enough, Progress, Steps, drain
from napari_attunet.segmenter import Segmenter
from napari_attunet.spec import ModelSpec
from napari_attunet.training.losses import segmentation_loss
from napari_attunet.training.samples import (
    CropSampler,
    Pair,
    check_labels,
    data_hash,
    view_of,
)
from napari_attunet.training.settings import TrainingSettings

__all__ = ["merit_of", "train", "validate", "validation_steps"]

logger = logging.getLogger(__name__)

#: At most so much work is lost if the machine stops.
CHECKPOINT_SECONDS = 60.0

#: How often whoever watches is shown the weights as they are.
PREVIEW_SECONDS = 3.0

#: Pixels around what is validated that the network gets to see.
CONTEXT = 48

#: Gradients are clipped to this norm: a rare crop must not throw the weights away.
GRADIENT_NORM = 5.0


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
        Written at every validation, every minute and when the steps are closed. If it
        is there and belongs to the same data, start and settings, training goes on
        from it.
    preview : callable, optional
        Called with the averaged model every few seconds.

    Returns
    -------
    generator
        Yields `Progress` with ``loss`` in its values, and the scores where it
        validated; returns the best `Model`, whose ``spec.training`` is its record.
        `Enough` may be thrown in: it then returns the best so far.

    Raises
    ------
    DataError
        If images or labels cannot be used, or the loss stops being a number.
    ModelError
        If the checkpoint belongs to another training.
    """
    spec = start.spec if isinstance(start, Model) else start
    yield Progress(0, settings.steps, "Preparing images")
    sampler = CropSampler(pairs, spec, settings)
    for pair in validation:
        check_labels(pair, view_of(pair, spec), spec)
    identity = _identity(start, pairs, validation, settings)
    chosen = choose_device(device)
    state = _State(start, settings, chosen.name)
    if checkpoint is not None and checkpoint.exists():
        state.load(checkpoint, identity)
    began = time.perf_counter()
    saved = shown = time.monotonic()
    while state.step < settings.steps:
        with threads(thread_count):
            loss = state.advance(sampler)
        if not math.isfinite(loss):
            raise DataError(
                f"The loss became {loss} at step {state.step}: lower the learning "
                "rate, and look for images that hold no finite values."
            )
        values = {"loss": loss, "learning_rate": state.rate}
        last = state.step == settings.steps
        try:
            if state.step % settings.validate_every == 0 or last:
                scores: dict[str, float] = {}
                if validation:
                    scores = yield from _validation(
                        state, validation, settings.steps, device, thread_count
                    )
                state.keep(scores)
                values |= scores
                state.history.append({"step": state.step, **values})
                saved = 0.0  # validated scores are dear
            if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
                state.save(checkpoint, identity)
                saved = time.monotonic()
            if preview is not None and time.monotonic() - shown > PREVIEW_SECONDS:
                preview(state.averaged())
                shown = time.monotonic()
            yield Progress(state.step, settings.steps, "Training", values)
        except GeneratorExit:  # stopped: go on from here the next time
            if checkpoint is not None and not last:
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
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "best_step": state.best_step,
        "scores": state.best_scores,
        "history": state.history,
        "seconds": round(time.perf_counter() - began, 1),
    }
    trained = dataclasses.replace(spec, training=record)
    return Model.from_weights(trained, state.best_weights)


def _validation(
    state: _State, pairs: Sequence[Pair], total: int, device: str, threads: int | None
) -> Steps[dict[str, float]]:
    """Validate the averaged weights, as a part of training."""
    steps = validation_steps(state.averaged(), pairs, device=device, threads=threads)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            scores: dict[str, float] = end.value
            return scores
        yield Progress(state.step, total, "Validating")


def validate(
    model: Model,
    pairs: Sequence[Pair],
    *,
    device: str = "auto",
    threads: int | None = None,
) -> dict[str, float]:
    """Return the scores of a model on labelled images; see `validation_steps`."""
    return drain(validation_steps(model, pairs, device=device, threads=threads))


def validation_steps(
    model: Model,
    pairs: Sequence[Pair],
    *,
    device: str = "auto",
    threads: int | None = None,
) -> Steps[dict[str, float]]:
    """Score a model on labelled images, where their weight is above 0.

    ``dice`` for classes is the mean over foreground classes that occur; objects have
    ``dice`` of the foreground, ``ap50`` (mean over images), ``ap50_pooled`` and
    ``ap70``. Of an image of which little counts only that part is segmented.
    """
    segmenter = Segmenter(model, device=device, threads=threads)
    results = []
    for number, pair in enumerate(pairs):
        region = _region_of(pair)
        steps = segmenter.steps(pair.image, axes=pair.axes, region=region)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                found = end.value.labels
                break
            yield Progress(number, len(pairs), f"Validating {pair.name}")
        truth = np.asarray(pair.labels)
        if pair.weight is not None:
            part = (...,) if region is None else tuple(region)
            counts = pair.weight[part] > 0
            found, truth = found * counts, truth[part] * counts
        results.append((found, truth))
    if model.spec.output == "classes":
        return {"dice": _mean_class_dice(results, model.spec.n_classes)}
    scores = evaluation.score(results)
    return {
        "dice": scores.dice,
        "ap50": scores.ap50,
        "ap50_pooled": scores.ap50_pooled,
        "ap70": scores.ap70,
    }


def _region_of(pair: Pair) -> list[slice] | None:
    """Return the box around all that counts, with some context; None if it is all."""
    if pair.weight is None or not (pair.weight == 0).any():
        return None
    boxes = ndimage.find_objects((pair.weight > 0).astype(np.int8))
    if not boxes:
        return None
    # Walked axes get context too, which costs little where it is anything.
    axes = pair.axes or "TZYX"[-pair.weight.ndim :]
    reach = [CONTEXT if a in "YX" else 0 for a in axes.replace("C", "")]
    return [
        slice(max(0, b.start - r), min(n, b.stop + r))
        for b, r, n in zip(boxes[0], reach, pair.weight.shape, strict=True)
    ]


def _mean_class_dice(
    results: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]], n_classes: int
) -> float:
    """Return the mean over images and foreground classes that are there or found."""
    values = [
        dice
        for found, truth in results
        for c, dice in enumerate(evaluation.class_dice(found, truth, n_classes))
        if c > 0 and ((found == c).any() or (truth == c).any())
    ]
    return float(np.mean(values)) if values else 1.0


def merit_of(scores: dict[str, float]) -> float:
    """Return the one number that the best weights are chosen by."""
    names = ("dice", "ap50", "ap50_pooled")
    return float(np.mean([scores[n] for n in names if n in scores]))


class _State:
    """All that changes while training, and how it is kept in a checkpoint."""

    def __init__(
        self, start: Model | ModelSpec, settings: TrainingSettings, device: str
    ) -> None:
        self._settings = settings
        self._device = device
        if isinstance(start, Model):
            model = Model.from_weights(start.spec, start.network.state_dict())
        else:
            model = Model.fresh(start, seed=settings.seed)
        self._spec = model.spec
        self.network = model.network.to(device).train().channels_last()
        if settings.freeze == "encoder":
            # In evaluation mode its running statistics stay, too.
            self.network.encoder.requires_grad_(False).eval()
        self._average = AveragedModel(
            self.network,
            multi_avg_fn=get_ema_multi_avg_fn(settings.average),
            use_buffers=True,
        )
        self._optimizer = torch.optim.AdamW(
            [p for p in self.network.parameters() if p.requires_grad],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.step = 0
        self.rate = 0.0
        self.history: list[dict[str, float]] = []
        self.best_step = 0
        self.best_merit = -math.inf
        self.best_scores: dict[str, float] = {}
        self.best_weights = self._weights()

    def advance(self, sampler: CropSampler) -> float:
        """Take one optimiser step and return its loss."""
        settings = self._settings
        batch = sampler.batch(self.step)
        self.rate = settings.learning_rate * _schedule(self.step, settings)
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate
        images = batch.images.to(self._device)
        kind = self._device.split(":")[0]
        with torch.autocast(
            kind, torch.bfloat16, enabled=settings.half_precision and kind != "mps"
        ):
            explained = self.network.explain(images)
        loss = segmentation_loss(
            explained.logits,
            batch.targets.to(self._device),
            batch.weights.to(self._device),
            class_weights=settings.class_weights,
            dice_weight=settings.dice_weight,
            auxiliary=explained.auxiliary,
        )
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
        self._optimizer.step()
        self.step += 1
        self._update_average()
        return float(loss.detach())

    def _update_average(self) -> None:
        # A long memory is useless while the weights still run away from their start.
        decay = min(self._settings.average, self.step / (self.step + 10))
        self._average.multi_avg_fn = get_ema_multi_avg_fn(decay)
        self._average.update_parameters(self.network)

    def _weights(self) -> dict[str, torch.Tensor]:
        weights = self._average.module.state_dict()
        return {k: v.detach().cpu().clone() for k, v in weights.items()}

    def averaged(self) -> Model:
        """Return the averaged model as it is now."""
        return Model.from_weights(self._spec, self._weights())

    def keep(self, scores: dict[str, float]) -> None:
        """Remember the averaged weights if they are the best so far, or not scored."""
        merit = merit_of(scores) if scores else math.inf
        if not scores or merit > self.best_merit:
            self.best_merit, self.best_step = merit, self.step
            self.best_scores, self.best_weights = scores, self._weights()

    def save(self, path: Path, identity: str) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "identity": identity,
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "history": self.history,
            "best": (self.best_step, self.best_merit, self.best_scores),
            "best_weights": self.best_weights,
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path, identity: str) -> None:
        """Go on from a checkpoint of the same training."""
        try:
            state: Any = torch.load(path, map_location=self._device, weights_only=True)
        except Exception as error:
            raise ModelError(
                f"The checkpoint {path} cannot be read ({error}). Delete it to begin "
                "anew."
            ) from error
        if not isinstance(state, dict) or state.get("identity") != identity:
            raise ModelError(
                f"The checkpoint {path} belongs to another training (data, start or "
                "settings differ). Delete it to begin anew, or choose another."
            )
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.history = state["history"]
        self.best_step, self.best_merit, self.best_scores = state["best"]
        self.best_weights = state["best_weights"]
        logger.info("resumed %s at step %d", path, self.step)


def _schedule(step: int, settings: TrainingSettings) -> float:
    """Return the share of the peak learning rate: linear warm-up, then cosine."""
    warmup = min(settings.warmup, settings.steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, settings.steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def _identity(
    start: Model | ModelSpec,
    pairs: Sequence[Pair],
    validation: Sequence[Pair],
    settings: TrainingSettings,
) -> str:
    """Return what makes two trainings the same, as a hash."""
    digest = hashlib.sha256()
    spec = start.spec if isinstance(start, Model) else start
    facts = (spec, settings)
    digest.update(json.dumps([dataclasses.asdict(f) for f in facts]).encode())
    for data in (pairs, validation):
        digest.update(data_hash(data).encode())
    if isinstance(start, Model):
        for name, tensor in sorted(start.network.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
