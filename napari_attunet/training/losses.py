"""What training minimises: weighted cross-entropy plus Dice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["segmentation_loss"]

#: Each coarser deep-supervision head counts half of the one before (Isensee et al.
#: 2021, nnU-Net, https://doi.org/10.1038/s41592-020-01008-z).
AUXILIARY_DECAY = 0.5

#: Keeps the Dice loss finite where nothing is there and nothing found.
SMOOTH = 1e-5


def segmentation_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor,
    *,
    class_weights: Sequence[float] = (),
    dice_weight: float = 1.0,
    auxiliary: Sequence[Tensor] = (),
) -> Tensor:
    """Return cross-entropy plus Dice loss, over pixels whose weight is not 0.

    Parameters
    ----------
    logits : Tensor, (N, K, *spatial)
        One channel means a binary sigmoid network.
    target : Tensor of int64, (N, *spatial)
        Class of each pixel.
    weight : Tensor, (N, *spatial)
        How much each pixel counts; in the Dice loss none counts more than 1.
    class_weights : sequence of float
        For each class; empty for equal ones.
    dice_weight : float
        Weight of the Dice loss (Milletari et al. 2016,
        https://arxiv.org/abs/1606.04797) of the foreground classes.
    auxiliary : sequence of Tensor
        Logits of coarser heads; the target is sampled down to them.
    """
    loss = _single_loss(logits, target, weight, class_weights, dice_weight)
    share, total = 1.0, 1.0
    for coarse in auxiliary:
        share *= AUXILIARY_DECAY
        total += share
        step = [n // c for n, c in zip(logits.shape[2:], coarse.shape[2:], strict=True)]
        at = (slice(None), *(slice(None, None, s) for s in step))
        loss = loss + share * _single_loss(
            coarse, target[at], weight[at], class_weights, dice_weight
        )
    return loss / total


def _single_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor,
    class_weights: Sequence[float],
    dice_weight: float,
) -> Tensor:
    logits = logits.float()
    if logits.shape[1] == 1:  # a sigmoid is a softmax over (0, logit)
        logits = torch.cat((torch.zeros_like(logits), logits), dim=1)
    of_class = logits.new_tensor(class_weights) if class_weights else None
    pixel_loss = F.cross_entropy(logits, target, weight=of_class, reduction="none")
    pixels = weight if of_class is None else weight * of_class[target]
    cross_entropy = (pixel_loss * weight).sum() / pixels.sum().clamp_min(1e-6)
    if not dice_weight:
        return cross_entropy
    # MONAI's Dice loss knows pixels that count and others, nothing between.
    counts = weight.clamp(max=1).unsqueeze(1)
    found, truth = logits.softmax(1)[:, 1:], F.one_hot(target, logits.shape[1])
    truth = truth.movedim(-1, 1)[:, 1:]
    dims = (0, *range(2, logits.ndim))
    both = (counts * found * truth).sum(dims)
    either = (counts * (found + truth)).sum(dims)
    dice = 1 - (2 * both + SMOOTH) / (either + SMOOTH)
    total: Tensor = cross_entropy + dice_weight * dice.mean()
    return total
