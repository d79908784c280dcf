"""The shelf: which models there are, their versions, and which of these is current.

Only headers are read here, so that listing models is quick and never imports torch.
Weights are the matter of `napari_attunet.model`; here their bytes are copied at most.

A version never changes once stored. Training makes the next one, and to go back is to
pin an earlier one: a pin holds until a version is stored that did not exist when it was
set, so that what is accepted anew is used at once.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import platformdirs

from napari_attunet.atomic import replacing
from napari_attunet.errors import ModelError
from napari_attunet.header import SUFFIX, copy_under, read_spec
from napari_attunet.schema import check, from_json, to_json
from napari_attunet.spec import ModelSpec

__all__ = ["Entry", "Library", "Node", "bundled_models"]

#: How often a version number is tried that other programs may take.
ATTEMPTS = 5

#: Overrides where the user's models are kept.
FOLDER_VARIABLE = "NAPARI_ATTUNET_MODELS"

#: In the folder of the user's models: which versions are pinned.
PINS = "current.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """A model on the shelf.

    Attributes
    ----------
    spec : ModelSpec
    path : Path
    bundled : bool
        Whether it came with napari-attunet and cannot be removed.
    current : bool
        Whether it is the version that its name alone means.
    """

    spec: ModelSpec
    path: Path
    bundled: bool
    current: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A model in the tree of descent, with the models that were made from it."""

    entry: Entry
    children: tuple[Node, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pin:
    """A version that is used until there is one above the newest of then."""

    name: str
    version: int
    newest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pins:
    """What is in the file of pins."""

    format: Literal[1] = 1
    pins: tuple[_Pin, ...] = ()


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

    # --- what there is --------------------------------------------------------------

    def entries(self) -> tuple[Entry, ...]:
        """Return every readable model, by name, then version; skips damaged files."""
        found = sorted(self._readable(), key=lambda e: (e.spec.name, e.spec.version))
        keys = {e.spec.key for e in found}
        current = {e.spec.name: e.spec.version for e in found}  # the newest comes last
        with contextlib.suppress(ModelError):  # `damaged` tells
            for pin in self._pins():
                alive = current.get(pin.name, 0) <= pin.newest
                if alive and f"{pin.name}@{pin.version}" in keys:
                    current[pin.name] = pin.version
        return tuple(
            replace(e, current=e.spec.version == current[e.spec.name]) for e in found
        )

    def damaged(self) -> dict[Path, str]:
        """Return the files of the shelf that cannot be read, and why."""
        wrong = {}
        for path, _ in self._files():
            try:
                read_spec(path)
            except ModelError as error:
                wrong[path] = str(error)
        try:
            self._pins()
        except ModelError as error:
            wrong[self.folder / PINS] = str(error)
        return wrong

    def find(self, name: str) -> Entry:
        """Return the model called ``"name"`` (its current version) or ``"name@2"``.

        Raises
        ------
        ModelError
            If there is none; the message lists what there is.
        """
        entries = self.entries()
        for entry in reversed(entries):  # the user's own before a bundled namesake
            if name == entry.spec.key or (name == entry.spec.name and entry.current):
                return entry
        have = ", ".join(e.spec.key for e in entries) or "none"
        raise ModelError(f"There is no model {name!r}. The library has: {have}.")

    def current(self, name: str) -> Entry:
        """Return the version that a name alone means: the pinned or the newest one.

        Raises
        ------
        ModelError
            If there is no model of that name; the message lists what there is.
        """
        return self.find(name.partition("@")[0])

    def lineage(self) -> tuple[Node, ...]:
        """Return all models as trees of descent, each under the one it was made from.

        A model whose parent is not on the shelf is the root of a tree.
        """
        entries = self.entries()
        children: dict[str, list[Entry]] = {}
        for entry in entries:
            children.setdefault(entry.spec.parent or "", []).append(entry)
        keys = {e.spec.key for e in entries}
        placed: set[Path] = set()

        def grow(entry: Entry) -> Node:
            placed.add(entry.path)
            below = children.get(entry.spec.key, ())
            return Node(entry, tuple(grow(e) for e in below if e.path not in placed))

        roots = [grow(e) for e in entries if e.spec.parent not in keys]
        # Files that were renamed by hand may be each other's parents.
        roots += [grow(e) for e in entries if e.path not in placed]
        return tuple(roots)

    # --- what comes and goes --------------------------------------------------------

    def path_for(self, spec: ModelSpec) -> Path:
        """Return where that version is kept among the user's models."""
        return self.folder / f"{spec.key}{SUFFIX}"

    def next_version(self, name: str, parent: str | None = None) -> int:
        """Return the lowest version number above all that this name has had.

        Numbers of deleted versions are not given again while a model names them as
        its parent or a pin was set in their time.

        Parameters
        ----------
        name : str
        parent : str, optional
            Key of the model's parent, which may have been renamed or deleted.
        """
        entries = self.entries()
        taken = [e.spec.version for e in entries if e.spec.name == name]
        for key in (parent, *(entry.spec.parent for entry in entries)):
            ancestor, _, version = (key or "").partition("@")
            if ancestor == name and version.isdecimal():
                taken.append(int(version))
        with contextlib.suppress(ModelError):
            taken += [pin.newest for pin in self._pins() if pin.name == name]
        return max(taken, default=0) + 1

    def add(self, source: Path) -> Entry:
        """Keep a model file as the next version of the name that it carries.

        Raises
        ------
        ModelError
            If the file is no model, or cannot be stored.
        """
        spec = read_spec(source)
        for attempt in range(ATTEMPTS):
            version = self.next_version(spec.name, spec.parent)
            spec = replace(spec, version=version)
            try:
                copy_under(spec, source, self.path_for(spec), exclusive=True)
                break
            except ModelError:  # another program was quicker
                if attempt + 1 == ATTEMPTS:
                    raise
        return self.find(spec.key)

    def make_current(self, key: str) -> Entry:
        """Make ``"name@version"`` the one that its name alone means.

        This holds until a newer version comes. The newest needs no pin and gets none.

        Raises
        ------
        ModelError
            If there is no such version.
        """
        entry = self._version(key, "use")
        name, version = entry.spec.name, entry.spec.version
        newest = self.next_version(name) - 1
        present = [e.spec.version for e in self.entries() if e.spec.name == name]
        if version == max(present):
            self._pin(name, None)
        else:
            self._pin(name, _Pin(name=name, version=version, newest=newest))
        return replace(entry, current=True)

    def duplicate(self, key: str, new_name: str) -> Entry:
        """Copy a model, as the first version of another name with this one as parent.

        Raises
        ------
        ModelError
            If there is no such model, or the new name is taken or not a good one.
        """
        entry = self.find(key)
        self.check_free(new_name)
        spec = replace(entry.spec, name=new_name, version=1, parent=entry.spec.key)
        path = self.path_for(spec)
        copy_under(spec, entry.path, path, exclusive=True)
        return Entry(spec, path, bundled=False, current=True)

    def rename(self, name: str, new_name: str) -> tuple[Entry, ...]:
        """Give all of the user's versions of a model another name.

        Their numbers stay, and models that were made from them follow. A crash on the
        way may leave versions under both names, but loses none.

        Raises
        ------
        ModelError
            If the user has no such model, or the new name is taken or not a good one.
        """
        self.check_free(new_name)
        own = [e for e in self.entries() if not e.bundled]
        moved = {e.spec.key: e for e in own if e.spec.name == name}
        if not moved:
            self.current(name)
            raise ModelError(
                f"{name} came with napari-attunet and keeps its name: duplicate it "
                "under another one."
            )
        follow = {key: replace(e.spec, name=new_name).key for key, e in moved.items()}
        pinned = self.current(name).spec
        others = []
        with contextlib.ExitStack() as undo:
            for entry in own:
                spec = entry.spec
                parent = follow.get(spec.parent or "", spec.parent)
                if spec.key in moved:
                    spec = replace(spec, name=new_name, parent=parent)
                    copy_under(spec, entry.path, self.path_for(spec), exclusive=True)
                    undo.callback(self.path_for(spec).unlink)
                elif parent != spec.parent:
                    others.append((replace(spec, parent=parent), entry.path))
            undo.pop_all()
        for spec, path in others:
            copy_under(spec, path, path, exclusive=False)
        for entry in moved.values():
            entry.path.unlink()
        self._pin(name, None)
        if pinned.key in moved:
            self.make_current(follow[pinned.key])
        return tuple(self.find(key) for key in follow.values())

    def remove(self, key: str) -> None:
        """Delete one of the user's models, given as ``"name@version"``.

        Models that were made from it keep its key as their parent.

        Raises
        ------
        ModelError
            If there is no such model or it is a bundled one.
        """
        entry = self._version(key, "remove")
        if entry.bundled:
            raise ModelError(f"{entry.spec.key} came with napari-attunet and stays.")
        name = entry.spec.name
        newest = max(e.spec.version for e in self.entries() if e.spec.name == name)
        with contextlib.suppress(ModelError):  # damaged pins are told elsewhere
            if any(p.name == name and p.newest < newest for p in self._pins()):
                self._pin(name, None)  # it has ended, and must not begin again
        entry.path.unlink()

    # --- behind the shelf -----------------------------------------------------------

    def _version(self, key: str, purpose: str) -> Entry:
        entry = self.find(key)
        check(
            entry.spec.key == key,
            f"Say which version of {entry.spec.name} to {purpose}, such as "
            f"{entry.spec.key}.",
        )
        return entry

    def check_free(self, name: str) -> None:
        """Raise a `ModelError` if there is a model of that name."""
        taken = {e.spec.name for e in self.entries()}
        check(name not in taken, f"There is a model {name} already: take another name.")

    def free_name(self, name: str) -> str:
        """Return a name that no model has: this one, or with a number behind it."""
        taken = {e.spec.name for e in self.entries()}
        numbers = (f"{name}-{n}" for n in itertools.count(2))
        return next(n for n in itertools.chain([name], numbers) if n not in taken)

    def _pins(self) -> tuple[_Pin, ...]:
        path = self.folder / PINS
        try:
            pins = from_json(_Pins, path.read_text("utf-8"))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, ModelError) as error:
            raise ModelError(
                f"{path} cannot be read, so the newest version of each model is used "
                f"({error}). Choosing a version anew replaces the file."
            ) from error
        return pins.pins

    def _pin(self, name: str, pin: _Pin | None) -> None:
        """Set or drop the pin of a name."""
        pins: list[_Pin] = []
        with contextlib.suppress(ModelError):
            pins += [p for p in self._pins() if p.name != name]
        if pin is not None:
            pins.append(pin)
        if not pins and not (self.folder / PINS).exists():
            return
        with replacing(self.folder / PINS) as temporary:
            temporary.write_text(to_json(_Pins(pins=tuple(pins))), "utf-8")

    def _readable(self) -> Iterator[Entry]:
        for path, bundled in self._files():
            # One that is gone by now is skipped as well.
            with contextlib.suppress(ModelError, OSError):
                now = path.stat()
                spec = _remembered(path, now.st_ino, now.st_mtime_ns, now.st_size)
                yield Entry(spec, path, bundled)

    def _files(self) -> Iterator[tuple[Path, bool]]:
        for folder, bundled in ((bundled_models(), True), (self.folder, False)):
            if folder.is_dir():
                for path in sorted(folder.glob(f"*{SUFFIX}")):
                    if not path.name.startswith("."):  # being written
                        yield path, bundled


@functools.lru_cache(maxsize=1024)
def _remembered(path: Path, *identity: int) -> ModelSpec:
    """Read a specification once for as long as the file is the same."""
    return read_spec(path)


def bundled_models() -> Path:
    """Return the folder of the models that came with the package.

    They lie inside the package in a wheel, and beside it in a checkout.
    """
    package = Path(str(importlib.resources.files("napari_attunet")))
    inside = package / "resources"
    return (inside if inside.is_dir() else package.parent / "resources") / "models"
