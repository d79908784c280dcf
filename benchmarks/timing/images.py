"""Whole images: checks, rivals, stacks of small frames, half the bits."""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable
from unittest import mock

import numpy as np
import skimage.data
import torch
from monai.inferers import sliding_window_inference

from napari_attunet import plan
from napari_attunet.devices import Device, fast_type
from napari_attunet.inference import class_probabilities
from napari_attunet.model import Model, load_model
from napari_attunet.networks import FusedUNet, fused
from napari_attunet.networks.operations import Operation
from napari_attunet.segmenter import Segmenter
from napari_attunet.spec import ModelSpec
from timing.subjects import (
    BUNDLED,
    REFERENCE,
    Turns,
    as_published,
    cells,
    fresh,
    network_input,
)

#: What is right: the error of a probability, and of labels those that may change when
#: computed in 16 bits.
EXACT, FAST = 1e-4, 1e-3

#: Bytes that are too few for the tile that a card begins with.
LITTLE = (300 * 2**20, 150 * 2**20)

#: Edges of small frames.
EDGES = (64, 128, 256)

#: Channels of the reference network.
COLOURS = ("red", "green", "blue")

#: Of the rival's windows, which is what it was trained on or more.
WINDOW = 512


def checks(args: argparse.Namespace, count: int) -> list[dict[str, object]]:
    """Compare a device with the CPU, then give it less and less memory."""
    rows = []
    pixels = cells(args.image)
    model = load_model(BUNDLED)
    options = {"output": "classes", "probabilities": True}
    expected = Segmenter(model, device="cpu", precision="exact").segment(
        pixels, **options
    )
    card = args.device.startswith("cuda")
    whole = torch.cuda.get_device_properties(args.device).total_memory if card else 0
    ranked = np.sort(expected.probabilities, axis=0)
    clear = ranked[-1] - ranked[-2] > 2 * EXACT  # else either may win
    for precision in ("exact", "fast"):
        for memory in (whole, *LITTLE) if card else (0,):
            if memory:
                torch.cuda.set_per_process_memory_fraction(memory / whole)
            segmenter = Segmenter(model, device=args.device, precision=precision)
            found = segmenter.segment(pixels, **options)
            print(precision, memory, found.record, flush=True)
            changed = found.labels != expected.labels
            share = changed.mean()
            error = np.abs(found.probabilities - expected.probabilities).max()
            room = f"{memory / 2**20:.0f} MiB" if memory else "all of the memory"
            row = {
                "what": f"{precision}, {room}",
                "threads": count,
                "who": found.record["device"],
                "seconds": found.record["seconds"],
                "error": float(error),
                "labels": f"{share:.1e} of them",
            }
            if precision == "exact" and (changed[clear].any() or error > EXACT):
                row["wrong"] = "exact mode differs from the CPU"
            elif share > FAST:
                row["wrong"] = f"more than {FAST} of the labels changed"
            elif 0 < memory < whole and not found.record["fallbacks"]:
                row["wrong"] = "so little memory, and nothing was done otherwise"
            rows.append(row)
    if card:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return rows


def image(args: argparse.Namespace, count: int) -> list[dict[str, object]]:
    """Segment a whole image: ours with reading, scaling, tiles and labels."""
    return sliding(load_model(BUNDLED), cells(args.image), args, count)


def reference(args: argparse.Namespace, count: int) -> list[dict[str, object]]:
    """Do the same with the reference network: minutes a round, so one, and cold."""
    spec = ModelSpec(name="reference, 34.9 M", network=REFERENCE, channels=COLOURS)
    colour = np.stack([cells(args.image)] * 3, axis=-1)
    model = Model(spec, fresh(REFERENCE).eval())
    return sliding(model, colour, args, count, rounds=1)


