"""What a halo costs and what it saves: tiles against the whole image, and blending.

In 2D with a bundled model on a real image, in 3D with a small network that is first
trained on synthetic nuclei. Prints Markdown tables: pixels read for each of the image,
largest error of a probability, and share of pixels whose class differs. Blended are the
logits of overlapping tiles, with Gaussian weights (MONAI's sliding window).

    python benchmarks/halo.py [--model nuclei-fluorescence] [--steps 200]
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import skimage.data
import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import sliding_window_inference

from napari_attunet import Model, ModelSpec, NetworkSpec, Segmenter, load_model
from napari_attunet.inference import class_probabilities
from napari_attunet.plan import default_halo, prepare
from napari_attunet.progress import drain
from napari_attunet.samples import synthetic_nuclei
from napari_attunet.tiling import Tiling
from napari_attunet.training.samples import Pair
from napari_attunet.training.settings import TrainingSettings
from napari_attunet.training.trainer import train

#: Of blended tiles: what MONAI and nnU-Net do by default.
OVERLAPS = 0.25, 0.5


def small_3d_model(steps: int) -> Model:
    """Return a 3D network of four levels, trained a little on synthetic nuclei."""
    network = NetworkSpec(ndim=3, out_channels=3, features=(8, 16, 32, 64))
    spec = ModelSpec(name="small-3d", network=network, output="objects")
    pairs = [Pair(*synthetic_nuclei((48, 96, 96), seed=s)) for s in range(4)]
    settings = TrainingSettings(
        steps=steps, crop=(32, 64, 64), batch_size=2, validate_every=steps
    )
    return drain(train(spec, pairs, [], settings))


def compare(model: Model, image: np.ndarray, tile: int, halos: list[int]) -> None:
    """Print a table row for each halo."""
    network = model.spec.network
    options = {"probabilities": True, "output": "classes", "attention": True}
    whole = Segmenter(model, tile=100_000, precision="exact").segment(image, **options)
    default = default_halo(network)
    print("| halo | read | largest error, probability | of α | labels changed |")
    print("|---|---|---|---|---|")
    for halo in halos:
        segmenter = Segmenter(model, tile=tile, halo=halo, precision="exact")
        result = segmenter.segment(image, **options)
        tiling = Tiling(image.shape, tile=tile, halo=halo, divisor=network.divisor)
        read = sum(math.prod(s.stop - s.start for s in t.read) for t in tiling)
        error = np.abs(result.probabilities - whole.probabilities).max()
        alpha = max(
            np.abs(a.values - b.values).max()
            for a, b in zip(result.attention, whole.attention, strict=True)
        )
        changed = np.mean(result.labels != whole.labels)
        exact = halo >= max(network.halo)
        note = ", exact" * exact + ", default" * (halo == max(default))
        print(
            f"| {halo}{note} | {read / image.size:.2f} | {error:.1e} | {alpha:.1e} | "
            f"{changed:.1e} |",
            flush=True,
        )
    for overlap in OVERLAPS:
        probabilities, read = blended(model, image, tile, overlap)
        error = np.abs(probabilities - whole.probabilities).max()
        changed = np.mean(probabilities.argmax(0) != whole.labels)
        print(
            f"| blended, overlap {overlap} | {read:.2f} | {error:.1e} | | "
            f"{changed:.1e} |",
            flush=True,
        )


def blended(
    model: Model, image: np.ndarray, tile: int, overlap: float
) -> tuple[np.ndarray, float]:
    """Return probabilities, (K, *spatial), and pixels read for each of the image."""
    pixels = prepare(model.spec, image).read((), (0,) * image.ndim, image.shape)
    window = (tile,) * image.ndim
    with torch.inference_mode():
        logits = sliding_window_inference(
            torch.from_numpy(pixels)[None],
            window,
            4,
            model.network,
            overlap=overlap,
            mode="gaussian",
        )
    steps = [int(tile * (1 - overlap))] * image.ndim
    count = len(dense_patch_slices(image.shape, window, steps))
    read = count * math.prod(window) / image.size
    return class_probabilities(logits)[0].numpy(), read


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nuclei-fluorescence")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    model = load_model(args.model)
    image = np.tile(skimage.data.cell(), (1, 2))[:640, :1024]
    print(f"{args.model}, {image.shape[0]} x {image.shape[1]}, tiles of 256:\n")
    compare(model, image, 256, [0, 16, 32, 48, 64, 96, 112])
    model = small_3d_model(args.steps)
    image, _ = synthetic_nuclei((64, 160, 160), seed=99)
    print(f"\nfour levels in 3D, {' x '.join(map(str, image.shape))}, tiles of 64:\n")
    compare(model, image, 64, [0, 8, 16, 24, 32, 40, 56])


if __name__ == "__main__":
    main()
