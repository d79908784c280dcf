"""``segment``: images in, label images out."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_attunet.cli.console import (
    Bar,
    add_device,
    add_precision,
    for_later,
    numbers,
    report,
)
from napari_attunet.errors import AttUnetError, DataError
from napari_attunet.progress import drain

if TYPE_CHECKING:
    from napari_attunet.cli.console import Commands
    from napari_attunet.segmenter import Segmenter

__all__ = ["Task", "add_to", "expand", "plan", "run"]

DEFAULT_MODEL = "nuclei-fluorescence"

#: PNG has at most 16 bits.
PNG_LABELS = 65535

#: Stems of what we write, or what others label by hand, beside an image.
_DERIVED = re.compile(r"(.+)_(labels|probabilities|alpha_level_\d+)")


def add_to(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "segment",
        parents=[common],
        help="segment images",
        description="Segment TIFF, PNG, JPEG and OME-Zarr images of any size. Labels "
        "are written as NAME_labels; axes and pixel size are kept.",
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="files, folders or patterns")
    add(
        "-o",
        "--out",
        required=True,
        type=Path,
        help="folder; of a single image it may be a file",
    )
    add(
        "--model",
        default=DEFAULT_MODEL,
        help="name, name@version or file (default: %(default)s)",
    )
    add(
        "--attention",
        action="store_true",
        help="write what every gate attended to, with its place and scale",
    )
    add(
        "--probabilities",
        action="store_true",
        help="write the probabilities of the classes",
    )
    add(
        "--axes",
        type=str.upper,
        help="a letter of T, C, Z, Y, X for each axis, if the files don't say, such as "
        "ZYX",
    )
    add(
        "--channels",
        default="auto",
        help="auto (default), luminance, inverted-luminance, haematoxylin, or numbers "
        "from 0 such as 2,0",
    )
    add("--output", choices=("classes", "objects"), help="what labels stand for")
    add("--min-size", type=int, metavar="N", help="drop objects of fewer pixels")
    add(
        "--split-depth",
        type=float,
        metavar="PX",
        help="part joined objects at necks so deep; 0 never (default: the model's)",
    )
    add(
        "--seed-threshold",
        type=float,
        metavar="P",
        help="how sure the inside of an object must be (default: the model's)",
    )
    add(
        "--threshold",
        type=float,
        metavar="P",
        help="how probable it must be that there is something (default: the model's)",
    )
    add(
        "--fill-holes",
        action=argparse.BooleanOptionalAction,
        help="of objects (default: the model's)",
    )
    add(
        "--skip-empty",
        action="store_true",
        help="glance first, and look closely only where there may be something",
    )
    add("--tile", type=numbers, metavar="N", help="edge of the tiles, such as 512")
    add(
        "--format",
        choices=("tif", "png", "ome-zarr"),
        help="of the labels (default: as the image); what PNG cannot hold becomes TIFF",
    )
    add("--overwrite", action="store_true", help="replace what is there already")
    add_device(parser)
    add_precision(parser)


@dataclass(frozen=True, slots=True)
class Task:
    """One image, and the file that its labels go to.

    Attributes
    ----------
    source, target : Path
    named : bool
        Whether the user gave the very name of `target`.
    """

    source: Path
    target: Path
    named: bool = False

    def instead_of_png(self, reason: str) -> Task:
        """Return the task with a TIFF as its target, where PNG cannot hold the labels.

        Raises
        ------
        DataError
            If the user named a PNG file.
        """
        if self.named:
            raise DataError(f"{self.target}: {reason}; choose TIFF or OME-Zarr.")
        return dataclasses.replace(self, target=self.target.with_suffix(".tif"))

    def beside(self, what: str, suffix: str | None = None) -> Path:
        """Return the file of another result, such as ``"alpha_level_1"``."""
        from napari_attunet.images import image_format, image_stem, image_suffix

        if suffix is None:
            png = image_format(self.target) == "png"
            suffix = ".tif" if png else image_suffix(self.target)
        stem = image_stem(self.target).removesuffix("_labels")
        return self.target.with_name(f"{stem}_{what}{suffix}")


def run(args: argparse.Namespace) -> bool:
    """Segment every image; a bad one doesn't stop the others."""
    from napari_attunet.model import load_model
    from napari_attunet.segmenter import Segmenter

    sources, problems = expand(args.images)
    tasks = plan(sources, args.out, args.format)
    segmenter = Segmenter(
        load_model(args.model),
        device=args.device,
        threads=args.threads,
        tile=_tile(args.tile),
        precision=args.precision,
    )
    options = _options(args, segmenter)
    with Bar(len(tasks)) as bar:
        if args.verbose:
            key, device = segmenter.model.spec.key, segmenter.device
            bar.say(f"{key} on {device}. {device.reason}")
        for path in map(Path, args.images):
            if path.is_file() and path not in sources:
                bar.say(f"{path} is left out: it is a result of another of the images.")
        for index, task in enumerate(tasks):
            try:
                done = _segment(task, index, segmenter, options, args.overwrite, bar)
            except Exception as error:  # noqa: BLE001 - told at the end
                problems.append((task.source, for_later(error)))
            else:
                bar.say(done)
    for subject, problem in problems:
        report(problem, subject=subject, verbose=args.verbose)
    if problems and len(tasks) > 1:
        report(f"{len(problems)} of {len(tasks)} images failed")
    return not problems


