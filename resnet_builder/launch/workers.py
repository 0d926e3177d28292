"""Workers: processes that train the trials of a group, some side by side.

Each is the same ``resnet-build train --resume`` that a user can type, so a run of a group has the
bits of that line, and a crash ends one run alone. Progress is read from the run directories.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from resnet_builder.data.interfaces import Stop
from resnet_builder.errors import ProcessLostError, Stopped, StorageError
from resnet_builder.launch.group import Group
from resnet_builder.launch.plan import Trial
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import storage_errors
from resnet_builder.runs.records import MetricsLog
from resnet_builder.runs.status import RunStatus, run_status
from resnet_builder.system import PARENT
from resnet_builder.training.runtime import threads_per_process

POLL_SECONDS = 0.1
STATUS_SECONDS = 1.0
_BUSY_SECONDS = 60.0

_STOPPED_CODES = {130, 143, -signal.SIGINT, -signal.SIGTERM}


class Queue:
    """Trials of a plan, in the order in which they begin.

    Args:
        trials: The trials.
    """

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._waiting = list(trials)

    def next(self) -> Trial | None:
        """Return the next trial; ``None`` if there is none any more."""
        return self._waiting.pop(0) if self._waiting else None

    def prunes(self, trial: Trial, accuracies: Sequence[float]) -> bool:
        """Whether a trial is to end early, by its accuracy at each evaluation so far."""
        return False

    def finished(self, trial: Trial, status: RunStatus) -> None:
        """Take note of the result of a trial."""

    def failed(self, trial: Trial, exit_code: int) -> bool:
        """Take note of a trial that failed; return whether the whole line fails by it."""
        return True


class Display:
    """Progress of a group; a subclass shows it."""

    def begins(self, trial: Trial) -> None:
        """A run begins, or is resumed."""

    def shows(self, running: Sequence[RunStatus]) -> None:
        """The runs that are trained now have come so far."""

    def ends(self, trial: Trial, state: str, status: RunStatus, error: str | None) -> None:
        """A run ended, or had its result before."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of ``train`` that are given to every worker.

    Attributes:
        arguments: The options.
        threads: Threads of a new run; ``None`` leaves them to it.
        processes: Processes of each worker.
        trains_on: Whether a finished run may train on, with another recipe.
    """

    arguments: tuple[str, ...] = ()
    threads: int | None = None
    processes: int = 1
    trains_on: bool = False


def share_of_threads(jobs: int, processes: int = 1) -> int | None:
    """Threads of each of several workers; ``None`` of one worker, which takes what there are."""
    return None if jobs == 1 else threads_per_process(jobs * processes)


@dataclass(slots=True)
class _Worker:
    trial: Trial
    run: RunDirectory
    process: Any
    output: IO[bytes]
    slot: int
    is_pruned: bool = False
    ends_asked: int = 0


def run_trials(
    group: Group,
    queue: Queue,
    options: Options,
    *,
    jobs: int = 1,
    display: Display | None = None,
    should_stop: Stop,
) -> int:
    """Train the trials of a queue, finished ones excepted, which are only noted.

    A run that fails does not end the others, unless the disk fails: then no more begin.

    Args:
        group: The group, which is held.
        queue: The trials.
        options: Options of the workers.
        jobs: Number of workers at a time.
        display: Shows the progress.
        should_stop: Whether all workers are to save a checkpoint and end.

    Returns:
        Exit code: 0, or that of the first run that failed.

    Raises:
        Stopped: ``should_stop`` became true.
        StorageError: The record of the group cannot be written.
    """
    shown = display or Display()
    workers: list[_Worker] = []
    first_failure, is_disk_full, last_status = 0, False, 0.0
    try:
        while True:
            is_stopping = should_stop()
            while len(workers) < jobs and not is_stopping and not is_disk_full:
                trial = queue.next()
                if trial is None:
                    break
                run = RunDirectory(group.path / trial.name)
                if run.is_finished and run.best.is_file() and not options.trains_on:
                    status = run_status(run)
                    queue.finished(trial, status)
                    shown.ends(trial, status.state, status, None)
                    continue
                _wait_until_free(run, should_stop)
                group.mark(trial, None)
                slot = min(set(range(jobs)) - {worker.slot for worker in workers})
                workers.append(_start(group, trial, run, options, slot, jobs))
                shown.begins(trial)
            if not workers:
                break
            if time.monotonic() - last_status >= STATUS_SECONDS:
                last_status = time.monotonic()
                shown.shows([run_status(worker.run) for worker in workers])
            for worker in list(workers):
                code = worker.process.poll()
                if code is None:
                    _end_if_asked(worker, group, queue, is_stopping=is_stopping)
                    continue
                workers.remove(worker)
                failure = _ended(worker, code, group, queue, shown, is_stopping=should_stop())
                first_failure = first_failure or failure
                is_disk_full = is_disk_full or code == StorageError.exit_code
            if is_stopping and not workers:
                break
            time.sleep(POLL_SECONDS if workers else 0)
    finally:
        _end_all(workers)
    if should_stop():
        raise Stopped("stopped; every run that had begun is saved")
    return first_failure


def _start(
    group: Group, trial: Trial, run: RunDirectory, options: Options, slot: int, jobs: int
) -> _Worker:
    """Start the process of a trial, which resumes the run if there is one."""
    words = [*trial.arguments(group.path), *options.arguments]
    # A run that is resumed repeats its threads.
    if options.threads is not None and not run.is_published:
        words += ["--set", f"run.threads={options.threads}"]
    environment = {**os.environ, PARENT: str(os.getpid())}
    devices = torch.cuda.device_count() if jobs > 1 else 0
    if devices > 1 and options.processes == 1 and "CUDA_VISIBLE_DEVICES" not in environment:
        environment["CUDA_VISIBLE_DEVICES"] = str(slot % devices)
    with storage_errors("make", Path("a temporary file for the output of a run")):
        output = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed when the worker has ended
    process = start_process([*words, "--out", str(run.path), "--resume"], environment, output)
    return _Worker(trial, run, process, output, slot)


def start_process(arguments: Sequence[str], environment: dict[str, str], output: IO[bytes]) -> Any:
    """Start ``resnet-build train``; a terminal's Ctrl-C does not reach it, as it is passed on."""
    command = [sys.executable, "-P", "-m", "resnet_builder", "train", *arguments]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )


