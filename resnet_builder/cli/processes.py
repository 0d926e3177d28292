"""Several processes that run one command line: how they are started, and what each has to heed."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import click

from resnet_builder.cli.invocation import Invocation
from resnet_builder.cli.messages import note
from resnet_builder.cli.signals import held_back, show_cursor
from resnet_builder.errors import ProcessLostError, UsageError

if TYPE_CHECKING:
    from resnet_builder.training.distributed import Team

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
def membership(invocation: Invocation, nproc: int | None) -> Iterator["Team"]:
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
    from resnet_builder.training.distributed import joined, place

    team = place()
    if team.size == 1 and nproc is not None and nproc > 1:
        raise click.exceptions.Exit(_launch(invocation, nproc))
    if nproc is not None and nproc != team.size:
        raise UsageError(
            f"--nproc {nproc}: this is already one of {team.size} processes; leave it out"
        )
    invocation.signals.is_patient = team.size > 1
    with joined(team) as member:
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

    store = TCPStore(_HERE, 0, is_master=True, wait_for_workers=False)
    resource_tracker.ensure_running()  # or the first start would, and let signals through
    with invocation.signals.polled() as stop:
        with held_back():
            arguments = (list(invocation.arguments), count, store.port)
            processes = start_processes(_work, arguments, count, join=False).processes
        invocation.signals.last_act = lambda: _kill(processes)
        _await(processes, invocation, stop)
    return _conclude(processes, store, invocation)


def _work(rank: int, arguments: Sequence[str], count: int, port: int) -> None:
    """Run a command line as ``torchrun`` would have it run."""
    from resnet_builder.cli.main import main

    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(number) for name, number in place.items()})
    os.environ.update(
        MASTER_ADDR=_HERE, MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE=str(True)
    )
    main.main(arguments)


def _await(processes: Sequence[Any], invocation: Invocation, stop: Callable[[], bool]) -> None:
    """Wait until all processes have ended; they end soon after the first, or are made to."""
    told = False
    deadline = None
    while living := [process for process in processes if process.is_alive()]:
        wait([process.sentinel for process in living], timeout=_TICK)
        if stop() and not told:
            told = True
            _tell(living, invocation.signals.number)
        if deadline is None and any(process.exitcode is not None for process in processes):
            deadline = monotonic() + GRACE
        if deadline is not None and monotonic() > deadline:
            _kill(living)


def _tell(processes: Sequence[Any], number: int | None) -> None:
    """Pass a signal on; those that the terminal sent it to as well take it for the same."""
    for process in processes:
        if sys.platform != "win32" and number is not None and process.is_alive():
            os.kill(process.pid, number)


def _kill(processes: Sequence[Any]) -> None:
    for process in processes:
        process.kill()
    show_cursor()


def _conclude(processes: Sequence[Any], store: Any, invocation: Invocation) -> int:
    """Return the exit code of processes that have ended.

    Raises:
        ProcessLostError: One ended without a word.
    """
    from resnet_builder.training.distributed import reported_code

    code = reported_code(store)
    ends = [_end(rank, process.exitcode) for rank, process in enumerate(processes)]
    if code == ProcessLostError.exit_code and any(ends):
        note("; ".join(filter(None, ends)))
    if code is not None:
        return code
    if not any(process.exitcode for process in processes):
        return 0
    if invocation.signals.exit_code is not None:
        return invocation.signals.exit_code
    raise ProcessLostError("; ".join(filter(None, ends)) or "the processes lost each other")


def _end(rank: int, exitcode: int) -> str | None:
    """Say how a process ended that was not asked to; ``None`` if it left by itself."""
    if exitcode < 0:
        return f"process {rank} was ended by signal {-exitcode} ({signal.strsignal(-exitcode)})"
    if exitcode in {0, ProcessLostError.exit_code}:
        return None
    return f"process {rank} ended with code {exitcode}"
