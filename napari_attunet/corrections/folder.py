"""The training set: a folder of samples, each of them a snapshot.

A sample is written beside its place and moved there whole. Names that begin with a dot
are work in progress, or what a crash left of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import unicodedata
import uuid
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from filelock import FileLock

from napari_attunet.atomic import replacing
from napari_attunet.corrections.correction import Correction
from napari_attunet.corrections.sample import (
    Sample,
    array_file,
    read_arrays,
    read_description,
    write_description,
)
from napari_attunet.corrections.split import (
    FEW_CELLS,
    FEW_IMAGES,
    FEW_PIXELS,
    Frame,
    Split,
    apart,
    frames_of,
    hash_image,
    in_axes,
    joined,
    split_image,
    split_mask,
)
from napari_attunet.errors import DataError, ModelError
from napari_attunet.images import write_image
from napari_attunet.schema import from_json, to_json

__all__ = ["TrainingSet", "default_folder", "last_folder", "remember_folder"]

#: Overrides where the training set is kept.
FOLDER_VARIABLE = "NAPARI_ATTUNET_TRAINING"
#: In a training set's folder: what is held out of every image that ever was in it.
NOTES = ".held-out"
#: Beside the default folder: which one was worked on last.
LAST = "last.txt"
#: In a training set's folder: held by whoever moves samples in it.
LOCK = ".lock"
#: Seconds to wait for it; a move takes milliseconds.
PATIENCE = 10.0
#: Seconds to wait for whoever decides what is held out of a stack of many frames.
LONG_PATIENCE = 120.0
#: Longest part of a sample's name in that of its folder.
SLUG = 40
#: A sample may be replaced while it is read; more often than this it isn't.
ATTEMPTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Note:
    """A split, and the order of axes that it is told in."""

    axes: str
    split: Split


def default_folder() -> Path:
    """Return ``$NAPARI_ATTUNET_TRAINING`` or a place in the user's data directory."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    return _own_folder() / "default"


def last_folder() -> Path:
    """Return the folder that was remembered, if it is there, or the default one."""
    with contextlib.suppress(OSError, ValueError):
        last = Path((_own_folder() / LAST).read_text("utf-8"))
        if not os.environ.get(FOLDER_VARIABLE) and last.is_dir():
            return last
    return default_folder()


def remember_folder(folder: Path) -> None:
    """Keep in mind which training set was worked on, as well as it goes."""
    if os.environ.get(FOLDER_VARIABLE):  # it is said each time
        return
    told, errors = str(folder.absolute()), (OSError, ValueError)
    with contextlib.suppress(*errors), replacing(_own_folder() / LAST) as file:
        file.write_text(told, "utf-8")  # not every path can be


def _own_folder() -> Path:
    data = platformdirs.user_data_path("napari-attunet", appauthor=False)
    return data / "training"


