"""What the user corrected: what of it is true, where, and the set it is kept in.

A `Correction` is one image with its labels; `truth` says which pixels of it teach what,
and how much. A `TrainingSet` is a folder of such samples, each a snapshot, with a part
held out for validation that never changes.
"""

from napari_attunet.corrections.correction import MOST_CLASSES, Correction, Count
from napari_attunet.corrections.folder import (
    TrainingSet,
    default_folder,
    last_folder,
    remember_folder,
)
from napari_attunet.corrections.sample import Sample
from napari_attunet.corrections.split import FEW_PIXELS, GUARD
from napari_attunet.corrections.truth import (
    BACKGROUND_BRUSH,
    CHANGED_WEIGHT,
    RING,
    SURROUNDINGS,
    Extent,
    Output,
    Truth,
    background_brush,
    brush_in,
    grow,
    kind_of,
    truth,
)

__all__ = [
    "BACKGROUND_BRUSH",
    "CHANGED_WEIGHT",
    "FEW_PIXELS",
    "GUARD",
    "MOST_CLASSES",
    "RING",
    "SURROUNDINGS",
    "Correction",
    "Count",
    "Extent",
    "Output",
    "Sample",
    "TrainingSet",
    "Truth",
    "background_brush",
    "brush_in",
    "default_folder",
    "grow",
    "kind_of",
    "last_folder",
    "remember_folder",
    "truth",
]
