"""How fast, in how much memory, and how exactly, against what others do.

Every rival runs in the same process, on the same weights, in turns with ours (A, B, A,
B): ratios are medians over the rounds, with the smallest and the largest. Memory is
measured in a fresh process each.

    python benchmarks/speed.py [--threads 1,2] [--rounds 7] [--device cpu] [--json FILE]
        [--parts checks,forward,image,reference,frames,fast,gates,training,curve,...]

Rivals: the network as it stands, in PyTorch's own layout (eager; for the reference
network that is LeeJunHyun's AttU_Net, https://github.com/LeeJunHyun/Image_Segmentation,
34.9 million parameters); ONNX Runtime and OpenVINO, where they are installed; and
MONAI's sliding window, whose Gaussian blending at half overlap is also what nnU-Net
does. Images are those of scikit-image. On a GPU the same parts run with --device cuda;
there the part "checks" comes first: the labels must be those of the CPU, also when the
card's memory is short. If they are not, the exit code is 1.
"""

from __future__ import annotations

import argparse
import copy
import functools
import io
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import skimage.data
import torch
from monai.inferers import sliding_window_inference
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from napari_attunet import plan
from napari_attunet.architecture import GateSpec, NetworkSpec
from napari_attunet.devices import (
    Device,
    choose_device,
    fast_type,
    has_bfloat16,
    threads,
)
from napari_attunet.inference import class_probabilities
from napari_attunet.model import Model, load_model
from napari_attunet.networks import AttentionUNet, FusedUNet, fused
from napari_attunet.networks.layers import conv
from napari_attunet.networks.operations import Operation
from napari_attunet.plan import prepare
from napari_attunet.samples import synthetic_nuclei
from napari_attunet.segmenter import Segmenter
from napari_attunet.spec import ModelSpec
from napari_attunet.training.losses import segmentation_loss
from napari_attunet.training.samples import Batch, CropSampler, Pair
from napari_attunet.training.settings import TrainingSettings

BUNDLED = "nuclei-fluorescence"
REFERENCE = NetworkSpec(in_channels=3, features=(64, 128, 256, 512, 1024))
VOLUME = NetworkSpec(ndim=3, out_channels=3, features=(16, 32, 64, 128))

#: Of learning: that of a usual training.
RATE = 2e-3

#: Features of the networks that are compared with and without gates.
GATED = ((16, 32, 64, 128, 256), REFERENCE.features)

#: What is right: the error of a probability, and of labels those that may change when
#: computed in 16 bits.
EXACT, FAST = 1e-4, 1e-3

#: Edges of small frames.
EDGES = (64, 128, 256)

#: Channels of the reference network.
COLOURS = ("red", "green", "blue")

#: Of the rival's windows, which is what it was trained on or more.
WINDOW = 512


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


# --- forward ----------------------------------------------------------------------


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


def checks(args: argparse.Namespace, count: int) -> list[dict[str, object]]:
    """Compare a device with the CPU, then give it less and less memory."""
    rows = []
    pixels = cells(args.image)
    model = load_model(BUNDLED)
    options = {"output": "classes", "probabilities": True}
    expected = Segmenter(model, device="cpu", precision="exact").segment(
        pixels, **options
    )
    shares = [1.0, 0.02, 0.005] if args.device.startswith("cuda") else [1.0]
    for precision in ("exact", "fast"):
        for share in shares:
            if args.device.startswith("cuda"):
                torch.cuda.set_per_process_memory_fraction(share)
            segmenter = Segmenter(model, device=args.device, precision=precision)
            found = segmenter.segment(pixels, **options)
            print(precision, share, found.record, flush=True)
            changed = (found.labels != expected.labels).mean()
            error = np.abs(found.probabilities - expected.probabilities).max()
            row = {
                "what": f"{precision}, {share:.1%} of the memory",
                "threads": count,
                "who": found.record["device"],
                "seconds": found.record["seconds"],
                "error": float(error),
                "labels": f"{changed:.1e} of them",
            }
            if (precision, changed > 0 or error > EXACT) == ("exact", True):
                row["wrong"] = "exact mode differs from the CPU"
            elif changed > FAST:
                row["wrong"] = f"more than {FAST} of the labels changed"
            elif share < 1 and not found.record["fallbacks"]:
                row["wrong"] = "so little memory, and nothing was done otherwise"
            rows.append(row)
    if args.device.startswith("cuda"):
        torch.cuda.set_per_process_memory_fraction(1.0)
    return rows


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


# --- whole images -----------------------------------------------------------------


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


# --- gates, training --------------------------------------------------------------


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


# --- memory, start ----------------------------------------------------------------