@torch.inference_mode()
def sliding(
    model: Model,
    pixels: np.ndarray,
    args: argparse.Namespace,
    count: int,
    rounds: int = 0,
) -> list[dict[str, object]]:
    """Compare with MONAI's sliding window, and with the network on all at once."""
    segmenter = Segmenter(model, device=args.device, threads=count)
    x = network_input(model, pixels).to(args.device)
    network = as_published(model.network).to(args.device)

    def monai(overlap: float) -> torch.Tensor:
        logits = sliding_window_inference(
            x, WINDOW, 1, network, overlap=overlap, mode="gaussian"
        )
        return class_probabilities(logits).argmax(1)

    found: dict[str, np.ndarray] = {}

    def keep(name: str, run: Callable[[], np.ndarray]) -> Callable[[], object]:
        return lambda: found.__setitem__(name, run())

    runs = {
        f"MONAI, overlap {overlap}": keep(
            f"MONAI, overlap {overlap}", lambda o=overlap: monai(o)[0].cpu().numpy()
        )
        for overlap in (0.5, 0.25)
    }
    runs["ours"] = keep(
        "ours", lambda: segmenter.segment(pixels, output="classes").labels
    )
    what = f"image of {args.image} x {args.image}, {model.spec.name}"
    turns = Turns(runs, args.device)
    turns.go(rounds or max(1, args.rounds // 2), warm=not rounds)
    rows = turns.rows(what, count)
    whole = class_probabilities(network(x)).argmax(1)[0].cpu().numpy()  # in one piece
    for row in rows:
        row["labels"] = int((found[str(row["who"])] != whole).sum())
    return rows


def frames(args: argparse.Namespace, count: int) -> list[dict[str, object]]:
    """Segment stacks of small frames, one by one and as we do it."""
    rows = []
    segmenter = Segmenter(load_model(BUNDLED), device=args.device, threads=count)
    pixels, random = cells(args.image), np.random.default_rng(0)
    for edge in (edge for edge in EDGES if edge < args.image):
        places = random.integers(0, args.image - edge, (plan.TOGETHER // edge**2, 2))
        stack = np.stack([pixels[y : y + edge, x : x + edge] for y, x in places])
        found: dict[str, np.ndarray] = {}

        def run(name: str, together: int, stack: np.ndarray = stack) -> None:
            with mock.patch.object(plan, "TOGETHER", together):
                done = segmenter.segment(stack, axes="TYX", output="classes")
            found[name] = done.labels  # noqa: B023 - of this turn of the loop

        runs = {
            "one by one": functools.partial(run, "one by one", 0),
            "ours": functools.partial(run, "ours", plan.TOGETHER),
        }
        turns = Turns(runs, args.device).go(args.rounds)
        told = turns.rows(f"{len(stack)} frames of {edge} x {edge}, {BUNDLED}", count)
        told[1]["labels"] = int((found["ours"] != found["one by one"]).sum())
        rows += told
    return rows


class Rounded(Segmenter):
    """Computes in float32, but rounds weights and results to another type.

    So do devices that have the type: they sum up products in float32, too. What a
    network in 16 bits leaves exact stays so.
    """

    def __init__(self, model: Model, dtype: torch.dtype, **places: object) -> None:
        super().__init__(model, **places, precision="exact")
        self.dtype = dtype

    def network_on(self, device: Device, *, exact: bool = False) -> FusedUNet:
        key = device.name, self.dtype
        if key not in self._networks:
            network = copy.deepcopy(super().network_on(device, exact=exact))
            half = fused(self.model.network, self.dtype)
            left = {
                name.replace("0.first", "0")  # of an `Entrance`
                for name, values in half.state_dict().items()
                if values.dtype == torch.float32
            }
            for name, values in network.state_dict().items():
                if name not in left:
                    values.copy_(self.rounded(values))
            for module in network.modules():
                if isinstance(module, Operation) or not list(module.children()):
                    module.register_forward_hook(lambda *c: self.rounded(c[2]))
            self._networks[key] = network
        return self._networks[key]

    def rounded(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self.dtype).to(values.dtype)


def fast(args: argparse.Namespace, count: int) -> list[dict[str, object]]:
    """Segment real images in half the bits; count the pixels that change class."""
    own = fast_type(args.device)
    print(f"types but {own} are emulated: their times mean nothing")
    rows = []
    for name, pictures in (
        (BUNDLED, ("cell", "coins")),
        ("nuclei-histology", ("immunohistochemistry", "retina")),
    ):
        model = load_model(name)
        places = {"device": args.device, "threads": count}
        exact = Segmenter(model, **places, precision="exact")
        segmenters = {"float32": exact} | {
            str(dtype): Segmenter(model, **places, precision="fast")
            if dtype == own
            else Rounded(model, dtype, **places)
            for dtype in (torch.float16, torch.bfloat16)
        }
        for picture in pictures:
            pixels = getattr(skimage.data, picture)()
            options = {"output": "classes", "probabilities": True}
            runs = {
                who: functools.partial(segmenter.segment, pixels, **options)
                for who, segmenter in segmenters.items()
            }
            expected, *others = (run() for run in runs.values())
            found = Turns(runs, args.device).go(max(1, args.rounds // 3))
            rows += (told := found.rows(f"{picture}, {name}", count))
            for row, other in zip(told[1:], others, strict=True):
                changed = (expected.labels != other.labels).mean()
                error = np.abs(expected.probabilities - other.probabilities).max()
                row |= {"labels": f"{changed:.1e} of them", "error": float(error)}
    return rows
