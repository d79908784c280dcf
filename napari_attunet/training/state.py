"""All that changes while a network is trained, and how it is kept in a checkpoint."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from napari_attunet.atomic import replacing
from napari_attunet.devices import has_bfloat16
from napari_attunet.errors import CheckpointError
from napari_attunet.model import Model
from napari_attunet.spec import ModelSpec
from napari_attunet.training.distributed import Team
from napari_attunet.training.losses import segmentation_loss
from napari_attunet.training.samples import Batch
from napari_attunet.training.settings import TrainingSettings
from napari_attunet.training.validation import merit_of

__all__ = ["State", "read_checkpoint"]

logger = logging.getLogger(__name__)

#: Gradients are clipped to this norm: a rare crop must not throw the weights away.
GRADIENT_NORM = 5.0


class State:
    """Network, average, optimiser and scores.

    Attributes
    ----------
    network : AttentionUNet
        On the device.
    step : int
        Steps taken.
    rate : float
        Learning rate of the last one.
    history : list of dict
        What was told at each validation.
    best_step, best_scores, best_weights
        Of the averaged model, by validation.
    """

    def __init__(
        self,
        start: Model | ModelSpec,
        settings: TrainingSettings,
        device: str,
        team: Team,
    ) -> None:
        self._settings = settings
        self._device = device
        self._team = team
        if isinstance(start, Model):
            model = Model.from_weights(start.spec, start.network.state_dict())
        else:
            model = Model.fresh(start, seed=settings.seed)
        self._spec = model.spec
        self.network = model.network.to(device).train().channels_last()
        if settings.freeze == "encoder":
            # In evaluation mode its running statistics stay, too.
            for part in (self.network.transformer, self.network.encoder):
                if part is not None:
                    part.requires_grad_(False).eval()
        self._explain = team.parallel(self.network)
        self._average = AveragedModel(
            self.network,
            multi_avg_fn=get_ema_multi_avg_fn(settings.average),
            use_buffers=True,
        )
        self._optimizer = torch.optim.AdamW(
            [p for p in self.network.parameters() if p.requires_grad],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=device.split(":")[0] in ("cpu", "cuda") or None,
        )
        self.step = 0
        self.rate = 0.0
        self.history: list[dict[str, float]] = []
        self.best_step = 0
        self.best_merit = -math.inf
        self.best_scores: dict[str, float] = {}
        self.best_weights = self._weights()
        self._halfway: dict[str, torch.Tensor] = {}

    def advance(self, batch: Batch) -> float:
        """Take one optimiser step, on this process's part, and return its loss."""
        settings, team = self._settings, self._team
        count = settings.batch_size
        self.rate = settings.learning_rate * _schedule(self.step, settings)
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate
        images = batch.images.to(self._device)
        kind = self._device.split(":")[0]
        half = settings.half_precision and has_bfloat16(self._device)
        with torch.autocast(kind, torch.bfloat16, enabled=half):
            explained = self._explain(images)
        loss = segmentation_loss(
            team.gather(explained.logits.float(), count),
            team.gather(batch.targets.to(self._device), count),
            team.gather(batch.weights.to(self._device), count),
            class_weights=settings.class_weights,
            dice_weight=settings.dice_weight,
            auxiliary=[team.gather(a.float(), count) for a in explained.auxiliary],
        )
        self._optimizer.zero_grad()
        (loss * team.size).backward()
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

    def at_half(self) -> Model:
        """Return the averaged model as it was when this was first asked for."""
        self._halfway = self._halfway or self._weights()
        return Model.from_weights(self._spec, self._halfway)

    def keep(self, scores: dict[str, float]) -> None:
        """Remember the averaged weights if they are the best so far, or not scored."""
        merit = merit_of(scores) if scores else math.inf
        if not scores or merit > self.best_merit:
            self.best_merit, self.best_step = merit, self.step
            self.best_scores, self.best_weights = scores, self._weights()

    def save(self, path: Path, identity: str) -> None:
        """Write the checkpoint, whole or not at all.

        Where it cannot be, on a full disk, training goes on without it.
        """
        state = {
            "identity": identity,
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "history": self.history,
            "best": (self.best_step, self.best_merit, self.best_scores),
            "best_weights": self.best_weights,
            "halfway": self._halfway,
        }
        try:
            with replacing(path) as temporary:
                torch.save(state, temporary)
        except (OSError, RuntimeError) as error:  # PyTorch's writer raises the latter
            logger.warning("%s was not written: %s", path, error)

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from what was saved."""
        self.step = saved["step"]
        self.network.load_state_dict(saved["network"])
        self._average.load_state_dict(saved["average"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self.history = saved["history"]
        self.best_step, self.best_merit, self.best_scores = saved["best"]
        self.best_weights = saved["best_weights"]
        self._halfway = saved["halfway"]


def _schedule(step: int, settings: TrainingSettings) -> float:
    """Return the share of the peak learning rate: linear warm-up, then cosine."""
    warmup = min(settings.warmup, settings.steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, settings.steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def read_checkpoint(path: Path | None, identity: str) -> dict[str, Any] | None:
    """Return what a checkpoint of the same training holds, if there is one."""
    if path is None or not path.exists():
        return None
    try:
        saved: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read ({error}). Delete it to begin anew."
        ) from error
    if not isinstance(saved, dict) or saved.get("identity") != identity:
        raise CheckpointError(
            f"The checkpoint {path} belongs to another training (data, start or "
            "settings differ). Delete it to begin anew, or choose another."
        )
    logger.info("resuming %s at step %d", path, saved["step"])
    return saved
