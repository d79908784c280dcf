"""Versions on the shelf, from the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from napari_attunet.library import Library
from napari_attunet.model import Model, load_model, save_model

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shelf(tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """A library with two versions of one model."""
    monkeypatch.setenv("NAPARI_ATTUNET_MODELS", str(tmp_path / "shelf"))
    library = Library()
    first = load_model(model_file)
    for spec in (first.spec, replace(first.spec, version=2, parent="tiny@1")):
        save_model(Model(spec, first.network), library.path_for(spec))
    return library


def listed(call: Call) -> dict[str, str]:
    """The lines of ``models list`` by their first word."""
    code, told, errors = call("models", "list")
    assert (code, errors) == (0, "")
    return {line.split()[0]: line for line in told.splitlines()}


def test_the_list_tells_the_current_version_and_the_parent(
    call: Call, shelf: Library
) -> None:
    lines = listed(call)
    assert "current" not in lines["tiny@1"]
    assert "current" in lines["tiny@2"]
    assert "tiny@1" in lines["tiny@2"]


def test_rolling_back(call: Call, shelf: Library) -> None:
    assert call("models", "use", "tiny@1") == (0, "tiny@1\n", "")
    assert "current" in listed(call)["tiny@1"]
    assert shelf.find("tiny").spec.key == "tiny@1"
    code, told, errors = call("models", "use", "tiny")
    assert (code, told) == (1, "")
    assert "which version" in errors


def test_duplicates_and_new_names(call: Call, shelf: Library) -> None:
    assert call("models", "duplicate", "tiny", "copy") == (0, "copy@1\n", "")
    assert shelf.find("copy").spec.parent == "tiny@2"
    assert call("models", "rename", "tiny", "small") == (0, "small@1\nsmall@2\n", "")
    assert shelf.find("copy").spec.parent == "small@2"
    code, _, errors = call("models", "rename", "small", "copy")
    assert code == 1
    assert "copy already" in errors
    code, _, errors = call("models", "rename", "nuclei-histology", "mine")
    assert code == 1
    assert "duplicate it" in errors


def test_the_history_never_waits_for_torch(shelf: Library) -> None:
    code = (
        "import sys; from napari_attunet.cli import main; "
        "main(['models', 'use', 'tiny@1']); main(['models', 'duplicate', 'tiny', 'b']);"
        "main(['models', 'rename', 'b', 'c']); main(['models', 'list']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert shelf.find("c").spec.parent == "tiny@1"
