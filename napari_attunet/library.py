"""The shelf: which models there are, bundled and the user's own.

Only headers are read here, so that listing models is quick and never imports torch.
Weights are the matter of `napari_attunet.model`.
"""

from __future__ import annotations

import importlib.resources
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from safetensors import SafetensorError, safe_open

from napari_attunet.errors import ModelError
from napari_attunet.schema import from_json, to_json
from napari_attunet.spec import FORMAT_VERSION, ModelSpec

__all__ = ["SUFFIX", "Entry", "Library", "read_spec", "write_header"]

#: The one entry of a model file's metadata: format and specification, as JSON. One,
#: because safetensors writes several in any order, and equal models are equal files.
HEADER_KEY = "napari_attunet"

SUFFIX = ".safetensors"

#: Overrides where the user's models are kept.
FOLDER_VARIABLE = "NAPARI_ATTUNET_MODELS"


def read_spec(path: str | os.PathLike[str]) -> ModelSpec:
    """Read the specification in the header of a model file.

    Raises
    ------
    ModelError
        If the file is missing, damaged, truncated, not a model of ours, or written by
        a newer version; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"There is no model file {path}.")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} cannot be read as a model: it is damaged, incomplete or not a "
            f"safetensors file ({error}). Copy or download it again."
        ) from error
    if HEADER_KEY not in metadata:
        raise ModelError(
            f"{path} is a safetensors file, but not a model of napari-attunet: its "
            "header holds no specification."
        )
    try:
        header = json.loads(metadata[HEADER_KEY])
        version, spec = header["format"], json.dumps(header["spec"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"The header of {path} is damaged: {error!r}.") from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ModelError(
            f"{path} was written in format {version}, this version reads up to "
            f"{FORMAT_VERSION}: update napari-attunet."
        )
    try:
        return from_json(ModelSpec, spec)
    except ModelError as error:
        raise ModelError(f"The header of {path} is wrong: {error}") from error


def write_header(spec: ModelSpec) -> dict[str, str]:
    """Return the metadata of a model file that `read_spec` reads."""
    header = {"format": FORMAT_VERSION, "spec": json.loads(to_json(spec))}
    return {HEADER_KEY: json.dumps(header, sort_keys=True, ensure_ascii=False)}


@dataclass(frozen=True, slots=True)
class Entry:
    """A model on the shelf.

    Attributes
    ----------
    spec : ModelSpec
    path : Path
    bundled : bool
        Whether it came with napari-attunet and cannot be removed.
    """

    spec: ModelSpec
    path: Path
    bundled: bool


class Library:
    """The bundled models and the user's own, by name and version.

    Parameters
    ----------
    folder : path, optional
        The user's models; by default ``$NAPARI_ATTUNET_MODELS`` or the user's data
        directory. It need not exist.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        default = os.environ.get(FOLDER_VARIABLE) or (
            platformdirs.user_data_path("napari-attunet", appauthor=False) / "models"
        )
        self.folder = Path(folder or default)

    def entries(self) -> tuple[Entry, ...]:
        """Return every readable model, by name, then version; skips damaged files."""
        return tuple(
            sorted(self._readable(), key=lambda e: (e.spec.name, e.spec.version))
        )

    def damaged(self) -> dict[Path, str]:
        """Return the files of the shelf that cannot be read, and why."""
        wrong = {}
        for path, _ in self._files():
            try:
                read_spec(path)
            except ModelError as error:
                wrong[path] = str(error)
        return wrong

    def find(self, name: str) -> Entry:
        """Return the model called ``"name"`` (its newest version) or ``"name@2"``.

        Raises
        ------
        ModelError
            If there is none; the message lists what there is.
        """
        entries = self.entries()
        for entry in reversed(entries):  # newest version first
            if name in (entry.spec.name, entry.spec.key):
                return entry
        have = ", ".join(e.spec.key for e in entries) or "none"
        raise ModelError(f"There is no model {name!r}. The library has: {have}.")

    def path_for(self, spec: ModelSpec) -> Path:
        """Return where that version is kept among the user's models."""
        return self.folder / f"{spec.key}{SUFFIX}"

    def next_version(self, name: str) -> int:
        """Return the lowest version number above all that carry this name."""
        taken = [e.spec.version for e in self.entries() if e.spec.name == name]
        return max(taken, default=0) + 1

    def remove(self, key: str) -> None:
        """Delete one of the user's models, given as ``"name@version"``.

        Raises
        ------
        ModelError
            If there is no such model or it is a bundled one.
        """
        entry = self.find(key)
        if entry.bundled:
            raise ModelError(f"{entry.spec.key} came with napari-attunet and stays.")
        if entry.spec.key != key:
            raise ModelError(
                f"Say which version of {entry.spec.name} to remove, such as "
                f"{entry.spec.key}."
            )
        entry.path.unlink()

    def _readable(self) -> Iterator[Entry]:
        for path, bundled in self._files():
            try:
                yield Entry(read_spec(path), path, bundled)
            except ModelError:
                continue  # `damaged` tells

    def _files(self) -> Iterator[tuple[Path, bool]]:
        for folder, bundled in ((bundled_models(), True), (self.folder, False)):
            if folder.is_dir():
                for path in sorted(folder.glob(f"*{SUFFIX}")):
                    if not path.name.startswith("."):  # being written
                        yield path, bundled


def bundled_models() -> Path:
    """Return the folder of the models that came with the package.

    They lie inside the package in a wheel, and beside it in a checkout.
    """
    package = Path(str(importlib.resources.files("napari_attunet")))
    inside = package / "resources"
    return (inside if inside.is_dir() else package.parent / "resources") / "models"
