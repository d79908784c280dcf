"""One tile through a network, against other engines."""

from __future__ import annotations

import argparse
import io
import statistics
import warnings
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from napari_attunet.devices import fast_type
from napari_attunet.model import load_model
from napari_attunet.networks import AttentionUNet, fused
from napari_attunet.spec import NetworkSpec
from timing.subjects import (
    BUNDLED,
    REFERENCE,
    Turns,
    as_published,
    cells,
    errors,
    fresh,
    network_input,
)

VOLUME = NetworkSpec(ndim=3, out_channels=3, features=(16, 32, 64, 128))


def with_onnxruntime(network: AttentionUNet, x: torch.Tensor, count: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count
    session = onnxruntime.InferenceSession(
        exported(network, x), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": x.numpy()})


def with_openvino(network: AttentionUNet, x: torch.Tensor, count: int):
    import openvino

    core = openvino.Core()
    model = core.read_model(io.BytesIO(exported(network, x)))
    settings = {"INFERENCE_NUM_THREADS": count, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(model, "CPU", settings)
    return lambda: compiled([x.numpy()])


def exported(network: AttentionUNet, x: torch.Tensor) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (x,), file, input_names=["x"], dynamo=False)
    return file.getvalue()


@torch.inference_mode()
def forward(args: argparse.Namespace, count: int) -> list[dict[str, object]]:
    """Run three networks over one tile each."""
    model = load_model(BUNDLED)
    tile = network_input(model, cells(args.size))
    generator = torch.Generator().manual_seed(0)
    colour = torch.randn(1, 3, args.size, args.size, generator=generator)
    edge = args.size // 8
    volume = torch.randn(1, 1, edge, edge, edge, generator=generator)
    rows = []
    for name, network, x in (
        ("reference, 34.9 M", fresh(REFERENCE), colour),
        (f"{BUNDLED}, 2.2 M", model.network, tile),
        ("3D, 16 to 128", fresh(VOLUME), volume),
    ):
        network, x = network.to(args.device), x.to(args.device)
        dtype = fast_type(args.device)
        ours = fused(network)
        half = fused(network, dtype) if dtype is not None else ours
        network = as_published(network)
        runs: dict[str, Callable[[], object]] = {
            "eager": lambda n=network, x=x: n(x),
            "ours": lambda n=ours, x=x: n(x),
        }
        for rival, make in (
            ("ONNX Runtime", with_onnxruntime),
            ("OpenVINO", with_openvino),
        ):
            if args.device != "cpu":
                break
            try:
                runs[rival] = make(network, x, count)
            except ImportError:
                print(f"{rival} is not installed")
        what = f"forward, {name}, {' x '.join(map(str, x.shape[2:]))}"
        if dtype is not None:
            runs["ours, fast"] = lambda n=half, x=x: n(x)
        found = Turns(runs, args.device).go(args.rounds).rows(what, count)
        found[1] |= errors(network, ours, x)
        if dtype is not None:
            found[-1] |= errors(network, half, x)
            with FlopCounterMode(display=False) as counter:
                network(x)
            rate = counter.get_total_flops() / float(found[-1]["seconds"])
            share = rate / matmul_rate(args.device, dtype)
            found[-1]["who"] = f"ours, {half.dtype} ({share:.0%} of its matmul rate)"
        rows += found
    return rows


def matmul_rate(device: str, dtype: torch.dtype, edge: int = 8192) -> float:
    """Return how many operations a second large products in this type reach."""
    edge = edge if device.startswith("cuda") else 1024
    a, b = torch.randn(2, edge, edge, device=device, dtype=dtype)
    seconds = Turns({"product": lambda: a @ b}, device).go(5).seconds["product"]
    return 2 * edge**3 / statistics.median(seconds)