def _segment(
    task: Task,
    index: int,
    segmenter: Segmenter,
    options: dict[str, Any],
    overwrite: bool,
    bar: Bar,
) -> str:
    """Segment one image, write everything asked for, and return what to say of it."""
    from napari_attunet.axes import guess_axes
    from napari_attunet.channels import PLAIN_CHANNELS
    from napari_attunet.images import (
        image_format,
        read_image,
        write_attention,
        write_labels,
        write_probabilities,
        write_tables,
    )
    from napari_attunet.view import ImageView

    def free(path: Path) -> Path:
        if path.exists() and path.samefile(task.source):
            raise DataError(f"{path} is the image itself; choose another output.")
        if path.exists() and not overwrite:
            raise DataError(f"{path} is there already; --overwrite replaces it.")
        return path

    free(task.target)
    if options["probabilities"]:
        free(task.beside("probabilities"))
    image = read_image(task.source)
    network = segmenter.model.spec.network
    axes = options.get("axes") or image.axes
    axes = axes or guess_axes(
        image.data.shape, ndim=network.ndim, in_channels=network.in_channels
    )
    png = image_format(task.target) == "png"
    shape = ImageView(image.data, axes, ndim=network.ndim).label_shape
    if png and math.prod(shape) > math.prod(shape[-2:]):
        task = task.instead_of_png(f"PNG holds one 2D image, not {axes} of {shape}")
        free(task.target)
    result = drain(
        segmenter.steps(image.data, **options | {"axes": axes}),
        bar.job(index, task.source.name),
    )
    if png and result.labels.max(initial=0) > PNG_LABELS:
        task = task.instead_of_png(f"PNG numbers at most {PNG_LABELS} labels")
        free(task.target)
    place: dict[str, Any] = {
        "axes": result.axes,
        "pixel_size": image.pixel_size,
        "unit": image.unit,
        "origin": image.origin,
    }
    maps = {free(task.beside(_file_name(a.name))): a for a in result.attention}
    for path, attention in maps.items():
        write_attention(path, attention, **place)
    if result.tables:
        write_tables(free(task.beside("attention", ".json")), result.tables)
    if result.probabilities is not None:
        classes = segmenter.model.spec.classes
        path = task.beside("probabilities")
        write_probabilities(path, result.probabilities, classes=classes, **place)
    # Last, so that labels that are there mean that all is there.
    write_labels(task.target, result.labels, **place)
    counted = result.record["output"] == "objects"
    found = f": {int(result.labels.max(initial=0))} objects" if counted else ""
    notes = "".join(f" {note}" for note in result.record["fallbacks"])
    if result.record["channels"] != PLAIN_CHANNELS:
        notes = f" ({result.record['channels']}){notes}"
    return f"{task.source} -> {task.target}{found}{notes}"


def _file_name(name: str) -> str:
    return name.replace("α", "alpha").replace(" ", "_").lower()


