"""OpenMP threads on a busy machine: whether they sleep or spin, and what they compute."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from resnet_builder.training import openmp
from resnet_builder.training.openmp import sleep_while_busy, update_in_one_thread

CORES = len(os.sched_getaffinity(0)) if sys.platform.startswith("linux") else 0

pytestmark = pytest.mark.skipif(not 2 <= CORES <= 8, reason="needs GNU OpenMP and a few cores")

Load = Callable[[float], None]


@pytest.fixture
def other_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Make other processes seem to use as many cores; looks at the machine become frequent."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(CORES)
    monkeypatch.setattr(openmp, "_INTERVAL", 0.01)
    in_use = [0.0]
    clock = itertools.count()
    monkeypatch.setattr(openmp, "monotonic", lambda: float(next(clock)))
    used = itertools.accumulate(in_use[0] for _ in itertools.count())
    monkeypatch.setattr(openmp, "cpu_seconds", lambda: (next(used), 0.0))

    def load(cores: float) -> None:
        in_use[0] = cores

    yield load
    torch.set_num_threads(threads)


def threads_sleep() -> bool:
    return any(thread.name == "openmp-idle" for thread in threading.enumerate())


def soon(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def test_threads_sleep_while_the_machine_is_busy_and_spin_again_afterwards(
    other_cores: Load,
) -> None:
    with sleep_while_busy():
        other_cores(1.0)
        assert soon(threads_sleep)
        other_cores(0.0)
        assert soon(lambda: not threads_sleep())
        other_cores(0.5)
        assert soon(threads_sleep)
    assert soon(lambda: not threads_sleep())


def test_a_long_busy_time_is_told_once(other_cores: Load) -> None:
    told: list[str] = []
    with sleep_while_busy(told.append):
        other_cores(1.25)
        assert soon(lambda: bool(told))
        time.sleep(0.1)
    assert told == [
        "the machine is busy: other processes, image workers included, use 1.2 of "
        f"{CORES} cores, so training takes longer"
    ]


def test_more_threads_than_cores_alone_are_not_told(
    other_cores: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: CORES + 1)
    monkeypatch.setattr(openmp, "_start_idle_teams", lambda count: threading.Event())
    told: list[str] = []
    looks = itertools.count()
    monkeypatch.setattr(openmp, "missing_cores", lambda others: [1.0, next(looks)][0])
    with sleep_while_busy(told.append):
        other_cores(0.0)
        assert soon(lambda: next(looks) > 2 * openmp._LOOKS_TO_WARN)
    assert told == []


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_the_users_choice_of_waiting_holds(
    name: str, other_cores: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1000")
    other_cores(2.0)
    with sleep_while_busy():
        time.sleep(0.1)
        assert not threads_sleep()


# Switches of a thread that waits without a spin are voluntary ones, and there are many of them.
_SCRIPT = """
import json, resource, time, torch
from resnet_builder.training import openmp

def switches():
    image, kernel = torch.ones(8, 16, 32, 32), torch.ones(16, 16, 3, 3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    for _ in range(100):
        sums = torch.nn.functional.conv2d(image, kernel, padding=1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before, float(sums.sum())

torch.set_num_threads(max(2, torch.get_num_threads()))
spinning = switches()
end = openmp._start_idle_teams(1)
time.sleep(0.5)
sleeping = switches()
end.set()
time.sleep(0.5)
print(json.dumps([spinning, sleeping, switches()]))
"""


@pytest.mark.ci
@pytest.mark.skipif(CORES != 2, reason="one team is enough for two cores")
def test_an_idle_team_makes_threads_sleep_and_changes_no_result() -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OMP_", "GOMP_", "MKL_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, check=True
    )
    spinning, sleeping, again = json.loads(done.stdout)
    assert sleeping[0] > 3 * max(spinning[0], again[0])
    assert spinning[1] == sleeping[1] == again[1]


@pytest.mark.parametrize(
    ("width", "others", "expected"), [(8, 1.0, 1), (8, 0.0, CORES), (1024, 1.0, CORES)]
)
def test_few_weights_are_updated_in_one_thread_to_the_same_bits_while_threads_sleep(
    width: int, others: float, expected: int, other_cores: Load
) -> None:
    other_cores(others)
    with sleep_while_busy():
        assert soon(lambda: threads_sleep() == (others > 0))
        assert threads_of_updates(width) == [expected] * 3
    assert threads_of_updates(8) == [1] * 3  # unknown: the user may have chosen to sleep


def threads_of_updates(width: int) -> list[int]:
    """Return the number of threads at three updates, which give the bits of a plain optimizer."""
    plain, ours = (torch.nn.Linear(width, width).requires_grad_() for _ in range(2))
    ours.load_state_dict(plain.state_dict())
    how: Any = {
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 0.01,
        "fused": True,
    }
    optimizers = [torch.optim.SGD(one.parameters(), **how) for one in (plain, ours)]
    update_in_one_thread(optimizers[1])
    seen: list[int] = []
    optimizers[1].register_step_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    for seed in range(3):
        for network, optimizer in zip((plain, ours), optimizers, strict=True):
            torch.manual_seed(seed)
            network(torch.randn(4, width)).square().sum().backward()
            optimizer.step()
            assert torch.get_num_threads() == CORES
    assert all(map(torch.equal, plain.parameters(), ours.parameters()))
    return seen
