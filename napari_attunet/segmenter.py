"""Segmentation of images of any size, with everything the network attended to."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from napari_attunet.architecture import Mechanism
from napari_attunet.axes import ImageView
from napari_attunet.canvas import AttentionMap, AttentionTable, Canvas, Labeller
from napari_attunet.devices import (
    Device,
    choose_device,
    choose_dtype,
    default_threads,
    free_memory,
    is_out_of_memory,
    release_memory,
    threads,
)
from napari_attunet.errors import DeviceError
from napari_attunet.intensity import ChannelChoice
from napari_attunet.model import Model
from napari_attunet.networks import AttentionUNet, FusedUNet, fused
from napari_attunet.plan import (
    SMALLEST_TILE,
    Prepared,
    activation_bytes,
    choose_labeller,
    default_halo,
    default_tile,
    per_axis,
    prepare,
)
from napari_attunet.progress import Progress, Steps, ahead, drain
from napari_attunet.spec import ObjectSettings
from napari_attunet.tiling import Tile, Tiling

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "AttentionMap",
    "AttentionTable",
    "Segmentation",
    "Segmenter",
    "class_probabilities",
    "segment",
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
        it was ``"exact"``, and in ``"fallbacks"`` what had to be done otherwise than
        planned.
    """

    labels: npt.NDArray[np.int32]
    axes: str
    probabilities: npt.NDArray[np.float32] | None
    attention: tuple[AttentionMap, ...]
    tables: tuple[AttentionTable, ...]
    record: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A run that is fully decided, but for the tile size and the device."""

    prepared: Prepared
    attention: bool
    probabilities: bool
    output: Literal["classes", "objects"]
    labeller: Labeller


class Segmenter:
    """Runs a model over images: normalises, pads, tiles, stitches, labels.

    The network is rewritten for inference when it is first used: weights that are
    changed later need a new segmenter.

    Parameters
    ----------
    model : Model
    device : str
        ``"auto"``, ``"cuda"``, ``"cuda:1"``, ``"mps"`` or ``"cpu"``.
    threads : int, optional
        Of the CPU; by default all cores this process may use.
    tile : int or tuple of int, optional
        Edge of the tiles, for each spatial axis of the network; by default as the
        network's width and the free memory allow.
    halo : int or tuple of int, optional
        Margin that is read around each tile; by default in 2D all that the network
        sees (tiles then change nothing), in 3D a smaller one.
    precision : {"auto", "exact", "fast"}
        Exact is float32. Fast is bfloat16, on devices that have it, and changes a few
        labels in ten thousand. By default fast on CUDA cards and exact elsewhere.

    Attributes
    ----------
    model : Model
    device : Device
    threads : int, optional
        As given.
    halo : tuple of int
        As used.
    precision : str
        As given.

    Raises
    ------
    DeviceError
        If the device is not there, or there is no such precision.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: str = "auto",
        threads: int | None = None,
        tile: int | Sequence[int] | None = None,
        halo: int | Sequence[int] | None = None,
        precision: str = "auto",
    ) -> None:
        network = model.spec.network
        self.model = model
        self.device = choose_device(device, threads)
        choose_dtype(precision, self.device)
        self.precision = precision
        self.threads = threads
        self._networks: dict[str, FusedUNet] = {}
        self._lock = threading.Lock()
        self._tile = per_axis(tile, network, "tile", least=1)
        self.halo = per_axis(halo, network, "halo", least=0) or default_halo(network)

    def segment(self, image: Any, **options: Any) -> Segmentation:
        """Return the segmentation of an image; options as in `steps`."""
        return drain(self.steps(image, **options))

    def steps(
        self,
        image: Any,
        *,
        axes: str | None = None,
        rgb: bool = False,
        region: Sequence[slice] | None = None,
        channels: ChannelChoice = "auto",
        attention: bool = False,
        probabilities: bool = False,
        output: Literal["classes", "objects"] | None = None,
        objects: ObjectSettings | None = None,
        threshold: float | None = None,
    ) -> Steps[Segmentation]:
        """Segment an image step by step, one tile each.

        Parameters
        ----------
        image : array
            NumPy, Dask or Zarr, of real numbers, 2D or more. A 2D model walks the
            leading axes of a stack; a 3D model takes volumes.
        axes : str, optional
            Names of the image's axes from TCZYX, such as ``"TZYX"`` or ``"YXC"``;
            guessed from the shape where missing.
        rgb : bool
            Whether the last axis is colour; used in guessing.
        region : sequence of slice, optional
            The part to segment, a slice for each axis of the image but the channels;
            the result has its shape. Intensities are measured on the whole image, but
            the network sees little beyond the region: take some more than you need.
        channels : str or tuple of int
            How the image's channels enter the network; see
            `napari_attunet.intensity.choose_channels`.
        attention : bool
            Whether to return what every gate attended to.
        probabilities : bool
            Whether to return the probabilities of the classes.
        output : {"classes", "objects"}, optional
            What probabilities become; by default what the model says.
        objects : ObjectSettings, optional
            Used for objects; by default the model's own.
        threshold : float, optional
            Used for classes: how probable a class must be to stand against the
            background; by default the most probable class wins.

        Returns
        -------
        generator
            Yields `Progress`, returns `Segmentation`. Closing it ends the work before
            the next tile and frees its memory.

        Raises
        ------
        DataError
            If the image cannot be used.
        DeviceError
            If even the smallest tile doesn't fit into memory.
        """
        spec = self.model.spec
        yield Progress(0, 1, "Measuring intensities")
        prepared = prepare(
            spec, image, axes=axes, rgb=rgb, region=region, channels=channels
        )
        job = _Job(
            prepared=prepared,
            attention=attention,
            probabilities=probabilities,
            output=output or spec.output,
            labeller=choose_labeller(spec, output or spec.output, objects, threshold),
        )
        start = time.perf_counter()
        result = yield from self._with_fallbacks(job)
        result.record["seconds"] = round(time.perf_counter() - start, 3)
        return result

    def _with_fallbacks(self, job: _Job) -> Steps[Segmentation]:
        """Run the job; out of memory, halve the tile; at last, take the CPU."""
        device = self.device
        network = self.model.spec.network
        tile = self._tile_on(device, job)
        smallest = tuple(max(SMALLEST_TILE, d) for d in network.divisor)
        fallbacks: list[str] = []
        try:
            while True:
                try:
                    result = yield from self._run(job, device, tile)
                except _TileTooLarge:
                    pass
                else:
                    result.record["fallbacks"] = fallbacks + self._lacking(device)
                    return result
                release_memory(device)
                if any(t > s for t, s in zip(tile, smallest, strict=True)):
                    halves = (-(-t // 2) for t in tile)
                    tile = tuple(map(max, zip(halves, smallest, strict=True)))
                    fallbacks.append(
                        f"{device.name} ran out of memory: went on with tiles of "
                        f"{' x '.join(map(str, tile))}."
                    )
                elif device.name != "cpu":
                    self._networks.pop(device.name, None)
                    device = replace(
                        choose_device("cpu", self.threads),
                        reason="The GPU ran out of memory.",
                    )
                    tile = self._tile_on(device, job)
                    fallbacks.append("The GPU ran out of memory: went on with the CPU.")
                else:
                    raise DeviceError(
                        f"Memory does not suffice even for tiles of {tile}: close "
                        "other programs, or take a smaller model or part of the image."
                    )
                yield Progress(0, 1, fallbacks[-1])
        finally:
            release_memory(device)

    def _tile_on(self, device: Device, job: _Job) -> tuple[int, ...]:
        """Return the size of tiles to begin with."""
        if self._tile:
            return self._tile
        network = self.model.spec.network
        with contextlib.suppress(torch.OutOfMemoryError):  # told when it is run
            self.network_on(device)  # it takes memory, too
        strips, free = device.name == "cpu", free_memory(device)
        room = activation_bytes(network, self.halo, free, strips=strips)
        shape = job.prepared.view.spatial_shape
        return default_tile(network, shape, self.halo, room, strips=strips)

    def _lacking(self, device: Device) -> list[str]:
        """Return why it was not computed as fast as it was asked for, in a sentence."""
        dtype, lacking = choose_dtype(self.precision, device)
        if dtype != self.network_on(device).dtype:
            lacking = f"This network does not do with {dtype}: it computed in float32."
        return [lacking] if lacking else []

    def network_on(self, device: Device) -> FusedUNet:
        """Return the network on the device, rewritten for inference; made once.

        The model may be in use elsewhere and is never moved.
        """
        with self._lock:
            if device.name not in self._networks:
                network = self.model.network
                if next(network.parameters()).device.type != device.name.split(":")[0]:
                    network = copy.deepcopy(network).to(device.name)
                dtype, _ = choose_dtype(self.precision, device)
                self._networks[device.name] = fused(network, dtype)
            return self._networks[device.name]

    def _run(
        self, job: _Job, device: Device, tile: tuple[int, ...]
    ) -> Steps[Segmentation]:
        """Segment every frame with this device and tile size."""
        view, spec = job.prepared.view, self.model.spec
        try:
            network = self.network_on(device)
        except torch.OutOfMemoryError:
            network = None
        if network is None:
            raise _TileTooLarge
        tiling = Tiling(
            view.spatial_shape,
            tile=tile,
            halo=self.halo,
            divisor=spec.network.divisor,
        )
        frames = list(view.frames())
        kept = [m for m in network.mechanisms if job.attention and m.kind != "pairwise"]
        total = len(frames) * len(tiling)
        canvas = _canvas(
            view,
            tiling,
            n_classes=spec.n_classes,
            mechanisms=kept,
            keep_probabilities=job.probabilities,
            labeller=job.labeller,
        )
        done = 0
        reading = _pixels(job.prepared, frames, tiling)
        if device.name != "cpu" or (self.threads or default_threads()) > 1:
            reading = ahead(reading)
        with contextlib.closing(reading):
            for number, frame in enumerate(frames, 1):
                where = f"frame {number} of {len(frames)}, " if frames[1:] else ""
                for part in tiling:
                    yield Progress(done, total, f"Segmenting {where}tile {done + 1}")
                    x = torch.from_numpy(_next(reading))[None].to(device.name)
                    with threads(self.threads) as thread_count:
                        probabilities, found = _explain(network, x, part, kept)
                    canvas.put(frame, part, probabilities, found)
                    del x, probabilities, found
                    if device.name == "cpu":  # else what tiles leave behind piles up
                        release_memory(device)
                    done += 1
                if job.output == "objects":
                    yield Progress(done, total, "Separating objects")
                canvas.finish(frame)
        wide = all(h >= n for h, n in zip(self.halo, spec.network.halo, strict=True))
        whole = len(tiling) == 1 or (spec.network.is_local and wide)
        record = {
            "model": spec.key,
            "device": str(device),
            "device_reason": device.reason,
            "precision": str(network.dtype).removeprefix("torch."),
            "threads": thread_count,
            "tile": list(tile),
            "tiles": len(tiling),
            "halo": list(self.halo),
            "exact": whole and network.dtype == torch.float32,
            "axes": view.axes,
            "channels": job.prepared.mix.description,
            "output": job.output,
        }
        return Segmentation(
            canvas.labels,
            view.label_axes,
            canvas.probabilities,
            canvas.maps(),
            canvas.tables(),
            record,
        )


def segment(
    image: Any,
    model: Model,
    *,
    device: str = "auto",
    precision: str = "auto",
    **options: Any,
) -> Segmentation:
    """Segment an image with a model; options as in `Segmenter.steps`."""
    segmenter = Segmenter(model, device=device, precision=precision)
    return segmenter.segment(image, **options)


def class_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return class probabilities, background first; (N, K, *spatial) float32."""
    if logits.shape[1] == 1:
        foreground = torch.sigmoid(logits.float())
        return torch.cat((1 - foreground, foreground), dim=1)
    return logits.float().softmax(1)


class _TileTooLarge(Exception):
    """The network ran out of memory on a tile."""


def _pixels(
    prepared: Prepared, frames: Sequence[tuple[int, ...]], tiling: Tiling
) -> Generator[npt.NDArray[np.float32]]:
    """Yield what the network sees around every tile of every frame."""
    for frame in frames:
        for part in tiling:
            starts = tuple(r.start for r in part.read)
            yield prepared.read(frame, starts, tuple(r.stop for r in part.read))


def _next(reading: Iterator[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Return what was read; a smaller tile needs less memory for that, too."""
    with contextlib.suppress(MemoryError):
        return next(reading)
    raise _TileTooLarge


def _explain(
    network: AttentionUNet, x: torch.Tensor, tile: Tile, kept: Sequence[Mechanism]
) -> tuple[npt.NDArray[np.float32], list[npt.NDArray[np.float32]]]:
    """Return probabilities, (K, *tile.part), and the coefficients to keep."""
    try:
        with torch.inference_mode():
            explained = network.explain(x, wanted=tile.part)
            found = zip(network.mechanisms, explained.attention, strict=True)
            return (
                class_probabilities(explained.logits)[0].cpu().numpy(),
                [values[0].cpu().numpy() for m, values in found if m in kept],
            )
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # outside the except block, so that the error no longer holds tensors
    raise _TileTooLarge


def _canvas(view: ImageView, tiling: Tiling, **options: Any) -> Canvas:
    try:
        return Canvas(view, tiling, **options)
    except MemoryError as error:
        raise DeviceError(
            f"The results of an image of shape {view.label_shape} don't fit into "
            "memory: leave out attention and probabilities, or segment a part of it."
        ) from error