def expand(
    arguments: Iterable[str],
) -> tuple[list[Path], list[tuple[object, Exception]]]:
    """Return the images that arguments stand for, each once, and what is wrong.

    Folders stand for the images in them; patterns, which Windows' shells leave to the
    program, for the files that fit. What lies among them as the result of another of
    the images (``a_labels.tif`` of ``a.tif``) is no image.
    """
    from napari_attunet.images import find_images, image_stem, image_suffix, is_zarr

    found: dict[Path, None] = {}
    problems: list[tuple[object, Exception]] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir() and not is_zarr(path) and path.suffix.lower() != ".zarr":
            several = find_images(path)
        elif path.exists() or not glob.has_magic(argument):
            several = (path,)
        else:
            # Path.glob takes no absolute patterns.
            matches = sorted(map(Path, glob.glob(argument, recursive=True)))  # noqa: PTH207
            several = tuple(m for m in matches if image_suffix(m))
        if not several:
            problems.append((argument, DataError(f"No images fit {argument}.")))
        found |= dict.fromkeys(several)
    stems = {(path.parent, image_stem(path)) for path in found}
    return [p for p in found if not _is_derived(p, stems)], problems


def _is_derived(path: Path, stems: set[tuple[Path, str]]) -> bool:
    from napari_attunet.images import image_stem

    match = _DERIVED.fullmatch(image_stem(path))
    return match is not None and (path.parent, match[1]) in stems


def plan(sources: Sequence[Path], out: Path, kind: str | None = None) -> list[Task]:
    """Decide where the labels of every image go.

    Parameters
    ----------
    sources : sequence of Path
    out : Path
        A folder; with a single image it may be a file name.
    kind : str, optional
        ``"tif"``, ``"png"`` or ``"ome-zarr"``; by default as the image.

    Raises
    ------
    DataError
        If `out` is a file for several images, or two images share an output.
    """
    from napari_attunet.images import FORMATS, image_format, image_stem, image_suffix

    if image_suffix(out) and not (out.is_dir() and image_format(out) != "ome-zarr"):
        if len(sources) > 1:
            raise DataError(
                f"{len(sources)} images don't fit into the file {out}; give a folder."
            )
        if kind not in (None, image_format(out)):
            raise DataError(f"{out} doesn't end as the format {kind} should.")
        if image_suffix(out).lower() in (".jpg", ".jpeg", ".bmp"):
            raise DataError(f"{out} would damage labels; choose PNG, TIFF or OME-Zarr.")
        return [Task(source, out, named=True) for source in sources]
    tasks = []
    for source in sources:
        try:
            format_ = image_format(source)
        except AttUnetError:
            format_ = "tif"  # reading it will tell what is wrong
        suffix = image_suffix(source)
        if kind not in (None, format_) or format_ == "png" or not suffix:
            suffix = FORMATS[kind or format_]
        tasks.append(Task(source, out / f"{image_stem(source)}_labels{suffix}"))
    shared = [t for t, n in Counter(t.target for t in tasks).items() if n > 1]
    if shared:
        same = " and ".join(str(t.source) for t in tasks if t.target == shared[0])
        raise DataError(f"{same} would both be written to {shared[0]}.")
    return tasks


def _tile(numbers: tuple[int, ...] | None) -> int | tuple[int, ...] | None:
    return numbers[0] if numbers and len(numbers) == 1 else numbers


def _options(args: argparse.Namespace, segmenter: Segmenter) -> dict[str, Any]:
    """Return the options of the segmenter that the arguments stand for."""
    from napari_attunet.channels import parse_channels

    spec = segmenter.model.spec
    kinds = {m.kind for m in segmenter.model.network.mechanisms}
    if args.attention and not kinds - {"pairwise"}:
        raise DataError(f"{spec.key} has no attention to write: leave out --attention.")
    options: dict[str, Any] = {
        "channels": parse_channels(args.channels),
        "attention": args.attention,
        "probabilities": args.probabilities,
        "skip_empty": args.skip_empty,
        "output": args.output,
    }
    if args.axes:
        options["axes"] = args.axes
    objects = (args.output or spec.output) == "objects"
    names = ("min_size", "split_depth", "seed_threshold", "fill_holes")
    asked = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    if objects and args.threshold is not None:
        asked["foreground_threshold"] = args.threshold
    if asked:
        if not objects:
            flags = ", ".join(f"--{n.replace('_', '-')}" for n in asked)
            raise DataError(f"{flags}: for objects only; this model gives classes.")
        options["objects"] = dataclasses.replace(spec.objects, **asked)
    if not objects:
        options["threshold"] = args.threshold
    return options
