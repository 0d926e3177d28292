"""Checkpoints: the state of a training, one file each, and the search for the newest valid one.

The directory's contents are the only truth: no file names the newest checkpoint, so that no such
name can be wrong. Functions that change the directory need the lock of the run.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Literal

from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.optim import Optimizer

from resnet_builder.errors import CheckpointError, NonFiniteError, StorageError, UsageError
from resnet_builder.runs.directory import RunDirectory, checkpoint_step
from resnet_builder.runs.files import Warn, failpoint, ignore, storage_errors
from resnet_builder.runs.records import Change, Count, MetricsLog, Record
from resnet_builder.training.callbacks import Callback
from resnet_builder.training.distributed import SINGLE_PROCESS, DistributedContext
from resnet_builder.training.ema import Ema
from resnet_builder.training.optim import optimizer_state, restore_optimizer
from resnet_builder.training.provenance import Provenance, record_provenance
from resnet_builder.training.schedule import Plan
from resnet_builder.training.state import TrainState, set_weights
from resnet_builder.weights.file import check_finite, read_metadata, read_tensors, write_tensors

CORRUPT = ".corrupt"
"""Suffix of a damaged checkpoint that was set aside."""

MIN_KEPT = 2
"""Checkpoints that are always kept: the newest may turn out to be damaged."""

_METADATA_KEY = "checkpoint"


class Checkpoint(Record):
    """A training between two optimizer steps, as it lies in a file.

    Attributes:
        state: Progress of the training.
        optimizer: Class name of the optimizer.
        provenance: Everything that decided the bits of this state.
        metrics_bytes: Size of ``metrics.jsonl``, to which a resumed run truncates it.
        tensors: Tensors by name: ``model/...``, ``optim/...``, ``ema/...``, ``best/...``.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    schema_number: Literal[1] = Field(1, alias="schema")
    state: TrainState
    optimizer: str
    provenance: Provenance
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
        provenance: Everything that decides the bits of the training.
        changes: Changes since the run was last trained; the next checkpoint records them.
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
        provenance: Provenance,
        changes: Sequence[Change] = (),
        plan: Plan,
        callbacks: Callback,
        ctx: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        self._run = run
        self._model = model
        self._optimizer = optimizer
        self._ema = ema
        self._provenance = provenance
        self._unrecorded = changes
        self._start = 0
        self._plan = plan
        self._callbacks = callbacks
        self._ctx = ctx
        self._metrics = MetricsLog(run)
        # A state is saved twice at the same step if it was evaluated in between.
        self._saved: tuple[int, int] | None = None
        self._tried_at = self._saved_at = monotonic()

    def restore(self, checkpoint: Checkpoint | None) -> TrainState:
        """Restore a checkpoint, in this process alone; without one, training starts from step 0.

        Where the recipe has changed since, a new moving average starts from the weights, and a new
        kind of optimizer without a state.

        Raises:
            CheckpointError: Its optimizer state is of other parameters.
            UsageError: It belongs to another network.
        """
        if checkpoint is None:
            return TrainState()
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
        self._saved, self._start = _moment(checkpoint.state), checkpoint.step
        return checkpoint.state

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
        if self.holds(state) and not self._unrecorded:
            return
        self._tried_at = monotonic()
        error = self._ctx.run_on_main(partial(self._write, state))
        if error is not None:
            raise error
        self._saved, self._saved_at = _moment(state), self._tried_at
        self._unrecorded = ()
        self._callbacks.on_checkpoint(state.step, self._run.checkpoint(state.step))

    def save_if_possible(self, state: TrainState) -> None:
        """Save ``state``, or warn that the disk fails: the older checkpoints are still there.

        Nothing is saved before a first step has shown that what was changed works.

        Raises:
            NonFiniteError: A tensor holds a value that is not finite.
        """
        if self._unrecorded and state.step == self._start:
            return
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
        return f"the newest checkpoint is {self._run.checkpoint(self._saved[0])}"

    def _write(self, state: TrainState) -> NonFiniteError | StorageError | None:
        """Write a checkpoint. An error is returned, so that all processes raise it alike."""
        try:
            checkpoint = self._capture(state, metrics_bytes=self._metrics.sync())
            if self._unrecorded:  # first: a run that is killed in between needs no consent again
                check_finite(self._run.checkpoint(state.step), checkpoint.tensors)
                changes = self._unrecorded
                record_provenance(self._run, self._provenance, changes, step=self._start)
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
            provenance=self._provenance,
            metrics_bytes=metrics_bytes,
            tensors={
                f"{group}/{name}": tensor
                for group, tensors in groups.items()
                for name, tensor in tensors.items()
            },
        )


