"""A model is a specification with its network; this room alone reads weights.

A file is safetensors: the tensors, and in the metadata the specification as JSON.
Reading one can run no code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from napari_attunet.atomic import replacing
from napari_attunet.errors import ModelError
from napari_attunet.header import SUFFIX, read_spec, write_header
from napari_attunet.library import Library
from napari_attunet.networks import AttentionUNet
from napari_attunet.spec import ModelSpec

__all__ = ["Model", "load_model", "save_model"]


@dataclass(frozen=True, eq=False)
class Model:
    """A network and all that is needed to use it rightly; never half loaded.

    Attributes
    ----------
    spec : ModelSpec
    network : AttentionUNet
        In evaluation mode, in float32 on the CPU when fresh or just loaded.
    """

    spec: ModelSpec
    network: AttentionUNet

    @classmethod
    def fresh(cls, spec: ModelSpec, *, seed: int = 0) -> Model:
        """Return an untrained model; the same seed gives the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(spec, AttentionUNet(spec.network).eval())

    @classmethod
    def from_weights(cls, spec: ModelSpec, weights: Mapping[str, Tensor]) -> Model:
        """Return a model with these weights; every tensor must be there and fit.

        Raises
        ------
        ModelError
            If tensors are missing, left over or of another shape.
        """
        with torch.device("meta"):
            network = AttentionUNet(spec.network)
        wanted = network.state_dict()
        missing, extra = (
            sorted(wanted.keys() - weights.keys()),
            sorted(weights.keys() - wanted.keys()),
        )
        if missing or extra:
            raise ModelError(
                f"The weights don't belong to {spec.key}: missing {missing[:3]}, "
                f"left over {extra[:3]} ({len(missing)} and {len(extra)} in all)."
            )
        for name, tensor in wanted.items():
            if weights[name].shape != tensor.shape:
                raise ModelError(
                    f"The weights don't belong to {spec.key}: {name} is "
                    f"{tuple(weights[name].shape)}, should be {tuple(tensor.shape)}."
                )
        ours = {k: weights[k].to(v.dtype).clone() for k, v in wanted.items()}
        network.load_state_dict(ours, assign=True)
        network.requires_grad_(True)
        return cls(spec, network.eval())


def load_model(name: str | os.PathLike[str], library: Library | None = None) -> Model:
    """Load a model from the library by name, or from a file.

    Parameters
    ----------
    name : str or path
        ``"nuclei-fluorescence"`` (the newest version), ``"nuclei-fluorescence@1"``,
        or the path of a model file.
    library : Library, optional
        Where names are looked up.

    Raises
    ------
    ModelError
        If there is no such model or its file is damaged, foreign or too new.
    """
    path = Path(name)
    if not (isinstance(name, os.PathLike) or path.suffix == SUFFIX or path.is_file()):
        path = (library or Library()).find(str(name)).path
    spec = read_spec(path)
    try:
        weights = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"The weights in {path} cannot be read: {error}. Copy it again."
        ) from error
    try:
        return Model.from_weights(spec, weights)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def save_model(
    model: Model, path: str | os.PathLike[str], *, half: bool = False
) -> Path:
    """Write a model to a file, whole or not at all, and return its path.

    Parameters
    ----------
    model : Model
    path : path
        Ends in ``.safetensors``; its folder is made where it is missing.
    half : bool
        Store weights as float16, half the size; probabilities change by about 1e-3.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ModelError(f"A model file ends in {SUFFIX}, got {path.name!r}.")
    tensors = {
        name: tensor.detach().to("cpu", _stored(tensor.dtype, half)).contiguous()
        for name, tensor in model.network.state_dict().items()
    }
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, write_header(model.spec))
    return path


def _stored(dtype: torch.dtype, half: bool) -> torch.dtype:
    return torch.float16 if half and dtype.is_floating_point else dtype
