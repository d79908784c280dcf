"""Frozen data that checks itself and travels as JSON.

What is written down of a model and its training are dataclasses. Their annotations are
the schema: reading refuses unknown fields, missing ones and values of another kind.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, Literal, TypeVar

from napari_attunet.errors import ModelError

__all__ = ["check", "check_choices", "from_json", "to_json"]

T = TypeVar("T")


def check(condition: bool, message: str) -> None:
    """Raise a `ModelError` unless the condition holds."""
    if not condition:
        raise ModelError(message)


def check_choices(spec: Any) -> None:
    """Refuse a word that is none of a field's choices."""
    for name, hint in typing.get_type_hints(type(spec)).items():
        several = typing.get_origin(hint) is tuple
        options = (hint, *typing.get_args(hint))
        choices = [
            c
            for option in options
            if typing.get_origin(option) is Literal
            for c in typing.get_args(option)
        ]
        value = getattr(spec, name)
        for word in value if several else (value,):
            check(
                not choices or word is None or word in choices,
                f"{name} must be one of {choices}, got {word!r}.",
            )


def to_json(spec: Any) -> str:
    """Return a specification as JSON text with sorted keys."""
    return json.dumps(dataclasses.asdict(spec), sort_keys=True, ensure_ascii=False)


def from_json(cls: type[T], text: str) -> T:
    """Read a specification of type ``cls`` from JSON text.

    Raises
    ------
    ModelError
        If the text is no JSON, a field is unknown or missing, or a value is of the
        wrong kind.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ModelError(f"The specification is not valid JSON: {error}.") from error
    value: T = _build(cls, data, cls.__name__)
    return value


def _build(kind: Any, data: Any, where: str) -> Any:
    """Make a value of the annotated kind out of what JSON can say."""
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if kind is Any:
        return data
    if origin is typing.Literal:
        check(
            data in arguments,
            f"{where} must be one of {list(arguments)}, got {data!r}.",
        )
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None:
            check(type(None) in arguments, f"{where} is missing.")
            return None
        return _build(next(a for a in arguments if a is not type(None)), data, where)
    if origin is tuple:
        check(isinstance(data, list), f"{where} must be a list, got {data!r}.")
        if arguments[-1] is Ellipsis:
            return tuple(
                _build(arguments[0], d, f"{where}[{i}]") for i, d in enumerate(data)
            )
        check(len(data) == len(arguments), f"{where} needs {len(arguments)} values.")
        return tuple(_build(a, d, where) for a, d in zip(arguments, data, strict=True))
    if origin is dict:
        check(isinstance(data, dict), f"{where} must be an object, got {data!r}.")
        return data
    if dataclasses.is_dataclass(kind):
        check(isinstance(data, dict), f"{where} must be an object, got {data!r}.")
        hints = typing.get_type_hints(kind)
        unknown = sorted(set(data) - set(hints))
        check(
            not unknown,
            f"{where} has unknown fields {unknown}; a newer version wrote it?",
        )
        values = {k: _build(hints[k], v, f"{where}.{k}") for k, v in data.items()}
        try:
            return kind(**values)  # type: ignore[operator]
        except TypeError as error:
            raise ModelError(f"{where} is incomplete: {error}.") from error
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    check(
        isinstance(data, kind) and not (kind is int and isinstance(data, bool)),
        f"{where} must be {kind.__name__}, got {data!r}.",
    )
    return data
