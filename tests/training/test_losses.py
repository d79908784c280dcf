"""The loss equals its formula, and pixels without weight don't count."""

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss

from napari_attunet.training.losses import segmentation_loss


def by_hand(logits, target, weight, class_weights, dice_weight):
    """Weighted cross-entropy plus mean Dice loss of the foreground, in numpy."""
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], 1)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    n = p.shape[1]
    truth = np.moveaxis(np.eye(n)[target], -1, 1)
    per_pixel = np.asarray(class_weights or [1] * n)[target] * weight
    entropy = -(np.log(p) * truth).sum(1)
    loss = (entropy * per_pixel).sum() / per_pixel.sum()
    counts = np.minimum(weight, 1)[:, None]
    p, truth = p[:, 1:], truth[:, 1:]
    axes = (0, *range(2, p.ndim))
    overlap = (counts * p * truth).sum(axes)
    sizes = (counts * p).sum(axes) + (counts * truth).sum(axes)
    dice = 1 - (2 * overlap + 1e-5) / (sizes + 1e-5)
    return loss + dice_weight * dice.mean()


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5)])
def test_formula(rng, classes, weighted, shape):
    n = max(2, classes)
    logits = rng.normal(size=(2, classes, *shape))
    target = rng.integers(0, n, (2, *shape))
    weight = rng.uniform(0.1, 4, (2, *shape)) * (rng.random((2, *shape)) > 0.3)
    class_weights = (1.0, 2.0, 0.5)[:n] if weighted else ()
    loss = segmentation_loss(
        torch.from_numpy(logits).float(),
        torch.from_numpy(target),
        torch.from_numpy(weight).float(),
        class_weights=class_weights,
        dice_weight=0.7,
    )
    expected = by_hand(logits, target, weight, class_weights, 0.7)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_dice_is_that_of_monai_where_all_counts_alike(rng):
    logits = torch.from_numpy(rng.normal(size=(2, 3, 8, 9))).float()
    target = torch.from_numpy(rng.integers(0, 3, (2, 8, 9)))
    weight = torch.ones(2, 8, 9)
    theirs = DiceLoss(include_background=False, batch=True, softmax=True)(
        logits, torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    )
    both, one = (
        segmentation_loss(logits, target, weight, dice_weight=w) for w in (1, 0)
    )
    assert float(both - one) == pytest.approx(float(theirs), rel=1e-4)


def test_pixels_without_weight_don_t_count(rng):
    logits = torch.from_numpy(rng.normal(size=(1, 3, 8, 8))).float()
    target = torch.from_numpy(rng.integers(0, 3, (1, 8, 8)))
    weight = torch.ones(1, 8, 8)
    weight[:, :, 4:] = 0
    before = segmentation_loss(logits, target, weight)
    target[:, :, 4:] = 0
    logits[:, :, :, 4:] = 9
    assert torch.equal(segmentation_loss(logits, target, weight), before)
    assert torch.isfinite(segmentation_loss(logits, target, 0 * weight))


def test_coarser_heads_count_less(rng):
    logits = torch.from_numpy(rng.normal(size=(1, 2, 8, 8))).float()
    target = torch.zeros(1, 8, 8, dtype=torch.int64)
    weight = torch.ones(1, 8, 8)
    fine = segmentation_loss(logits, target, weight)
    wrong = torch.tensor([-9.0, 9.0]).reshape(1, 2, 1, 1).expand(1, 2, 4, 4)
    coarse = segmentation_loss(wrong, target[:, ::2, ::2], weight[:, ::2, ::2])
    both = segmentation_loss(logits, target, weight, auxiliary=[wrong])
    assert float(both) == pytest.approx(float(fine + 0.5 * coarse) / 1.5, rel=1e-5)
