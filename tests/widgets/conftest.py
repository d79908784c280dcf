"""The GUI's tests: what they need where there is no OpenGL, and that nothing leaks."""

from __future__ import annotations

import importlib
import os
import time

import pytest

OFFSCREEN = os.environ.get("QT_QPA_PLATFORM") == "offscreen"


def _uses_qt(request) -> bool:
    return bool({"qtbot", "qapp", "make_napari_viewer"} & set(request.fixturenames))


def pytest_collection_modifyitems(items):
    if OFFSCREEN:
        skip = pytest.mark.skip(reason="needs OpenGL: no display and no Xvfb")
        for item in items:
            if item.get_closest_marker("gl"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _without_opengl(request, monkeypatch):
    """Qt's offscreen platform has no GL context, without which napari adds no layer."""
    if not OFFSCREEN or not _uses_qt(request):
        return
    for name in ("utils.gl", "layers.image", "layers.base"):
        module = importlib.import_module(f"napari._vispy.{name}")
        for function, answer in (
            ("get_gl_extensions", "GL_ARB_texture_float"),
            ("get_max_texture_sizes", (16384, 2048)),
        ):
            if hasattr(module, function):
                monkeypatch.setattr(module, function, lambda a=answer: a)


@pytest.fixture(autouse=True)
def _nothing_leaks(request):
    """No thread, progress bar or window outlives its test.

    Automatic fixtures are set up first, so this one looks after the viewer is closed.
    """
    if not _uses_qt(request):
        yield
        return
    from qtpy.QtWidgets import QApplication

    app = request.getfixturevalue("qapp")
    before = set(map(id, QApplication.topLevelWidgets()))
    yield
    from napari.utils.progress import progress
    from superqt.utils._qthreading import WorkerBase

    patience = time.monotonic() + 2  # a worker told to stop does so at its next step
    while WorkerBase._worker_set and time.monotonic() < patience:
        app.processEvents()
        time.sleep(0.01)
    app.processEvents()
    workers, bars = list(WorkerBase._worker_set), list(progress._all_instances)
    WorkerBase.await_workers(5000)
    windows = [
        w
        for w in QApplication.topLevelWidgets()
        if id(w) not in before and w.isVisible()
    ]
    for bar in bars:  # once is enough: the next test starts clean
        bar.close()
    for window in windows:
        window.close()
    assert not workers, f"outlived the test: {workers}"
    assert not bars, f"never closed: {bars}"
    assert not windows, f"left open: {windows}"


@pytest.fixture
def viewer(make_napari_viewer, qtbot):
    """A viewer, in which no work of ours goes on when the test is over."""
    from napari_attunet.widgets.jobs import _Work

    viewer = make_napari_viewer()
    yield viewer
    qtbot.waitUntil(lambda: not _Work.alive, timeout=20_000)


@pytest.fixture
def told():
    """Messages that napari shows to the user."""
    from napari.utils.notifications import notification_manager

    before = len(notification_manager.records)
    return lambda: [r.message for r in notification_manager.records[before:]]
