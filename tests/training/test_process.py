"""A child trains: it is heard, stopped, cancelled and survived, and never left over."""

import io
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from napari_attunet.errors import Cancelled, TrainingError
from napari_attunet.progress import Enough, Progress, drain
from napari_attunet.training.process import Stream, Supervisor, child_steps

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and groups")

# Seconds that a busy machine may take longer than it should.
BUSY = 2

# What every child in these tests begins with. It holds a line to the test, which is
# cut when it dies, whoever collects the dead.
BEGIN = """
import json, os, signal, socket, subprocess, sys, time
from napari_attunet.progress import Enough, Progress
from napari_attunet.training.process import Stream, Supervisor
line = socket.create_connection(("127.0.0.1", {port}))
line.sendall(b"%d." % os.getpid())
stream = Stream(sys.stdout)
def tell(done, message="", **values):
    stream.progress(Progress(done, 9, message, values))
"""

STEPS = """
def steps():
    try:
        for done in range(1000):
            yield Progress(done, 9, "learning")
            time.sleep(0.02)
    except Enough:
        yield Progress(9, 9, "comparing")
        return "the best so far"
    finally:
        open("closed", "w").close()
"""


class Line:
    """The test's end of the line that a child holds."""

    def __init__(self, server):
        self._server = server
        self.port = server.getsockname()[1]
        self._line = None

    def pid(self):
        if self._line is None:
            self._line, _ = self._server.accept()
            self._line.settimeout(8)
        number = b""
        while not number.endswith(b"."):
            number += self._line.recv(1)
        return int(number[:-1])

    def is_cut(self):
        """Wait until the child is dead."""
        try:
            return self._line.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    def close(self):
        for end in (self._line, self._server):
            if end is not None:
                end.close()


@pytest.fixture
def line():
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(20)
    line = Line(server)
    yield line
    line.close()


@pytest.fixture
def script(tmp_path, line):
    """Write a child; return the command that runs it."""

    def write(body):
        path = tmp_path / "child.py"
        path.write_text(BEGIN.format(port=line.port) + body)
        return (sys.executable, str(path))

    return write


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    left = [t for t in threading.enumerate() if t.name == "training-events"]
    assert left == []


def until(steps, wanted):
    """Drain steps until a progress says so."""
    return next(p for p in steps if p.message == wanted)


# --- what is heard --------------------------------------------------------------------


def test_news_come_at_once_and_heartbeats_between(script):
    body = """
tell(1, "learning", loss=0.5)
time.sleep(1.2)
tell(2, "learning", loss=0.4, dice=0.8)
stream.result({"file": "a", "best_step": 2})
"""
    seen, times = [], []
    result = drain(
        child_steps(["x", "--y"], command=script(body)),
        lambda p: (seen.append(p), times.append(time.monotonic())),
    )
    assert result == {"event": "result", "file": "a", "best_step": 2}
    assert seen[0] == Progress(0, 0, "Starting")
    news = [p for p in seen if p.values]
    assert news == [
        Progress(1, 9, "learning", {"loss": 0.5}),
        Progress(2, 9, "learning", {"loss": 0.4, "dice": 0.8}),
    ]
    first, second = (seen.index(p) for p in news)
    between = seen[first + 1 : second]
    assert len(between) >= 2
    assert set(map(repr, between)) == {repr(Progress(1, 9, "learning"))}
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert max(gaps) < 0.5 + BUSY


def test_the_child_gets_the_arguments(script):
    command = script("stream.result({'arguments': sys.argv[1:]})")
    result = drain(child_steps(["--set", "a b"], command=command))
    assert result["arguments"] == ["--set", "a b", "--json", "--supervised"]


def test_other_words_are_no_events_but_kept(script, tmp_path):
    body = r"""
os.write(1, b'hello\n[]\n7\n{"event": "other"}\n{"event": "progress"}\n\xff\n')
os.write(1, b'{"event": "progress", "done": 1, "total": 2, "message": "", "values": 3}\n')
os.write(2, b"a warning\n")
stream.result({})
"""  # noqa: E501
    log = tmp_path / "logs" / "training.log"
    steps = child_steps([], command=script(body), log=log)
    seen = []
    assert drain(steps, seen.append) == {"event": "result"}
    assert {p.message for p in seen} == {"Starting"}
    said = log.read_bytes()
    assert all(word in said for word in (b"hello", b"other", b"\xff", b"a warning"))


def test_a_talkative_child_does_not_block(script):
    body = """
for _ in range(200):
    os.write(2, b"x" * 9999 + b"\\n")
os.write(2, b"no such image\\n")
sys.exit(3)
"""
    with pytest.raises(TrainingError, match="exit status 3") as caught:
        drain(child_steps([], command=script(body)))
    assert str(caught.value).endswith("no such image")
    assert len(str(caught.value)) < 5000


