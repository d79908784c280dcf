"""Pixel values on the scale that the network wants: measured once for an image.

It is measured on a sample of the image, so that tiles don't differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_attunet.spec import Normalization

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Scaling", "as_float", "measure_scaling"]

#: Values closer together than so many rounding errors are the same value.
ROUNDING = 4


@dataclass(frozen=True, slots=True)
class Scaling:
    """``(pixels - offset) * gain`` for each channel, always finite.

    Attributes
    ----------
    offset, gain : tuple of float
        One for each channel of the network.
    clip : tuple of float, optional
        Limits of the result.
    ends : tuple of float
        What -inf and +inf become. NaN becomes 0.
    """

    offset: tuple[float, ...]
    gain: tuple[float, ...]
    clip: tuple[float, float] | None = None
    ends: tuple[float, float] = (0.0, 1.0)

    def __call__(self, pixels: NDArray[Any], /) -> NDArray[np.float32]:
        """Scale.

        Parameters
        ----------
        pixels : ndarray, (channels, ...)
            Any real dtype.

        Returns
        -------
        ndarray, (channels, ...)
            Finite.
        """
        if len(pixels) != len(self.offset):
            raise ValueError(
                f"{len(self.offset)} channels were measured, got {len(pixels)}."
            )
        values = as_float(pixels)
        column = (-1, *(1,) * (values.ndim - 1))
        offset = np.array(self.offset, dtype=values.dtype).reshape(column)
        gain = np.array(self.gain, dtype=values.dtype).reshape(column)
        with np.errstate(over="ignore", invalid="ignore"):
            # A constant channel has no gain, but its infinities still have ends.
            infinite = np.isinf(values)
            scaled = ((values - offset) * gain).astype(np.float32)
            np.copyto(scaled, values, where=infinite, casting="same_kind")
        greatest = float(np.finfo(np.float32).max)
        low, high = (min(max(end, -greatest), greatest) for end in self.ends)
        np.nan_to_num(scaled, copy=False, nan=0.0, posinf=high, neginf=low)
        if self.clip is not None:
            np.clip(scaled, *self.clip, out=scaled)
        finite: NDArray[np.float32] = scaled
        return finite


def measure_scaling(normalization: Normalization, sample: NDArray[Any]) -> Scaling:
    """Measure a normalisation on pixels that were mixed to the network's channels.

    NaN and infinities don't count. A channel in which nothing differs becomes 0
    everywhere (with transmission 1, if it is bright at all). Where the two percentiles
    coincide although values differ, as in a dark image with few bright spots, the
    extremes take their place. Light that is nowhere above 0 tells of no transmission:
    such a channel becomes 0 as well.

    Parameters
    ----------
    normalization : Normalization
        What to measure.
    sample : ndarray, (channels, pixels)
        Pixels from all over the image, mixed.
    """
    sample = as_float(sample)
    if normalization.kind == "none":
        finite = sample[np.isfinite(sample)]
        ends = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        offset, gain = (0.0,) * len(sample), (1.0,) * len(sample)
        return Scaling(offset, gain, normalization.clip, ends)
    groups = sample if normalization.per_channel else sample.reshape(1, -1)
    measured = [_measure(normalization, g[np.isfinite(g)]) for g in groups]
    ends = (0.0, 1.0)
    if normalization.kind == "zscore":
        ends = (min(m[2] for m in measured), max(m[3] for m in measured))
    repeats = len(sample) // len(groups)
    offset, gain = zip(*(m[:2] for m in measured * repeats), strict=True)
    return Scaling(offset, gain, normalization.clip, ends)


def _measure(
    normalization: Normalization, values: NDArray[Any]
) -> tuple[float, float, float, float]:
    """Offset, gain and the scaled extremes of finite values."""
    if not values.size:
        return 0.0, 0.0, 0.0, 0.0
    least, most = float(values.min()), float(values.max())
    with np.errstate(over="ignore", invalid="ignore"):
        if normalization.kind == "zscore":
            offset = float(values.mean(dtype=np.float64))
            span = float(values.std(dtype=np.float64))
        else:
            percentiles = (normalization.low, normalization.high)
            low, high = np.percentile(values.astype(np.float64), percentiles)
            if not low < high:
                low, high = least, most
            if normalization.kind == "transmission":
                low = 0.0
            offset, span = float(low), float(high) - float(low)
    noise = ROUNDING * float(np.finfo(values.dtype).eps) * max(abs(least), abs(most))
    # Below the least normal number the inverse overflows.
    noise = max(noise, float(np.finfo(np.float32).tiny))
    if not (noise < span < np.inf and np.isfinite(offset)):
        return 0.0, 0.0, 0.0, 0.0
    gain = 1 / span
    return offset, gain, (least - offset) * gain, (most - offset) * gain


def as_float(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return float32 where that holds every value, else float64."""
    exact = np.can_cast(pixels.dtype, np.float32, "safe")
    return pixels.astype(np.float32 if exact else np.float64, copy=False)
