"""Checkpoints: the state of a training, one file each, and the search for the newest valid one.

The directory's contents are the only truth: no file names the newest checkpoint, so that no such
name can be wrong. Functions that change the directory need the lock of the run.
"""

import contextlib
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Literal

from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.optim import Optimizer

from resnet_builder.data.splits import DataSplits
from resnet_builder.errors import (
    CheckpointError,
    DataError,
    NonFiniteError,
    StorageError,
)
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import Warn, failpoint, ignore, storage_errors
from resnet_builder.runs.records import Count, EnvRecord, MetricsLog, Record, package_version
from resnet_builder.training.callbacks import Callback
from resnet_builder.training.distributed import SINGLE_PROCESS, DistributedContext
from resnet_builder.training.ema import Ema
from resnet_builder.training.optim import optimizer_state, restore_optimizer
from resnet_builder.training.schedule import Plan
from resnet_builder.training.state import TrainState, set_weights
from resnet_builder.weights.file import read_metadata, read_tensors, write_tensors

CORRUPT = ".corrupt"
"""Suffix of a damaged checkpoint that was set aside."""

MIN_KEPT = 2
"""Checkpoints that are always kept: the newest may turn out to be damaged."""

_METADATA_KEY = "checkpoint"
_NAME = re.compile(r"step-(\d{1,18})\.safetensors")


