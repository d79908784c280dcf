"""Segmentation of images of any size, with everything the network attended to."""

from __future__ import annotations

import contextlib
import copy
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from napari_attunet.canvas import AttentionMap, AttentionTable
from napari_attunet.channels import ChannelChoice
from napari_attunet.devices import (
    Device,
    choose_device,
    choose_dtype,
    free_memory,
    release_memory,
)
from napari_attunet.errors import DataError, DeviceError
from napari_attunet.glance import CLOSE_LOOK
from napari_attunet.inference import (
    Job,
    Overflow,
    Segmentation,
    TileTooLarge,
    infer,
    interruptible,
)
from napari_attunet.memory import is_full
from napari_attunet.model import Model
from napari_attunet.networks import FusedUNet, fused
from napari_attunet.plan import (
    SMALLEST_TILE,
    activation_bytes,
    choose_labeller,
    default_halo,
    default_tile,
    per_axis,
    pixels_together,
    prepare,
)
from napari_attunet.progress import Progress, Steps, drain
from napari_attunet.spec import ObjectSettings

__all__ = [
    "AttentionMap",
    "AttentionTable",
    "Segmentation",
    "Segmenter",
    "segment",
]


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
        Exact is float32. Fast is float16 on CUDA cards and bfloat16 on processors that
        have it, and changes less than a label in a thousand (docs/performance.md). By
        default fast on CUDA cards and exact elsewhere.

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
        self._networks: dict[tuple[str, torch.dtype], FusedUNet] = {}
        self._overflowed: set[str] = set()  # devices, once 16 bits were too few
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
        skip_empty: bool = False,
    ) -> Steps[Segmentation]:
        """Segment an image step by step, one tile each; small ones go together.

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
            `napari_attunet.channels.choose_channels`.
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
            background; by default the model's own, and if it has none the most probable
            class wins.
        skip_empty : bool
            Whether to look at a quarter of the resolution first, and closely only at
            tiles in which there may be something: faster where much is empty, in 2D.
            What the glance overlooks is lost: objects of a few pixels, see
            docs/performance.md.

        Returns
        -------
        generator
            Yields `Progress`, returns `Segmentation`. Closing it ends the work before
            the next tile and frees its memory.

        Raises
        ------
        DataError
            If the image cannot be used, or the options don't go together.
        DeviceError
            If even the smallest tile doesn't fit into memory.
        """
        spec = self.model.spec
        if skip_empty and spec.network.ndim != 2:
            raise DataError(
                f"{spec.key} is a model of volumes: only 2D models can skip what is "
                "empty. Leave that out."
            )
        if skip_empty and attention:
            raise DataError(
                "What is empty can be skipped without attention only, which is looked "
                "at everywhere: leave out one of the two."
            )
        yield Progress(0, 1, "Measuring intensities")
        prepared = prepare(
            spec, image, axes=axes, rgb=rgb, region=region, channels=channels
        )
        job = Job(
            spec=spec,
            prepared=prepared,
            halo=self.halo,
            threads=self.threads,
            attention=attention,
            probabilities=probabilities,
            skip_empty=skip_empty,
            output=output or spec.output,
            labeller=choose_labeller(spec, output or spec.output, objects, threshold),
        )
        start = time.perf_counter()
        result = yield from self._with_fallbacks(job)
        result.record["seconds"] = round(time.perf_counter() - start, 3)
        return result

    def _with_fallbacks(self, job: Job) -> Steps[Segmentation]:
        """Run the job; out of memory, halve the tile; at last, take the CPU."""
        device = self.device
        network = self.model.spec.network
        tile, together = self._tile_on(device, job)
        smallest = tuple(max(SMALLEST_TILE, d) for d in network.divisor)
        fallbacks: list[str] = []
        try:
            while True:
                try:
                    result = yield from self._run(job, device, tile, together)
                except TileTooLarge:
                    pass
                else:
                    result.record["fallbacks"] = fallbacks + self._lacking(
                        device, result.record["precision"]
                    )
                    return result
                release_memory(device)
                if any(t > s for t, s in zip(tile, smallest, strict=True)):
                    halves = (-(-t // 2) for t in tile)
                    tile = tuple(map(max, zip(halves, smallest, strict=True)))
                    together = 0
                    fallbacks.append(
                        f"{device.name} ran out of memory: went on with tiles of "
                        f"{' x '.join(map(str, tile))}."
                    )
                elif device.name != "cpu":
                    self._leave(device)
                    device = replace(
                        choose_device("cpu", self.threads),
                        reason="The GPU ran out of memory.",
                    )
                    tile, together = self._tile_on(device, job)
                    fallbacks.append("The GPU ran out of memory: went on with the CPU.")
                else:
                    raise DeviceError(
                        f"Memory does not suffice even for tiles of {tile}: close "
                        "other programs, or take a smaller model or part of the image."
                    )
                yield Progress(0, 1, fallbacks[-1])
        finally:
            release_memory(device)

    def _tile_on(self, device: Device, job: Job) -> tuple[tuple[int, ...], int]:
        """Return the size of tiles to begin with, and how many pixels go together."""
        network = self.model.spec.network
        with contextlib.suppress(TileTooLarge):  # told when it is run
            self._fitting(device)  # it takes memory, too
        strips, free = device.name == "cpu", free_memory(device)
        room = activation_bytes(network, self.halo, free, strips=strips)
        together = pixels_together(network, room)
        if self._tile:
            return self._tile, min(together, math.prod(self._tile))
        shape = job.prepared.view.spatial_shape
        tile = default_tile(network, shape, self.halo, room, strips=strips)
        if job.skip_empty:
            tile = tuple(min(t, CLOSE_LOOK) for t in tile)
        return tile, together

    def _lacking(self, device: Device, precision: str) -> list[str]:
        """Return why it was not computed as fast as it was asked for, in a sentence."""
        dtype, lacking = choose_dtype(self.precision, device)
        if precision != str(dtype).removeprefix("torch."):
            why = "This network cannot do with"
            if device.name in self._overflowed:
                why = "A number was too large for"
            lacking = f"{why} {dtype}: it computed in float32."
        return [lacking] if lacking else []

    def network_on(self, device: Device, *, exact: bool = False) -> FusedUNet:
        """Return the network on the device, rewritten for inference; made once.

        The model may be in use elsewhere and is never moved.

        Parameters
        ----------
        device : Device
        exact : bool
            In float32, whatever the segmenter's precision.
        """
        dtype, _ = choose_dtype("exact" if exact else self.precision, device)
        with self._lock:
            if device.name in self._overflowed:
                dtype = torch.float32
            if (device.name, dtype) not in self._networks:
                network = self.model.network
                if next(network.parameters()).device.type != device.name.split(":")[0]:
                    network = copy.deepcopy(network).to(device.name)
                faster = interruptible(fused(network, dtype))
                self._networks[device.name, dtype] = faster
            return self._networks[device.name, dtype]

    def _fitting(self, device: Device) -> FusedUNet:
        """Return the network on the device, if its memory holds it.

        Raises
        ------
        TileTooLarge
            If not even the network fits.
        """
        try:
            return self.network_on(device)
        except (RuntimeError, MemoryError) as error:
            if not is_full(error):
                raise
        # outside the except block, so that the error no longer holds tensors
        raise TileTooLarge

    def _leave(self, device: Device) -> None:
        """Forget the networks on a device."""
        with self._lock:
            for key in [key for key in self._networks if key[0] == device.name]:
                del self._networks[key]

    def _run(
        self, job: Job, device: Device, tile: tuple[int, ...], together: int
    ) -> Steps[Segmentation]:
        """Segment every frame with this device and tile size."""
        network = self._fitting(device)
        with contextlib.suppress(Overflow):
            return (yield from infer(job, network, device, tile, together))
        self._overflowed.add(device.name)
        del network
        self._leave(device)
        yield Progress(0, 1, "Beginning again in float32")
        return (yield from self._run(job, device, tile, together))


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
