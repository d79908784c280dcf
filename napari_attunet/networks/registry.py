"""Mechanisms by name: defining a class registers it."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from napari_attunet.errors import ModelError

__all__ = ["Registered"]


class Registered:
    """Base of what is chosen by name, one registry for each direct subclass.

    Its direct subclass says what it is a base of (``noun``); each class below that is
    given a name is registered under it. Without one it only shares an implementation.
    """

    kinds: ClassVar[dict[str, type[Any]]]
    noun: ClassVar[str]

    def __init_subclass__(
        cls, *, name: str | None = None, noun: str | None = None, **options: Any
    ) -> None:
        super().__init_subclass__(**options)
        if noun is not None:
            cls.kinds, cls.noun = {}, noun
        if name is None:
            return
        if name in cls.kinds:
            raise TypeError(f"{name!r} is taken by another {cls.noun}.")
        cls.kinds[name] = cls

    @classmethod
    def named(cls, name: str) -> type[Self]:
        """Return the class of that name; a miss lists the names there are."""
        try:
            return cls.kinds[name]
        except KeyError:
            raise ModelError(
                f"There is no {cls.noun} {name!r}; choose one of {sorted(cls.kinds)}."
            ) from None