class TrainingSet:
    """A folder of samples.

    Several processes may use it at a time: samples appear and go as a whole.

    Parameters
    ----------
    folder : path, optional
        By default `default_folder`. It need not exist.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder or default_folder())

    # ---- reading -----------------------------------------------------------------

    def samples(self) -> tuple[Sample, ...]:
        """Return the samples, oldest first; skips damaged ones. Reads no pixels."""
        found = [s for _, s in self._folders() if isinstance(s, Sample)]
        return tuple(sorted(found, key=lambda s: (s.created, s.id)))

    def damaged(self) -> dict[Path, str]:
        """Return the folders that are no whole samples, and why not."""
        return {
            path: wrong for path, wrong in self._folders() if isinstance(wrong, str)
        }

    def read(self, sample: Sample) -> Correction:
        """Read a sample's arrays, just as they were given.

        Raises
        ------
        DataError
            If it is gone or damaged.
        """
        for _ in range(ATTEMPTS):
            present = self._described(sample.folder)
            try:
                correction = read_arrays(present)
            except DataError:
                if self._described(sample.folder) == present:
                    raise
                continue
            if self._described(sample.folder).updated == present.updated:
                return correction
        raise DataError(f"{sample.folder} changes while it is read. Try again.")

    # ---- writing -----------------------------------------------------------------

    def add(self, correction: Correction) -> Sample:
        """Keep a snapshot of a correction.

        Raises
        ------
        DataError
            If there is nothing to learn from it, or the folder cannot be written.
        """
        identifier = f"{_slug(correction.name)}-{uuid.uuid4().hex[:8]}"
        return self._store(correction, identifier, None)

    def update(self, sample: Sample, correction: Correction) -> Sample:
        """Replace what a sample holds; of the same image the same stays held out.

        Raises
        ------
        DataError
            As `add`, or if the sample is gone.
        """
        present = self._described(sample.folder)
        return self._store(correction, present.id, present)

    def set_used(self, sample: Sample, used: bool) -> Sample:
        """Say whether a sample is trained on.

        Raises
        ------
        DataError
            If the sample is gone or damaged, or cannot be written.
        """
        changed = dataclasses.replace(self._described(sample.folder), used=used)
        with _writing(sample.folder), self._alone():
            write_description(changed, changed.folder)
        return changed

    def remove(self, sample: Sample) -> None:
        """Delete a sample; that it is gone already is fine.

        Raises
        ------
        DataError
            If it cannot be deleted.
        """
        gone = self.folder / f".{uuid.uuid4().hex[:8]}.{sample.id}.gone"
        with _writing(sample.folder), self._alone():
            for old in self._left_over(sample.id):
                shutil.rmtree(old)
            with contextlib.suppress(FileNotFoundError):
                sample.folder.replace(gone)  # at once: no half of it is seen
                shutil.rmtree(gone)

    # ---- steps -------------------------------------------------------------------

    def _folders(self) -> Iterator[tuple[Path, Sample | str]]:
        """Yield every folder with its sample, or what is wrong with it."""
        if not self.folder.is_dir():
            return
        # Nobody moves them meanwhile; a folder that we may not lock is read as it is.
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                stack.enter_context(self._alone())
                self._restore()
            paths = sorted(self.folder.iterdir())
        for path in paths:
            if path.name.startswith(".") or not path.is_dir():
                continue
            try:
                yield path, self._described(path)
            except DataError as error:
                if path.is_dir():  # not just removed by another process
                    yield path, str(error)

    def _alone(self) -> FileLock:
        """Keep other processes and threads from moving samples, once entered."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / LOCK, timeout=PATIENCE)

    def _described(self, folder: Path) -> Sample:
        """Read what a folder holds; not just while it is being replaced."""
        try:
            return read_description(folder)
        except DataError:
            if not self.folder.is_dir():
                raise
            with contextlib.ExitStack() as stack:
                with contextlib.suppress(OSError):
                    stack.enter_context(self._alone())
                return read_description(folder)

    def _restore(self) -> None:
        """Put a sample back that a crash in the middle of an update left aside."""
        for old in self._left_over("*"):
            path = self.folder / old.name.split(".", 2)[2].removesuffix(".old")
            if not path.exists():
                old.replace(path)

    def _left_over(self, identifier: str) -> list[Path]:
        """Return old versions of samples that were not cleared away."""
        return list(self.folder.glob(f".????????.{identifier}.old"))

    def _hold_out(
        self,
        frames: Sequence[Frame],
        image_sha256: str,
        correction: Correction,
        identifier: str,
    ) -> Split:
        """Decide what is held out of an image, and keep that in mind.

        Models are trained on the rest of what is known, should it ever be gone and come
        back. Alone, so that of two that come at the same time the first one decides.
        """
        axes, samples = correction.view().label_axes, self.samples()
        same = [s for s in samples if s.image_sha256 == image_sha256]
        others = {s.image_sha256 for s in samples if s.id != identifier}
        notes = self.folder / NOTES
        notes.mkdir(parents=True, exist_ok=True)
        # A lock of its own, for stacks of many frames take their time.
        with FileLock(notes / LOCK, timeout=LONG_PATIENCE):
            noted = [self._noted(frame) for frame in frames]
            # Volumes are cut otherwise; and notes are hidden files, easily lost.
            if same and (same[0].ndim != correction.ndim or not any(noted)):
                split = in_axes(same[0].split, same[0].label_axes, axes)
            else:
                split = _choose(frames, noted, others - {image_sha256}, axes)
            if split.validation == "blocks":
                lengths = dict(zip(axes, split.block, strict=True))
                if any(lengths[a] > 1 for a in frames[0].place):  # cut as volumes
                    return split
            for frame, part in zip(frames, apart(split, axes, frames), strict=True):
                note = _Note(axes=frame.axes, split=part)
                if frame.known.any() and self._noted(frame) is None:
                    with replacing(self._note(frame.sha256)) as temporary:
                        temporary.write_text(to_json(note), "utf-8")
        return split

    def _note(self, image_sha256: str) -> Path:
        return self.folder / NOTES / f"{image_sha256}.json"

    def _noted(self, frame: Frame) -> Split | None:
        """Return what was held out of a frame before."""
        try:
            note = from_json(_Note, self._note(frame.sha256).read_text("utf-8"))
            return in_axes(note.split, note.axes, frame.axes)
        except (OSError, ModelError, ValueError):  # none, or damaged
            return None

    def _store(
        self, correction: Correction, identifier: str, present: Sample | None
    ) -> Sample:
        """Write a snapshot; the folder appears, or takes the old one's place, whole."""
        correction = _labels_kept(correction)
        found = correction.truth()
        correction.check(found)
        count = correction.count(found)
        view = correction.view()
        # Only now, since reading a lazy image may take long.
        image = np.array(correction.image[(slice(None),) * len(view.axes)])
        arrays = {"image": image, "labels": correction.labels}
        if correction.regions is not None:
            arrays["regions"] = correction.regions
        if correction.prediction is not None:
            arrays["prediction"] = correction.prediction
        image_sha256 = hash_image(image, view.axes)
        frames = frames_of(image, view.axes, found.weight > 0, correction.ndim)
        with _writing(self.folder):
            split = self._hold_out(frames, image_sha256, correction, identifier)
        held = split_mask(split, found.weight.shape) & (found.weight > 0)
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        folder = self.folder / identifier
        with _writing(folder), replacing(folder, alone=self._alone()) as temporary:
            temporary.mkdir()
            for name, array in arrays.items():
                axes = view.axes if name == "image" else view.label_axes
                write_image(temporary / array_file(name), array, axes=axes)
            sample = Sample(
                folder=folder,
                id=identifier,
                name=correction.name,
                axes=view.axes,
                ndim=correction.ndim,
                output=correction.output,
                extent=correction.extent,
                background=correction.background,
                model=correction.model,
                source=correction.source,
                created=present.created if present else now,
                updated=now,
                shape=view.label_shape,
                image_shape=image.shape,
                image_sha256=image_sha256,
                dtypes={name: array.dtype.str for name, array in arrays.items()},
                sizes={n: (temporary / array_file(n)).stat().st_size for n in arrays},
                count={
                    "known": count.known,
                    "total": count.total,
                    "objects": count.objects,
                    "changed": count.changed,
                    "held": int(np.count_nonzero(held)),
                },
                pixels={str(value): n for value, n in count.pixels.items()},
                used=present.used if present else True,
                **dataclasses.asdict(split),
            )
            write_description(sample, temporary)
        return sample


