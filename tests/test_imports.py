"""What importing costs, what it must not bring along, and that every name resolves."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import napari_attunet

PACKAGE = Path(napari_attunet.__file__).parent
PROJECT = Path(__file__).parents[1] / "pyproject.toml"
GUI = ("magicgui", "napari", "pyqtgraph", "qtpy", "superqt", "vispy")
BINDINGS = ("PyQt5", "PyQt6", "PySide2", "PySide6")

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages([str(PACKAGE)], "napari_attunet.")
    if not module.name.endswith("__main__")  # which runs the command line
)
CORE = [m for m in MODULES if not m.startswith("napari_attunet.widgets")]

# Python started afresh: prints which of the given modules the code brought along.
LOADED = """
import sys
{code}
print(*(name for name in {names!r} if name in sys.modules))
"""

# Python in which the given modules cannot be imported.
BLOCKED = """
import importlib, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Refuse())
for module in {modules!r}:
    try:
        importlib.import_module(module)
    except ImportError as error:
        print(module, error)
"""


def run(code: str) -> list[str]:
    """Run code in a fresh interpreter and return the lines it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def contract(name: str) -> dict:
    """One of import-linter's contracts."""
    settings = tomllib.loads(PROJECT.read_text("utf-8"))["tool"]["importlinter"]
    return next(c for c in settings["contracts"] if c["id"] == name)


def test_the_package_imports_nothing_heavy():
    heavy = (*GUI, *BINDINGS, "torch", "numpy", "scipy", "skimage", "monai", "zarr")
    assert run(LOADED.format(code="import napari_attunet", names=heavy)) == []


def test_the_core_works_where_no_gui_is_installed():
    assert run(BLOCKED.format(names=(*GUI, *BINDINGS), modules=CORE)) == []


def test_the_light_rooms_work_without_torch():
    light = contract("torch")["source_modules"]
    assert set(light) <= set(MODULES)
    assert run(BLOCKED.format(names=("monai", "torch"), modules=light)) == []


def test_every_core_room_is_under_the_contract_that_forbids_the_gui():
    rooms = {".".join(m.split(".")[:2]) for m in CORE}
    assert rooms - {"napari_attunet.cli"} == set(contract("gui")["source_modules"])


def test_the_catalogue_knows_where_each_public_name_lives():
    assert napari_attunet.__all__ == sorted(napari_attunet.__all__)
    assert set(napari_attunet._HOMES) == set(napari_attunet.__all__)
    assert set(napari_attunet.__all__) <= set(dir(napari_attunet))


@pytest.mark.parametrize("name", napari_attunet.__all__)
def test_every_public_name_resolves(name):
    value = getattr(napari_attunet, name)
    home = importlib.import_module(f"napari_attunet.{napari_attunet._HOMES[name]}")
    assert value is getattr(home, name)
    assert name in home.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="segmentt"):
        napari_attunet.segmentt  # noqa: B018


@pytest.mark.parametrize("module", CORE)
def test_every_name_a_core_module_offers_resolves(module):
    module = importlib.import_module(module)
    assert [n for n in getattr(module, "__all__", ()) if not hasattr(module, n)] == []


def test_the_command_is_installed():
    (command,) = entry_points(group="console_scripts", name="napari-attunet")
    assert callable(command.load())


def test_every_python_name_of_the_manifest_resolves():
    pytest.importorskip("napari")
    manifest = pytest.importorskip("npe2").PluginManifest.from_distribution(
        "napari-attunet"
    )
    names = [c.python_name for c in manifest.contributions.commands]
    assert names
    for name in names:
        module, _, attributes = name.partition(":")
        value = importlib.import_module(module)
        for attribute in attributes.split("."):
            value = getattr(value, attribute)
        assert callable(value), name
