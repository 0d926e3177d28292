"""Processes that want one directory; imported anew by each, so nothing heavy."""

from multiprocessing.synchronize import Barrier
from pathlib import Path
from unittest.mock import patch

from resnet_builder.errors import BusyError, UsageError
from resnet_builder.runs import directory
from resnet_builder.runs.directory import RunDirectory

_UNHURRIED = 20.0  # seconds: a crowded machine may stop a process for long


def race(parent: Path, rounds: int, start: Barrier, end: Barrier, outcomes: list[str]) -> None:
    """Try to make and lock the same directories at the same instants as the others."""
    with patch.object(directory, "PATIENCE", _UNHURRIED):
        for turn in range(rounds):
            start.wait(60)
            _try(parent / f"run-{turn}", end, outcomes)


def _try(path: Path, end: Barrier, outcomes: list[str]) -> None:
    try:
        with RunDirectory.create(path).locked():
            outcomes.append("won")
            end.wait(60)
    except (BusyError, UsageError) as error:
        outcomes.append(str(error))
        end.wait(60)
