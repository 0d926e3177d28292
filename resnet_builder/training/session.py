"""Session: the run directory, images and network of a training, new or resumed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from resnet_builder.builder import build
from resnet_builder.data.interfaces import Report, Stop, never, silent
from resnet_builder.data.loader import steps_per_epoch
from resnet_builder.data.splits import DataSplits, load_data
from resnet_builder.errors import UsageError
from resnet_builder.experiment import Experiment
from resnet_builder.memory import check_disk, estimate_training, memory_warning
from resnet_builder.model import ResNet
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import Warn, ignore
from resnet_builder.runs.records import DataRecord, ResultRecord
from resnet_builder.spec.dump import dump_spec
from resnet_builder.training.checkpoint import has_checkpoints
from resnet_builder.training.distributed import (
    SINGLE_PROCESS,
    DistributedContext,
    check_batch_size,
    check_sync_norm,
)
from resnet_builder.training.provenance import (
    check_data_unchanged,
    check_spec_unchanged,
    check_weights_unchanged,
    record_provenance,
)
from resnet_builder.training.runtime import pick_precision, resolve_device

RUNS = Path("runs")
"""Parent of the run directories that are named after their spec."""


@dataclass(frozen=True, slots=True)
class Session:
    """Everything that :func:`~resnet_builder.training.trainer.fit` is called with.

    Attributes:
        run: Run directory. The main process holds its lock.
        data: Images.
        model: Network with its initial weights.
    """

    run: RunDirectory
    data: DataSplits
    model: ResNet


@contextmanager
def start(
    experiment: Experiment,
    out: Path | None = None,
    *,
    data_dir: Path | None = None,
    skip_bad: bool = False,
    report: Report = silent,
    warn: Warn = ignore,
    should_stop: Stop = never,
    ctx: DistributedContext = SINGLE_PROCESS,
) -> Iterator[Session | ResultRecord]:
    """Load the data, build the network, and make a new run directory for them.

    The directory is made last, so that none is left behind if data or weights are missing.

    Args:
        experiment: The experiment.
        out: The directory to make; by default the next ``runs/<name>-NNN``.
        data_dir: Where datasets are stored; ``None`` for the user's cache folder.
        skip_bad: Whether images that cannot be decoded are left out. Otherwise they are an error.
        report: Called with the progress of downloads and scans.
        warn: Called with what the user should know.
        should_stop: Polled while data are loaded.
        ctx: The processes, all of which call this. Only the main process touches the directory.

    Yields:
        The session. The run directory is locked until the context is left.

    Raises:
        BusyError: ``out`` exists, and a process uses it.
        CheckpointError: The pretrained weights are missing, damaged or of another network.
        DataError: The dataset is missing, damaged or too small.
        StorageError: The disk is full, read-only or failing.
        Stopped: ``should_stop`` became true.
        UsageError: ``out`` exists, there is no such device, or the recipe does not fit the data.
    """
    check_batch_size(experiment.train.batch_size, experiment.train.accumulate, ctx)
    load = partial(_load, experiment, data_dir, report, warn, should_stop, ctx)
    if not ctx.is_main_process:
        yield _follow(experiment, load, ctx)
        return
    if out is not None and out.exists():
        RunDirectory.create(out)  # raises the error that says why it cannot be made
    _check_resources(experiment, out or RUNS, warn, ctx)
    ctx.broadcast_object(_Task(skip_bad=skip_bad))
    data = load(skip_bad=skip_bad)
    model = build(experiment, seed=experiment.train.seed)
    if out is None:
        run = RunDirectory.create_numbered(RUNS, experiment.name)
    else:
        run = RunDirectory.create(out)
    with run.locked():
        record_provenance(run, experiment, data)
        yield Session(ctx.broadcast_object(run), data, model)


@contextmanager
def resume(
    experiment: Experiment,
    directory: Path,
    *,
    allow_spec_change: bool = False,
    data_dir: Path | None = None,
    skip_bad: bool = False,
    report: Report = silent,
    warn: Warn = ignore,
    should_stop: Stop = never,
    ctx: DistributedContext = SINGLE_PROCESS,
) -> Iterator[Session | ResultRecord]:
    """Open the run in a directory, or make one there if there is none.

    Args:
        experiment: The experiment, which must be that of the run.
        directory: The run directory. It is made if it does not exist.
        allow_spec_change: Whether the recipe or the data may have changed. Changes are recorded.
        data_dir: As for :func:`start`.
        skip_bad: As for :func:`start`; a run that was started so is resumed so.
        report: As for :func:`start`.
        warn: As for :func:`start`.
        should_stop: As for :func:`start`.
        ctx: As for :func:`start`.

    Yields:
        The session; or the result, if the run is complete.

    Raises:
        BusyError: A process uses the directory.
        UsageError: The directory holds another experiment, or something else.
        ResnetBuilderError: As for :func:`start`.
    """
    check_batch_size(experiment.train.batch_size, experiment.train.accumulate, ctx)
    load = partial(_load, experiment, data_dir, report, warn, should_stop, ctx)
    if not ctx.is_main_process:
        yield _follow(experiment, load, ctx)
        return
    run = RunDirectory.open_or_create(directory)
    with run.locked(warn=warn):
        is_new = not run.is_published
        if not is_new:
            check_spec_unchanged(run, experiment, allow_spec_change=allow_spec_change, warn=warn)
        if run.is_finished:
            record = ResultRecord.read(run.result)
            ctx.broadcast_object(_Task(record))
            yield record
            return
        _check_resources(experiment, run.path, warn, ctx)
        skip_bad = skip_bad or (not is_new and bool(DataRecord.read(run.data).skipped))
        ctx.broadcast_object(_Task(skip_bad=skip_bad))
        data = load(skip_bad=skip_bad)
        # From its first checkpoint on, a run does not need the pretrained weights any more.
        pretrained = not has_checkpoints(run)
        if not is_new:
            check_data_unchanged(run, data, allow_spec_change=allow_spec_change)
            if pretrained:
                check_weights_unchanged(run, experiment)
        model = build(experiment, seed=experiment.train.seed, pretrained=pretrained)
        if is_new:
            record_provenance(run, experiment, data)
        yield Session(ctx.broadcast_object(run), data, model)


@dataclass(frozen=True, slots=True)
class _Task:
    """Message of the main process to the others.

    Attributes:
        record: Result of a run that is complete already.
        skip_bad: Whether images that cannot be decoded are left out.
    """

    record: ResultRecord | None = None
    skip_bad: bool = False


def _follow(
    experiment: Experiment, load: Callable[..., DataSplits], ctx: DistributedContext
) -> Session | ResultRecord:
    """Open the session of a process that is not the main process."""
    task = ctx.broadcast_object(_Task())
    if task.record is not None:
        return task.record
    data = load(skip_bad=task.skip_bad)
    # The weights are those of the main process: DistributedDataParallel broadcasts them.
    model = build(experiment, seed=experiment.train.seed, pretrained=False)
    return Session(ctx.broadcast_object(RunDirectory(Path())), data, model)


def _load(
    experiment: Experiment,
    data_dir: Path | None,
    report: Report,
    warn: Warn,
    should_stop: Stop,
    ctx: DistributedContext,
    *,
    skip_bad: bool,
) -> DataSplits:
    """Load the data, and check that the recipe fits them."""
    # Errors come before any download.
    device = resolve_device(experiment.run.device, ctx)
    if experiment.train.sync_norm:
        check_sync_norm(device, ctx)
    # On each machine one process is first: it downloads and scans for all.
    with ctx.main_process_first(should_stop):
        data = load_data(
            experiment, data_dir=data_dir, skip_bad=skip_bad, stop=should_stop, report=report
        )
    for notice in data.notices:
        warn(notice)
    steps_per_epoch(len(data.train), experiment.train.batch_size)  # an error if there is none
    if experiment.train.early_stop is not None and data.validation is None:
        raise UsageError("train.early_stop: it needs validation images; set data.validation")
    given = (dump_spec(experiment.spec), data.fingerprint, data.validation_indices)
    if ctx.broadcast_object(given) != given:
        raise UsageError(
            f"process {ctx.rank} was given another spec, or other images, than process 0"
        )
    return data


def _check_resources(
    experiment: Experiment, place: Path, warn: Warn, ctx: DistributedContext
) -> None:
    """Warn of too little memory, and refuse a disk without room for two checkpoints."""
    device = resolve_device(experiment.run.device, ctx)
    precision = pick_precision(experiment.run.precision, device)
    estimate = estimate_training(experiment, precision, processes=ctx.world_size)
    check_disk(estimate, place, warn)
    warning = memory_warning(estimate, device, processes=ctx.local_world_size)
    if warning is not None:
        warn(warning)
