"""What a model would find in an image, and what it would change there; no Qt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from napari.layers import Image, Labels, Layer
from scipy import ndimage

from napari_attunet.errors import ChannelError
from napari_attunet.header import read_spec
from napari_attunet.progress import Progress, Steps
from napari_attunet.spec import ModelSpec
from napari_attunet.widgets.layers import KEY, array_of, axes_of, label_colours
from napari_attunet.widgets.poses import Pose, fit
from napari_attunet.widgets.warmup import warm_up

__all__ = ["GAINED", "LOST", "OTHER", "Comparison", "changes", "describe"]

Ints = npt.NDArray[np.integer[Any]]

#: Values of the layer of changes, and their colours.
GAINED, LOST, OTHER = 1, 2, 3
CHANGE_COLOURS = {GAINED: "#2ecc40", LOST: "#ff4136", OTHER: "#ffdc00"}

#: Pixels by which a line between objects may move before it counts as changed.
TOLERANCE = 2


def changes(old: Ints, new: Ints, *, output: str, ndim: int) -> npt.NDArray[np.uint8]:
    """Return where two segmentations differ.

    Parameters
    ----------
    old, new : array of int
        Labels of one shape.
    output : {"objects", "classes"}
        What they are.
    ndim : int
        How many of the last axes hang together; others are frames.

    Returns
    -------
    array of uint8
        0 where they agree, `GAINED` and `LOST` for foreground, and `OTHER` for
        another class, or for a line between objects that only one of them draws.
    """
    changed = np.zeros(old.shape, np.uint8)
    changed[(old == 0) & (new > 0)] = GAINED
    changed[(old > 0) & (new == 0)] = LOST
    both = (old > 0) & (new > 0)
    if output == "classes":
        changed[both & (old != new)] = OTHER
        return changed
    frames = [labels.reshape(-1, *labels.shape[-ndim:]) for labels in (old, new, both)]
    out = changed.reshape(frames[0].shape)
    for frame, (before, after, inside) in enumerate(zip(*frames, strict=True)):
        lines, others = _lines(before), _lines(after)
        out[frame][inside & (lines & ~_near(others) | others & ~_near(lines))] = OTHER
    return changed


def _lines(labels: Ints) -> npt.NDArray[np.bool_]:
    """Return the pixels of objects that touch another object."""
    lines = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        along = np.moveaxis(labels, axis, 0)
        touch = (along[1:] != along[:-1]) & (along[1:] > 0) & (along[:-1] > 0)
        found = np.moveaxis(lines, axis, 0)
        found[1:] |= touch
        found[:-1] |= touch
    return lines


def _near(lines: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    grown: npt.NDArray[np.bool_] = ndimage.binary_dilation(lines, iterations=TOLERANCE)
    return grown


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two models on one image.

    Attributes
    ----------
    old : Path, optional
        File of the present model; there may be none yet.
    new : Path
        File of what is to take its place.
    spec : ModelSpec
        Of the new one.
    image : array
    rgb : bool
    axes : str
    pose : Pose
    device : str
    """

    old: Path | None
    new: Path
    spec: ModelSpec
    image: Any
    rgb: bool
    axes: str
    pose: Pose
    device: str = "auto"

    @classmethod
    def of(cls, layer: Image, old: Path | None, new: Path, device: str) -> Comparison:
        """Take along all that is needed of a layer; for the thread of the GUI."""
        spec = read_spec(new)
        network = spec.network
        return cls(
            old=old,
            new=new,
            spec=spec,
            image=array_of(layer),
            rgb=layer.rgb,
            axes=axes_of(layer, ndim=network.ndim, in_channels=network.in_channels),
            pose=Pose.of(layer),
            device=device,
        )

    def compute(self) -> Steps[list[Layer]]:
        """Segment with both; returns layers for old, new and what changes.

        An old one that takes other channels has found nothing. Without an old one
        there is only the new one's layer.
        """
        yield Progress(0, 0, "Loading PyTorch")
        warm_up()
        from napari_attunet.model import load_model
        from napari_attunet.segmenter import Segmenter

        found = []
        models = [("after", self.new)]
        if self.old is not None:
            models.insert(0, ("before", self.old))
        for name, path in models:
            segmenter = Segmenter(load_model(path), device=self.device)
            steps = segmenter.steps(
                self.image, axes=self.axes, rgb=self.rgb, output=self.spec.output
            )
            try:
                found.append((yield from _prefixed(steps, name)).labels)
            except ChannelError:
                if path != self.old:
                    raise
        new = found[-1]
        if self.old is None:
            return [self._layer("new", new, visible=True)]
        yield Progress(0, 0, "Comparing")
        old = found[0] if len(found) > 1 else np.zeros_like(new)
        changed = changes(
            old, new, output=self.spec.output, ndim=self.spec.network.ndim
        )
        layers = []
        for role, values in (("old", old), ("new", new), ("changes", changed)):
            layers.append(self._layer(role, values, visible=role == "changes"))
            yield Progress(0, 0, "Preparing layers")
        return layers

    def _layer(self, role: str, labels: Ints, *, visible: bool) -> Labels:
        values, pose = fit(
            labels,
            (1,) * labels.ndim,
            axes=self.axes,
            shape=self.image.shape,
            pose=self.pose,
        )
        look: dict[str, Any] = {"opacity": 0.6}
        if role == "changes":
            look = {"opacity": 0.7, "colormap": label_colours(CHANGE_COLOURS)}
        elif self.spec.output == "classes" and self.spec.colors:
            look["colormap"] = label_colours(dict(enumerate(self.spec.colors)))
        return Labels(
            values,
            name=role,
            visible=visible,
            metadata={KEY: "comparison"},
            **look,
            **pose.arguments(),
        )


def _prefixed(steps: Steps[Any], name: str) -> Steps[Any]:
    """Run steps whose messages tell for which model they are."""
    try:
        while True:
            at = next(steps)
            yield Progress(at.done, at.total, f"{at.message} ({name})")
    except StopIteration as end:
        return end.value
    finally:
        steps.close()


def describe(changed: Ints) -> str:
    """Return a sentence on a layer of changes."""
    counts = np.bincount(np.ravel(changed), minlength=OTHER + 1)
    total = max(1, changed.size)
    return (
        f"Gained {counts[GAINED] / total:.1%} of the pixels (green), lost "
        f"{counts[LOST] / total:.1%} (red); borders or classes that change are yellow."
    )
