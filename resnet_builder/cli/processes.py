"""Several processes that run one command line: how they are started, and what each has to heed."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import click

from resnet_builder.cli.invocation import Invocation
from resnet_builder.cli.messages import note
from resnet_builder.cli.signals import INTERRUPTED, TERMINATED, held_back, show_cursor
from resnet_builder.errors import ProcessLostError, UsageError

if TYPE_CHECKING:
    from resnet_builder.training.distributed import DistributedContext

F = TypeVar("F", bound=Callable[..., Any])

GRACE = 15.0
"""Seconds that the others have to end once one process has ended."""

_TICK = 0.2
_HERE = "127.0.0.1"


def nproc_option(command: F) -> F:
    """Add ``--nproc``."""
    return click.option(
        "--nproc",
        type=click.IntRange(1, 1_024),
        metavar="N",
        help="Train with N processes on this machine, which divide every batch; torchrun may "
        "start them instead, on several.",
    )(command)


@contextmanager
def membership(invocation: Invocation, nproc: int | None) -> Iterator["DistributedContext"]:
    """Be one of the processes that train, or the only one, until it is left.

    Where ``--nproc`` asks for processes that nobody has started, this one starts them, waits, and
    exits as they did.

    Args:
        invocation: The call of the program. Of several, one process tells why all end.
        nproc: How many processes were asked for on the command line.

    Raises:
        ProcessLostError: One ended without a word, did not come, or does not answer.
        UsageError: Other processes were asked for than have been started.
    """
    from resnet_builder.training.distributed import from_env, init_process_group

    ctx = from_env()
    if ctx.world_size == 1 and nproc is not None and nproc > 1:
        raise click.exceptions.Exit(_launch(invocation, nproc))
    if nproc is not None and nproc != ctx.world_size:
        raise UsageError(
            f"--nproc {nproc}: this is already one of {ctx.world_size} processes; leave it out"
        )
    invocation.signals.is_patient = ctx.world_size > 1
    with init_process_group(ctx) as member:
        invocation.may_report = member.may_report
        yield member


def is_member() -> bool:
    """Tell whether this was started as one of several processes, of which one tells of errors."""
    return "RANK" in os.environ


def is_orphan() -> bool:
    """Tell whether the process that started this one has ended."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def _launch(invocation: Invocation, count: int) -> int:
    """Run this command line in several processes; return what to exit with when all have ended.

    Raises:
        ProcessLostError: One ended without a word.
    """
    from torch._C._distributed_c10d import TCPStore  # torch.distributed's, which mypy does not see
    from torch.multiprocessing.spawn import start_processes

    from resnet_builder.training.distributed import reported_code

    # Once this process is killed, torch would tell at length that its store is gone.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    store = TCPStore(_HERE, 0, is_master=True, wait_for_workers=False)
    resource_tracker.ensure_running()  # or the first start would, and let signals through
    with invocation.signals.polled() as stop:
        with held_back():
            arguments = (list(invocation.arguments), count, store.port)
            processes = start_processes(_work, arguments, count, join=False).processes
        invocation.signals.last_act = lambda: _kill(processes)
        killed = _await(processes, invocation, stop)
    return _conclude(processes, killed, reported_code(store), invocation)


def _work(rank: int, arguments: Sequence[str], count: int, port: int) -> None:
    """Run a command line as ``torchrun`` would have it run."""
    from resnet_builder.cli.main import main

    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(number) for name, number in place.items()})
    os.environ.update(
        MASTER_ADDR=_HERE, MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE=str(True)
    )
    main.main(arguments)


def _await(processes: Sequence[Any], invocation: Invocation, stop: Callable[[], bool]) -> set[int]:
    """Wait until all processes have ended: soon after the first, or they are killed.

    Returns:
        The pids of those that were.
    """
    told = False
    deadline = None
    killed: set[int] = set()
    while living := [process for process in processes if process.is_alive()]:
        wait([process.sentinel for process in living], timeout=_TICK)
        if stop() and not told:
            told = True
            _pass_on(invocation.signals.number, living)
        if deadline is None and len(living) < len(processes):
            deadline = monotonic() + GRACE
        if deadline is not None and monotonic() > deadline:
            killed |= {process.pid for process in living}
            _kill(living)
    return killed


def _pass_on(number: int | None, processes: Sequence[Any]) -> None:
    """Send a signal to processes; those that the terminal sent it to take it for the same."""
    if number is None or sys.platform == "win32":  # where a terminal sends it to all
        return
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _kill(processes: Sequence[Any]) -> None:
    for process in processes:
        process.kill()
    show_cursor()


def _conclude(
    processes: Sequence[Any], killed: set[int], reported: int | None, invocation: Invocation
) -> int:
    """Return the exit code of processes that have ended.

    Args:
        processes: All of them.
        killed: The pids of those that this process killed.
        reported: The exit code of the one that has told why all end.
        invocation: The call of the program.

    Raises:
        ProcessLostError: One ended without a word.
    """
    codes = [process.exitcode for process in processes]
    if reported == INTERRUPTED and TERMINATED in codes:
        return TERMINATED  # one alone was sent SIGTERM, and the others stopped with it
    ends = "; ".join(
        _end(rank, process.exitcode)
        for rank, process in enumerate(processes)
        if process.exitcode not in {0, ProcessLostError.exit_code} and process.pid not in killed
    )
    if reported is not None:
        if reported == ProcessLostError.exit_code and ends:
            note(ends)
        return reported
    if invocation.signals.exit_code is not None and any(codes):
        return invocation.signals.exit_code
    if any(codes):
        raise ProcessLostError(ends or "the processes of this training have lost each other")
    return 0


def _end(rank: int, code: int) -> str:
    """Say how a process ended."""
    if code < 0:
        return f"process {rank} was ended by signal {-code} ({signal.strsignal(-code)})"
    return f"process {rank} ended with code {code}"
