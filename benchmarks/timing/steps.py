"""Training, and what gates cost."""

from __future__ import annotations

import argparse
import functools
import time

import numpy as np
import torch

from napari_attunet.devices import has_bfloat16
from napari_attunet.model import Model, load_model
from napari_attunet.networks import AttentionUNet, fused
from napari_attunet.samples import synthetic_nuclei
from napari_attunet.spec import GateSpec, ModelSpec, NetworkSpec
from napari_attunet.training.losses import segmentation_loss
from napari_attunet.training.samples import Batch, CropSampler, Pair
from napari_attunet.training.settings import TrainingSettings
from timing.subjects import BUNDLED, REFERENCE, Turns, as_published, fresh

#: Of learning: that of a usual training.
RATE = 2e-3

#: Features of the networks that are compared with and without gates.
GATED = ((16, 32, 64, 128, 256), REFERENCE.features)


def step_of(network: AttentionUNet, batch: Batch, *, ours: bool):
    """Return what takes one step of training, plainly or as we do it.

    It learns from that batch, or from another that it is given, and returns the loss.
    """
    network = network.train()
    network = network.channels_last() if ours else as_published(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, fused=ours or None)
    kind = batch.images.device.type
    half = ours and has_bfloat16(kind)

    def step(batch: Batch = batch) -> float:
        with torch.autocast(kind, torch.bfloat16, enabled=half):
            logits = network(batch.images)
        loss = segmentation_loss(
            logits.float(),
            batch.targets,
            batch.weights,
            class_weights=(),
            dice_weight=1.0,
            auxiliary=[],
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def crops(classes: int, device: str, *, count: int = 1) -> list[Batch]:
    """Return batches of crops of a grey image, with targets of so many classes."""
    pairs = [Pair(*synthetic_nuclei((512, 512), seed=seed)) for seed in range(2)]
    network = NetworkSpec(out_channels=classes)
    spec = ModelSpec(name="crops", network=network, output="objects")
    sampler = CropSampler(pairs, spec, TrainingSettings(crop=(128, 128), batch_size=4))
    batches = (sampler.batch(number) for number in range(count))
    return [
        Batch(b.images.to(device), b.targets.to(device), b.weights.to(device))
        for b in batches
    ]


def training(args: argparse.Namespace, count: int) -> list[dict[str, object]]:
    """Take steps of training as a quick round of learning does."""
    (batch,) = crops(3, args.device)
    runs = {
        name: step_of(load_model(BUNDLED).network.to(args.device), batch, ours=ours)
        for name, ours in (("naive, float32", False), ("ours", True))
    }
    turns = Turns(runs, args.device).go(args.rounds)
    return turns.rows(f"training step, {BUNDLED}, 4 x 128 x 128", count)


def curve(args: argparse.Namespace, count: int) -> list[dict[str, object]]:
    """Train from scratch, plainly and as we do it, from the same crops."""
    rows = []
    batches = crops(3, args.device, count=args.steps)
    spec = load_model(BUNDLED).spec
    for name, ours in (("naive, float32", False), ("ours", True)):
        for seed in range(2):
            network = Model.fresh(spec, seed=seed).network.to(args.device)
            step = step_of(network, batches[0], ours=ours)
            start = time.perf_counter()
            losses = [step(batch) for batch in batches]
            seconds = time.perf_counter() - start
            parts = (part.mean() for part in np.array_split(losses, 4))
            told = " ".join(f"{loss:.3f}" for loss in parts)
            what = f"loss in each quarter of {args.steps} steps, seed {seed}"
            rows.append({"what": what, "threads": count, "who": name})
            rows[-1] |= {"seconds": seconds, "labels": told}
    return rows


def gates(args: argparse.Namespace, count: int) -> list[dict[str, object]]:
    """Compare networks with gates with the same ones without."""
    rows = []
    for features in GATED:
        networks = {
            name: fresh(NetworkSpec(out_channels=3, features=features, gate=gate))
            for name, gate in (("without gates", None), ("with gates", GateSpec()))
        }
        size = args.size if features[0] < 64 else args.size // 2
        x = torch.randn(1, 1, size, size).to(args.device)
        with torch.inference_mode():
            runs = {
                name: functools.partial(fused(network.to(args.device)), x)
                for name, network in networks.items()
            }
            turns = Turns(runs, args.device).go(args.rounds)
        rows += turns.rows(f"gates, inference, {features[0]} features", count)
        (batch,) = crops(3, args.device)
        runs = {n: step_of(net, batch, ours=True) for n, net in networks.items()}
        turns = Turns(runs, args.device).go(args.rounds)
        rows += turns.rows(f"gates, training, {features[0]} features", count)
    return rows