def test_an_old_log_is_not_quoted(script, tmp_path):
    log = tmp_path / "training.log"
    log.write_text("the trouble of yesterday\n")
    command = script("os.write(2, b'trouble\\n'); sys.exit(2)")
    with pytest.raises(TrainingError) as caught:
        drain(child_steps([], command=command, log=log))
    assert str(caught.value).endswith("It said:\ntrouble")
    assert log.read_text() == "the trouble of yesterday\ntrouble\n"


def test_what_the_child_reports_is_raised(script):
    command = script("stream.error('The loss became nan.'); sys.exit(1)")
    with pytest.raises(TrainingError, match=r"^The loss became nan\.$"):
        drain(child_steps([], command=command))


@posix
@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "lack of memory.* go on from there"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"crashed \(SIGSEGV\)"),
        ("sys.exit(0)", "without a result"),
    ],
)
def test_a_death_is_told(script, end, message):
    steps = child_steps([], command=script(f"tell(1, 'learning')\n{end}"))
    with pytest.raises(TrainingError, match=message):
        drain(steps)


def test_a_result_stands_though_python_fails_on_its_way_out(script, caplog):
    command = script("stream.result({'file': 'a'}); os._exit(7)")
    assert drain(child_steps([], command=command))["file"] == "a"
    assert "exit status 7" in caplog.text


def test_what_cannot_be_started_is_told(tmp_path):
    with pytest.raises(TrainingError, match="could not be started"):
        drain(child_steps([], command=(str(tmp_path / "nothing"),)))


# --- stop and cancel ------------------------------------------------------------------


def test_enough_is_said_once(script):
    body = """
import threading
heard = []
threading.Thread(target=lambda: heard.extend(sys.stdin), daemon=True).start()
tell(1, "learning")
while not heard:
    time.sleep(0.01)
time.sleep(0.6)
stream.result({"heard": heard})
sys.stdout.flush()
os._exit(0)
"""
    enough = threading.Event()
    steps = child_steps([], command=script(body), enough=enough)
    until(steps, "learning")
    enough.set()
    assert drain(steps)["heard"] == ["stop\n"]


def test_stop_keeps_the_best_so_far(script, tmp_path):
    body = f"""
os.chdir({str(tmp_path)!r}){STEPS}
stream.result({{"kept": Supervisor().drain(steps(), stream.progress)}})
"""
    enough = threading.Event()
    steps = child_steps([], command=script(body), enough=enough)
    until(steps, "learning")
    enough.set()
    began = time.monotonic()
    until(steps, "comparing")
    assert time.monotonic() - began < 1 + BUSY
    assert drain(steps)["kept"] == "the best so far"


@pytest.mark.parametrize("deaf", [False, pytest.param(True, marks=posix)])
def test_cancel_leaves_no_process(script, line, deaf):
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if deaf else ""
    steps = child_steps([], command=script(f"{ignore}\ntell(1, 'on')\ntime.sleep(60)"))
    until(steps, "on")
    pid = line.pid()
    began = time.monotonic()
    next(steps)  # a heartbeat: the longest that a cancel waits for its turn
    steps.close()
    assert time.monotonic() - began < 1 + BUSY
    assert line.is_cut()
    if sys.platform != "win32":
        with pytest.raises(ProcessLookupError):  # nor a zombie
            os.kill(pid, 0)


@posix
@pytest.mark.parametrize("cancelled", [True, False])
def test_what_the_child_started_ends_with_it(script, line, cancelled):
    body = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which is handed down
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                 pass_fds=[line.fileno()])
signal.signal(signal.SIGTERM, signal.SIG_DFL)
tell(1, "on")
"""
    body += "time.sleep(60)" if cancelled else "stream.result({}); os._exit(0)"
    steps = child_steps([], command=script(body))
    until(steps, "on")
    line.pid()
    if cancelled:
        steps.close()
    else:
        assert drain(steps) == {"event": "result"}
    assert line.is_cut()


@posix
def test_one_that_got_away_is_not_waited_for(script, tmp_path):
    done = tmp_path / "done"
    away = f"""
import pathlib, time
end = time.monotonic() + 30
while time.monotonic() < end and not pathlib.Path({str(done)!r}).exists():
    time.sleep(0.05)
pathlib.Path({str(done)!r}).touch()
"""
    body = f"""
subprocess.Popen([sys.executable, "-c", {away!r}], start_new_session=True)
stream.result({{}})
"""
    assert drain(child_steps([], command=script(body))) == {"event": "result"}
    assert not done.exists()
    done.touch()
    for thread in threading.enumerate():
        if thread.name == "training-events":
            thread.join()  # ends with whoever holds the pipe


def test_a_child_that_will_not_leave_is_ended(script, line, monkeypatch):
    monkeypatch.setattr("napari_attunet.training.process.LEAVE_SECONDS", 0.3)
    body = "stream.result({'file': 'a'}); os.close(1); time.sleep(60)"
    assert drain(child_steps([], command=script(body)))["file"] == "a"
    line.pid()
    assert line.is_cut()


# --- when the viewer dies -------------------------------------------------------------


@posix
@pytest.mark.parametrize("work", ["drained", "stuck"])
def test_an_orphan_ends(script, line, tmp_path, work):
    """Somebody between us and the child is killed and can tell it nothing."""
    works = {
        "drained": f"{STEPS}\nSupervisor().drain(steps(), stream.progress)",
        "stuck": "Supervisor(patience=0.5); tell(1, 'learning'); time.sleep(60)",
    }
    command = script(f"os.chdir({str(tmp_path)!r})\n{works[work]}")
    viewer = f"""