class Checkpoint(Record):
    """A training between two optimizer steps, as it lies in a file.

    Attributes:
        package: Version of this package that wrote it.
        state: Progress of the training.
        optimizer: Class name of the optimizer.
        env: Environment that computed it.
        fingerprint: Fingerprint of the dataset.
        validation_indices: Training images that are used for validation.
        metrics_bytes: Size of ``metrics.jsonl``, to which a resumed run truncates it.
        tensors: Tensors by name: ``model/...``, ``optim/...``, ``ema/...``, ``best/...``.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    schema_number: Literal[1] = Field(1, alias="schema")
    package: str = Field(default_factory=package_version)
    state: TrainState
    optimizer: str
    env: EnvRecord
    fingerprint: str
    validation_indices: tuple[int, ...]
    metrics_bytes: Count
    tensors: Mapping[str, Tensor] = Field(default={}, exclude=True, repr=False)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.state.step


class CheckpointManager:
    """Saves the state of a training, by steps or by time, and restores it.

    Args:
        run: The run directory.
        model: The network, on its device.
        optimizer: Its optimizer.
        ema: Moving average of its weights, if one is kept.
        env: The environment, which each checkpoint holds.
        data: The images that it is trained on.
        plan: When checkpoints are due, and how many are kept.
        callbacks: Called when a checkpoint is saved, or cannot be saved.
        ctx: The processes that hold this state. Only the main process writes; the others wait.
    """

    def __init__(
        self,
        run: RunDirectory,
        model: nn.Module,
        optimizer: Optimizer,
        ema: Ema | None,
        *,
        env: EnvRecord,
        data: DataSplits,
        plan: Plan,
        callbacks: Callback,
        ctx: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        self._run = run
        self._model = model
        self._optimizer = optimizer
        self._ema = ema
        self._env = env
        self._data = data
        self._plan = plan
        self._callbacks = callbacks
        self._ctx = ctx
        self._metrics = MetricsLog(run)
        # A state is saved twice at the same step if it was evaluated in between.
        self._saved: tuple[int, int] | None = None
        self._tried_at = self._saved_at = monotonic()

    def restore_newest(self) -> TrainState:
        """Restore the newest valid checkpoint; without one, training starts from step 0.

        Where the recipe has changed since, a new moving average starts from the weights, and a new
        kind of optimizer without a state.

        Raises:
            CheckpointError: There are checkpoints, but none is valid.
            DataError: It belongs to other images.
            StorageError: One cannot be read, or ``metrics.jsonl`` cannot be truncated.
            UsageError: It belongs to another network or to a newer release.
        """
        warn = self._callbacks.on_warning
        checkpoint = self._ctx.run_on_main(partial(load_newest, self._run, warn=warn))
        if checkpoint is not None:
            self._restore(checkpoint)
        if self._ctx.is_main_process:
            self._metrics.rewind(checkpoint.metrics_bytes if checkpoint else 0, warn=warn)
        return checkpoint.state if checkpoint else TrainState()

    def is_due(self, state: TrainState) -> bool:
        """Tell whether it is time for a checkpoint of ``state``."""
        if state.step == 0 or _moment(state) == self._saved:
            return False
        if self._plan.checkpoint_seconds is not None:
            return monotonic() - self._tried_at >= self._plan.checkpoint_seconds
        return self._plan.saves_at(state.step)

    def save(self, state: TrainState) -> None:
        """Save ``state``, unless it is saved already; all processes call this at the same step.

        Raises:
            NonFiniteError: A tensor holds a value that is not finite.
            StorageError: The disk is full, read-only or failing.
        """
        if self.holds(state):
            return
        self._tried_at = monotonic()
        error = self._ctx.run_on_main(partial(self._write, state))
        if error is not None:
            raise error
        self._saved, self._saved_at = _moment(state), self._tried_at
        self._callbacks.on_checkpoint(state.step, checkpoint_path(self._run, state.step))

    def save_if_possible(self, state: TrainState) -> None:
        """Save ``state``, or warn that the disk fails: the older checkpoints are still there.

        Raises:
            NonFiniteError: A tensor holds a value that is not finite.
        """
        try:
            self.save(state)
        except StorageError as error:
            last = f"step {self._saved[0]}" if self._saved else "the beginning"
            self._callbacks.on_warning(
                f"not saved at step {state.step}, and not since {last}, "
                f"{monotonic() - self._saved_at:.0f} s ago: {error}; {self.newest}"
            )

    def holds(self, state: TrainState) -> bool:
        """Tell whether the newest checkpoint holds ``state``."""
        return self._saved == _moment(state)

    @property
    def newest(self) -> str:
        """Clause of messages about the newest checkpoint."""
        if self._saved is None:
            return "no checkpoint was saved yet"
        return f"the newest checkpoint is {checkpoint_path(self._run, self._saved[0])}"

    def _write(self, state: TrainState) -> NonFiniteError | StorageError | None:
        """Write a checkpoint. An error is returned, so that all processes raise it alike."""
        try:
            checkpoint = self._capture(state, metrics_bytes=self._metrics.sync())
            keep = self._plan.recipe.keep_checkpoints
            save_checkpoint(self._run, checkpoint, keep, warn=self._callbacks.on_warning)
        except NonFiniteError as error:
            return NonFiniteError(f"{error}; {self.newest}")
        except StorageError as error:
            return error
        return None

    def _capture(self, state: TrainState, *, metrics_bytes: int) -> Checkpoint:
        """Describe the present state. The tensors are not copied: they are written at once."""
        groups = {
            "model": self._model.state_dict(),
            "optim": optimizer_state(self._optimizer, self._model),
            "best": state.best_weights,
            "ema": self._ema.model.state_dict() if self._ema else {},
        }
        return Checkpoint(
            state=state,
            optimizer=type(self._optimizer).__name__,
            env=self._env,
            fingerprint=self._data.fingerprint,
            validation_indices=self._data.validation_indices,
            metrics_bytes=metrics_bytes,
            tensors={
                f"{group}/{name}": tensor
                for group, tensors in groups.items()
                for name, tensor in tensors.items()
            },
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Load weights, moving average and optimizer state."""
        self._check_data(checkpoint)
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "optim": {}, "best": {}, "ema": {}}
        for path, tensor in checkpoint.tensors.items():
            group, _, name = path.partition("/")
            groups.setdefault(group, {})[name] = tensor
        set_weights(self._model, groups["model"])
        if self._ema is not None:
            set_weights(self._ema.model, groups["ema"] or groups["model"])
        if checkpoint.optimizer == type(self._optimizer).__name__:
            restore_optimizer(self._optimizer, self._model, groups["optim"])
        checkpoint.state.best_weights = groups["best"]
        self._saved = _moment(checkpoint.state)

    def _check_data(self, checkpoint: Checkpoint) -> None:
        before = checkpoint.fingerprint, checkpoint.validation_indices
        now = self._data.fingerprint, self._data.validation_indices
        if before != now:
            was, now_is = (
                f"'{fingerprint}' with {len(indices)} validation images from {list(indices[:3])}"
                for fingerprint, indices in (before, now)
            )
            raise DataError(
                f"the images are not the run's: dataset {was} when it began, {now_is} now; "
                "go back to the data as it was, or start another run"
            )


def _moment(state: TrainState) -> tuple[int, int]:
    """Identify a state within its run: at one step it is different before an evaluation."""
    return state.step, state.evaluated_step


def checkpoint_path(run: RunDirectory, step: int) -> Path:
    """Return the file of the checkpoint of a step."""
    return run.checkpoints / f"step-{step:09d}.safetensors"


