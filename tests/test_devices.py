"""The device is chosen, and the reason said."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from napari_attunet import devices
from napari_attunet.errors import DeviceError


@pytest.fixture
def machine(monkeypatch):
    """Pretend what the machine has."""

    def pretend(cuda=False, mps=False, built=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A card")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.version, "cuda", built)
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built is not None)

    return pretend


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_best_is_taken(machine, cuda, mps, chosen):
    machine(cuda=cuda, mps=mps, built="13.0" if cuda else None)
    assert devices.choose_device("auto").name == chosen


def test_the_reason_tells_a_wrong_pytorch_from_a_missing_card(machine):
    machine()
    assert "built without" in devices.choose_device("auto").reason
    machine(built="13.0")
    assert "no NVIDIA card" in devices.choose_device("auto").reason


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_what_is_not_there_is_refused(machine, name):
    machine()
    with pytest.raises(DeviceError, match="Choose auto or cpu"):
        devices.choose_device(name)


def test_unknown_names(machine):
    machine(cuda=True, built="13.0")
    with pytest.raises(DeviceError, match="no device"):
        devices.choose_device("tpu")
    with pytest.raises(DeviceError, match="counted from 0"):
        devices.choose_device("cuda:3")


def test_threads_are_set_and_restored():
    before = torch.get_num_threads()
    with devices.threads(before + 1) as count:
        assert count == before + 1 == torch.get_num_threads()
        with devices.threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(DeviceError), devices.threads(0):
        pass


def test_a_core_is_spared_where_there_are_more(monkeypatch):
    monkeypatch.delenv("NAPARI_ATTUNET_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4), raising=False)
    for count, left in ((1, 1), (2, 2), (4, 3), (8, 3)):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        assert devices.default_threads(spare=1) == left


@pytest.mark.parametrize(
    ("told", "expected"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 1000", 6)],
)
def test_a_container_gets_a_share_of_the_cores(tmp_path, monkeypatch, told, expected):
    monkeypatch.delenv("NAPARI_ATTUNET_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(6), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(devices, "QUOTA", tmp_path / "cpu.max")
    assert devices.default_threads() == 6
    devices.QUOTA.write_text(f"{told}\n")
    assert devices.default_threads() == expected
    assert devices.default_threads(spare=1) == max(1, expected - 1)


@pytest.mark.parametrize("more", [1, -1])
def test_runs_at_the_same_time_leave_no_number_behind(more, monkeypatch, request):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64), raising=False)

    def in_thread(work):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(work).result()

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    request.addfinalizer(lambda: torch.set_num_threads(before))
    usual = in_thread(devices.default_threads)
    begun, over = threading.Event(), threading.Event()

    def first():
        with devices.threads(usual + more):
            begun.set()
            over.wait(10)

    def second():
        with devices.threads(None) as count:
            over.set()  # the first ends before
            run.join()
            return count, torch.get_num_threads()

    run = threading.Thread(target=first)
    run.start()
    begun.wait(10)
    assert in_thread(devices.default_threads) == usual
    assert in_thread(second) == (usual, usual)
    assert in_thread(torch.get_num_threads) == torch.get_num_threads()
    assert in_thread(devices.default_threads) == usual


def test_threads_by_environment(monkeypatch):
    monkeypatch.setenv("NAPARI_ATTUNET_THREADS", "3")
    assert devices.default_threads(spare=1) == 3  # as asked
    with devices.threads(None) as count:
        assert count == 3
    monkeypatch.setenv("NAPARI_ATTUNET_THREADS", "many")
    with pytest.raises(DeviceError, match="whole number"):
        devices.default_threads()


@pytest.mark.parametrize(
    ("told", "expected"),
    [({"avx512_bf16": True}, True), ({"avx512_bf16": False}, False), ({}, False)],
)
def test_bfloat16_is_not_emulated(monkeypatch, told, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert devices.has_bfloat16("cpu") is expected
    assert not devices.has_bfloat16("mps")


@pytest.mark.parametrize(
    ("precision", "name", "has", "dtype"),
    [
        ("auto", "cuda:1", True, torch.float16),
        ("auto", "cuda", False, torch.float32),
        ("auto", "cpu", True, torch.float32),
        ("auto", "mps", False, torch.float32),
        ("exact", "cuda", True, torch.float32),
        ("fast", "cpu", True, torch.bfloat16),
        ("fast", "cuda", False, torch.float32),
        ("fast", "mps", False, torch.float32),
    ],
)
def test_in_which_type_to_compute(monkeypatch, precision, name, has, dtype):
    volta, pascal = (7, 0), (6, 1)
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: has)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: volta if has else pascal
    )
    found, why = devices.choose_dtype(precision, devices.Device(name, "", ""))
    assert found == dtype
    assert bool(why) == (precision == "fast" and not has)
