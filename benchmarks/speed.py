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
import json
from pathlib import Path

import torch
from timing.forwards import forward
from timing.images import checks, fast, frames, image, reference
from timing.processes import area, start
from timing.steps import curve, gates, training

from napari_attunet.devices import choose_device, threads

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
