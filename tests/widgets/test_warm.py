"""The segmenter that stays loaded between two presses."""

import shutil

import numpy as np
import pytest
from napari.layers import Image

from napari_attunet.errors import ModelError
from napari_attunet.header import read_spec
from napari_attunet.library import Library
from napari_attunet.widgets import warm
from napari_attunet.widgets.results import Settings, compute, plan
from napari_attunet.widgets.warm import let_go, segmenter_for


@pytest.fixture(autouse=True)
def _cold():
    let_go()
    yield
    let_go()


@pytest.fixture
def path(tmp_path):
    entry = Library().find("nuclei-fluorescence")
    return str(shutil.copy(entry.path, tmp_path / "model.safetensors"))


def test_the_second_press_loads_nothing(path, monkeypatch):
    first = segmenter_for(path, device="cpu")
    network = first.network_on(first.device)
    monkeypatch.setattr("napari_attunet.model.load_model", None)  # cannot be called
    again = segmenter_for(path, device="cpu")
    assert again is first
    assert again.network_on(again.device) is network


def test_what_is_asked_for_is_what_comes(path):
    first = segmenter_for(path, device="cpu")
    other = segmenter_for(path, device="cpu", threads=1, tile=64)
    assert other is not first
    assert other.threads == 1
    assert segmenter_for(path, device="cpu") is not first  # one is kept, no more


def test_the_defaults_said_or_not_are_the_same(path):
    said = {"device": "auto", "threads": None, "tile": None, "precision": "auto"}
    assert segmenter_for(path) is segmenter_for(path, **said)
    exact = segmenter_for(path, precision="exact")
    assert exact.precision == "exact"


def test_a_model_written_anew_is_loaded_anew(path):
    first = segmenter_for(path)
    shutil.copy(Library().find("nuclei-histology").path, path)
    assert segmenter_for(path).model.spec.name == "nuclei-histology"
    assert first.model.spec.name == "nuclei-fluorescence"


def test_memory_is_given_back_when_idle(path, monkeypatch):
    monkeypatch.setattr(warm, "IDLE_SECONDS", 0.05)
    segmenter_for(path)
    warm._timer.join(5)
    assert warm._kept is None


def test_what_is_in_use_is_not_idle(path, monkeypatch):
    monkeypatch.setattr(warm, "IDLE_SECONDS", 60)
    first = segmenter_for(path)
    before = warm._timer
    warm.used()
    assert warm._timer is not before
    assert before.finished.is_set()  # it never goes off
    assert segmenter_for(path) is first
    let_go()
    warm.used()  # nothing is left to be kept
    assert warm._timer is None


def test_a_run_counts_until_its_end(path, monkeypatch):
    layer = Image(np.zeros((32, 32), np.uint8))
    spec = read_spec(path)
    settings = Settings(model=path, device="cpu", attention=False)
    steps = compute(plan([layer], layer, spec, settings))
    told = []
    monkeypatch.setattr("napari_attunet.widgets.results.used", lambda: told.append(1))
    for progress in steps:
        assert not told or progress.message == "Preparing layers"
    assert told == [1]


def test_a_model_that_cannot_be_loaded_leaves_nothing(path, tmp_path):
    segmenter_for(path)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    with pytest.raises(ModelError):
        segmenter_for(str(bad))
    assert warm._kept is None
