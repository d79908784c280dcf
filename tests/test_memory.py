"""What is known of memory, and what is asked of it."""

import os
import subprocess
import sys

import psutil
import pytest
import torch

from napari_attunet import memory


def test_no_more_is_free_than_there_is():
    assert 0 < memory.available() <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [("3000000", "1000000", 2_000_300), ("1000", "5000", 0)],
)
def test_a_container_has_less(tmp_path, monkeypatch, limit, used, expected):
    details = "anon 9\nactive_file 100\ninactive_file 200\nfile 300"
    for name, text in (("LIMIT", limit), ("USED", used), ("DETAILS", details)):
        (tmp_path / name).write_text(f"{text}\n")
        monkeypatch.setattr(memory, name, tmp_path / name)
    assert memory.available() == expected


@pytest.mark.parametrize("limit", ["max\n", None])
def test_a_container_without_a_limit(tmp_path, monkeypatch, limit):
    if limit is not None:
        (tmp_path / "limit").write_text(limit)
    monkeypatch.setattr(memory, "LIMIT", tmp_path / "limit")
    assert memory.available() > 2**20


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("full"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you"),
        RuntimeError("Invalid buffer size: 64.00 GiB"),  # MPS
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
    ],
    ids=repr,
)
def test_a_full_memory_is_known_by_what_is_said(error):
    assert memory.is_full(error)


def test_a_full_memory_that_really_is():
    with pytest.raises(RuntimeError) as said:
        torch.empty(2**46)
    assert memory.is_full(said.value)
    assert not memory.is_full(RuntimeError("shapes do not fit"))


def pages_in(environment):
    code = (
        "import os, napari_attunet.devices; print(os.environ['THP_MEM_ALLOC_ENABLE'])"
    )
    command = [sys.executable, "-c", code]
    return subprocess.check_output(command, env=environment, text=True).strip()


def test_large_pages_unless_told_otherwise():
    plain = {k: v for k, v in os.environ.items() if k != memory.PAGES}
    assert pages_in(plain) == "1"
    assert pages_in(plain | {memory.PAGES: "0"}) == "0"


@pytest.mark.parametrize(
    ("told", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "")],
)
def test_threads_that_wait_leave_the_core_to_others(told, spins):
    known = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    plain = {k: v for k, v in os.environ.items() if k not in known}
    code = (
        "import os, sys, napari_attunet; assert 'torch' not in sys.modules; "
        "print(os.environ.get('GOMP_SPINCOUNT', ''))"
    )
    command = [sys.executable, "-c", code]
    said = subprocess.check_output(command, env=plain | told, text=True)
    assert said.strip() == spins


def test_giving_back_where_the_library_is_another(monkeypatch):
    memory.give_back()
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.give_back()
