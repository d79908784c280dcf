"""What a user most likely means, and how it is said in words; no Qt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_attunet.corrections import (
    Count,
    Extent,
    Output,
    Sample,
    background_brush,
)
from napari_attunet.errors import DataError
from napari_attunet.widgets.gathering import Aim, shape_shown
from napari_attunet.widgets.layers import array_of, is_result, prediction_of

if TYPE_CHECKING:
    from napari.layers import Image, Labels

__all__ = [
    "count_line",
    "explain",
    "fits",
    "grouped",
    "next_label",
    "plural",
    "sample_for",
    "suggest_extent",
    "suggest_labels",
]

#: Separates thousands, and never a number from itself at the end of a line.
THIN_SPACE = "\N{NARROW NO-BREAK SPACE}"


# --- which labels ----------------------------------------------------------------


def fits(image: Image, labels: Labels) -> bool:
    """Return whether labels have a shape that those of an image may have."""
    shape, shown = tuple(array_of(labels).shape), shape_shown(image)
    # Channels lie along one of the first axes; labels lack it, or have one cell there.
    without = [shown[:i] + shown[i + 1 :] for i in range(len(shown) - 2)]
    single = [(*shown[:i], 1, *shown[i + 1 :]) for i in range(len(shown) - 2)]
    return shape in (shown, *without, *single)


def suggest_labels(image: Image, candidates: Sequence[Labels]) -> Labels | None:
    """Return the labels that are most likely an image's: the newest that fit.

    Results of this very image go first, then what is named after it.
    """
    fitting = [labels for labels in candidates if fits(image, labels)]
    marks = [(labels, prediction_of(labels)) for labels in fitting]
    own = [labels for labels, m in marks if m and m.source == image.unique_id]
    named = [labels for labels in fitting if labels.name.startswith(image.name)]
    found = own or named or fitting
    return found[-1] if found else None


def suggest_extent(labels: Labels) -> Extent:
    """Return what most likely counts of labels.

    A file holds a finished mask as a rule. What is being painted does not: to take it
    for one would teach that all that is not painted yet is background.
    """
    finished = not is_result(labels) and (labels.source.path or labels.source.sample)
    return "whole" if finished else "painted"


def next_label(labels: Labels, first: int = 1) -> int:
    """Return a number above all that are in use, and none below `first`.

    The number of the background brush is no number in use; and the one below it would
    say that it is, see `brush_in`.

    Raises
    ------
    DataError
        If the labels' type has no number left.
    """
    pixels = np.asarray(array_of(labels))
    brush, most = background_brush(pixels.dtype), int(np.iinfo(pixels.dtype).max)
    highest = int(pixels.max(initial=0))
    if highest == brush:
        highest = int(pixels.max(where=pixels != brush, initial=0))
    number = max(highest + 1, first)
    number = brush + 1 if number in (brush - 1, brush) else number
    if number > most:
        raise DataError(
            f"“{labels.name}” cannot hold a number above {most}. Right-click it in the "
            "layer list and convert its data type to int32."
        )
    return number


# --- in words --------------------------------------------------------------------


def explain(extent: Extent, *, aim: Aim, predicted: bool) -> str:
    """Say what counts, in a sentence or two."""
    if extent == "whole":
        text = "What is unlabelled is taught as background: label everything."
        return text if not predicted else f"{text} What you changed counts more."
    if extent == "regions":
        return "Inside the regions, what is unlabelled is background. Outside, nothing."
    if predicted:
        return (
            "What you changed counts, with every object you touched. What you left "
            "as it was teaches nothing."
            if aim.output == "objects"
            else "Pixels you changed count. What you left as it was teaches nothing."
        )
    what = (
        "Objects count, with a thin rim of background"
        if aim.output == "objects"
        else "Painted pixels count"
    )
    return f"{what}. All else is unknown: show background with its brush."


def count_line(count: Count, aim: Aim) -> str:
    """Say how much there is to learn from."""
    parts = []
    if aim.output == "objects":
        parts.append(plural(count.objects, "object"))
    else:
        for number, pixels in sorted(count.pixels.items()):
            known = number < len(aim.classes)
            name = aim.classes[number] if known else f"class {number}"
            parts.append(f"{name}: {grouped(pixels)}")
    parts.append(f"{grouped(count.known)} of {grouped(count.total)} pixels count")
    if count.changed:
        parts.append(f"{grouped(count.changed)} changed")
    return " · ".join(parts)


def plural(number: int, noun: str) -> str:
    """Return a number of things, such as ``"12 objects"``."""
    return f"{grouped(number)} {noun}{'s' * (number != 1)}"


def grouped(number: int) -> str:
    """Return a number with its thousands set apart."""
    return f"{number:,}".replace(",", THIN_SPACE)


# --- which sample it is ----------------------------------------------------------


def sample_for(
    samples: Sequence[Sample], source: dict[str, Any], output: Output, digest: str
) -> Sample | None:
    """Return the newest sample of what was taken.

    It is of the same pixels; or of the same file and slices, such as when further
    slices of a stack were labelled since.

    Parameters
    ----------
    samples : sequence of Sample
        Oldest first.
    source, output
        As of `Taken`.
    digest : str
        Of the image's pixels; empty if it is not known.
    """
    alike = [sample for sample in reversed(samples) if sample.output == output]
    for sample in alike:
        if digest and sample.image_sha256 == digest:
            return sample
    same = ("path", "image", "shape", "slices", "shown")
    for sample in alike:
        if source.get("path") and all(sample.source.get(k) == source[k] for k in same):
            return sample
    return None
