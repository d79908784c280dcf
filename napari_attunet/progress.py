"""Long work is a generator: it yields `Progress` and returns its result.

The same generator is drained by the command line with a bar, by a thread of the
viewer, and by hand in tests. Whoever drains it may stop at any step by closing it; and
within a step that takes seconds, if it asks `unwanted` now and then, by `until`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

__all__ = [
    "Enough",
    "Progress",
    "Steps",
    "TimeLeft",
    "ahead",
    "drain",
    "until",
    "unwanted",
]

R = TypeVar("R")
T = TypeVar("T")


class Enough(Exception):
    """Thrown into steps that can end early: keep what there is, and return it.

    ``steps.throw(Enough())`` gives the next `Progress`, or ends with the result.
    """


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a piece of work has come.

    Attributes
    ----------
    done, total : int
        Steps done of steps in all; ``total`` may be corrected while work goes on.
    message : str
        What is being done, for people.
    values : dict of str to float
        Measurements of this step, such as losses and scores.
    """

    done: int
    total: int
    message: str = ""
    values: dict[str, float] | None = None


Steps = Generator[Progress, None, R]


def drain(
    steps: Steps[R], on_progress: Callable[[Progress], object] | None = None
) -> R:
    """Run a generator of steps to its end and return its result.

    Parameters
    ----------
    steps : generator
        Yields `Progress`, returns the result.
    on_progress : callable, optional
        Called with every `Progress`. An exception it raises ends the work.
    """
    try:
        while True:
            progress = next(steps)
            if on_progress is not None:
                on_progress(progress)
    except StopIteration as stop:
        result: R = stop.value
        return result
    finally:
        steps.close()


_stop: ContextVar[Callable[[], bool]] = ContextVar("stop", default=lambda: False)


@contextmanager
def until(stop: Callable[[], bool]) -> Iterator[None]:
    """Tell what runs in this thread within the block when it is no longer wanted.

    Parameters
    ----------
    stop : callable
        Returns whether that is so; it is asked often.
    """
    token = _stop.set(stop)
    try:
        yield
    finally:
        _stop.reset(token)


def unwanted() -> bool:
    """Return whether nobody wants the step that is being made in this thread."""
    return _stop.get()()


class TimeLeft:
    """How long work will go on, from how it went so far.

    Parameters
    ----------
    clock : callable
        Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start: tuple[float, int] | None = None
        self._last = 0

    def __call__(self, progress: Progress) -> float | None:
        """Return seconds; ``None`` while that is unknown, and at the end."""
        if not progress.total:  # not begun
            return None
        now, done = self._clock(), progress.done
        if self._start is None or done < self._last:  # it began again
            self._start = (now, done)
        self._last = done
        began, first = self._start
        if done == first or progress.total <= done:
            return None
        return (now - began) / (done - first) * (progress.total - done)


def ahead(items: Iterable[T], count: int = 1) -> Generator[T]:
    """Yield the same items; those that follow are made in a thread while you use one.

    What making an item raises comes where the item would have come. When you close this
    early, the item that is being made is waited for, and no other.

    Parameters
    ----------
    items : iterable
    count : int
        So many items are made ahead, and no more.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "ahead") as thread:
        coming = deque(thread.submit(next, iterator, end) for _ in range(count))
        try:
            while (made := [coming.popleft().result()])[0] is not end:
                coming.append(thread.submit(next, iterator, end))
                yield made.pop()  # type: ignore[misc]  # nothing holds it here
        finally:
            for waiting in coming:
                waiting.cancel()
            coming.clear()  # else an error and this frame would hold each other
