"""One image with its labels, as the user has them in front of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from napari_attunet.axes import frame_axes
from napari_attunet.corrections.truth import (
    Extent,
    Output,
    Truth,
    background_brush,
    kind_of,
    truth,
)
from napari_attunet.errors import DataError
from napari_attunet.frames import number_objects
from napari_attunet.view import ImageView

__all__ = ["MOST_CLASSES", "Correction", "Count"]

#: A model has an output for each class up to the highest number, so that a number as
#: high as objects have would make a network nobody meant.
MOST_CLASSES = 255
MOST_NUMBERS = int(np.iinfo(np.int32).max)

_OTHER = {
    "objects": (
        "The labels look like classes, with many separate pieces of one number, but "
        "each number is taken for one object. Choose classes, or number each object."
    ),
    "classes": (
        "The labels look like objects, with a number for each, but each number is "
        "taken for a class. Choose objects, or paint one number for each class."
    ),
}


@dataclass(frozen=True, kw_only=True)
class Count:
    """What a correction has to teach, in numbers.

    Attributes
    ----------
    pixels : dict of int to int
        Known pixels by class; for objects 0 is background and 1 any object.
    objects : int
        Objects of which something is known, counted in each frame; 0 for classes.
    known, total : int
        Known pixels and all pixels.
    changed : int
        Known pixels that the user changed in a prediction.
    warnings : tuple of str
        What may not be meant, a sentence each.
    """

    pixels: dict[int, int]
    objects: int
    known: int
    total: int
    changed: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Correction:
    """An image, its labels and what of them counts.

    Attributes
    ----------
    image : array
        numpy, or a lazy array that is read only when it is kept.
    axes : str
        A letter of T, C, Z, Y, X for each axis of the image.
    labels : array of int
        The image's shape without channels, in its order.
    output : {"objects", "classes"}
        What label numbers mean.
    extent : {"whole", "regions", "painted"}
        What counts.
    regions : array of bool, optional
        Where labels count, in the labels' shape.
    prediction : array of int, optional
        What our model had said, in the labels' shape.
    background : int, optional
        Number of the brush that says "background".
    ndim : {2, 3}
        Spatial dimensions of the model it is meant for: 2 walks Z like time.
    name : str
        For people.
    source : dict
        Where it came from; anything that JSON can say.
    model : str, optional
        ``"name@version"`` of the model that made the prediction.
    """

    image: Any
    axes: str
    labels: npt.NDArray[np.integer[Any]]
    output: Output
    extent: Extent = "whole"
    regions: npt.NDArray[np.bool_] | None = None
    prediction: npt.NDArray[np.integer[Any]] | None = None
    background: int | None = None
    ndim: int = 2
    name: str = "image"
    source: dict[str, Any] = field(default_factory=dict)
    model: str | None = None

    def __post_init__(self) -> None:
        for word, choices in ((self.output, Output), (self.extent, Extent)):
            if word not in get_args(choices):
                raise ValueError(f"{word!r} is none of {get_args(choices)}.")
        if self.background is not None and self.background < 1:
            raise ValueError(f"A brush paints from 1, got {self.background}.")

    # ---- questions ---------------------------------------------------------------

    def view(self) -> ImageView:
        """Return a view of the image, which knows frames and spatial axes."""
        return ImageView(self.image, self.axes, ndim=self.ndim)

    def truth(self) -> Truth:
        """Return what is known of each pixel, in the labels' shape.

        Raises
        ------
        DataError
            If labels, regions or prediction have another shape or kind than they need.
        """
        self._check_arrays()
        order = self._frames_first()
        found = truth(
            np.asarray(self.labels).transpose(order),
            extent=self.extent,
            output=self.output,
            regions=_transposed(self.regions, order),
            prediction=_transposed(self.prediction, order),
            background=self.background,
            ndim=self.ndim,
        )
        back = np.argsort(order)
        return Truth(
            labels=np.ascontiguousarray(found.labels.transpose(back)),
            weight=np.ascontiguousarray(found.weight.transpose(back)),
            changed=np.ascontiguousarray(found.changed.transpose(back)),
        )

    def kind(self) -> Output:
        """Tell what the labels look like; of what they leave open, `output`."""
        labels = np.asarray(self.labels).transpose(self._frames_first())
        if self.background is not None:
            labels = np.where(labels == self.background, 0, labels)
        return kind_of(labels, likely=self.output, ndim=self.ndim)

    def check(self, found: Truth | None = None) -> None:
        """Refuse what nothing can be learned from.

        Parameters
        ----------
        found : Truth, optional
            What `truth` returned, where it is at hand.

        Raises
        ------
        DataError
            The message says what is wrong and what to do.
        """
        found = found or self.truth()
        counts = found.weight > 0
        labelled = np.asarray(self.labels) != 0
        if self.extent == "painted" and not counts.any():
            if self.prediction is None:
                raise DataError(
                    f"Nothing is painted on {self.name}. Paint some objects or "
                    "classes, or choose that the whole image is checked if there is "
                    "nothing in it."
                )
            raise DataError(
                f"The labels of {self.name} are still what the model predicted. "
                "Correct them, or choose that the whole image is checked if the "
                "prediction is right."
            )
        inside = labelled & counts
        if self.prediction is None and labelled.any() and not inside.any():
            raise DataError(
                f"All labels of {self.name} lie outside the regions, where nothing "
                "counts. Draw the regions around labels, or choose another extent."
            )
        told = inside | (found.changed & counts)
        if np.count_nonzero(told) == 1:
            where = tuple(int(i[0]) for i in np.nonzero(told))
            raise DataError(
                f"A single pixel of {self.name} is labelled, at {where}: too little to "
                "learn from. Paint whole objects or strokes, or choose another Labels "
                "layer."
            )
        top = int(found.labels.max())
        if self.output == "classes" and top > MOST_CLASSES:
            raise DataError(
                f"Class numbers of {self.name} go up to {top}, but at most "
                f"{MOST_CLASSES} classes are kept apart. Choose objects if each number "
                "is one object, or number the classes from 1."
            )

    def count(self, found: Truth | None = None) -> Count:
        """Count what is known, and say what may not be meant.

        Parameters
        ----------
        found : Truth, optional
            What `truth` returned, where it is at hand.

        Raises
        ------
        DataError
            As `truth`. That there is nothing to learn is no error here.
        """
        found = found or self.truth()
        counts = found.weight > 0
        labels = found.labels[counts]
        objects = 0
        if self.output == "objects":
            known = np.where(counts, found.labels, 0)
            within = frame_axes(self.view().label_axes, self.ndim)
            sizes = np.bincount(number_objects(known, within).ravel())
            objects = int(np.count_nonzero(sizes[1:]))
            inside = int(np.count_nonzero(labels))
            pixels = {0: labels.size - inside, 1: inside}
        else:
            classes, each = np.unique(labels, return_counts=True)
            pixels = dict(zip(classes.tolist(), each.tolist(), strict=True))
        return Count(
            pixels={value: n for value, n in pixels.items() if n},
            objects=objects,
            known=int(labels.size),
            total=int(counts.size),
            changed=int(np.count_nonzero(found.changed & counts)),
            warnings=tuple(self._warnings(found)),
        )

    # ---- steps -------------------------------------------------------------------

    def _frames_first(self) -> list[int]:
        """Return the order of the labels' axes in which those of a frame come last."""
        view = self.view()
        order = view.leading_axes + view.spatial_axes
        return [view.label_axes.index(a) for a in order]

    def _warnings(self, found: Truth) -> Iterator[str]:
        counts = found.weight > 0
        labels = np.asarray(self.labels)
        labelled = labels != 0
        brush = background_brush(labels.dtype)
        silent = self.extent == "painted" and self.background is None
        if silent and (labels == brush).any():
            yield (
                f"The number {brush} counts as any other, not as background: there are "
                "so many that it may be one of them. To show where there is nothing, "
                "draw regions."
            )
        if self.extent == "regions":
            said = labelled if self.prediction is None else found.changed
            if outside := np.count_nonzero(said & ~counts):
                whose = "labelled" if self.prediction is None else "corrected"
                yield (
                    f"{outside} {whose} pixels lie outside the regions and don't count."
                )
        if self.extent != "painted" and not found.labels[counts].any():
            where = "image" if self.extent == "whole" else "part inside the regions"
            yield (
                f"Nothing is labelled: the whole {where} is taken for background. "
                "Choose another extent, or paint, if there is something in it."
            )
        if self.extent == "painted" and self.output == "classes" and counts.any():
            known = np.unique(found.labels[counts])
            if len(known) == 1:
                what = f"class {known[0]}" if known[0] else "background"
                yield (
                    f"All that is painted is {what}: nothing says what is not. Paint "
                    "some of another class or of the background too."
                )
        if self.kind() != self.output:
            yield _OTHER[self.output]

    def _check_arrays(self) -> None:
        view = self.view()
        for what, array in (
            ("labels", self.labels),
            ("prediction", self.prediction),
            ("regions", self.regions),
        ):
            if array is None:
                continue
            if tuple(array.shape) != view.label_shape:
                raise DataError(
                    f"The {what} of {self.name} have the shape {tuple(array.shape)}, "
                    f"but an image of shape {tuple(self.image.shape)} with the axes "
                    f"{self.axes} needs {view.label_shape}. Choose a layer that was "
                    "drawn on this image, or correct the axes."
                )
            if what != "regions":
                _check_numbers(np.asarray(array), what, self.name)
        if self.extent == "regions" and (
            self.regions is None or not np.asarray(self.regions).any()
        ):
            raise DataError(
                f"There are no regions on {self.name}. Draw at least one shape around "
                "what you checked, or choose another extent."
            )


def _check_numbers(labels: npt.NDArray[Any], what: str, name: str) -> None:
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"The {what} of {name} hold {labels.dtype} values, wanted whole numbers "
            "from 0. Choose a Labels layer, or convert them with astype('int32')."
        )
    low, top = int(labels.min()), int(labels.max())
    if low < 0:
        raise DataError(
            f"The {what} of {name} hold negative numbers, down to {low}; 0 is "
            "background and objects or classes count from 1. Renumber them."
        )
    if top > MOST_NUMBERS:
        raise DataError(
            f"The {what} of {name} hold numbers up to {top}, but at most "
            f"{MOST_NUMBERS} can be kept. Renumber them from 1."
        )


def _transposed(array: Any, order: Sequence[int]) -> Any:
    return None if array is None else np.asarray(array).transpose(order)
