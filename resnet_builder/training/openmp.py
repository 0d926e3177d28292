"""OpenMP threads on a busy machine: a thread that waits for others sleeps instead of spinning.

The threads of an operation wait for each other many times in a step. GNU OpenMP, which torch uses
on Linux, lets a waiting thread spin for some milliseconds, which is fastest while each thread has
a core. If another process takes the core of the thread that is waited for, spinning keeps it from
running: with two busy processes on two cores, training was up to ten times slower.

GNU OpenMP hardly spins while it has more threads than cores (``do_spin`` in
``libgomp/config/linux/wait.h``). So another team of threads, which does nothing, changes how the
first one waits, at any time, and without a change to any result.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import torch
from torch.optim import Optimizer

from resnet_builder.runs.files import Warn, ignore
from resnet_builder.system import cpu_seconds

BUSY_CORES = 0.3
"""Missing cores from which on a machine is busy."""

_INTERVAL = 0.2  # seconds between two looks at the machine
_QUIET = 0.1  # missing cores up to which threads spin again
_QUIET_LOOKS = 4  # in a row, since a process that shares the cores may pause
_LOOKS_TO_WARN = 50  # without a quiet one between them: ten seconds
_MAX_TEAMS = 4
_USERS_CHOICE = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_FEW_WEIGHTS = 2**19  # ResNet-20 has half as many

_are_spinning = threading.Event()
"""Set while a watcher has seen that the machine is quiet, so that threads spin."""


@contextmanager
def sleep_while_busy(warn: Warn = ignore) -> Iterator[None]:
    """Context in which OpenMP threads sleep while they wait, whenever the machine is busy.

    Does nothing where threads do not spin, or where it is not known how busy the machine is: with
    one thread, on other systems than Linux, or if ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT`` is set.

    Args:
        warn: Told once if the machine is busy for long.
    """
    is_chosen = any(name in os.environ for name in _USERS_CHOICE)
    if torch.get_num_threads() == 1 or is_chosen or not sys.platform.startswith("linux"):
        yield
        return
    end = threading.Event()
    watcher = threading.Thread(target=_watch, args=(end, warn), name="openmp", daemon=True)
    _are_spinning.set()
    watcher.start()
    try:
        yield
    finally:
        end.set()
        watcher.join()
        _are_spinning.clear()


def missing_cores(other_cores: float) -> float:
    """Return how many cores the threads of this process lack, while other processes use some."""
    return other_cores + torch.get_num_threads() - len(os.sched_getaffinity(0))


def update_in_one_thread(optimizer: Optimizer) -> None:
    """Let a fused optimizer update a small network in one thread, unless threads spin.

    It shares each tensor among the threads. If they sleep, to wake them, tensor by tensor, costs
    many times what a small network's whole update does. The bits do not depend on the number of
    threads, because each weight has an update of its own.

    Args:
        optimizer: Optimizer. One of many weights, or not on the CPU, is left as it is.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if sum(weight.numel() for weight in weights) > _FEW_WEIGHTS or weights[0].device.type != "cpu":
        return
    threads = 1

    def before(*_: object) -> None:
        nonlocal threads
        threads = torch.get_num_threads()
        if threads > 1 and not _are_spinning.is_set():
            torch.set_num_threads(1)

    def after(*_: object) -> None:
        if torch.get_num_threads() != threads:  # to set it clears caches of convolutions
            torch.set_num_threads(threads)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _watch(end: threading.Event, warn: Warn) -> None:
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    # As many as make more threads than cores. Each adds its threads but the one that starts it.
    num_teams = -(-(cores + 1 - threads) // (threads - 1))
    if num_teams > _MAX_TEAMS:
        return
    before, looked_at = cpu_seconds(), monotonic()
    sleeping: threading.Event | None = None  # set it, and the idle teams end
    busy_looks = quiet_looks = 0
    while before is not None and not end.wait(_INTERVAL):
        now, looked_now = cpu_seconds(), monotonic()
        if now is None:
            break
        by_others = (now[0] - before[0] - (now[1] - before[1])) / (looked_now - looked_at)
        before, looked_at = now, looked_now
        missing = missing_cores(by_others)
        if missing > BUSY_CORES:
            busy_looks, quiet_looks = busy_looks + 1, 0
            if sleeping is None:
                _are_spinning.clear()
                sleeping = _start_idle_teams(num_teams)
            # More threads than cores are no fault of other processes.
            if busy_looks == _LOOKS_TO_WARN and by_others > BUSY_CORES:
                warn(
                    f"the machine is busy: other processes, image workers included, use "
                    f"{by_others:.1f} of {cores} cores, so training takes longer"
                )
        elif missing < _QUIET:
            busy_looks, quiet_looks = 0, quiet_looks + 1
            if sleeping is not None and quiet_looks == _QUIET_LOOKS:
                sleeping.set()
                sleeping = None
                _are_spinning.set()
    if sleeping is not None:
        sleeping.set()


def _start_idle_teams(count: int) -> threading.Event:
    """Start teams of OpenMP threads that wait for their end, which is the event's."""
    end = threading.Event()

    def hold() -> None:
        if torch.get_num_threads() == 1:  # an optimizer's step has one thread at this moment
            threading.Thread(target=hold, name="openmp-idle", daemon=True).start()
            return
        torch.ones(2**18).add_(1)  # large enough to be divided among threads
        end.wait()

    for _ in range(count):
        threading.Thread(target=hold, name="openmp-idle", daemon=True).start()
    return end
