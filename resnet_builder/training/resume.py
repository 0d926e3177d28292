"""Resuming a run: its newest checkpoint, what may not have changed, and the record of what did."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from resnet_builder.data.splits import DataSplits
from resnet_builder.errors import CheckpointError, UsageError, counted
from resnet_builder.experiment import Experiment
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import Change, EnvRecord, MetricsLog, ResultRecord, RuntimeConfig
from resnet_builder.training.callbacks import Callback
from resnet_builder.training.checkpoint import (
    Checkpoint,
    load_newest,
    newest_provenance,
    set_aside_damaged,
)
from resnet_builder.training.distributed import DistributedContext
from resnet_builder.training.provenance import (
    Provenance,
    change_notices,
    check_unchanged,
    record_provenance,
    recorded_runtime,
)
from resnet_builder.training.runtime import resolve_environment
from resnet_builder.training.schedule import Plan
from resnet_builder.training.state import TrainState


@dataclass(frozen=True, slots=True)
class Resumption:
    """Place from which a run is trained on, and what has changed since; also for a new run.

    Attributes:
        checkpoint: Newest checkpoint, if there is one.
        env: Environment, repeated from the run as far as it says nothing else.
        provenance: Spec, plugins, environment and data.
        changes: Changes since the run was last trained, all of which are allowed.
        notices: Notices for the user.
    """

    checkpoint: Checkpoint | None
    env: EnvRecord
    provenance: Provenance
    changes: Sequence[Change]
    notices: Sequence[str]


def newest_runtime(run: RunDirectory) -> RuntimeConfig | None:
    """Return the runtime configuration that a resumed run repeats; ``None`` for a new run.

    Raises:
        StorageError: The disk is failing, or a file may not be read.
    """
    return recorded_runtime(run, newest_provenance(run)) if run.is_published else None


def finished_result(run: RunDirectory) -> ResultRecord | None:
    """Return the result of a run whose weights are there too; lost ones are made again.

    Raises:
        CheckpointError: The result is damaged.
        StorageError: It cannot be read.
    """
    if not (run.is_finished and run.best.is_file()):
        return None
    try:
        return ResultRecord.read(run.result)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; remove the file, and resume the run: it is made again from the last "
            "checkpoint"
        ) from error


def prepare_resumption(
    run: RunDirectory,
    experiment: Experiment,
    data: DataSplits,
    ctx: DistributedContext,
    *,
    allow_spec_change: bool,
    allow_inexact: bool,
) -> Resumption:
    """Find the place from which a run is trained on; every process calls this. Changes no file.

    Raises:
        CheckpointError: There are checkpoints, but none is valid.
        DataError: The images have changed.
        StorageError: A file of the run cannot be read.
        UsageError: Something else has changed that must not, or there is no such device.
    """
    checkpoint, before, runtime = ctx.run_on_main(partial(_read, run))
    notices: list[str] = []
    env = resolve_environment(experiment.run, runtime, ctx, warn=notices.append)
    consents = {"allow_spec_change": allow_spec_change, "allow_inexact": allow_inexact}
    provenance, changes = ctx.run_on_main(
        partial(check_unchanged, run, before, experiment, data, env, **consents)
    )
    return Resumption(checkpoint, env, provenance, changes, notices)


def _read(run: RunDirectory) -> tuple[Checkpoint | None, Provenance | None, RuntimeConfig | None]:
    """Newest checkpoint of a run, what decided its bits, and the runtime to repeat."""
    checkpoint = load_newest(run)
    if checkpoint is not None:
        before = checkpoint.provenance
    elif run.is_published:
        before = Provenance.read(run)
    else:
        return None, None, None
    return checkpoint, before, recorded_runtime(run, before)


def check_steps_left(run: RunDirectory, plan: Plan, state: TrainState) -> None:
    """Check that a run has steps left, or that only its result is missing.

    Raises:
        UsageError: It is complete.
    """
    recipe = plan.recipe
    key = "train.epochs" if recipe.steps is None else "train.steps"
    if run.is_finished and state.step == 0:
        raise UsageError(f"{run.path} is complete, and it has no checkpoint to train on from")
    if state.step > plan.total_steps:
        raise UsageError(
            f"{key}: {run.path} has done {counted(state.step, 'step')}, and this recipe ends after "
            f"{plan.total_steps:,}; give a longer recipe, or start another run"
        )
    is_complete = run.is_finished and run.best.is_file()
    if is_complete and state.step == plan.total_steps:
        raise UsageError(
            f"{run.path} is already complete, after {counted(state.step, 'step')}; to train on, "
            f"give more {key.removeprefix('train.')} by --set {key}=... and --allow-spec-change"
        )
    if is_complete and state.is_stale(recipe.early_stop):
        raise UsageError(
            f"train.early_stop: early stopping ended {run.path} after step {state.step:,}, and "
            "would end it again; to train on, raise its patience or set it to null"
        )


def record_resumption(
    run: RunDirectory, resumption: Resumption, plan: Plan, state: TrainState, events: Callback
) -> None:
    """Record and tell that a run is trained on, and remove what lies behind its checkpoint.

    Raises:
        StorageError: A file of the run cannot be written.
    """
    changes, checkpoint = resumption.changes, resumption.checkpoint
    record_provenance(run, resumption.provenance, changes, step=state.step)
    notices = [*resumption.notices, *change_notices(changes)]
    for notice in [*notices, *_schedule_notices(changes, plan, state)]:
        events.on_warning(notice)
    set_aside_damaged(run, state.step, events.on_warning)
    MetricsLog(run).rewind(checkpoint.metrics_bytes if checkpoint else 0, warn=events.on_warning)


def _schedule_notices(changes: Sequence[Change], plan: Plan, state: TrainState) -> list[str]:
    """Tell of the learning rate that a changed recipe goes on with."""
    recipe = [c for c in changes if c.path.startswith("train.") and c.kind == "trajectory"]
    if state.step in {0, plan.total_steps} or not recipe:
        return []
    return [
        f"training on from step {state.step:,} to {plan.total_steps:,}, on the schedule of the "
        f"recipe as it is now: the learning rate is {plan.lr(state.step, state.history):g}"
    ]