def _end_if_asked(worker: _Worker, group: Group, queue: Queue, *, is_stopping: bool) -> None:
    """Ask a worker to save and end, if all are to end, or if its trial is pruned."""
    if not is_stopping and not worker.is_pruned and worker.run.is_published:
        accuracies = evaluated(worker.run)
        if accuracies and queue.prunes(worker.trial, accuracies):
            worker.is_pruned = True
            group.mark(worker.trial, "pruned")
    if (is_stopping or worker.is_pruned) and worker.ends_asked == 0:
        worker.ends_asked = 1
        worker.process.terminate()


def _ended(
    worker: _Worker,
    code: int,
    group: Group,
    queue: Queue,
    shown: Display,
    *,
    is_stopping: bool,
) -> int:
    """Take note of how a worker ended; return the exit code of a failure, or else 0."""
    worker.output.seek(0)
    text = worker.output.read().decode("utf-8", "replace")
    worker.output.close()
    status = run_status(worker.run)
    if code == 0:
        queue.finished(worker.trial, status)
        shown.ends(worker.trial, status.state, status, None)
        return 0
    if worker.is_pruned and code in _STOPPED_CODES:
        shown.ends(worker.trial, "pruned", status, None)
        return 0
    if is_stopping and code in _STOPPED_CODES:
        shown.ends(worker.trial, "stopped", status, None)
        return 0
    error = error_of(text, code)
    with suppress(StorageError):  # on a full disk, the run's own error is what counts
        group.mark(worker.trial, "failed", error.partition("\n")[0])
    is_failure = queue.failed(worker.trial, code)
    shown.ends(worker.trial, "failed", status, error)
    return 0 if not is_failure else code if code > 0 else ProcessLostError.exit_code


def error_of(output: str, code: int) -> str:
    """Message of an error in the output of a worker, or how its process ended."""
    lines = output.rstrip().splitlines()
    begins = [
        number
        for number, line in enumerate(lines)
        if line.startswith(("error: ", "internal error: ")) or ": error[" in line
    ]
    if begins:
        return "\n".join(lines[begins[0] :]).removeprefix("error: ")
    if code < 0:
        return f"its process was ended by signal {-code} ({signal.strsignal(-code)})"
    if code in _STOPPED_CODES:
        return "its process was stopped from outside"
    return lines[-1] if lines else f"its process ended with code {code}"


def evaluated(run: RunDirectory) -> list[float]:
    """Accuracy on the validation images at each evaluation so far; mAP, if there is one."""
    rows = [row for row in MetricsLog(run).read() if row.event == "validation"]
    found = [row.val_top1 if row.val_map is None else row.val_map for row in rows]
    return [value for value in found if value is not None]


def _wait_until_free(run: RunDirectory, should_stop: Stop) -> None:
    """Wait for a worker of a killed process, which saves its checkpoint and ends."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while run.is_locked and time.monotonic() < deadline and not should_stop():
        time.sleep(POLL_SECONDS)


def _end_all(workers: Sequence[_Worker]) -> None:
    """End workers that are left behind an error; they save their checkpoints."""
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.wait()
        worker.output.close()
