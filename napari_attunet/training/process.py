"""Training in a process of its own, and what its two ends say to each other.

The child is the command ``napari-attunet train … --json --supervised``. A crash of it,
or of a driver below it, costs the viewer nothing, and all memory is given back when it
ends. It writes one JSON object a line on its stdout::

    {"event": "progress", "done": 3, "total": 80, "message": "…", "values": {"loss": 1},
     "seconds_left": 24.1}
    {"event": "result", …}
    {"event": "error", "message": "…"}

A line ``stop`` on its stdin asks for the best so far. The end of its stdin says that
nobody is left to train for: it keeps its checkpoint and ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, TextIO, TypeVar

from napari_attunet.errors import Cancelled, TrainingError
from napari_attunet.progress import Enough, Progress, Steps, TimeLeft

__all__ = ["COMMAND", "Stream", "Supervisor", "child_steps", "has_scores"]

logger = logging.getLogger(__name__)

R = TypeVar("R")

#: The command that trains. ``-P``: no file beside which the viewer was started may
#: stand in for a library.
COMMAND = (sys.executable, "-P", "-m", "napari_attunet", "train")

#: Without news so often comes a heartbeat, at which whoever drains may cancel.
HEARTBEAT = 0.2
#: How long a child may take to end after it was asked to, and after its last word.
TERMINATE_SECONDS, LEAVE_SECONDS = 0.3, 5.0
#: How long an orphan may take to keep its checkpoint.
ORPHAN_SECONDS = 5.0
#: Events with nothing but a loss are told this often at most.
NEWS_SECONDS = 0.1
#: What is quoted of the last words of a child that died.
TAIL_BYTES, TAIL_LINES = 4096, 12

#: The exit status of an orphan that had to be ended.
ORPHANED = 1


def has_scores(progress: Progress) -> bool:
    """Whether a step was validated: its values are more than those of every step."""
    return bool((progress.values or {}).keys() - {"loss", "learning_rate"})


# --- the viewer's end -----------------------------------------------------------------


def child_steps(
    arguments: Sequence[str],
    *,
    enough: threading.Event | None = None,
    log: Path | None = None,
    command: Sequence[str] = COMMAND,
) -> Steps[dict[str, Any]]:
    """Train in a child process.

    Closing the steps kills the child and all that it started, at once and for good;
    what it has written whole stays.

    Parameters
    ----------
    arguments : sequence of str
        Of the command ``train``, but for ``--json`` and ``--supervised``.
    enough : Event, optional
        Once it is set the child is told to go on with the best so far.
    log : Path, optional
        What the child says beside its events is added to this file.
    command : sequence of str
        What is started.

    Returns
    -------
    generator
        Yields the child's `Progress` as it comes, and every `HEARTBEAT` seconds the
        last one without its values; returns the child's result.

    Raises
    ------
    TrainingError
        If the child cannot be started, reports an error, dies or ends without a
        result.
    """
    child = _Child([*command, *arguments, "--json", "--supervised"], log)
    last = Progress(0, 0, "Starting")
    result: dict[str, Any] | None = None
    told = False
    try:
        yield last
        while (news := child.news()) is not _END:
            if isinstance(news, Progress):
                last = news
                yield news
            elif news is None:
                yield dataclasses.replace(last, values=None)
            elif news["event"] == "error":
                raise TrainingError(str(news.get("message")))
            else:
                result = news
            if enough is not None and enough.is_set() and not told:
                told = True
                child.say("stop")
        patience = time.monotonic() + LEAVE_SECONDS
        while child.status() is None and time.monotonic() < patience:
            yield dataclasses.replace(last, values=None)
            time.sleep(HEARTBEAT / 4)
        if result is None:
            raise TrainingError(_why(child.status(), child.last_words()))
        if child.status() != 0:  # on the way out, when all had been written
            logger.warning("training: %s", _why(child.status(), child.last_words()))
        return result
    finally:
        child.end()


_END = object()


class _Child:
    """A process, a thread that reads what it says, and the file of all else."""

    def __init__(self, command: Sequence[str], log: Path | None) -> None:
        # A file and no pipe: nobody has to empty it.
        self._words: IO[bytes]
        if log is None:
            self._words = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        else:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._words = log.open("a+b", buffering=0)
        self._words_begin = self._words.seek(0, os.SEEK_END)
        own: dict[str, Any] = {"process_group": 0}  # to be killed with all it starts
        if sys.platform == "win32":
            flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
            own = {"creationflags": flags}
        talk = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                env=os.environ | talk | {"PYTHONFAULTHANDLER": "1"},
                **own,
            )
        except OSError as error:
            self._words.close()
            raise TrainingError(
                f"The training could not be started: {error}. Is Python still "
                f"installed at {command[0]}?"
            ) from error
        self._silence = 0  # heartbeats since it died
        self._news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._reader = threading.Thread(
            target=self._read, name="training-events", daemon=True
        )
        self._reader.start()

    def _read(self) -> None:
        stdout: Any = self._process.stdout
        with stdout, contextlib.suppress(ValueError):  # nobody keeps its words any more
            for line in stdout:
                event = _event(line)
                if event is None:  # a library that prints
                    self._words.write(line)
                else:
                    self._news.put(event)
        self._news.put(_END)

    def news(self) -> Any:
        """Return the next event, ``None`` if none came for a while, or the end."""
        try:
            return self._news.get(timeout=HEARTBEAT)
        except queue.Empty:
            if self.status() is None:
                return None
            # What it started keeps its stdout open, or got away with it.
            self._kill_group()
            self._silence += 1
            return _END if self._silence * HEARTBEAT > 1 else None

    def say(self, word: str) -> None:
        """Write a line to the child; one that is dying need not hear it."""
        stdin = self._process.stdin
        if stdin is not None:
            with contextlib.suppress(OSError):
                stdin.write(f"{word}\n".encode())
                stdin.flush()

    def status(self) -> int | None:
        """Return how it ended: a negative number is that of a signal."""
        return self._process.poll()

    def last_words(self) -> str:
        """Return the end of what was said beside the events."""
        end = self._words.seek(0, os.SEEK_END)
        self._words.seek(max(self._words_begin, end - TAIL_BYTES))
        lines = self._words.read().decode("utf-8", "replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-TAIL_LINES:])

    def end(self) -> None:
        """Leave nothing behind: no process, no thread, no pipe."""
        if self.status() is None:
            self._terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(TERMINATE_SECONDS)
        self._kill_group()
        self._process.wait()
        self._reader.join(timeout=1)
        for stream in (self._process.stdin, self._words):
            if stream is not None:
                with contextlib.suppress(OSError):  # a word that was never heard
                    stream.close()

    def _terminate(self) -> None:
        if sys.platform == "win32":
            self._process.terminate()
        else:
            self._signal_group(signal.SIGTERM)

    def _kill_group(self) -> None:
        if sys.platform == "win32":
            self._process.kill()
        else:
            self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: int) -> None:
        # macOS says "not permitted" of a group that is dead already
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def _event(line: bytes) -> Progress | dict[str, Any] | None:
    """Return what a line says, if it is one of ours."""
    try:
        event = json.loads(line)
        kind = event["event"]
        if kind == "progress":
            done, total = int(event["done"]), int(event["total"])
            values = {str(k): float(v) for k, v in dict(event["values"]).items()}
            return Progress(done, total, str(event["message"]), values or None)
    except (ValueError, TypeError, KeyError):
        return None
    return event if kind in ("result", "error") else None


def _why(status: int | None, words: str) -> str:
    """Return a sentence on a child that ended without a result."""
    said = f" It said:\n{words}" if words else ""
    resume = "Nothing that was saved is lost: start it again to go on from there."
    if status is None or status == 0:
        return f"The training ended without a result. {resume}{said}"
    if status > 0:
        number = status if status < 256 else hex(status)  # as Windows writes them
        return f"The training ended with exit status {number}.{said}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if name == "SIGKILL":
        return f"The training was killed, perhaps for lack of memory. {resume}{said}"
    return f"The training crashed ({name}). {resume}{said}"


# --- the child's end ------------------------------------------------------------------


class Stream:
    """Writes events as JSON lines.

    Parameters
    ----------
    out : text stream
    clock : callable
        Returns seconds.
    """

    def __init__(
        self, out: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._out = out
        self._clock = clock
        self._then = -math.inf
        self._last = Progress(0, 0)
        self._time_left = TimeLeft(clock)

    def progress(self, progress: Progress) -> None:
        """Tell of a step, unless it is one of many that say no more than its loss."""
        now, last = self._clock(), self._last
        ended = progress.done == progress.total != last.done
        if (
            now - self._then < NEWS_SECONDS
            and progress.message == last.message
            and not (ended or has_scores(progress))
        ):
            return
        self._then, self._last = now, progress
        facts = dataclasses.asdict(progress)
        # JSON has no word for what is no number
        values = {k: v for k, v in (progress.values or {}).items() if math.isfinite(v)}
        left = self._time_left(progress)
        facts |= {"values": values, "seconds_left": left and round(left, 1)}
        self._write("progress", facts)

    def result(self, facts: dict[str, Any]) -> None:
        """Tell what came of it: the last event."""
        self._write("result", facts)

    def error(self, message: str) -> None:
        """Tell why nothing came of it: the last event."""
        self._write("error", {"message": message})

    def _write(self, event: str, facts: dict[str, Any]) -> None:
        self._out.write(json.dumps({"event": event, **facts}) + "\n")
        self._out.flush()


class Supervisor:
    """Hears what whoever started this process wants of it.

    Its thread lives as long as the process: when nobody is left to train for and the
    steps have not ended after a while, it ends the process.

    Parameters
    ----------
    descriptor : int
        Of the pipe to listen to; by default stdin, which nothing else may read.
    patience : float
        Seconds that an orphan has to keep its checkpoint.
    leave : callable
        Ends the process.
    """

    def __init__(
        self,
        descriptor: int = 0,
        *,
        patience: float = ORPHAN_SECONDS,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self.enough = threading.Event()
        self.orphaned = threading.Event()
        self._descriptor = descriptor
        self._patience = patience
        self._leave = leave
        threading.Thread(target=self._listen, name="supervisor", daemon=True).start()

    def drain(self, steps: Steps[R], on_progress: Callable[[Progress], object]) -> R:
        """Run steps to their end, or to the end that the other side wants.

        Raises
        ------
        Cancelled
            If nobody is left to train for, or there is nothing yet to keep. The steps
            were closed.
        """
        told = False
        try:
            progress = next(steps)
            while True:
                on_progress(progress)
                if self.orphaned.is_set():
                    raise Cancelled("Whoever started the training is gone.")
                if self.enough.is_set() and not told:
                    told = True
                    progress = steps.throw(Enough())
                else:
                    progress = next(steps)
        except StopIteration as stop:
            result: R = stop.value
            return result
        except Enough:
            raise Cancelled("Stopped before anything was learnt.") from None
        finally:
            steps.close()

    def _listen(self) -> None:
        heard = b""
        while chunk := _receive(self._descriptor):
            *lines, heard = (heard + chunk).split(b"\n")
            if any(line.strip() == b"stop" for line in lines):
                self.enough.set()
        self.orphaned.set()
        time.sleep(self._patience)
        self._leave(ORPHANED)


def _receive(descriptor: int) -> bytes:
    """Return what came through a pipe, or nothing at its end.

    Not through ``sys.stdin``, whose lock a waiting thread would keep when Python ends.
    """
    try:
        if sys.platform == "win32":
            # While a read waits, libraries hang that look at stdin when they are
            # loaded (https://github.com/numpy/numpy/issues/24290).
            import _winapi
            import msvcrt

            handle = msvcrt.get_osfhandle(descriptor)
            while not _winapi.PeekNamedPipe(handle)[0]:
                time.sleep(HEARTBEAT)
        return os.read(descriptor, TAIL_BYTES)
    except OSError:
        return b""
