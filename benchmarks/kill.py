"""What is left when a training is killed: nothing broken, and little to do again.

Rounds of learning on synthetic nuclei are killed (SIGKILL) again and again, at random
moments and just when a file is being written, and so is accepting a model into the
library. After each kill all models must load, the training set must be as it was, and
training must go on from its checkpoint. Rounds that come to their end must give the
very model of a round that was never disturbed. Prints Markdown tables; the exit code
is 1 if anything was wrong.

    python benchmarks/kill.py [--kills 50] [--seed 0] [--model nuclei-fluorescence]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from napari_attunet import Library, Model, ModelSpec, NetworkSpec, load_model
from napari_attunet.corrections import Correction, TrainingSet
from napari_attunet.model import save_model
from napari_attunet.samples import synthetic_nuclei
from napari_attunet.schema import to_json
from napari_attunet.training.process import COMMAND
from napari_attunet.training.settings import RoundSettings

ACCEPT = """
import sys
from pathlib import Path
from napari_attunet.library import Library
from napari_attunet.training.rounds import accept
accept(Path(sys.argv[1]), sys.argv[2], Library())
"""

#: Of the kills, those that meet a model on its way into the library.
ACCEPTED = 0.2
#: Of the others, those before anything was learnt, and those that wait for a file to
#: be written.
EARLY, WATCHED = 0.15, 0.4
#: How far a round is told to be while its models are compared, and where the latest
#: kill may wait: some rounds come to their end.
COMPARING, LATEST = 1.05, 1.1
#: Seconds between glances at what a process says and writes, and the longest that a
#: kill waits on, so that it meets the middle of a step.
GLANCE, DELAY = 0.001, 0.5


class Arena:
    """A library, a training set and the rounds that are killed in a folder."""

    def __init__(self, folder: Path, model: str | None, steps: int, seed: int) -> None:
        os.environ["NAPARI_ATTUNET_MODELS"] = str(folder / "models")
        self.folder = folder
        self.library = Library()
        self.training_set = TrainingSet(folder / "set")
        for number in range(3):  # so few are held out in blocks
            image, labels = synthetic_nuclei((192, 192), seed=number)
            self.training_set.add(
                Correction(
                    image=image,
                    axes="YX",
                    labels=labels,
                    output="objects",
                    name=f"nuclei {number}",
                )
            )
        if model is None:
            network = NetworkSpec(out_channels=3, features=(8, 16, 32))
            spec = ModelSpec(name="tiny", network=network, output="objects")
            fresh = Model.fresh(spec, seed=seed)
            save_model(fresh, self.library.path_for(spec))
        # With its version, since more of them are accepted.
        self.parent = self.library.find(model or "tiny").spec.key
        self.settings = RoundSettings(
            steps=steps, seed=seed, starts=("parent", "scratch")
        )
        self.interval = self.settings.training(2).validate_every
        self.before = self.samples()
        self.wrong: list[str] = []

    def samples(self) -> list[Any]:
        """Everything in the training set, for comparison."""
        found = []
        for sample in self.training_set.samples():
            read = self.training_set.read(sample)
            arrays = [np.asarray(read.image).tobytes(), read.labels.tobytes()]
            found.append((dataclasses.asdict(sample), arrays))
        return found

    def train(self, folder: Path) -> subprocess.Popen[bytes]:
        """Start or go on with a round; what it says is in ``folder.events``."""
        arguments = ["--set", str(self.training_set.folder), "--round", str(folder)]
        arguments += ["--from", self.parent, "--settings", to_json(self.settings)]
        arguments += ["--preview", str(folder / "preview.safetensors")]
        arguments += ["--device", "cpu", "--threads", "1"]
        with events_of(folder).open("wb") as events:
            return subprocess.Popen(
                [*COMMAND, *arguments, "--json", "--supervised"],
                stdin=subprocess.PIPE,
                stdout=events,
            )

    def accept(self, folder: Path, name: str) -> subprocess.Popen[bytes]:
        """Start to take a model of a round into the library."""
        return subprocess.Popen([sys.executable, "-c", ACCEPT, str(folder), name])

    def check(self, folder: Path, what: str) -> None:
        """Write down what is broken."""
        problems = [f"{p}: {why}" for p, why in self.library.damaged().items()]
        problems += [f"{p}: {e}" for p, e in self.training_set.damaged().items()]
        if self.samples() != self.before:
            problems.append("the training set is another one")
        models = [e.path for e in self.library.entries() if not e.bundled]
        for path in (*models, *folder.glob("*.safetensors")):
            if not path.name.startswith("."):
                try:
                    load_model(path)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is wrong
                    problems.append(f"{path}: {error}")
        self.wrong += [f"{what}: {p}" for p in problems]


def events_of(folder: Path) -> Path:
    return folder.with_suffix(".events")


def trained(folder: Path) -> list[tuple[str, int]]:
    """Contender and step of each step of training that was told."""
    found = []
    for line in events_of(folder).read_bytes().splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # killed while it said so
            continue
        if event["event"] == "progress" and "loss" in event["values"]:
            name = "scratch" if "scratch" in event["message"] else "tuned"
            found.append((name, event["done"]))
    return found


def kept(folder: Path, steps: int) -> dict[str, int]:
    """Step that each contender goes on from, counted as it is told."""
    found = {}
    for number, name in enumerate(("tuned", "scratch")):
        path = folder / f"{name}.checkpoint"
        state = torch.load(path, weights_only=True) if path.exists() else {"step": 0}
        found[name] = number * steps + state["step"]
    return found


def being_written(folder: Path) -> str | None:
    """Name of a file that lies there under another one until it is whole."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    return entry.name[1:].partition(".")[2]
    return None


