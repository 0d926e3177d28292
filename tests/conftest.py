"""Fixtures that many tests share."""

import signal
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Compute on one thread: networks this small spend longer on sharing work than on it."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_randomness() -> Iterator[None]:
    """Give every test the same random numbers, whatever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True, scope="session")
def _heeded_interrupt() -> Iterator[None]:
    """Undo what a suite inherits that a script started in the background: SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
