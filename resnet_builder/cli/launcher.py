"""Launcher of several training processes (``--nproc``), on torch's elastic launcher."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import click

from resnet_builder.cli.console import note
from resnet_builder.cli.options import Invocation
from resnet_builder.cli.signals import TERMINATED, exit_code_of
from resnet_builder.errors import ProcessLostError, UsageError

if TYPE_CHECKING:
    from resnet_builder.training.distributed import DistributedContext

WORKER = ("-P", "-m", "resnet_builder")
"""Python's arguments for a worker. ``-P``: the current folder is no place to import from."""

_POLL_SECONDS = 0.1
_A_DAY = 24 * 60 * 60  # for a last checkpoint; a second signal ends the wait


nproc_option = click.option(
    "--nproc",
    type=click.IntRange(1, 1_024),
    metavar="N",
    help="Train with N processes on this machine, which divide every batch. For several "
    "machines, start the command with torchrun instead.",
)


@contextmanager
def distributed_context(
    invocation: Invocation, nproc: int | None
) -> Iterator["DistributedContext"]:
    """Context in which this process is part of the training's process group.

    Where ``--nproc`` asks for several processes, this one starts them, waits for them and exits as
    they did.

    Args:
        invocation: The call of the program. One of several processes prints why all end.
        nproc: The value of ``--nproc``.

    Raises:
        ProcessLostError: A process has ended, did not connect, or does not respond.
        UsageError: ``torchrun`` has started another number of processes.
    """
    from resnet_builder.training.distributed import from_env, init_process_group

    ctx = from_env()
    if ctx.world_size == 1 and nproc is not None and nproc > 1:
        raise click.exceptions.Exit(_launch(invocation, nproc))
    if nproc is not None and nproc != ctx.world_size:
        raise UsageError(
            f"--nproc {nproc}: this is already one of {ctx.world_size} processes; leave it out"
        )
    with ExitStack() as stack:
        # torch waits for the other processes without a look at Python's handlers.
        with invocation.signals.not_handled() if ctx.world_size > 1 else nullcontext():
            member = stack.enter_context(init_process_group(ctx))
        # Until the end: a signal must not interrupt the report of an error.
        invocation.signals.is_polled = ctx.world_size > 1
        invocation.may_report = member.may_report
        yield member


def is_worker() -> bool:
    """Whether a launcher started this process; one of its processes prints the errors."""
    return "RANK" in os.environ


def _launch(invocation: Invocation, count: int) -> int:
    """Run this command line in several processes; return the exit code.

    Raises:
        ProcessLostError: A process ended, and none printed why.
    """
    from torch._C._distributed_c10d import TCPStore  # torch.distributed's, which mypy does not see
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

    from resnet_builder.training.distributed import reported_code

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    # If this process is killed, torch would print pages about its lost store.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(invocation.signals.names)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    ranks = range(count)
    with tempfile.TemporaryDirectory() as folder, invocation.signals.lent():
        context = start_processes(
            name="resnet-build",
            entrypoint=sys.executable,
            args=dict.fromkeys(ranks, (*WORKER, *invocation.arguments)),
            envs={rank: {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in ranks},
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        codes, signal_code = _wait(context)
    return _exit_code(codes, signal_code, reported_code(store))


def _wait(context: Any) -> tuple[dict[int, int], int | None]:
    """Wait for the workers; once one has failed, the others are ended.

    Returns:
        The exit codes of the workers that failed, in the order of their ends, and the exit code
        for the signal that this process was sent.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    code = None
    try:
        result = context.wait(period=_POLL_SECONDS)
    except SignalException as first:
        code = exit_code_of(first.sigval)
        try:
            context.close(first.sigval, timeout=_A_DAY)
        except SignalException:
            context.close(signal.SIGKILL)
        result = context.wait(0)
    failures = sorted(result.failures.values(), key=lambda failure: failure.timestamp)
    # A worker that did not end within torch's 30 s was killed; that is no reason to report.
    return {
        failure.local_rank: failure.exitcode
        for failure in failures
        if failure.timestamp - failures[0].timestamp < 20
    }, code


def _exit_code(codes: dict[int, int], signal_code: int | None, reported: int | None) -> int:
    """Return the exit code of the launcher.

    Args:
        codes: Exit codes of the workers that failed.
        signal_code: Exit code for the signal that the launcher was sent, if any.
        reported: Exit code of the worker that printed why all end, if one did.

    Raises:
        ProcessLostError: A worker ended, and none printed why.
    """
    ends = "; ".join(
        f"process {rank} was ended by signal {-code} ({signal.strsignal(-code)})"
        if code < 0
        else f"process {rank} ended with code {code}"
        for rank, code in codes.items()
        # This process sends SIGTERM to the others once one has failed.
        if code not in {ProcessLostError.exit_code, TERMINATED, -signal.SIGTERM}
    )
    if reported is not None:
        # Once a worker has died, this process ends the others; one says that it was stopped.
        was_ended = reported == TERMINATED and signal_code is None
        if ends and (was_ended or reported == ProcessLostError.exit_code):
            note(ends)
            return ProcessLostError.exit_code
        return reported
    if signal_code is not None:
        return signal_code if codes else 0
    if codes:
        raise ProcessLostError(ends or "the processes of this training have lost each other")
    return 0
