"""What is shipped is listed with its origin, and stays small."""

import hashlib
import json
from pathlib import Path

import pytest

import napari_attunet
from napari_attunet.header import read_spec
from napari_attunet.library import bundled_models
from napari_attunet.schema import from_json
from napari_attunet.spec import ModelSpec
from napari_attunet.training.settings import TrainingSettings

RESOURCES = bundled_models().parent
FILES = sorted(p for p in RESOURCES.rglob("*") if p.is_file() and p.name != "README.md")


def test_resources_are_found():
    assert RESOURCES.is_dir()
    assert Path(napari_attunet.__file__).parent in (
        RESOURCES.parent,
        RESOURCES.parent / "napari_attunet",
    )


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_each_file_is_listed_with_its_hash(path):
    readme = (RESOURCES / "README.md").read_text(encoding="utf-8")
    assert path.relative_to(RESOURCES).as_posix() in readme
    assert hashlib.sha256(path.read_bytes()).hexdigest() in readme
    assert path.stat().st_size < 5_000_000


def test_all_is_small():
    assert sum(p.stat().st_size for p in FILES) < 25_000_000


def read_recipe(path):
    recipe = json.loads(path.read_text(encoding="utf-8"))
    assert set(recipe) == {"model", "training"}
    described = from_json(ModelSpec, json.dumps(recipe["model"]))
    return described, from_json(TrainingSettings, json.dumps(recipe["training"]))


@pytest.mark.parametrize(
    "path", sorted((RESOURCES / "recipes").glob("*.json")), ids=lambda p: p.stem
)
def test_recipes_can_be_read(path):
    described, _ = read_recipe(path)
    assert described.name == path.stem


@pytest.mark.parametrize(
    "path", sorted((RESOURCES / "models").iterdir()), ids=lambda p: p.stem
)
def test_a_model_has_its_recipe(path):
    made = read_spec(path)
    described, settings = read_recipe(RESOURCES / "recipes" / f"{path.stem}.json")
    assert described.name == made.name == path.stem
    for name in ("network", "normalization", "objects", "output", "channels"):
        assert getattr(described, name) == getattr(made, name)
    recorded = from_json(TrainingSettings, json.dumps(made.training["settings"]))
    assert recorded == settings
    assert len(made.training["data"]["sha256"]) == 64
    assert made.training["scores"]["dice"] > 0.8
