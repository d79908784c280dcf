"""The header of a model file: its specification, read and written without the weights.

A model file is safetensors. What stands here knows its metadata and its length, never
its tensors, so that listing and copying models needs no torch.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

from safetensors import SafetensorError, safe_open

from napari_attunet.atomic import replacing
from napari_attunet.errors import ModelError
from napari_attunet.schema import from_json, to_json
from napari_attunet.spec import FORMAT_VERSION, ModelSpec

__all__ = ["HEADER_KEY", "SUFFIX", "copy_under", "read_spec", "write_header"]

#: The one entry of a model file's metadata: format and specification, as JSON. One,
#: because safetensors writes several in any order, and equal models are equal files.
HEADER_KEY = "napari_attunet"

SUFFIX = ".safetensors"


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


def copy_under(spec: ModelSpec, source: Path, target: Path, *, exclusive: bool) -> None:
    """Write the weights of one model file to another, under its own specification.

    The bytes of the weights stay as they are, whatever numbers they are. So does the
    date of the file, which tells when the weights were made.
    """
    try:
        with replacing(target, exclusive=exclusive) as temporary:
            with source.open("rb") as old, temporary.open("wb") as new:
                (length,) = struct.unpack("<Q", old.read(8))
                header = json.loads(old.read(length))
                header["__metadata__"] = write_header(spec)
                text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
                raw = text.encode()
                raw += b" " * (-len(raw) % 8)  # tensors begin on multiples of 8 bytes
                new.write(struct.pack("<Q", len(raw)) + raw)
                shutil.copyfileobj(old, new)
            read_spec(temporary)
            times = source.stat()
            os.utime(temporary, ns=(times.st_atime_ns, times.st_mtime_ns))
    except FileExistsError as error:
        raise ModelError(
            f"There is a file {target} already, which the library cannot read or has "
            "just been given by another program: move it away."
        ) from error