def _moment(state: TrainState) -> tuple[int, int]:
    """Identify a state within its run: at one step it is different before an evaluation."""
    return state.step, state.evaluated_step


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
    path = run.checkpoint(checkpoint.state.step)
    write_tensors(path, checkpoint.tensors, {_METADATA_KEY: checkpoint.to_json()})
    _rotate(run, keep, warn)


def load_newest(run: RunDirectory) -> Checkpoint | None:
    """Return the newest valid checkpoint, or ``None`` if there are no checkpoints at all.

    Raises:
        CheckpointError: There are checkpoints, but none is valid: no run starts over unasked.
        UsageError: A newer release wrote the newest.
        StorageError: The disk is failing, or a checkpoint may not be read.
    """
    reasons = []
    for path in reversed(run.checkpoint_files().values()):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            reasons.append(str(error))
    set_aside = sorted(run.checkpoints.glob(f"*{CORRUPT}"))
    reasons += [f"{path}: it was set aside before" for path in set_aside]
    if reasons:
        raise CheckpointError(f"no checkpoint of {run.path} can be used:", *reasons)
    return None


def newest_metadata(run: RunDirectory) -> Checkpoint | None:
    """Return the newest checkpoint whose metadata can be read, without its tensors.

    It is not verified: this is for comparisons before anything large is read.
    """
    for path in reversed(run.checkpoint_files().values()):
        with contextlib.suppress(CheckpointError, StorageError, UsageError):
            return _parse(path, read_metadata(path))
    return None


def set_aside_damaged(run: RunDirectory, newest: int, warn: Warn) -> None:
    """Rename the checkpoints that are newer than the newest valid one to ``*.corrupt``.

    Args:
        run: The run directory.
        newest: Step of the newest valid checkpoint.
        warn: Told why each is damaged.
    """
    for step, path in reversed(run.checkpoint_files().items()):
        if step <= newest:
            return
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            _set_aside(path, str(error), warn)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint and verify every byte of it.

    Raises:
        CheckpointError: It is not valid; the message says why.
        UsageError: A newer release wrote it.
        StorageError: The disk is failing, or the file may not be read.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: it is not a file")
    tensors, metadata = read_tensors(path)
    return _parse(path, metadata).model_copy(update={"tensors": tensors})


def is_checkpoint(path: Path) -> bool:
    """Tell whether a file is a checkpoint; its contents are not verified.

    Raises:
        CheckpointError: It is missing, or no safetensors file.
        StorageError: The disk is failing, or the file may not be read.
    """
    return _METADATA_KEY in read_metadata(path)


def _parse(path: Path, metadata: Mapping[str, str]) -> Checkpoint:
    """Checkpoint in the metadata of a file, without its tensors."""
    if _METADATA_KEY not in metadata:
        raise CheckpointError(f"{path}: it is no checkpoint of a run")
    checkpoint = Checkpoint.from_json(metadata[_METADATA_KEY], str(path))
    if checkpoint.state.step != checkpoint_step(path):
        raise CheckpointError(
            f"{path}: it is of step {checkpoint.state.step}, not as its name says"
        )
    return checkpoint


def _rotate(run: RunDirectory, keep: int, warn: Warn) -> None:
    """Remove all checkpoints but the newest ``keep``."""
    try:
        for path in list(run.checkpoint_files().values())[:-keep]:
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