AREA = """
import sys, time
import numpy as np
from pathlib import Path
sys.path.insert(0, {folder!r})
from speed import cells, BUNDLED
from napari_attunet.model import load_model
from napari_attunet.segmenter import Segmenter
image = cells({size})
segmenter = Segmenter(load_model(BUNDLED), device={device!r}, threads={threads})
segmenter.segment(image[:64, :64], output={output!r})
def status(key):
    line = next(l for l in open("/proc/self/status") if l.startswith(key))
    return int(line.split()[1]) / 1024
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
start = time.perf_counter()
segmenter.segment(image, output={output!r})
print(time.perf_counter() - start, status("VmHWM") - before)
"""


def area(args: argparse.Namespace, count: int) -> list[dict[str, object]]:
    """Segment larger and larger images, each in a process of its own."""
    rows = []
    for output in ("classes", "objects"):
        for size in args.areas:
            code = AREA.format(
                folder=str(Path(__file__).parent),
                size=size,
                device=args.device,
                threads=count,
                output=output,
            )
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
            seconds, peak = map(float, done.stdout.split())
            rows.append(
                {
                    "what": f"{size} x {size} to {output}",
                    "threads": count,
                    "who": "ours",
                    "seconds": seconds,
                    "peak": peak,
                    "microseconds": 1e6 * seconds / size**2,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


#: Needs a screen, or xvfb-run.
DOCK = """
import time, napari
from qtpy.QtWidgets import QApplication
viewer = napari.Viewer(show=False)
QApplication.processEvents()
start = time.perf_counter()
viewer.window.add_plugin_dock_widget("napari-attunet", "{dock}")
print(time.perf_counter() - start)
viewer.close()
"""


def start(args: argparse.Namespace, count: int) -> list[dict[str, object]]:
    """Import the package and the engine, open the docks, load and rewrite the model."""
    lines = {
        "import napari_attunet": "import napari_attunet",
        "import the engine": "import napari_attunet.segmenter",
    }
    rows = []
    for what, line in lines.items():
        code = f"import time; t = time.perf_counter(); {line}; "
        code += "print(time.perf_counter() - t)"
        seconds = [
            float(subprocess.check_output([sys.executable, "-c", code]))
            for _ in range(args.rounds)
        ]
        rows.append({"what": what, "seconds": statistics.median(seconds)})

    for dock in ("", ": learn", ": attention"):
        code = DOCK.format(dock=f"Attention U-Net{dock}")
        done = [
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
            for _ in range(args.rounds)
        ]
        seconds = [float(run.stdout.split()[-1]) for run in done]
        what = f"open the dock Attention U-Net{dock}"
        rows.append({"what": what, "seconds": statistics.median(seconds)})

    def load() -> None:
        segmenter = Segmenter(load_model(BUNDLED), device=args.device, threads=count)
        segmenter.network_on(segmenter.device)

    turns = Turns({"load and rewrite": load}, args.device).go(args.rounds)
    rows.append(
        {
            "what": f"load and rewrite {BUNDLED}",
            "seconds": statistics.median(turns.seconds["load and rewrite"]),
        }
    )
    return [{"threads": count, "who": "ours", **row} for row in rows]


PARTS = {
    "checks": checks,
    "forward": forward,
    "image": image,
    "reference": reference,
    "frames": frames,
    "fast": fast,
    "gates": gates,
    "training": training,
    "curve": curve,
    "area": area,
    "start": start,
}


def table(rows: list[dict[str, object]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| what | threads | who | seconds | times as fast | error | labels | MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = "" if "ratio" not in row else f"{row['ratio']:.2f}"
        if ratio and row["ratio"] != 1:
            ratio += f" ({row['least']:.2f} to {row['most']:.2f})"
        error = f"{row['error']:.0e}" if "error" in row else ""
        peak = f"{row['peak']:.0f}" if "peak" in row else ""
        cells = (row["what"], row["threads"], row["who"], f"{row['seconds']:.3g}")
        cells += (ratio, error, row.get("labels", ""), peak)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=512, help="of a tile")
    parser.add_argument("--image", type=int, default=2048, help="of a whole image")
    parser.add_argument(
        "--areas", type=int, nargs="+", default=[2048, 4096, 8192], help="edges"
    )
    parser.add_argument("--steps", type=int, default=200, help="of a curve of losses")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(choose_device(args.device), torch.__version__)
    rows: list[dict[str, object]] = []
    for count in map(int, args.threads.split(",")):
        for name in args.parts.split(","):
            with threads(count):
                found = PARTS[name](args, count)
            rows += found
            print(table(found), flush=True)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1))
    print(table(rows))
    wrong = [f"{row['what']}: {row['wrong']}" for row in rows if "wrong" in row]
    if wrong:
        raise SystemExit("Wrong: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
