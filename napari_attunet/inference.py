"""One pass over an image, tile by tile: read, run the network, stitch, label."""

from __future__ import annotations

import contextlib
import math
from collections.abc import (
    Callable,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from napari_attunet.architecture import Mechanism
from napari_attunet.canvas import AttentionMap, AttentionTable, Canvas, Labeller
from napari_attunet.devices import (
    Device,
    default_threads,
    release_memory,
    threads,
)
from napari_attunet.errors import Cancelled, DeviceError
from napari_attunet.glance import occupied
from napari_attunet.memory import is_full
from napari_attunet.networks import FusedUNet
from napari_attunet.plan import Prepared
from napari_attunet.progress import Progress, Steps, ahead, unwanted
from napari_attunet.spec import ModelSpec
from napari_attunet.tiling import Tile, Tiling
from napari_attunet.view import ImageView

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Look = Callable[[torch.Tensor, Tile], tuple[Floats, list[Floats]]]
    Batch = list[tuple[tuple[int, ...], Tile]]

__all__ = [
    "Job",
    "Overflow",
    "Segmentation",
    "TileTooLarge",
    "class_probabilities",
    "infer",
    "interruptible",
]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The result of a segmentation.

    Attributes
    ----------
    labels : array of int32
        Shape of the image without its channels.
    axes : str
        Names of the labels' axes, such as ``"TYX"``.
    probabilities : array of float32, (K, *labels.shape), optional
        Of every class, where they were asked for.
    attention : tuple of AttentionMap
        Where it was asked for: of the encoder, of skips, of the decoder, each fine to
        coarse.
    tables : tuple of AttentionTable
        Of what attends to channels, or turns the image, where it was asked for.
    record : dict
        What was run: model, device, precision, tile, halo, channels, seconds, whether
        it was ``"exact"``, how many small tiles went together (``"batch"``), and in
        ``"fallbacks"`` what had to be done otherwise than planned.
    """

    labels: npt.NDArray[np.int32]
    axes: str
    probabilities: npt.NDArray[np.float32] | None
    attention: tuple[AttentionMap, ...]
    tables: tuple[AttentionTable, ...]
    record: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A segmentation that is fully decided, but for the device and the tile size.

    Attributes
    ----------
    spec : ModelSpec
    prepared : Prepared
    halo : tuple of int
        Around each tile, in pixels of each spatial axis.
    threads : int, optional
        Of the CPU; by default all cores this process may use.
    attention, probabilities : bool
        Whether to return them.
    skip_empty : bool
        Whether tiles are left out in which a glance sees nothing.
    output : {"classes", "objects"}
    labeller : Labeller
    """

    spec: ModelSpec
    prepared: Prepared
    halo: tuple[int, ...]
    threads: int | None
    attention: bool
    probabilities: bool
    skip_empty: bool
    output: Literal["classes", "objects"]
    labeller: Labeller


class TileTooLarge(Exception):
    """The network ran out of memory on a tile."""


class Overflow(Exception):
    """A number became too large for the type that the network computes in."""


def infer(
    job: Job,
    network: FusedUNet,
    device: Device,
    tile: tuple[int, ...],
    together: int = 0,
) -> Steps[Segmentation]:
    """Segment every frame of an image.

    Parameters
    ----------
    job : Job
    network : FusedUNet
        Rewritten for the device, where it is.
    device : Device
    tile : tuple of int
        Edge of the tiles along each spatial axis.
    together : int
        So many pixels of several small tiles may be worked on at a time.

    Returns
    -------
    generator
        Yields `Progress` before each tile is read, returns the `Segmentation`.

    Raises
    ------
    TileTooLarge
        If a tile does not fit into memory.
    Overflow
        If the network computes in 16 bits, and on this image they are too few.
    DeviceError
        If the results don't.
    Cancelled
        If within a tile it is no longer wanted; see `interruptible`.
    """
    view, spec = job.prepared.view, job.spec
    tiling = Tiling(
        view.spatial_shape,
        tile=tile,
        halo=job.halo,
        divisor=spec.network.divisor,
    )
    frames = {frame: number for number, frame in enumerate(view.frames(), 1)}
    kept = [m for m in network.mechanisms if job.attention and m.kind != "pairwise"]
    canvas = _canvas(
        view,
        tiling,
        n_classes=spec.n_classes,
        mechanisms=kept,
        keep_probabilities=job.probabilities,
        labeller=job.labeller,
    )

    alone = False  # once several were too many for the memory

    def look(x: torch.Tensor, part: Tile) -> tuple[Floats, list[Floats]]:
        nonlocal alone
        if not alone or len(x) == 1:
            with contextlib.suppress(TileTooLarge), threads(job.threads):
                return _explain(network, x.to(device.name), part, kept)
            if len(x) == 1:
                raise TileTooLarge
            release_memory(device)
            alone = True
        each = [look(one, part) for one in x.split(1)]
        probabilities, found = zip(*each, strict=True)
        return np.concatenate(probabilities), [
            np.concatenate(values) for values in zip(*found, strict=True)
        ]

    parts = {frame: list(tiling) for frame in frames}
    if job.skip_empty:
        for frame in frames:
            parts[frame] = yield from _occupied(job, frame, tiling, look)
            release_memory(device)
    batches = list(_batches(parts, together))
    left = {frame: len(wanted) for frame, wanted in parts.items()}
    done, total = 0, sum(left.values())
    most = max(map(len, batches), default=1)
    reading = _pixels(job.prepared, parts)
    if device.name != "cpu" or (job.threads or default_threads()) > 1:
        reading = ahead(reading, most)
    with contextlib.closing(reading):
        for batch in batches:
            seen: list[Floats] = []
            for frame, _ in batch:
                where = f"frame {frames[frame]} of {len(frames)}, "
                what = f"{where * (len(frames) > 1)}tile {done + len(seen) + 1}"
                yield Progress(done, total, f"Segmenting {what}")
                seen.append(_next(reading))
            x = torch.from_numpy(_stacked(seen))
            probabilities, found = look(x, batch[0][1])
            del seen, x
            for n, (frame, part) in enumerate(batch):
                canvas.put(frame, part, probabilities[n], [f[n] for f in found])
                if n + 1 == len(batch):  # objects take memory, too
                    del probabilities, found
                    if device.name == "cpu":  # else what tiles leave behind piles up
                        release_memory(device)
                done += 1
                left[frame] -= 1
                if left[frame] == 0:
                    if job.output == "objects":
                        yield Progress(done, total, "Separating objects")
                    canvas.finish(frame)
    wide = all(h >= n for h, n in zip(job.halo, spec.network.halo, strict=True))
    whole = len(tiling) == 1 or (spec.network.is_local and wide)
    record = {
        "model": spec.key,
        "device": str(device),
        "device_reason": device.reason,
        "precision": str(network.dtype).removeprefix("torch."),
        "threads": job.threads or default_threads(),
        "tile": list(tile),
        "tiles": len(tiling),
        "skipped": len(frames) * len(tiling) - total,
        "batch": 1 if alone else most,
        "halo": list(job.halo),
        "exact": whole and network.dtype == torch.float32 and not job.skip_empty,
        "axes": view.axes,
        "channels": job.prepared.mix.description,
        "output": job.output,
    }
    return Segmentation(
        canvas.labels(),
        view.label_axes,
        canvas.probabilities,
        canvas.maps(),
        canvas.tables(),
        record,
    )


def interruptible(network: FusedUNet) -> FusedUNet:
    """Let a network end within a tile, between two layers, if it is `unwanted`.

    A tile takes seconds, that of a wide network many.
    """

    def ask(*_: object) -> None:
        if unwanted():
            raise Cancelled("The segmentation was cancelled.")

    for module in network.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(ask)
    return network


def class_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return class probabilities, background first; (N, K, *spatial) float32."""
    if logits.shape[1] == 1:
        foreground = torch.sigmoid(logits.float())
        return torch.cat((1 - foreground, foreground), dim=1)
    return logits.float().softmax(1)


def _batches(
    parts: Mapping[tuple[int, ...], Sequence[Tile]], pixels: int
) -> Iterator[Batch]:
    """Yield tiles, in order, that the network can work on together.

    Those are one like the other, and of no more pixels than that, if there are several.
    """
    batch: Batch = []
    for frame, wanted in parts.items():
        for part in wanted:
            sizes = [r.stop - r.start for r in part.read]
            if batch and (
                batch[0][1].part != part.part
                or [r.stop - r.start for r in batch[0][1].read] != sizes
                or (len(batch) + 1) * math.prod(sizes) > pixels
            ):
                yield batch
                batch = []
            batch.append((frame, part))
    if batch:
        yield batch


def _pixels(
    prepared: Prepared, parts: Mapping[tuple[int, ...], Sequence[Tile]]
) -> Generator[npt.NDArray[np.float32]]:
    """Yield what the network sees around the tiles of every frame."""
    for frame, wanted in parts.items():
        for part in wanted:
            starts = tuple(r.start for r in part.read)
            yield prepared.read(frame, starts, tuple(r.stop for r in part.read))


def _next(reading: Iterator[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Return what was read; a smaller tile needs less memory for that, too."""
    with contextlib.suppress(MemoryError):
        return next(reading)
    raise TileTooLarge


def _stacked(seen: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Return tiles as a batch, (N, C, *spatial)."""
    with contextlib.suppress(MemoryError):
        return np.stack(seen) if seen[1:] else seen[0][None]
    raise TileTooLarge


def _occupied(
    job: Job, frame: tuple[int, ...], tiling: Tiling, look: Look
) -> Steps[list[Tile]]:
    """Return the tiles that are not empty at a glance."""
    with contextlib.suppress(MemoryError):
        return (
            yield from occupied(
                job.prepared,
                frame,
                tiling,
                lambda x, part: look(x, part)[0][0],
                channels=job.spec.network.in_channels,
                least=job.labeller.least,
            )
        )
    raise TileTooLarge


def _explain(
    network: FusedUNet, x: torch.Tensor, tile: Tile, kept: Sequence[Mechanism]
) -> tuple[npt.NDArray[np.float32], list[npt.NDArray[np.float32]]]:
    """Return probabilities, (N, K, *tile.part), and the coefficients to keep."""
    try:
        with torch.inference_mode():
            explained = network.explain(x, wanted=tile.part)
            if network.dtype != torch.float32 and not explained.logits.isfinite().all():
                raise Overflow
            found = zip(network.mechanisms, explained.attention, strict=True)
            return (
                class_probabilities(explained.logits).cpu().numpy(),
                [values.cpu().numpy() for m, values in found if m in kept],
            )
    except (RuntimeError, MemoryError) as error:
        if not is_full(error):
            raise
    # outside the except block, so that the error no longer holds tensors
    raise TileTooLarge


def _canvas(view: ImageView, tiling: Tiling, **options: Any) -> Canvas:
    try:
        return Canvas(view, tiling, **options)
    except MemoryError as error:
        raise DeviceError(
            f"The results of an image of shape {view.label_shape} don't fit into "
            "memory: leave out attention and probabilities, or segment a part of it."
        ) from error
