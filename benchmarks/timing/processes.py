"""What needs a process of its own: memory, and start-up."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from napari_attunet.model import load_model
from napari_attunet.segmenter import Segmenter
from timing.subjects import BUNDLED, Turns

AREA = """
import sys, time
import numpy as np
from pathlib import Path
sys.path.insert(0, {folder!r})
from timing.subjects import cells, BUNDLED
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
                folder=str(Path(__file__).parents[1]),
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


SCREENS = {"QT_QPA_PLATFORM", "DISPLAY", "WAYLAND_DISPLAY"}
OFFSCREEN = {"QT_QPA_PLATFORM": "offscreen"} if sys.platform == "linux" else {}

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
                [sys.executable, "-c", code],
                env=os.environ | ({} if SCREENS & os.environ.keys() else OFFSCREEN),
                capture_output=True,
                text=True,
                check=True,
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
