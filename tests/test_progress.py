"""What is made ahead, in a thread; and how long work will go on."""

import contextlib
import threading
import weakref

import numpy as np
import pytest

from napari_attunet.progress import Progress, TimeLeft, ahead


def test_the_same_items_come_in_order():
    assert list(ahead(range(20))) == list(range(20))
    assert list(ahead([])) == []
    assert list(ahead([None, None])) == [None, None]


def test_one_item_is_made_ahead_and_no_more():
    asked = threading.Semaphore(0)
    made = []

    def items():
        for number in range(10):
            made.append(number)
            yield number
            asked.release()  # for the next

    with contextlib.closing(ahead(items())) as coming:
        assert next(coming) == 0
        assert asked.acquire(timeout=5)
    assert made == [0, 1]


def test_what_is_raised_comes_in_its_place():
    def items():
        yield 1
        raise OSError("gone")

    coming = ahead(items())
    assert next(coming) == 1
    with pytest.raises(OSError, match="gone"):
        next(coming)


def test_an_item_is_nobody_else_s():
    class Large:
        pass

    with contextlib.closing(ahead(Large() for _ in range(3))) as coming:
        item = weakref.ref(next(coming))
        assert item() is None


def test_arrays_are_items_like_any_other():
    items = [np.zeros(3), np.ones(3)]
    assert [a.sum() for a in ahead(items)] == [0, 3]


def test_it_is_another_thread_and_it_ends():
    def items():
        while True:
            yield threading.current_thread()

    with contextlib.closing(ahead(items())) as coming:
        thread = next(coming)
        assert thread is next(coming)
        assert thread is not threading.current_thread()
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("seconds", "done", "left"),
    [(10, 2, 40.0), (9, 9, 1.0), (3600, 2, 14400.0), (10, 10, None), (10, 0, None)],
)
def test_time_left(seconds, done, left):
    now = iter([0.0, float(seconds)])
    time_left = TimeLeft(lambda: next(now))
    assert time_left(Progress(0, 0)) is None  # reading, say: it has not begun
    assert time_left(Progress(0, 10)) is None
    assert time_left(Progress(done, 10)) == left


def test_time_left_begins_anew_when_the_work_does():
    now = iter([0.0, 10.0, 20.0, 30.0])
    time_left = TimeLeft(lambda: next(now))
    time_left(Progress(0, 10))
    time_left(Progress(9, 10))
    assert time_left(Progress(0, 20)) is None
    assert time_left(Progress(5, 20)) == 30.0