from napari_attunet.training.process import child_steps
for progress in child_steps([], command={command!r}):
    print(progress.message, flush=True)
"""
    between = subprocess.Popen(
        [sys.executable, "-P", "-c", viewer], stdout=subprocess.PIPE, text=True
    )
    try:
        line.pid()
        assert "learning\n" in between.stdout
    finally:
        between.kill()
        between.wait()
        between.stdout.close()
    assert line.is_cut()
    assert (tmp_path / "closed").exists() is (work == "drained")


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)


def test_a_supervisor_listens(pipe):
    reading, writing = pipe
    left = threading.Event()
    supervisor = Supervisor(reading, patience=0, leave=lambda status: left.set())
    os.write(writing, b"stopp\nst")
    time.sleep(0.05)
    assert not supervisor.enough.is_set()
    os.write(writing, b"op\r\n")
    assert supervisor.enough.wait(5)
    assert not supervisor.orphaned.is_set()
    os.close(writing)
    assert left.wait(5)
    assert supervisor.orphaned.is_set()


def test_an_orphan_closes_its_steps(pipe):
    reading, writing = pipe
    closed = []

    def steps():
        try:
            while True:
                yield Progress(1, 2)
        finally:
            closed.append(True)

    supervisor = Supervisor(reading, leave=lambda status: None, patience=0)
    os.close(writing)
    with pytest.raises(Cancelled):
        supervisor.drain(steps(), lambda p: supervisor.orphaned.wait(5))
    assert closed == [True]


def test_a_supervisor_passes_results_and_errors_on(pipe):
    reading, writing = pipe
    supervisor = Supervisor(reading, leave=lambda status: None, patience=0)

    def good():
        yield Progress(1, 1)
        return 7

    def bad():
        yield Progress(1, 1)
        raise ValueError

    assert supervisor.drain(good(), lambda p: None) == 7
    with pytest.raises(ValueError):  # noqa: PT011 - its own
        supervisor.drain(bad(), lambda p: None)
    os.write(writing, b"stop\n")
    assert supervisor.enough.wait(5)
    stopped = []

    def asked():
        for _ in range(3):
            try:
                yield Progress(1, 1)
            except Enough:
                stopped.append(True)
                yield Progress(2, 2)

    supervisor.drain(asked(), lambda p: None)
    assert stopped == [True]
    with pytest.raises(Cancelled, match="before anything"):  # it knows no Enough
        supervisor.drain(good(), lambda p: None)
    os.close(writing)


# --- the stream -----------------------------------------------------------------------


def test_the_stream_says_what_matters():
    out, now = io.StringIO(), [0.0]
    stream = Stream(out, clock=lambda: now[0])
    for done in range(1, 31):
        now[0] = done / 100
        values = {"loss": 1.0 / done, "learning_rate": 0.1}
        if done == 7:
            values["dice"] = float("nan")
        if done == 8:
            values = {"loss": float("inf")}
        stream.progress(Progress(done, 30, "b" if done > 15 else "a", values))
    for _ in range(3):  # tiles of the last validation
        stream.progress(Progress(30, 30, "b"))
    stream.progress(Progress(0, 30, "c"))
    stream.result({"file": "x"})
    stream.error("no “good”")
    events = [json.loads(text) for text in out.getvalue().splitlines()]
    told = [e["done"] for e in events if e["event"] == "progress"]
    # every tenth of a second, with scores, another message, the last
    assert told == [1, 7, 16, 26, 30, 0]
    assert events[0] == {
        "event": "progress",
        "done": 1,
        "total": 30,
        "message": "a",
        "values": {"loss": 1.0, "learning_rate": 0.1},
        "seconds_left": None,
    }
    assert [e["seconds_left"] for e in events[1:6]] == [0.2, 0.1, 0.0, None, None]
    assert set(events[1]["values"]) == {"loss", "learning_rate"}
    assert events[-3]["values"] == {}
    assert events[-2:] == [
        {"event": "result", "file": "x"},
        {"event": "error", "message": "no “good”"},
    ]
    assert out.getvalue().isascii()


def test_the_module_waits_for_nothing_heavy():
    code = (
        "import sys, napari_attunet.training.process\n"
        "heavy = {'numpy', 'torch', 'napari', 'qtpy'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
