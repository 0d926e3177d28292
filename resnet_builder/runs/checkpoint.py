"""Checkpoints: what training goes on from, one file each, and how one that holds is found.

The directory's contents are the only truth: no pointer names the newest, so none can be wrong.
Everything here that changes the directory is for the holder of the run's lock.
"""

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from resnet_builder.errors import CheckpointError, StorageError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import Warn, failpoint, storage_errors, unheard
from resnet_builder.runs.records import Count, Record, package_version
from resnet_builder.runs.tensor_files import read_tensors, write_tensors

CORRUPT = ".corrupt"
"""Put behind the name of a checkpoint that does not hold."""

_ENTRY = "checkpoint"
_NAME = re.compile(r"step-(\d{1,18})\.safetensors")


class _Entry(Record):
    """What a checkpoint holds besides tensors."""

    schema_number: Literal[1] = Field(1, alias="schema")
    package: str
    step: Count
    state: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A training run between two optimizer steps.

    Attributes:
        step: Optimizer steps done.
        tensors: By name; on the CPU once loaded.
        state: What is not a tensor, as JSON: numbers that are finite, text, lists, mappings.
    """

    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def checkpoint_path(run: RunDirectory, step: int) -> Path:
    """Return the file of a step's checkpoint."""
    return run.checkpoints / f"step-{step:09d}.safetensors"


def save_checkpoint(
    run: RunDirectory, checkpoint: Checkpoint, keep: int, *, warn: Warn = unheard
) -> None:
    """Publish a checkpoint, then remove the oldest; whatever fails, the newest before remains.

    Args:
        run: The run that it is of.
        checkpoint: What to save.
        keep: Checkpoints to leave, at least two: the newest may turn out not to hold.
        warn: Told of checkpoints that cannot be removed.

    Raises:
        NonFiniteError: A tensor holds a value that is infinite or not a number.
        StorageError: The disk is full, read-only or failing.
    """
    if keep < 2:
        raise ValueError(f"keep is {keep}, but at least 2 checkpoints are kept")
    entry = {
        "schema": _Entry.present(),
        "package": package_version(),
        "step": checkpoint.step,
        "state": checkpoint.state,
    }
    text = json.dumps(entry, allow_nan=False, sort_keys=True)
    write_tensors(checkpoint_path(run, checkpoint.step), checkpoint.tensors, {_ENTRY: text})
    _rotate(run, keep, warn)


def has_checkpoints(run: RunDirectory) -> bool:
    """Tell whether there are checkpoints, be they such as hold or not.

    Raises:
        StorageError: The disk is failing.
    """
    return bool(_checkpoints(run) or _set_aside_before(run))


def load_newest(run: RunDirectory, *, warn: Warn = unheard) -> Checkpoint | None:
    """Return the newest checkpoint that holds, or ``None`` if there are none at all.

    Newer ones that do not hold are set aside as ``*.corrupt``, and ``warn`` is told why; but only
    if an older one does, so that a run never starts over unasked.

    Raises:
        CheckpointError: There are checkpoints, and none of them holds.
        UsageError: A newer release wrote the newest.
        StorageError: The disk is failing, or a checkpoint may not be read.
    """
    refused: list[tuple[Path, str]] = []
    for path in reversed(_checkpoints(run)):
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            refused.append((path, str(error)))
            continue
        for corrupt, reason in refused:
            _set_aside(corrupt, reason, warn)
        return checkpoint
    reasons = [reason for _, reason in refused]
    reasons += [f"{path}: it was set aside before" for path in _set_aside_before(run)]
    if reasons:
        raise CheckpointError("\n".join([f"no checkpoint of {run.path} can be used:", *reasons]))
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint and verify every byte of it.

    Raises:
        CheckpointError: It does not hold, and why.
        UsageError: A newer release wrote it.
        StorageError: The disk is failing, or the file may not be read.
    """
    tensors, metadata = read_tensors(path)
    if _ENTRY not in metadata:
        raise CheckpointError(f"{path}: it is no checkpoint of a run")
    entry = _Entry.from_json(metadata[_ENTRY], str(path))
    if entry.step != _step(path):
        raise CheckpointError(f"{path}: it is of step {entry.step}, whatever its name says")
    return Checkpoint(step=entry.step, tensors=tensors, state=entry.state)


def _checkpoints(run: RunDirectory) -> list[Path]:
    """Return what is named like a checkpoint, from the earliest step to the latest."""
    numbered = ((_step(path), path) for path in _listed(run))
    return [path for _, path in sorted((step, path) for step, path in numbered if step is not None)]


def _set_aside_before(run: RunDirectory) -> list[Path]:
    return sorted(path for path in _listed(run) if path.suffix == CORRUPT)


def _listed(run: RunDirectory) -> list[Path]:
    with storage_errors("read", run.checkpoints):
        return list(run.checkpoints.iterdir()) if run.checkpoints.exists() else []


def _step(path: Path) -> int | None:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def _rotate(run: RunDirectory, keep: int, warn: Warn) -> None:
    try:
        for path in _checkpoints(run)[:-keep]:
            with storage_errors("remove", path), contextlib.suppress(FileNotFoundError):
                path.unlink()
    except StorageError as error:
        warn(str(error))
    failpoint("rotated")


def _set_aside(path: Path, reason: str, warn: Warn) -> None:
    """Rename a file that does not hold, without losing one of that name set aside before."""
    warn(f"{reason}; going back to the checkpoint before it")
    target = path.with_name(path.name + CORRUPT)
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.{number}{CORRUPT}")
    try:
        with storage_errors("rename", path):
            os.replace(path, target)
    except StorageError as error:
        warn(str(error))
