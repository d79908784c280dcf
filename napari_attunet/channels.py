"""An image's channels into those that a network takes.

How is decided once for an image, from a sample of it, so that tiles don't differ.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from napari_attunet.errors import ChannelError, DataError
from napari_attunet.intensity import as_float

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CHANNEL_CHOICES",
    "PLAIN_CHANNELS",
    "STAINS",
    "ChannelChoice",
    "ChannelMixer",
    "Stains",
    "choose_channels",
    "parse_channels",
]

#: A word of `CHANNEL_CHOICES`, or the channels to take, counted from 0.
ChannelChoice = str | tuple[int, ...]
CHANNEL_CHOICES: tuple[str, ...] = (
    "auto",
    "luminance",
    "inverted luminance",
    "haematoxylin",
)

#: Channels of a model that takes colour apart into stains, the nuclei's first.
STAINS = ("haematoxylin", "eosin", "DAB")

#: How a mixer that changes nothing describes itself.
PLAIN_CHANNELS = "channels as they are"
#: Rec. 709 weights of red, green and blue, as ``skimage.color.rgb2gray`` has them.
LUMINANCE = (0.2125, 0.7154, 0.0721)
#: Values that pictures in wide integers usually end at: 8, 10, 12, 14 and 16 bits.
USUAL_MAXIMA = (255, 1023, 4095, 16383, 65535)
#: An image on a bright ground: its brightest parts are at least so bright ...
BRIGHT_GROUND = 0.55
#: ... and its median is at least this share of them. Dense tissue comes near to 0.5,
#: fluorescence stays far below.
BRIGHT_MEDIAN = 0.5
#: A pixel is coloured if its channels differ by so much of the white of the image, and
#: an image if more than this share of it is. Noise and compression stay below; sparse
#: tissue in stained slides covers 2 % and more.
COLOURED = 0.1
COLOURED_SHARE = 0.01
#: So many pixels tell such shares well enough.
SUGGESTION_PIXELS = 100_000


class ChannelMixer(Protocol):
    """Makes the channels that the network wants from those that the image has."""

    @property
    def description(self) -> str:
        """What it does, for people."""

    def __call__(self, pixels: NDArray[Any], /) -> NDArray[Any]:
        """Mix channels, pixel by pixel.

        Parameters
        ----------
        pixels : ndarray, (C, ...)
            Any real dtype.

        Returns
        -------
        ndarray, (wanted, ...)
            float32, or float64 where float32 would round the values: neighbouring
            values of wide integers stay different until they are scaled.
        """


def parse_channels(text: str) -> ChannelChoice:
    """Return what a user wrote as the choice of channels.

    Parameters
    ----------
    text : str
        One of `CHANNEL_CHOICES`, with spaces or dashes, or channels counted from 0,
        such as ``"channel 1"`` or ``"2, 0"``.

    Examples
    --------
    >>> parse_channels("inverted-luminance"), parse_channels("channel 1")
    ('inverted luminance', (1,))
    """
    text = text.strip().lower()
    if re.fullmatch(r"(channels?[ -]+)?\d+( *, *\d+)*", text):
        return tuple(int(number) for number in re.findall(r"\d+", text))
    return text.replace("-", " ")


def choose_channels(
    choice: ChannelChoice,
    *,
    n_channels: int,
    axes: str,
    spec_channels: Sequence[str],
    sample: NDArray[Any],
    dtype: Any,
) -> ChannelMixer:
    """Decide how an image's channels enter a network.

    ``"auto"`` passes equal numbers of channels through, drops the alpha of RGBA,
    repeats grey for a red, green and blue model, takes colour apart into stains for a
    model of `STAINS`, and makes one channel from colour:
    haematoxylin of stained tissue on a bright ground (by colour deconvolution, Ruifrok
    & Johnston 2001, "Quantification of histochemical staining by color deconvolution",
    https://pubmed.ncbi.nlm.nih.gov/11531144), inverted luminance of a grey picture on
    a bright ground, else luminance.

    Parameters
    ----------
    choice : str or tuple of int
        One of `CHANNEL_CHOICES`, or the channels to take, counted from 0.
    n_channels : int
        Channels of the image.
    axes : str
        Axes of the image. For a model of grey, only three or four channels along the
        last axis are taken for colour; elsewhere they are stains or markers, of which
        none may be lost in silence.
    spec_channels : sequence of str
        Names of the channels that the network takes.
    sample : ndarray, (C, pixels)
        Pixels from all over the image.
    dtype : dtype
        Of the image.

    Raises
    ------
    DataError
        If the choice is unknown or doesn't fit the image and the network.
    ChannelError
        If nothing was chosen, and the network takes other channels than there are.
    """
    wanted = len(spec_channels)
    if not isinstance(choice, str):
        return _pick(choice, n_channels, spec_channels)
    if choice not in CHANNEL_CHOICES:
        raise DataError(
            f"There is no channel choice {choice!r}. Choose one of "
            f"{', '.join(CHANNEL_CHOICES)}, or channels by number, counted from 0."
        )
    has_channels, colour = "C" in axes, axes.endswith("C")
    full = _full_scale(sample[:3], np.dtype(dtype))
    if choice != "auto":
        if wanted != 1:
            raise DataError(
                f"{choice!r} makes one channel, but the model takes {wanted} "
                f"({', '.join(spec_channels)}). Choose 'auto', or {wanted} channels."
            )
        return _named(choice, n_channels, has_channels, full)
    if n_channels in (3, 4) and tuple(spec_channels) == STAINS:
        return Stains(full, wanted)
    if n_channels == wanted:
        return Picked(tuple(range(wanted)), PLAIN_CHANNELS)
    if n_channels == 1 and _is_rgb(spec_channels):
        return Picked((0,) * wanted, "grey repeated as red, green and blue")
    rgb = _is_rgb(spec_channels) or (colour and _is_unnamed(spec_channels))
    if n_channels == 4 and wanted == 3 and rgb:
        return Picked((0, 1, 2), "red, green and blue without alpha")
    if colour and n_channels in (3, 4) and wanted == 1:
        return _named(_suggest(sample[:3], full), n_channels, has_channels, full)
    raise ChannelError(_mismatch(n_channels, has_channels, spec_channels))


@dataclass(frozen=True, slots=True)
class Picked:
    """Takes channels as they are."""

    channels: tuple[int, ...]
    description: str

    def __call__(self, pixels: NDArray[Any], /) -> NDArray[Any]:
        """Pick; see `ChannelMixer`."""
        if self.channels == tuple(range(len(pixels))):
            return as_float(pixels)
        return as_float(pixels[list(self.channels)])


@dataclass(frozen=True, slots=True)
class Luminance:
    """One channel from grey or red, green and blue, in the image's own unit.

    With `inverted_from`, the luminance is subtracted from that value, so that dark
    objects on a bright ground become bright.
    """

    inverted_from: float | None = None

    @property
    def description(self) -> str:
        """See `ChannelMixer`."""
        return "luminance" if self.inverted_from is None else "inverted luminance"

    def __call__(self, pixels: NDArray[Any], /) -> NDArray[Any]:
        """Weigh; see `ChannelMixer`."""
        values = as_float(pixels[:3])
        if len(values) == 3:
            with np.errstate(invalid="ignore"):  # infinities of both signs
                weighted = [w * v for w, v in zip(LUMINANCE, values, strict=True)]
                values = (weighted[0] + weighted[1] + weighted[2])[np.newaxis]
        return values if self.inverted_from is None else self.inverted_from - values


@dataclass(frozen=True, slots=True)
class Stains:
    """The first stains of `STAINS` from red, green and blue whose white is `full`."""

    full: float
    count: int = 1

    @property
    def description(self) -> str:
        """See `ChannelMixer`."""
        return f"{', '.join(STAINS[: self.count])} (colour deconvolution)"

    def __call__(self, pixels: NDArray[Any], /) -> NDArray[Any]:
        """Separate the stains; see `ChannelMixer`."""
        from skimage.color import rgb2hed  # takes longer than a dock to open

        values = as_float(pixels[:3])
        values = np.clip(values / values.dtype.type(self.full), 0, 1).astype(np.float32)
        # rgb2hed takes pictures with at least one pixel.
        flat = np.moveaxis(values, 0, -1).reshape(1, -1, 3)
        stains = (rgb2hed(flat) if flat.size else flat)[0, :, : self.count].T
        shape = (self.count, *values.shape[1:])
        return np.ascontiguousarray(stains, dtype=np.float32).reshape(shape)


def _pick(
    choice: Sequence[int], n_channels: int, spec_channels: Sequence[str]
) -> ChannelMixer:
    """Channels by number."""
    channels = tuple(operator.index(i) for i in choice)
    if not all(0 <= i < n_channels for i in channels):
        has = "one channel, 0" if n_channels == 1 else f"channels 0 to {n_channels - 1}"
        raise DataError(f"Channels {channels} were chosen, but the image has {has}.")
    if len(channels) == 1 and _is_rgb(spec_channels):
        return Picked(channels * 3, f"channel {channels[0]} as red, green and blue")
    if len(channels) != len(spec_channels):
        raise DataError(
            f"{len(channels)} channels were chosen, but the model takes "
            f"{len(spec_channels)} ({', '.join(spec_channels)}). Choose as many."
        )
    noun = "channel" if len(channels) == 1 else "channels"
    return Picked(channels, f"{noun} {', '.join(map(str, channels))}")


def _named(
    choice: str, n_channels: int, has_channels: bool, full: float
) -> ChannelMixer:
    """One channel from colour, or from grey where that makes sense."""
    grey = n_channels == 1 and choice != "haematoxylin"
    if not grey and n_channels not in (3, 4):
        advice = f"a channel from 0 to {n_channels - 1}" if n_channels > 1 else "'auto'"
        raise DataError(
            f"{choice!r} needs red, green and blue, but the image has "
            f"{_count(n_channels, has_channels)}. Choose {advice} instead."
        )
    makers: dict[str, ChannelMixer] = {
        "luminance": Luminance(),
        "inverted luminance": Luminance(inverted_from=full),
        "haematoxylin": Stains(full),
    }
    return makers[choice]


def _count(n_channels: int, has_channels: bool) -> str:
    """Say how many channels an image has."""
    if not has_channels:
        return "no channel axis"
    return "1 channel" if n_channels == 1 else f"{n_channels} channels"


def _mismatch(n_channels: int, has_channels: bool, spec_channels: Sequence[str]) -> str:
    """Say what doesn't fit, and what to choose."""
    wanted = len(spec_channels)
    message = (
        f"The image has {_count(n_channels, has_channels)}, but the model takes "
        f"{wanted} ({', '.join(spec_channels)})."
    )
    if n_channels > wanted:
        what = "which channel" if wanted == 1 else f"which {wanted} channels"
        message += f" Choose {what} to use, from 0 to {n_channels - 1}"
        colours = wanted == 1 and n_channels in (3, 4)
        told = "; or if they are red, green and blue, luminance or haematoxylin"
        return f"{message}{told if colours else ''}."
    return (
        f"{message} Choose a model that takes {n_channels}, or if an axis of the image "
        "holds channels, name it C."
    )


def _is_rgb(spec_channels: Sequence[str]) -> bool:
    """Whether a network was made for colour pictures."""
    names = [name.lower() for name in spec_channels]
    return names in (["red", "green", "blue"], ["r", "g", "b"])


def _is_unnamed(spec_channels: Sequence[str]) -> bool:
    """Whether nobody has said what a network's channels are."""
    return all(name.lower().startswith("channel") for name in spec_channels)


def _full_scale(sample: NDArray[Any], dtype: np.dtype[Any]) -> float:
    """Guess the value of white: the least usual maximum that holds the sample."""
    if dtype.kind == "b":
        return 1.0
    values = sample[np.isfinite(sample)]
    most = float(values.max()) if values.size else 0.0
    if dtype.kind == "f":
        # A little above 1 or 255 is what interpolation leaves.
        return next((m for m in (1.0, 255.0) if most <= 1.05 * m), most)
    greatest = float(np.iinfo(dtype).max)
    usual = (float(m) for m in USUAL_MAXIMA if most <= m < greatest)
    return next(usual, greatest)


def _suggest(sample: NDArray[Any], full: float) -> str:
    """Name the choice that most likely shows nuclei bright in a colour picture."""
    sample = sample[:, :: max(1, sample.shape[1] // SUGGESTION_PIXELS)]
    values = sample[:, np.isfinite(sample).all(axis=0)] / full
    if not values.size:
        return "luminance"
    luminance = np.tensordot(LUMINANCE, values, axes=1)
    white = np.percentile(luminance, 95)
    if white < BRIGHT_GROUND or np.median(luminance) < BRIGHT_MEDIAN * white:
        return "luminance"
    # Against the white of each channel: a colour cast of the lamp is no stain.
    balance = np.maximum(np.percentile(values, 95, axis=1), np.finfo(np.float32).tiny)
    balanced = np.minimum(values / balance[:, np.newaxis], 1)
    coloured = np.ptp(balanced, axis=0) > COLOURED
    return "haematoxylin" if coloured.mean() > COLOURED_SHARE else "inverted luminance"