# ---- steps of adding -------------------------------------------------------------


def _labels_kept(correction: Correction) -> Correction:
    """Copy what may be painted on, and take of the source what JSON can say."""

    def copied(array: Any) -> Any:
        return None if array is None else np.array(array)

    regions = correction.regions
    return dataclasses.replace(
        correction,
        labels=copied(correction.labels),
        prediction=copied(correction.prediction),
        regions=None if regions is None else np.array(regions, bool),
        background=correction.background and int(correction.background),
        source=json.loads(json.dumps(correction.source)),
    )


def _choose(
    frames: Sequence[Frame],
    noted: Sequence[Split | None],
    others: Set[str],
    axes: str,
) -> Split:
    """Return what is held out of an image: as before, or as its content decides.

    Each frame of a stack decides for itself: it may come alone, or with others.

    Parameters
    ----------
    frames : sequence of Frame
    noted : sequence of Split, optional
        What was held out of each before.
    others : set of str
        Hashes of the other images.
    axes : str
        Of the labels.
    """
    others = set(others)
    few = sum(int(np.count_nonzero(f.known)) for f in frames) < FEW_PIXELS
    many = len(others) + sum(f.known.any() for f in frames) > FEW_IMAGES
    splits = []
    for frame, note in zip(frames, noted, strict=True):
        cut = zip(frame.known.shape, frame.block, strict=True)
        cells = math.prod(-(-n // b) for n, b in cut)
        # What is too small for blocks is held out whole or not at all.
        images = FEW_IMAGES if many and cells < FEW_CELLS else len(others)
        chosen = split_image(
            frame.sha256, frame.known, frame.block, images=images, few=few
        )
        splits.append(note or chosen)
        if frame.known.any():
            others.add(frame.sha256)
    return joined(frames, splits, axes)


def _slug(name: str) -> str:
    """Return a name that every file system takes."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    slug = re.sub("[^a-z0-9]+", "-", plain.lower())[:SLUG].strip("-")
    return slug or "image"


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written: {error.strerror or error}. Choose another "
            "folder for the training set, or make room and see to its permissions."
        ) from error
