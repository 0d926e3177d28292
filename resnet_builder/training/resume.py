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
    newest_metadata,
    set_aside_damaged,
)
from resnet_builder.training.distributed import DistributedContext
from resnet_builder.training.provenance import (
    Provenance,
    change_message,
    change_notices,
    check_consent,
    check_unchanged,
    plugin_digests,
    record_provenance,
    recorded_runtime,
    spec_changes,
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


@dataclass(frozen=True, slots=True)
class Recorded:
    """Record of a run that is to be resumed, as far as it is needed before its data are read.

    Attributes:
        result: Result, if the run is complete and no change asks for more.
        runtime: Runtime configuration, which is repeated.
        skips_bad: Whether images were left out because they could not be decoded.
    """

    result: ResultRecord | None
    runtime: RuntimeConfig | None
    skips_bad: bool


def inspect_run(run: RunDirectory, experiment: Experiment, *, allow_spec_change: bool) -> Recorded:
    """Compare an experiment with a run, before data and tensors are read. Changes no file.

    Raises:
        CheckpointError: The result is damaged.
        SpecError: The run's spec is not valid any more.
        StorageError: The disk is failing, or a file may not be read.
        UsageError: A change is refused, or needs a flag that was not given; or no steps are left.
    """
    checkpoint = newest_metadata(run)
    before = Provenance.read(run) if checkpoint is None else checkpoint.provenance
    changes = spec_changes(run, before, experiment, plugin_digests(experiment))
    result = finished_result(run)
    if any(change.needs_consent for change in changes):
        result = None
        if checkpoint is not None and before.data is not None:
            steps_per_epoch = before.data.images["train"] // experiment.train.batch_size
            if steps_per_epoch:  # else the batch is refused once the data are read
                plan = Plan(experiment.train, steps_per_epoch)
                try:
                    check_steps_left(run, plan, checkpoint.state)
                except UsageError as error:  # no flag allows it
                    raise UsageError(*change_message(run, changes, str(error))) from error
    check_consent(run, changes, allow_spec_change=allow_spec_change)
    skips_bad = bool(before.data and before.data.skipped)
    return Recorded(result, recorded_runtime(run, before), skips_bad)


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
    if not changes:  # else with the next checkpoint: they may fail before it
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
