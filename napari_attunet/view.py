"""Views of an array by axis name: read, reflected, sampled, and labels laid back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from napari_attunet.axes import check_axes
from napari_attunet.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ImageView", "LazyArray"]

#: Reads of one sample: of chunked arrays, where each decodes a whole chunk, and of
#: arrays whose pixels can be had one by one, where more and smaller ones spread better.
CHUNKED_READS = 64
DIRECT_READS = 1024

T = TypeVar("T")


class LazyArray(Protocol):
    """What a view asks of an array: numpy, dask, zarr and h5py arrays have it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of every axis."""

    @property
    def dtype(self) -> Any:
        """Kind of the elements."""

    def __getitem__(self, key: Any, /) -> Any:
        """Return the part that integers and slices, one for each axis, ask for."""


class ImageView:
    """A lazy view of an array by named axes.

    Parameters
    ----------
    array : array
        A numpy, dask or zarr array, or anything else with ``shape``, ``dtype`` and
        indexing by integers and slices; bool, integer or floating point.
    axes : str
        One letter of ``"TCZYX"`` for each axis of the array, in any order. RGB and
        RGBA are channels.
    ndim : {2, 3}
        Spatial dimensions of the model: 2 walks Z like time, 3 needs it.

    Attributes
    ----------
    axes : str
        The axes of the array.
    label_axes : str
        The axes without the channel, in the array's order: those of its labels.
    label_shape : tuple of int
        Their lengths.
    spatial_axes : str
        ``"YX"`` or ``"ZYX"``.
    spatial_shape : tuple of int
        Their lengths, in this order.
    leading_axes : str
        The axes that are walked, in the array's order, such as ``"TZ"``.
    leading_shape : tuple of int
        Their lengths.
    n_channels : int
        Number of channels; 1 where there is no channel axis.
    has_channels : bool
        Whether there is a channel axis.

    Raises
    ------
    DataError
        If the axes don't fit the array or the model, an axis is empty or of unknown
        length, or the elements are not real numbers.
    """

    def __init__(self, array: LazyArray, axes: str, *, ndim: int) -> None:
        if ndim not in (2, 3):
            raise ValueError(f"ndim must be 2 or 3, got {ndim}.")
        self._array = array
        self.axes = axes = axes.upper()
        self.spatial_axes = "ZYX"[3 - ndim :]
        shape = tuple(array.shape)
        check_axes(axes, shape, self.spatial_axes)
        _check_dtype(array.dtype)
        sizes = {axis: int(size) for axis, size in zip(axes, shape, strict=True)}
        self.has_channels = "C" in axes
        self.n_channels = sizes.get("C", 1)
        self.label_axes = axes.replace("C", "")
        walked = (a for a in self.label_axes if a not in self.spatial_axes)
        self.leading_axes = "".join(walked)
        self.label_shape = tuple(sizes[a] for a in self.label_axes)
        self.spatial_shape = tuple(sizes[a] for a in self.spatial_axes)
        self.leading_shape = tuple(sizes[a] for a in self.leading_axes)

    def __repr__(self) -> str:
        """Say the axes, shape and dtype."""
        shape, dtype = tuple(self._array.shape), self._array.dtype
        return f"ImageView({self.axes!r}, {shape}, {dtype})"

    # ---- reading -----------------------------------------------------------------

    def frames(self) -> Iterator[tuple[int, ...]]:
        """Walk the indices over `leading_shape`; one empty tuple if there are none."""
        yield from np.ndindex(*self.leading_shape)

    def read(self, frame: Sequence[int], region: Sequence[slice]) -> NDArray[Any]:
        """Read a region of one frame, and nothing else of a lazy array.

        Parameters
        ----------
        frame : sequence of int
            Index along each of `leading_axes`.
        region : sequence of slice
            Pixels along each of `spatial_axes`; not negative, without a step.

        Returns
        -------
        ndarray, (C, [Z,] Y, X)
            In the array's own dtype. It may share memory with the array: don't write
            to it.
        """
        block = self._load(self.label_index(frame, region))
        left = [a for a in self.axes if a not in self.leading_axes]
        if not self.has_channels:
            block, left = block[np.newaxis], ["C", *left]
        return block.transpose([left.index(a) for a in "C" + self.spatial_axes])

    def read_reflected(
        self, frame: Sequence[int], start: Sequence[int], stop: Sequence[int]
    ) -> NDArray[Any]:
        """Read a region that may reach beyond the image, which is mirrored there.

        Parameters
        ----------
        frame : sequence of int
            Index along each of `leading_axes`.
        start, stop : sequence of int
            First pixel and the one behind the last along each of `spatial_axes`,
            anywhere inside or outside of the image.

        Returns
        -------
        ndarray, (C, [Z,] Y, X)
            As `read`; outside of the image as by ``numpy.pad(mode="symmetric")``. Only
            the slab between the first and the last pixel needed is read.
        """
        bounds = zip(self.spatial_shape, start, stop, strict=True)
        wanted = [_reflect(first, last, size) for size, first, last in bounds]
        slab = [
            slice(int(w.min()), int(w.max()) + 1) if w.size else slice(0, 0)
            for w in wanted
        ]
        block = self.read(frame, slab)
        for axis, (pixels, part) in enumerate(zip(wanted, slab, strict=True), start=1):
            local = pixels - part.start
            if not np.array_equal(local, np.arange(block.shape[axis])):
                block = block.take(local, axis=axis)
        return block

    # ---- writing labels ----------------------------------------------------------

    def in_label_axes(self, spatial: Sequence[T], walked: Sequence[T]) -> tuple[T, ...]:
        """Bring one value for each spatial and each walked axis into the labels' order.

        ``view.in_label_axes(view.spatial_shape, view.leading_shape)`` is
        ``view.label_shape``.

        Parameters
        ----------
        spatial : sequence
            A value for each of `spatial_axes`.
        walked : sequence
            A value for each of `leading_axes`.
        """
        values = dict(zip(self.spatial_axes, spatial, strict=True))
        values |= zip(self.leading_axes, walked, strict=True)
        return tuple(values[a] for a in self.label_axes)

    def label_index(
        self, frame: Sequence[int], region: Sequence[slice]
    ) -> tuple[int | slice, ...]:
        """Index into the labels for a region of one frame.

        ``labels[view.label_index(frame, region)] = view.to_label_order(block)`` lays a
        result back; coarser grids are indexed alike.
        """
        for part in region:
            if part.step not in (None, 1) or min(part.start or 0, part.stop or 0) < 0:
                raise ValueError(
                    f"Regions have no negative bound and no step, got {part}."
                )
        return self.in_label_axes(region, [int(i) for i in frame])

    def to_label_order(self, block: NDArray[Any]) -> NDArray[Any]:
        """Transpose a block from ``(..., [Z,] Y, X)`` to the labels' order."""
        before = block.ndim - len(self.spatial_axes)
        own = [a for a in self.label_axes if a in self.spatial_axes]
        order = [before + self.spatial_axes.index(a) for a in own]
        return block.transpose([*range(before), *order])

    # ---- sampling ----------------------------------------------------------------

    def sample(self, max_pixels: int = 4_000_000, seed: int = 0) -> NDArray[Any]:
        """Take pixels from all over the image, for statistics.

        A small image is taken whole. Of a big one the same pixels come every time: a
        bounded number of blocks, one drawn from each of as many equal parts of the
        image. A chunked array (with ``chunks``, as dask and zarr have) is read along
        its chunks, each at most once, so that few are decoded. The same image held in
        another chunking gives another sample.

        Parameters
        ----------
        max_pixels : int
            How many pixels at most; fewer if there are more than four channels, so
            that memory stays bounded.
        seed : int
            Where the blocks lie.

        Returns
        -------
        ndarray, (C, pixels)
            In the array's own dtype.
        """
        max_pixels = max(1, max_pixels * 4 // max(4, self.n_channels))
        whole = tuple(slice(0, size) for size in self.label_shape)
        if math.prod(self.label_shape) <= max_pixels:
            return self._pixels(whole)
        chunks, channel_chunks = self._chunks()
        # A pixel costs as many chunks as its channels are spread over.
        budget = DIRECT_READS if chunks is None else CHUNKED_READS // channel_chunks
        reads = min(max(1, budget), max_pixels)
        edges = self._cells(chunks, max_pixels // reads)
        grid = tuple(len(e) - 1 for e in edges)
        count = min(reads, math.prod(grid))
        strata = np.array([i * math.prod(grid) // count for i in range(count + 1)])
        drawn = np.random.default_rng(seed).integers(strata[:-1], strata[1:])
        parts = []
        for cell in zip(*np.unravel_index(drawn, grid), strict=True):
            lows = [int(e[i]) for e, i in zip(edges, cell, strict=True)]
            highs = [int(e[i + 1]) for e, i in zip(edges, cell, strict=True)]
            sizes = [high - low for low, high in zip(lows, highs, strict=True)]
            steps = _steps(sizes, max_pixels // count)
            bounds = zip(lows, highs, steps, strict=True)
            # Half a step in, so that the edges of chunks are not preferred.
            block = [slice(low + (s - 1) // 2, high, s) for low, high, s in bounds]
            parts.append(self._pixels(block))
        return np.concatenate(parts, axis=1)

    def _load(self, where: Sequence[int | slice]) -> NDArray[Any]:
        """Load what an index into the labels covers, with all channels."""
        index = dict(zip(self.label_axes, where, strict=True))
        part = self._array[tuple(index.get(a, slice(None)) for a in self.axes)]
        return np.asarray(part)

    def _pixels(self, where: Sequence[slice]) -> NDArray[Any]:
        """Load what slices (with steps) of the labels cover, as (C, pixels)."""
        block = self._load(where)
        if self.has_channels:
            block = np.moveaxis(block, self.axes.index("C"), 0)
        return block.reshape(self.n_channels, -1)

    def _chunks(self) -> tuple[list[NDArray[np.int64]] | None, int]:
        """Edges of the chunks along `label_axes`, and the chunks along C."""
        # Of a zarr array whose grid is not regular, nothing else tells.
        chunks = getattr(self._array, "read_chunk_sizes", None)
        if chunks is None:
            chunks = getattr(self._array, "chunks", None)
        if chunks is None:
            return None, 1
        edges = {}
        for axis, size, chunk in zip(self.axes, self._array.shape, chunks, strict=True):
            if isinstance(chunk, Sequence):  # the length of each
                inner = np.cumsum([0, *(c for c in chunk if c)])
            else:
                inner = np.append(np.arange(0, size, chunk), size)
            edges[axis] = inner.astype(np.int64)
        return [edges[a] for a in self.label_axes], len(edges.get("C", (0, 0))) - 1

    def _cells(
        self, chunks: list[NDArray[np.int64]] | None, target: int
    ) -> list[NDArray[np.int64]]:
        """Edges of the blocks to draw from: chunks, small ones spatially joined."""
        edges = chunks or [np.arange(n + 1, dtype=np.int64) for n in self.label_shape]
        spatial = [i for i, a in enumerate(self.label_axes) if a in self.spatial_axes]
        factors = [1] * len(edges)

        def mean(axis: int) -> float:
            cells = math.ceil((len(edges[axis]) - 1) / factors[axis])
            return self.label_shape[axis] / cells

        while True:
            open_axes = [i for i in spatial if factors[i] < len(edges[i]) - 1]
            if not open_axes or 2 * math.prod(map(mean, range(len(edges)))) > target:
                break
            factors[min(open_axes, key=mean)] *= 2
        joined = zip(edges, factors, strict=True)
        return [np.append(e[:-1:factor], e[-1]) for e, factor in joined]


def _check_dtype(dtype: Any) -> None:
    """Refuse elements that are not real numbers."""
    try:
        kind = np.dtype(dtype).kind
    except TypeError as error:
        raise DataError(
            f"The image's elements are of type {dtype}, which NumPy does not know. "
            "Give it as a NumPy array; a tensor of PyTorch has .numpy()."
        ) from error
    if kind not in "buif":
        raise DataError(
            f"The image holds elements of type {dtype}, but bool, integers or floating "
            "point numbers are needed. Convert it first, for example to its absolute "
            "value or with astype('float32')."
        )


def _reflect(start: int, stop: int, size: int) -> NDArray[np.intp]:
    """Pixels of the image that a line from start to stop shows, mirrored outside."""
    if stop < start:
        raise ValueError(f"A region must not end before it starts: {start} to {stop}.")
    around = np.arange(start, stop, dtype=np.intp) % (2 * size)
    return np.minimum(around, 2 * size - 1 - around)


def _steps(sizes: Sequence[int], most: int) -> list[int]:
    """Choose steps along each axis that leave at most so many pixels, evenly."""
    steps = [1] * len(sizes)
    left = list(sizes)
    while math.prod(left) > most:
        axis = max(range(len(sizes)), key=left.__getitem__)
        steps[axis] += 1 + steps[axis] // 8  # a little at a time, but soon there
        left[axis] = math.ceil(sizes[axis] / steps[axis])
    return steps
