"""Networks and images that are timed, and taking turns."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import skimage.data
import torch
from torch import nn

from napari_attunet.inference import class_probabilities
from napari_attunet.model import Model
from napari_attunet.networks import AttentionUNet
from napari_attunet.networks.layers import conv
from napari_attunet.plan import prepare
from napari_attunet.spec import ModelSpec, NetworkSpec

BUNDLED = "nuclei-fluorescence"
REFERENCE = NetworkSpec(in_channels=3, features=(64, 128, 256, 512, 1024))


def cells(size: int) -> np.ndarray:
    """Return a real image of that size, repeated where it is smaller."""
    image = skimage.data.cell()
    return np.tile(image, [-(-size // n) for n in image.shape])[:size, :size]


def network_input(model: Model, image: np.ndarray) -> torch.Tensor:
    """Return an image as its network takes it, (1, C, H, W)."""
    prepared = prepare(model.spec, image)
    pixels = prepared.read((), (0, 0), image.shape[:2])
    return torch.from_numpy(pixels)[None]


def fresh(spec: NetworkSpec) -> AttentionUNet:
    """Return a network with weights and statistics that were never trained."""
    network = Model.fresh(ModelSpec(name="fresh", network=spec)).network
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
    return network


def as_published(network: AttentionUNet) -> AttentionUNet:
    """Return a copy that repeats pixels before it convolves them, as others do."""
    plain = copy.deepcopy(network)
    for up in plain.ups:
        (name, merged), *_ = up.named_children()
        if not hasattr(merged, "repeats"):
            continue
        upsample = nn.Upsample(scale_factor=tuple(map(float, merged.repeats)))
        convolution = conv(
            merged.weight.ndim - 2, *merged.weight.shape[1::-1], kernel=3, padding=1
        )
        convolution.load_state_dict(merged.state_dict())
        up.register_module(name, nn.Sequential(upsample, convolution))
    return plain.train(network.training)


class Turns:
    """Times runs in turns.

    Parameters
    ----------
    runs : dict
        Name to function; all are compared with the first.
    """

    def __init__(self, runs: dict[str, Callable[[], object]], device: str) -> None:
        self._runs, self._device = runs, device
        self.seconds: dict[str, list[float]] = {name: [] for name in runs}

    def go(self, rounds: int, *, warm: bool = True) -> Turns:
        for number in range(rounds + warm):  # the first only warms up
            for name, run in self._runs.items():
                start = time.perf_counter()
                run()
                if self._device.startswith("cuda"):
                    torch.cuda.synchronize()
                if number or not warm:
                    self.seconds[name].append(time.perf_counter() - start)
        return self

    def rows(self, what: str, thread_count: int) -> list[dict[str, object]]:
        first = next(iter(self.seconds.values()))
        found = []
        for name, seconds in self.seconds.items():
            ratios = [a / b for a, b in zip(first, seconds, strict=True)]
            found.append(
                {
                    "what": what,
                    "threads": thread_count,
                    "who": name,
                    "seconds": statistics.median(seconds),
                    "ratio": statistics.median(ratios),
                    "least": min(ratios),
                    "most": max(ratios),
                }
            )
        return found


def errors(
    network: AttentionUNet, ours: AttentionUNet, x: torch.Tensor
) -> dict[str, object]:
    """Compare with double precision."""
    found = class_probabilities(ours(x)).double()
    exact = copy.deepcopy(network).double()(x.double())
    if exact.shape[1] == 1:
        exact = torch.cat((1 - exact.sigmoid(), exact.sigmoid()), 1)
    else:
        exact = exact.softmax(1)
    return {
        "error": float((found - exact).abs().max()),
        "labels": int((found.argmax(1) != exact.argmax(1)).sum()),
    }
