"""Attention U-Net segmentation, with every attention gate laid on the image.

The public names are found here and loaded when first used, so that importing this
package costs nothing: neither torch nor a viewer is touched.

Examples
--------
>>> from napari_attunet import load_model, segment
>>> model = load_model("nuclei-fluorescence")  # doctest: +SKIP
>>> result = segment(image, model, axes="YX")  # doctest: +SKIP
>>> result.labels, result.attention  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_attunet.attention import gate_statistics
    from napari_attunet.errors import AttUnetError
    from napari_attunet.inspection import Inspection
    from napari_attunet.library import Library
    from napari_attunet.model import Model, load_model, save_model
    from napari_attunet.segmenter import (
        AttentionMap,
        AttentionTable,
        Segmentation,
        Segmenter,
        segment,
    )
    from napari_attunet.spec import (
        AttentionSpec,
        GateSpec,
        ModelSpec,
        NetworkSpec,
        Normalization,
        ObjectSettings,
        TransformerSpec,
    )
    from napari_attunet.training.tuning import fine_tune

# OpenMP reads this when PyTorch is loaded. Threads that wait for each other would stay
# awake for many milliseconds, on cores that others need: beside one busy program a step
# of training took three times as long (docs/performance.md).
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"

__all__ = [
    "AttUnetError",
    "AttentionMap",
    "AttentionSpec",
    "AttentionTable",
    "GateSpec",
    "Inspection",
    "Library",
    "Model",
    "ModelSpec",
    "NetworkSpec",
    "Normalization",
    "ObjectSettings",
    "Segmentation",
    "Segmenter",
    "TransformerSpec",
    "fine_tune",
    "gate_statistics",
    "load_model",
    "save_model",
    "segment",
]

#: Module of each public name; a test holds it against `__all__`.
_HOMES = {
    "AttUnetError": "errors",
    "AttentionMap": "segmenter",
    "AttentionSpec": "spec",
    "AttentionTable": "segmenter",
    "GateSpec": "spec",
    "Inspection": "inspection",
    "Library": "library",
    "Model": "model",
    "ModelSpec": "spec",
    "NetworkSpec": "spec",
    "Normalization": "spec",
    "ObjectSettings": "spec",
    "Segmentation": "segmenter",
    "Segmenter": "segmenter",
    "TransformerSpec": "spec",
    "fine_tune": "training.tuning",
    "gate_statistics": "attention",
    "load_model": "model",
    "save_model": "model",
    "segment": "segmenter",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