def save_checkpoint(
    run: RunDirectory, checkpoint: Checkpoint, keep: int, *, warn: Warn = ignore
) -> None:
    """Write a checkpoint, then remove the oldest ones; if that fails, the older ones remain.

    Args:
        run: The run directory.
        checkpoint: The checkpoint.
        keep: Number of checkpoints to keep, at least :data:`MIN_KEPT`.
        warn: Called if checkpoints cannot be removed.

    Raises:
        NonFiniteError: A tensor holds a value that is not finite.
        StorageError: The disk is full, read-only or failing.
    """
    if keep < MIN_KEPT:
        raise ValueError(f"keep is {keep}, but at least {MIN_KEPT} checkpoints are kept")
    path = checkpoint_path(run, checkpoint.state.step)
    write_tensors(path, checkpoint.tensors, {_METADATA_KEY: checkpoint.to_json()})
    _rotate(run, keep, warn)


def load_newest(run: RunDirectory, *, warn: Warn = ignore) -> Checkpoint | None:
    """Return the newest valid checkpoint, or ``None`` if there are no checkpoints at all.

    Damaged newer ones are renamed to ``*.corrupt`` and ``warn`` says why; but only if an older
    one is valid, so that a run never starts over unasked.

    Raises:
        CheckpointError: There are checkpoints, but none is valid.
        UsageError: A newer release wrote the newest.
        StorageError: The disk is failing, or a checkpoint may not be read.
    """
    damaged: list[tuple[Path, str]] = []
    for path in reversed(_checkpoints(run)):
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            damaged.append((path, str(error)))
            continue
        for corrupt, reason in damaged:
            _set_aside(corrupt, reason, warn)
        return checkpoint
    reasons = [reason for _, reason in damaged]
    reasons += [f"{path}: it was set aside before" for path in _set_aside_before(run)]
    if reasons:
        raise CheckpointError(f"no checkpoint of {run.path} can be used:", *reasons)
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint and verify every byte of it.

    Raises:
        CheckpointError: It is not valid; the message says why.
        UsageError: A newer release wrote it.
        StorageError: The disk is failing, or the file may not be read.
    """
    tensors, metadata = read_tensors(path)
    if _METADATA_KEY not in metadata:
        raise CheckpointError(f"{path}: it is no checkpoint of a run")
    checkpoint = Checkpoint.from_json(metadata[_METADATA_KEY], str(path))
    if checkpoint.state.step != _step(path):
        raise CheckpointError(
            f"{path}: it is of step {checkpoint.state.step}, not as its name says"
        )
    return checkpoint.model_copy(update={"tensors": tensors})


def recorded_env(run: RunDirectory) -> EnvRecord | None:
    """Environment of the newest checkpoint that can be read; only its metadata are.

    Raises:
        StorageError: The disk is failing.
        UsageError: A newer release wrote it.
    """
    for path in reversed(_checkpoints(run)):
        with contextlib.suppress(CheckpointError):  # load_newest says what is wrong with it
            text = read_metadata(path).get(_METADATA_KEY, "")
            return Checkpoint.from_json(text, str(path)).env
    return None


def has_checkpoints(run: RunDirectory) -> bool:
    """Tell whether a run has checkpoints, valid or not.

    Raises:
        StorageError: The disk is failing.
    """
    return bool(_checkpoints(run) or _set_aside_before(run))


def _checkpoints(run: RunDirectory) -> list[Path]:
    """Return the files with the name of a checkpoint, in the order of their steps."""
    numbered = ((_step(path), path) for path in _files(run))
    return [path for _, path in sorted((step, path) for step, path in numbered if step is not None)]


def _set_aside_before(run: RunDirectory) -> list[Path]:
    return sorted(path for path in _files(run) if path.suffix == CORRUPT)


def _files(run: RunDirectory) -> list[Path]:
    with storage_errors("read", run.checkpoints):
        return list(run.checkpoints.iterdir()) if run.checkpoints.exists() else []


def _step(path: Path) -> int | None:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def _rotate(run: RunDirectory, keep: int, warn: Warn) -> None:
    """Remove all checkpoints but the newest ``keep``."""
    try:
        for path in _checkpoints(run)[:-keep]:
            with storage_errors("remove", path), contextlib.suppress(FileNotFoundError):
                path.unlink()
    except StorageError as error:
        warn(str(error))
    failpoint("rotated")


def _set_aside(path: Path, reason: str, warn: Warn) -> None:
    """Rename a damaged checkpoint; one with that name from an earlier time is not overwritten."""
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
