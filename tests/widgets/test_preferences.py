"""What is said in napari's preferences reaches a run."""

from types import SimpleNamespace

import pytest

from napari_attunet.widgets import learn, options
from napari_attunet.widgets.options import Options
from napari_attunet.widgets.preferences import preferred_threads

preferences = pytest.importorskip("napari.settings")
if not hasattr(preferences, "get_plugin_settings"):
    pytest.skip("before napari 0.9 plugins have none", allow_module_level=True)


def say(monkeypatch, threads):
    told = SimpleNamespace(performance=SimpleNamespace(threads=threads))
    monkeypatch.setattr(preferences, "get_plugin_settings", lambda name: told)


def test_the_manifest_offers_them():
    performance = preferences.get_plugin_settings("napari-attunet").performance
    assert performance.threads == 0
    assert preferred_threads() is None
    with pytest.raises(ValueError, match="threads"):
        performance.threads = -1


@pytest.mark.parametrize(("said", "expected"), [(0, None), (3, 3)])
def test_threads(monkeypatch, said, expected):
    say(monkeypatch, said)
    assert preferred_threads() == expected


def test_a_plugin_that_is_switched_off_prefers_nothing(monkeypatch):
    def missing(name):
        raise KeyError(name)

    monkeypatch.setattr(preferences, "get_plugin_settings", missing)
    assert preferred_threads() is None


def test_the_dock_has_the_last_word(qtbot, monkeypatch):
    say(monkeypatch, 3)
    assert learn.preferred_threads is options.preferred_threads is preferred_threads
    widget = Options()
    qtbot.addWidget(widget)
    chosen = {"model": "m", "device": "cpu"}
    assert widget.settings(**chosen).threads == 3
    widget.threads.setValue(2)
    assert widget.settings(**chosen).threads == 2
