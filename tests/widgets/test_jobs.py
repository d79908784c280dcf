"""Work in threads: whatever happens, it ends, says so, and leaves nothing behind."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import warnings
import weakref

import numpy as np
import pytest
from qtpy.QtCore import QObject
from qtpy.QtWidgets import QWidget

from napari_attunet.errors import DataError
from napari_attunet.progress import Progress, TimeLeft
from napari_attunet.widgets.feedback import JobBar
from napari_attunet.widgets.jobs import Job, _Work


class Listener(QObject):
    """Writes down what a job tells, and in which thread."""

    def __init__(self):
        super().__init__()
        self.heard = []
        self.threads = set()

    def listen_to(self, job: Job) -> Job:
        job.progressed.connect(self.on_progressed)
        job.succeeded.connect(self.on_succeeded)
        job.failed.connect(self.on_failed)
        job.ended.connect(self.on_ended)
        return job

    def on_progressed(self, progress):
        self.hear("progressed", progress.done)

    def on_succeeded(self, result):
        self.hear("succeeded", result)

    def on_failed(self, error):
        self.hear("failed", error)

    def on_ended(self):
        self.hear("ended", None)

    def hear(self, what, value):
        self.threads.add(threading.current_thread())
        self.heard.append((what, value))

    @property
    def kinds(self):
        return [what for what, _ in self.heard]


@pytest.fixture
def listener(qtbot):
    yield Listener()
    qtbot.waitUntil(lambda: not _Work.alive)


def finish(qtbot, listener, job: Job) -> None:
    job.start()
    qtbot.waitUntil(lambda: "ended" in listener.kinds)


def forever(closed: threading.Event | None = None):
    """Steps that end only when they are closed."""
    try:
        done = 0
        while True:
            threading.Event().wait(0.002)
            done += 1
            yield Progress(done, 0)
    finally:
        if closed is not None:
            closed.set()


def test_steps_run_elsewhere_and_are_told_of_here(qtbot, listener):
    ran_in = []

    def steps():
        ran_in.append(threading.current_thread())
        yield Progress(1, 2)
        yield Progress(2, 2)
        return "result"

    finish(qtbot, listener, listener.listen_to(Job(steps)))
    assert listener.heard == [
        ("progressed", 1),
        ("progressed", 2),
        ("succeeded", "result"),
        ("ended", None),
    ]
    assert listener.threads == {threading.main_thread()}
    assert threading.main_thread() not in ran_in


@pytest.mark.parametrize("kind", [DataError, RuntimeError, MemoryError, SystemExit])
def test_every_error_arrives(qtbot, listener, kind):
    def steps():
        yield Progress(0, 1)
        raise kind("broken")

    finish(qtbot, listener, listener.listen_to(Job(steps)))
    assert listener.kinds == ["progressed", "failed", "ended"]
    error = dict(listener.heard)["failed"]
    assert type(error) is kind
    assert str(error) == "broken"


def test_an_error_before_the_first_step_arrives(qtbot, listener):
    finish(qtbot, listener, listener.listen_to(Job(lambda: 1 // 0)))
    assert listener.kinds == ["failed", "ended"]


def test_an_error_keeps_no_pixels(qtbot, listener):
    alive = []

    def steps():
        pixels = np.zeros(1000)
        alive.append(weakref.ref(pixels))
        yield Progress(0, 1)
        raise DataError("broken")

    finish(qtbot, listener, listener.listen_to(Job(steps)))
    assert dict(listener.heard)["failed"].__traceback__ is not None
    assert alive[0]() is None


def test_cancel_ends_at_the_next_step_and_frees_the_memory(qtbot, listener):
    alive, closed_in, held = [], [], []

    def steps():
        pixels = np.zeros(1000)
        alive.append(weakref.ref(pixels))
        try:
            yield from forever()
        finally:
            closed_in.append(threading.current_thread())

    def make_steps():
        held.append(steps())  # somebody else's reference must not keep it open
        return held[0]

    job = listener.listen_to(Job(make_steps))
    job.start()
    qtbot.waitUntil(lambda: "progressed" in listener.kinds)
    job.cancel()
    assert job.cancelled
    listener.heard.clear()
    qtbot.waitUntil(lambda: "ended" in listener.kinds, timeout=2000)
    assert listener.kinds == ["ended"]
    assert alive[0]() is None
    assert closed_in[0] is not threading.main_thread()


def test_cancel_before_the_start_does_no_work(qtbot, listener):
    began = []
    job = listener.listen_to(Job(lambda: began.append(1)))
    job.cancel()
    finish(qtbot, listener, job)
    assert listener.kinds == ["ended"]
    assert not began


def test_a_result_that_comes_after_cancel_is_dropped(qtbot, listener):
    go = threading.Event()

    def steps():
        go.wait(5)
        return "late"
        yield

    job = listener.listen_to(Job(steps))
    job.start()
    job.cancel()
    go.set()
    qtbot.waitUntil(lambda: "ended" in listener.kinds)
    assert listener.kinds == ["ended"]


def test_a_widget_takes_its_jobs_with_it(qtbot, listener):
    closed = threading.Event()
    widget = QWidget()
    job = listener.listen_to(Job(lambda: forever(closed), widget))
    job.start()
    qtbot.waitUntil(lambda: "progressed" in listener.kinds)
    widget.deleteLater()
    del widget
    qtbot.waitUntil(closed.is_set, timeout=2000)
    qtbot.waitUntil(lambda: not _Work.alive)
    assert "ended" not in listener.kinds


def test_nobody_listens_any_more(qtbot):
    listener, closed = Listener(), threading.Event()
    job = listener.listen_to(Job(lambda: forever(closed)))
    job.start()
    qtbot.waitUntil(lambda: "progressed" in listener.kinds)
    listener.deleteLater()
    qtbot.wait(30)  # whoever is deleted is not called; an error here fails the test
    job.cancel()
    qtbot.waitUntil(lambda: not _Work.alive)
    assert closed.is_set()


UNLOOPED = """
import time
from qtpy.QtWidgets import QApplication
from napari_attunet.progress import Progress
from napari_attunet.widgets.jobs import Job

