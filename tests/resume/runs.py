"""Runs of the command line that are stopped, resumed and compared byte by byte."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from click.testing import Result

from resnet_builder.runs.directory import RunDirectory
from resnet_builder.training.step import TrainStep
from tests.cli.experiments import call

LOCKS = {"run.lock", "run.lock.json"}


def contents(run: RunDirectory) -> dict[str, bytes]:
    """Return every byte of a run directory, but for the lock."""
    paths = (path for path in run.path.rglob("*") if path.is_file() and path.name not in LOCKS)
    return {str(path.relative_to(run.path)): path.read_bytes() for path in paths}


def resume(run: RunDirectory, *arguments: object) -> Result:
    """Resume a run by its directory alone, and further arguments."""
    return call("train", "--resume", run.path, *arguments)


@contextmanager
def stopping_after(steps: int) -> Iterator[None]:
    """Context in which Ctrl-C is pressed at a training step."""
    real, left = TrainStep.__call__, iter(range(steps))

    def step(*arguments: Any, **options: Any) -> Any:
        if next(left, None) is None:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", step)
        yield