class Moment:
    """When to kill: at a time, or once a round has come so far, and a little later."""

    def __init__(self, folder: Path, seconds: float, share: float) -> None:
        self._events = events_of(folder)
        self._share = share
        self._seconds = seconds
        self._read = 0
        self._since = time.monotonic() if share <= 0 else None

    def is_now(self) -> bool:
        if self._since is None and self._has_come():
            self._since = time.monotonic()
        return self._since is not None and time.monotonic() > self._since + (
            self._seconds
        )

    def _has_come(self) -> bool:
        with self._events.open("rb") as file:
            file.seek(self._read)
            lines = [line for line in file if line.endswith(b"\n")]
        self._read += sum(map(len, lines))
        return any(self._share <= how_far(json.loads(line)) for line in lines)


def how_far(event: dict[str, Any]) -> float:
    """Share of a round that is done."""
    if "Comparing" in event.get("message", ""):
        return COMPARING
    return event.get("done", 0) / max(1, event.get("total", 0))


def kill(
    process: subprocess.Popen[bytes], moment: Moment, watched: Path | None
) -> str | None:
    """Kill a process at a moment, or when it next writes to a folder after it.

    Returns what it was doing, or ``None`` if it had ended before.
    """
    doing = "anything"
    while process.poll() is None:
        if moment.is_now():
            if watched is None:
                break
            if name := being_written(watched):
                doing = f"writing {name}"
                break
        time.sleep(GLANCE)
    ended = process.poll() is not None
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
    return None if ended else doing


def clear(folder: Path) -> int:
    """Delete what kills left half written, so that it isn't taken for new."""
    left = [p for p in folder.glob(".*") if p.is_file()]
    for path in left:
        path.unlink()
    return len(left)


def same(one: Path, other: Path) -> bool:
    a, b = (load_model(p).network.state_dict() for p in (one, other))
    return all(torch.equal(a[k], b[k]) for k in a)