def steps():
    yield Progress(0, 1, "")
    time.sleep(0.5)

application = QApplication([])
job = Job(steps)
job.start()
time.sleep(0.2)
"""


def test_a_script_may_end_without_an_event_loop():
    environment = os.environ | {"QT_QPA_PLATFORM": "offscreen"}
    done = subprocess.run(
        [sys.executable, "-c", UNLOOPED],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_jobs_and_listeners_are_collected(qtbot, listener):
    job = listener.listen_to(Job(lambda: (yield Progress(0, 1))))
    gone = weakref.ref(job), weakref.ref(job._work)
    finish(qtbot, listener, job)
    qtbot.waitUntil(lambda: not _Work.alive)
    del job
    qtbot.wait(10)
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_two_at_a_time_leave_warnings_as_they_were(qtbot, listener):
    filters, show = list(warnings.filters), warnings.showwarning
    first, second = (listener.listen_to(Job(forever)) for _ in range(2))
    first.start()
    second.start()
    qtbot.waitUntil(lambda: len(listener.heard) > 3)
    first.cancel()
    second.cancel()
    qtbot.waitUntil(lambda: listener.kinds.count("ended") == 2)
    assert warnings.filters == filters
    assert warnings.showwarning is show


@pytest.mark.parametrize(
    ("seconds", "done", "text"),
    [
        (10, 2, "%p %  about 40 s left"),
        (1, 9, "%p %  about 1 s left"),
        (60, 2, "%p %  about 4 min left"),
        (3600, 2, "%p %  about 4.0 h left"),
        (10, 10, "%p %"),
    ],
)
def test_the_bar_says_how_long_it_takes(qtbot, monkeypatch, seconds, done, text):
    now = iter([0.0, float(seconds)])
    bar = JobBar()
    qtbot.addWidget(bar)
    monkeypatch.setattr(bar, "_time_left", TimeLeft(lambda: next(now)))
    bar.follow(Progress(0, 10))
    assert bar.format() == "%p %"
    bar.follow(Progress(done, 10))
    assert bar.format() == text
