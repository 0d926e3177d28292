"""Fixtures that many tests share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from resnet_builder.parts import REGISTRIES


@pytest.hookimpl(optionalhook=True)  # where pytest-xdist is switched off
def pytest_xdist_auto_num_workers() -> int:
    """Start a worker more than there are cores: tests wait for disks and for processes, too."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Compute on one thread: networks this small spend longer on sharing work than on it.

    Before each test, as one may leave more threads, which spin while other workers compute.
    """
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _parts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the parts of a test's plugins back: other tests count on those of the package."""
    for registry in REGISTRIES.values():
        monkeypatch.setattr(registry, "_parts", dict(registry._parts))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _own_randomness() -> Iterator[None]:
    """Give every test the same random numbers, whatever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True, scope="session")
def _heeded_signals() -> Iterator[None]:
    """Undo what a suite inherits from how it was started.

    In the background of a script SIGINT is ignored, and behind ``nohup`` SIGHUP is.
    """
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler)}
    if hasattr(signal, "SIGHUP"):
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