def main() -> int:
    """Kill, check, and finish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300, help="of each contender")
    parser.add_argument("--model", help="to start from (default: a tiny one)")
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        arena = Arena(Path(temporary), args.model, args.steps, args.seed)

        undisturbed = arena.folder / "undisturbed"
        began = time.monotonic()
        with arena.train(undisturbed) as process:
            status = process.wait()
        whole = time.monotonic() - began
        if status:
            print(events_of(undisturbed).read_text()[-500:])
            return 1
        began = time.monotonic()
        arena.accept(undisturbed, "tuned").wait()
        to_accept = time.monotonic() - began
        print(f"An undisturbed round of 2 x {args.steps} steps took {whole:.0f} s.\n")
        print("| kill | of | while | told | kept | went on with |")
        print("|---|---|---|---|---|---|")

        rounds, finished, left = 1, 0, 0
        folder = arena.folder / "round-1"
        lost: list[int] = []
        counts: Counter[tuple[str, str]] = Counter()
        last: tuple[int, dict[str, int]] | None = None  # kill, what was kept then
        had = 0.0  # the same as a share of the round
        while (number := sum(counts.values())) < args.kills or not finished:
            if number < args.kills and chance.random() < ACCEPTED:
                watched = arena.library.folder if chance.random() < 0.8 else None
                versions = len(arena.library.entries())
                process = arena.accept(undisturbed, "tuned")
                seconds = 0.0 if watched else chance.uniform(0, to_accept)
                doing = kill(process, Moment(undisturbed, seconds, 0), watched)
                left += clear(arena.library.folder)
                arena.check(undisturbed, f"kill {number + 1}")
                if len(arena.library.entries()) not in (versions, versions + 1):
                    arena.wrong.append(f"kill {number + 1}: versions came or went")
                if doing is not None:
                    counts["accept", doing] += 1
                    print(f"| {number + 1} | accept | {doing} | | | |", flush=True)
                continue

            process = arena.train(folder)
            if number < args.kills:
                seconds, share = chance.uniform(0, DELAY), chance.uniform(had, LATEST)
                if chance.random() < EARLY:
                    seconds, share = chance.uniform(0, to_accept), 0.0
                watched = folder if chance.random() < WATCHED else None
                doing = kill(process, Moment(folder, seconds, share), watched)
            else:
                process.wait()
                process.stdin.close()
                doing = None
            told = trained(folder)
            went_on = ""
            if told and last is not None:
                name, first = told[0]
                went_on = f"{first} ({name})"
                if first != last[1][name] + 1:
                    arena.wrong.append(
                        f"kill {last[0]}: went on with {first}, had {last[1][name]}"
                    )
                last = None
            if doing is None:
                if process.returncode:
                    arena.wrong.append(f"{folder.name} ended with {process.returncode}")
                    break
                finished += 1
                for name in ("tuned", "scratch"):
                    file = f"{name}.safetensors"
                    if not same(folder / file, undisturbed / file):
                        arena.wrong.append(f"{folder.name}: {name} differs")
                rounds += 1
                folder, last, had = arena.folder / f"round-{rounds}", None, 0.0
                continue
            left += clear(folder)
            counts["train", doing] += 1
            number += 1
            arena.check(folder, f"kill {number}")
            have = kept(folder, args.steps)
            newest = "scratch" if have["scratch"] > args.steps else "tuned"
            had = have[newest] / (2 * args.steps)
            if told:
                name, done = told[-1]
                lost.append(max(0, done - have[name]))  # not every step is told
                if lost[-1] > arena.interval:
                    arena.wrong.append(f"kill {number}: lost {lost[-1]} steps")
                last = (number, have)
            said = f"{told[-1][1]} | {have[told[-1][0]]}" if told else " | "
            print(
                f"| {number} | train | {doing} | {said} | {went_on} |",
                flush=True,
            )

        arena.check(undisturbed, "at last")
        accepted = sum(not e.bundled for e in arena.library.entries())

    print(f"\n| {args.kills} kills, seed {args.seed} | |\n|---|---|")
    for (what, doing), count in sorted(counts.items()):
        print(f"| {what}, {doing} | {count} |")
    print(f"| half-written files left beside the good ones | {left} |")
    print(f"| rounds that came to their end, as the undisturbed one | {finished} |")
    print(f"| models in the library at last | {accepted} |")
    most = max(lost, default=0)
    print(f"| steps lost, at most ({arena.interval} between validations) | {most} |")
    print(f"| wrong | {len(arena.wrong)} |")
    for problem in arena.wrong:
        print(f"- {problem}")
    return 1 if arena.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
