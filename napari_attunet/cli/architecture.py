"""``train``'s options that describe a new network."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from napari_attunet.architecture import (
    ATTENTION,
    GATES,
    SIGNALS,
    WHERE,
    AttentionSpec,
    GateSpec,
    NetworkSpec,
    TransformerSpec,
)
from napari_attunet.cli.training import given
from napari_attunet.errors import DataError

__all__ = ["OPTIONS", "add_options", "described"]

OPTIONS = ("ndim", "features", "gate", "signal", "attention", "transformer", "residual")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser."""
    group = parser.add_argument_group(
        "new network", "What is trained from scratch; all else is as by default."
    )
    add = group.add_argument
    add("--ndim", type=int, choices=(2, 3), help="spatial dimensions (default: 2)")
    add(
        "--features",
        type=_numbers,
        metavar="N,N,...",
        help="channels of each level, fine to coarse",
    )
    add("--gate", choices=(*GATES, "none"), help="on the skips (default: additive)")
    add("--signal", choices=SIGNALS, help="where gates take their signal")
    add(
        "--attention",
        type=_attention,
        action="append",
        metavar="KIND[@WHERE]",
        help=f"inside blocks: {', '.join(ATTENTION)}; in {', '.join(WHERE)} "
        "(default: all, of self: bottleneck); may be given several times",
    )
    add(
        "--transformer",
        action="store_true",
        default=None,
        help="a spatial transformer at the input",
    )
    add(
        "--residual",
        action="store_true",
        default=None,
        help="blocks add what came in to what they make of it",
    )


def described(args: argparse.Namespace, default: NetworkSpec) -> NetworkSpec | None:
    """Return the network that options describe; None if none of them was given.

    Raises
    ------
    DataError, ModelError
        If there can be no such network.
    """
    asked: dict[str, Any] = given(args, OPTIONS)
    if not asked:
        return None
    kind, signal = asked.pop("gate", None), asked.pop("signal", None)
    if kind == "none" and signal:
        raise DataError("--signal: there is no gate to take one.")
    if kind == "none":
        asked["gate"] = None
    elif kind or signal:
        gate = default.gate or GateSpec()
        changes = {"kind": kind, "signal": signal} if kind else {"signal": signal}
        asked["gate"] = dataclasses.replace(gate, **changes)
    if asked.pop("transformer", False):
        asked["transformer"] = TransformerSpec()
    if "attention" in asked:
        asked["attention"] = tuple(asked["attention"])
    other_levels = len(asked.get("features", default.features)) != default.levels
    if other_levels or asked.get("ndim", default.ndim) != default.ndim:
        asked["strides"] = ()
    return dataclasses.replace(default, **asked)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _attention(text: str) -> AttentionSpec:
    kind, _, where = text.partition("@")
    if kind not in ATTENTION or where not in (*WHERE, ""):
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of {', '.join(ATTENTION)}, with @ and one of "
            f"{', '.join(WHERE)} behind it or not"
        )
    usual = "bottleneck" if kind == "self" else "all"  # finer, it takes too much memory
    return AttentionSpec(kind=kind, where=where or usual)  # type: ignore[arg-type]
