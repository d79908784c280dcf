"""One suite for a machine with a display, with Xvfb, or with neither.

Whatever the machine, a test is seeded, stays off the network and never touches the
models and settings of whoever runs it.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import sys
import tempfile

# The processes of pytest-xdist share the cores: one thread each, or they wait for one
# another. Read when NumPy and PyTorch are imported, here and in child processes.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# On a card numbers differ by its rounding: the tests are those of the CPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import pytest

_HOME = tempfile.mkdtemp(prefix="napari-attunet-tests-")


def pytest_unconfigure():
    shutil.rmtree(_HOME, ignore_errors=True)


# Set before anything reads them, so that child processes see them too.
os.environ["NAPARI_ATTUNET_MODELS"] = f"{_HOME}/models"
os.environ["NAPARI_ATTUNET_TRAINING"] = f"{_HOME}/training"
os.environ["NAPARI_CONFIG"] = f"{_HOME}/napari.yaml"

# Without any display Qt aborts the whole process; its offscreen platform does not.
# Xvfb counts as a display: pytest-xvfb starts it.
if (
    sys.platform.startswith("linux")
    and not {"QT_QPA_PLATFORM", "DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    and not shutil.which("Xvfb")
):
    os.environ["QT_QPA_PLATFORM"] = "offscreen"


@pytest.fixture(autouse=True)
def _seeded():
    """The same random numbers each time, in every order of tests."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries draw from it
    if "torch" in sys.modules:  # imported by the tests that need it
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator of random numbers, the same for each test."""
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """No test may need the network; this machine's own sockets stay."""
    connect = socket.socket.connect

    def local_only(self, address):
        remote = self.family in (socket.AF_INET, socket.AF_INET6)
        if remote and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
