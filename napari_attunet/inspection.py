"""Asking what if: a part of an image, encoded once, decoded as often as you like."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from napari_attunet.architecture import Mechanism
from napari_attunet.canvas import AttentionMap, AttentionTable, Canvas
from napari_attunet.devices import threads
from napari_attunet.errors import DataError, DeviceError
from napari_attunet.evaluation import dice
from napari_attunet.inference import class_probabilities
from napari_attunet.memory import is_full
from napari_attunet.networks import SpatialTransformer, look
from napari_attunet.plan import Window, choose_labeller, prepare
from napari_attunet.progress import Progress, Steps
from napari_attunet.segmenter import Segmenter
from napari_attunet.tiling import Tile, Tiling
from napari_attunet.view import ImageView

__all__ = ["Ablation", "Answer", "Edit", "Inspection"]

#: α to use instead of what a gate found: one number, or a map on the gate's own grid.
Edit = float | npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Answer:
    """What the network says of the part, with gates as they are or as you want them.

    Attributes
    ----------
    labels : array of int32
        In the shape of the part.
    probabilities : array of float32, (K, *labels.shape)
    attention : tuple of AttentionMap
        On their own grids, counted from the part's corner.
    tables : tuple of AttentionTable
    """

    labels: npt.NDArray[np.int32]
    probabilities: npt.NDArray[np.float32]
    attention: tuple[AttentionMap, ...]
    tables: tuple[AttentionTable, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """What becomes of the mask without a gate.

    Attributes
    ----------
    level : int
        Of the gate; 1 is the finest.
    state : {"as learnt", "open", "closed"}
    dice : float
        Of the foreground, against the labels that were given.
    changed : int
        Pixels that come to an object or leave one, compared with gates as learnt.
    """

    level: int
    state: str
    dice: float
    changed: int


class Inspection:
    """A part of an image inside a network.

    The encoder runs once; every question runs the decoder only. In 2D, and for networks
    without pooled parts, the answers are those that a run over the whole image gives.

    Parameters
    ----------
    segmenter : Segmenter
    image : array
    region : sequence of slice, optional
        The part, a slice for each axis of the image but the channels; by default all.
        It is widened to the coarsest grid of the network. Of axes that a model walks,
        one position.
    axes, rgb, channels, output, objects, threshold
        As of `Segmenter.steps`.

    Attributes
    ----------
    region : tuple of slice
        As used.
    mechanisms : tuple of Mechanism
        Of the network, in its order.

    Raises
    ------
    DataError
        If the image cannot be used, or the part is more than one picture.
    DeviceError
        If the part doesn't fit into memory.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        image: Any,
        *,
        region: Sequence[slice] | None = None,
        axes: str | None = None,
        rgb: bool = False,
        channels: Any = "auto",
        output: Any = None,
        objects: Any = None,
        threshold: float | None = None,
    ) -> None:
        spec = segmenter.model.spec
        prepared = prepare(spec, image, axes=axes, rgb=rgb, channels=channels)
        whole = prepared.view
        divisor = spec.network.divisor
        self.region = _widened(whole, region, divisor)
        view = Window(whole, self.region)
        if math.prod(view.leading_shape) != 1:
            raise DataError(
                f"Choose one position along {' and '.join(view.leading_axes)}: "
                f"{spec.key} looks at one picture at a time."
            )
        self._view = view
        self._frame = (0,) * len(view.leading_shape)
        self._labeller = choose_labeller(
            spec, output or spec.output, objects, threshold
        )
        starts = dict(
            zip(whole.label_axes, (r.start for r in self.region), strict=True)
        )
        corner = [starts[axis] for axis in view.spatial_axes]
        self._tiling = _One(
            view.spatial_shape, corner, whole.spatial_shape, segmenter.halo, divisor
        )
        network = segmenter.network_on(segmenter.device, exact=True)
        self.mechanisms = network.mechanisms
        read = self._tiling.one.read
        pixels = replace(prepared, view=view).read(
            self._frame, [r.start for r in read], [r.stop for r in read]
        )
        try:
            x = torch.from_numpy(pixels)[None].to(segmenter.device.name)
            with threads(segmenter.threads), torch.inference_mode():
                self._encoded = network.encode(x, wanted=self._tiling.one.part)
                self._learnt = network.decode(self._encoded)
        except (RuntimeError, MemoryError) as error:
            if not is_full(error):
                raise
            size = " x ".join(map(str, view.spatial_shape))
            raise DeviceError(
                f"{size} pixels are too many for {segmenter.device.name} to look into "
                "at a time: choose a smaller part of the image."
            ) from None
        self._network, self._threads = network, segmenter.threads
        self._n_classes = spec.n_classes

    def answer(self, edits: Mapping[int, Edit] | None = None) -> Answer:
        """Return what the network says, with gates as learnt or as you want them.

        Parameters
        ----------
        edits : mapping of int to float or array, optional
            By level of the gate, 1 the finest: 1.0 opens it, 0.0 closes it, an array
            with the shape of its `AttentionMap` is what it lets through, and as learnt
            where that is NaN.

        Raises
        ------
        DataError
            If there is no such gate, or the array is none of its maps.
        """
        explained = self._learnt
        if edits:
            with threads(self._threads), torch.inference_mode():
                explained = self._network.decode(self._encoded, self._edits(edits))
        kept = [m for m in self.mechanisms if m.kind != "pairwise"]
        canvas = Canvas(
            self._view,
            self._tiling,
            n_classes=self._n_classes,
            mechanisms=kept,
            keep_probabilities=True,
            labeller=self._labeller,
        )
        found = zip(self.mechanisms, explained.attention, strict=True)
        canvas.put(
            self._frame,
            self._tiling.one,
            class_probabilities(explained.logits)[0].cpu().numpy(),
            [values[0].cpu().numpy() for m, values in found if m in kept],
        )
        canvas.finish(self._frame)
        if canvas.probabilities is None:
            raise TypeError("Probabilities were asked for.")
        return Answer(
            canvas.labels(), canvas.probabilities, canvas.maps(), canvas.tables()
        )

    def _edits(self, edits: Mapping[int, Edit]) -> dict[int, torch.Tensor]:
        """Return α to use on the part, widened to the network's grid."""
        gates = {
            m.level + 1: i for i, m in enumerate(self.mechanisms) if m.kind == "gate"
        }
        tensors = {}
        for level, edit in edits.items():
            if level not in gates:
                raise DataError(
                    f"There is no gate at level {level}: there are {sorted(gates)}."
                )
            index = gates[level]
            shown = self._learnt.attention[index]
            write = self._tiling.one.on_grid(self.mechanisms[index].scale)
            shape = tuple(w.stop for w in write)
            values = np.asarray(edit, np.float32)
            if values.ndim and values.shape != self._labels_shape(shape):
                raise DataError(
                    f"α of level {level} has the shape {self._labels_shape(shape)} "
                    f"here, got {values.shape}."
                )
            told = values[~np.isnan(values)]
            if told.size and (told.min() < 0 or told.max() > 1):
                raise DataError("α lies between 0 (closed) and 1 (open).")
            if values.ndim:
                order = [
                    self._view.label_axes.index(a) for a in self._view.spatial_axes
                ]
                lead = [i for i in range(values.ndim) if i not in order]
                values = values.transpose(lead + order).reshape(shape)
            spread = torch.from_numpy(np.broadcast_to(values, shape).copy())
            spread = spread.to(shown).expand(*shown.shape[:2], *shape)
            at = (slice(None), slice(None), *write)
            alpha = torch.full_like(shown, torch.nan)  # as learnt
            alpha[at] = torch.where(spread == shown[at], torch.nan, spread)
            tensors[level - 1] = alpha
        return tensors

    def _labels_shape(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        sizes = dict(zip(self._view.spatial_axes, spatial, strict=True))
        return tuple(sizes.get(axis, 1) for axis in self._view.label_axes)

    def look(self, mechanism: Mechanism, position: Sequence[int]) -> AttentionMap:
        """Return where a position looks, of self-attention.

        Parameters
        ----------
        mechanism : Mechanism
            One of `mechanisms`, of the kind ``"pairwise"``.
        position : sequence of int
            In the part's pixels, for each spatial axis.

        Returns
        -------
        AttentionMap
            Shares that sum to 1 over all that the network saw, relative to the largest:
            1 is where the position looks most.
        """
        index = self.mechanisms.index(mechanism)
        read = self._tiling.one.read
        shape = self._view.spatial_shape
        if len(position) != len(shape) or not all(
            0 <= p < n for p, n in zip(position, shape, strict=True)
        ):
            raise DataError(
                f"The position {tuple(position)} doesn't lie in the part, which has "
                f"the shape {shape}."
            )
        pairs = self._learnt.attention[index][0].float()
        place = torch.tensor([p - r.start for p, r in zip(position, read, strict=True)])
        size = torch.tensor([r.stop - r.start for r in read])
        place = self._network.in_frame((place + 0.5) / size, self._encoded.matrix)
        grid = place.cpu() * size / torch.tensor(mechanism.scale)
        cells = zip(grid.tolist(), pairs.shape[2:], strict=True)
        found = look(pairs, tuple(min(max(int(c), 0), n - 1) for c, n in cells))
        if self._encoded.matrix is not None:
            frame = found[None, None]
            found = SpatialTransformer.restore(frame, self._encoded.matrix)[0, 0]
        shares = found.cpu().numpy()

        axes, spatial = self._view.label_axes, self._view.spatial_axes

        def along(values: Iterable[int], default: int) -> list[int]:
            known = dict(zip(spatial, values, strict=True))
            return [known.get(axis, default) for axis in axes]

        factors = along(mechanism.scale, 1)
        starts = along((r.start for r in read), 0)
        order = [spatial.index(axis) for axis in axes if axis in spatial]
        return AttentionMap(
            name=mechanism.label,
            level=mechanism.level + 1,
            kind="pairwise",
            values=(shares.transpose(order) / shares.max()).reshape(
                along(shares.shape, 1)
            ),
            scale=tuple(factors),
            translate=tuple(
                (f - 1) / 2 + start for f, start in zip(factors, starts, strict=True)
            ),
        )

    def ablations(self, labels: npt.NDArray[Any]) -> Steps[tuple[Ablation, ...]]:
        """Open and close each gate in turn, and score the mask against labels.

        Parameters
        ----------
        labels : array of int
            In the shape of the part.

        Returns
        -------
        generator
            Yields `Progress`, returns one `Ablation` with all gates as learnt (level
            0), and two for each gate.
        """
        if labels.shape != self._view.label_shape:
            raise DataError(
                f"The labels have the shape {labels.shape}, the part "
                f"{self._view.label_shape}: choose labels of this image."
            )
        before = self.answer().labels
        levels = [m.level + 1 for m in self.mechanisms if m.kind == "gate"]
        questions: list[tuple[int, str, dict[int, Edit]]] = [(0, "as learnt", {})]
        questions += [(i, "open", {i: 1.0}) for i in levels]
        questions += [(i, "closed", {i: 0.0}) for i in levels]
        found = []
        for done, (level, state, edits) in enumerate(questions):
            yield Progress(done, len(questions), f"Level {level} {state}")
            after = self.answer(edits).labels
            found.append(
                Ablation(
                    level=level,
                    state=state,
                    dice=dice(after, labels),
                    changed=int(np.count_nonzero((after > 0) != (before > 0))),
                )
            )
        return tuple(found)


class _One(Tiling):
    """A part of an image as one tile, with as much around it as there is.

    Attributes
    ----------
    one : Tile
        Counted from the part's corner.
    """

    def __init__(
        self,
        shape: Sequence[int],
        corner: Sequence[int],
        image: Sequence[int],
        halo: Sequence[int],
        divisor: Sequence[int],
    ) -> None:
        super().__init__(shape, tile=shape, halo=halo, divisor=divisor)
        read, part, write = [], [], []
        for start, size, padded, whole, margin, factor in zip(
            corner, shape, self.padded_shape, image, self.halo, divisor, strict=True
        ):
            end = -(-whole // factor) * factor
            before = min(margin, start)
            after = min(margin, end - start - padded)
            read.append(slice(-before, padded + after))
            part.append(slice(before, before + padded))
            write.append(slice(0, size))
        self.one = Tile(tuple(read), tuple(part), tuple(write))

    def __iter__(self) -> Iterator[Tile]:
        """Walk the one tile."""
        yield self.one


def _widened(
    view: ImageView, region: Sequence[slice] | None, divisor: Sequence[int]
) -> tuple[slice, ...]:
    """Return the region from and to the network's coarsest grid, within the image."""
    if region is None:
        region = [slice(0, n) for n in view.label_shape]
    if len(region) != len(view.label_axes):
        raise DataError(
            f"A region needs a part of each of the axes {view.label_axes}, got "
            f"{len(region)}."
        )
    steps = dict(zip(view.spatial_axes, divisor, strict=True))
    widened = []
    for axis, part, size in zip(view.label_axes, region, view.label_shape, strict=True):
        step = steps.get(axis, 1)
        first, last, _ = part.indices(size)
        if first >= last:
            raise DataError(f"The region {part} holds nothing along axis {axis}.")
        widened.append(slice(first // step * step, min(size, -(-last // step) * step)))
    return tuple(widened)
