"""Session: the run directory, images and network of a training, new or resumed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from resnet_builder.builder import build, check_source
from resnet_builder.data.interfaces import Report, Stop, never, silent
from resnet_builder.data.loader import steps_per_epoch
from resnet_builder.data.splits import DataSplits, load_data
from resnet_builder.errors import (
    DataError,
    PartError,
    RegistryError,
    SpecError,
    UsageError,
)
from resnet_builder.experiment import Experiment
from resnet_builder.memory import check_disk, estimate_training, memory_warning
from resnet_builder.model import ResNet
from resnet_builder.parts import resolve
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import Warn, append_line, ignore
from resnet_builder.runs.records import Change, DataRecord, ResultRecord, compare_specs
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.load import load_spec
from resnet_builder.training.checkpoint import has_checkpoints
from resnet_builder.training.data_record import check_unchanged, describe_data
from resnet_builder.training.distributed import (
    SINGLE_PROCESS,
    DistributedContext,
    check_batch_size,
    check_sync_norm,
)
from resnet_builder.training.runtime import pick_precision, resolve_device
from resnet_builder.weights.pretrained import pretrained_digest

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
        UsageError: ``out`` exists, or there is no such device.
    """
    check_batch_size(experiment.train.batch_size, experiment.train.accumulate, ctx)
    source = _DataSource(experiment, data_dir, report, warn, should_stop, ctx)
    if not ctx.is_main_process:
        yield _follow(source)
        return
    if out is not None and out.exists():
        RunDirectory.create(out)  # raises the error that says why it cannot be made
    _check_resources(experiment, out or RUNS, warn, ctx)
    ctx.broadcast_object(_Task(skip_bad=skip_bad))
    data = source.load(skip_bad=skip_bad)
    model = build(experiment, seed=experiment.train.seed)
    if out is None:
        run = RunDirectory.create_numbered(RUNS, experiment.name)
    else:
        run = RunDirectory.create(out)
    with run.locked():
        _publish(run, experiment, data)
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
    source = _DataSource(experiment, data_dir, report, warn, should_stop, ctx)
    if not ctx.is_main_process:
        yield _follow(source)
        return
    run = RunDirectory.open_or_create(directory)
    with run.locked(warn=warn):
        is_new = not run.is_published
        if not is_new:
            _check_spec(run, experiment, allow_spec_change=allow_spec_change, warn=warn)
        if run.is_finished:
            record = ResultRecord.read(run.result)
            ctx.broadcast_object(_Task(record))
            yield record
            return
        _check_resources(experiment, run.path, warn, ctx)
        skip_bad = skip_bad or (not is_new and bool(DataRecord.read(run.data).skipped))
        ctx.broadcast_object(_Task(skip_bad=skip_bad))
        data = source.load(skip_bad=skip_bad)
        if not is_new:
            check_unchanged(run, data, allow_spec_change=allow_spec_change)
            _check_pretrained(run, experiment)
        # From its first checkpoint on, a run does not need the pretrained weights any more.
        pretrained = not has_checkpoints(run)
        model = build(experiment, seed=experiment.train.seed, pretrained=pretrained)
        if is_new:
            _publish(run, experiment, data)
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


def _follow(source: "_DataSource") -> Session | ResultRecord:
    """Open the session of a process that is not the main process."""
    experiment, ctx = source.experiment, source.ctx
    task = ctx.broadcast_object(_Task())
    if task.record is not None:
        return task.record
    data = source.load(skip_bad=task.skip_bad)
    # The weights are those of the main process: DistributedDataParallel broadcasts them.
    model = build(experiment, seed=experiment.train.seed, pretrained=False)
    return Session(ctx.broadcast_object(RunDirectory(Path())), data, model)


@dataclass(frozen=True, slots=True)
class _DataSource:
    """Arguments of loading the data of an experiment, which all processes have."""

    experiment: Experiment
    data_dir: Path | None
    report: Report
    warn: Warn
    should_stop: Stop
    ctx: DistributedContext

    def load(self, *, skip_bad: bool) -> DataSplits:
        """Load the data, on each machine first in one process: it downloads and scans for all."""
        # Errors come before any download.
        device = resolve_device(self.experiment.run.device, self.ctx)
        if self.experiment.train.sync_norm:
            check_sync_norm(device, self.ctx)
        with self.ctx.main_process_first(self.should_stop):
            data = load_data(
                self.experiment.spec,
                data_dir=self.data_dir,
                skip_bad=skip_bad,
                stop=self.should_stop,
                report=self.report,
            )
        for notice in data.notices:
            self.warn(notice)
        steps_per_epoch(len(data.train), self.experiment.train.batch_size)
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


def _publish(run: RunDirectory, experiment: Experiment, data: DataSplits) -> None:
    """Write ``data.json``, then ``spec.yaml``, which makes the directory a run."""
    weights = experiment.model.weights
    digest = None if weights is None else pretrained_digest(weights)
    describe_data(data, digest).write(run.data)
    run.publish(dump_spec(experiment.spec))


def _check_pretrained(run: RunDirectory, experiment: Experiment) -> None:
    """Compare the pretrained weights with those that a run was started with.

    Raises:
        DataError: They have changed.
    """
    weights = experiment.model.weights
    if weights is None or has_checkpoints(run):
        return
    before, now = DataRecord.read(run.data).pretrained_sha256, pretrained_digest(weights)
    if now != before:
        raise DataError(
            f"{run.path} cannot be resumed: {weights.path} has changed; its SHA-256 was {before} "
            f"and is {now}; bring the file back, or start another run"
        )


def _check_spec(
    run: RunDirectory, experiment: Experiment, *, allow_spec_change: bool, warn: Warn
) -> None:
    """Compare the spec with that of a run; changes that are allowed are recorded.

    Raises:
        SpecError: The run's own spec is not valid any more.
        UsageError: The network has changed; or the recipe or the data, which is not allowed.
    """
    try:
        own = resolve(load_spec(run.spec))
    except (PartError, RegistryError) as error:  # the file was edited: say where
        raise SpecError(check_source(run.spec).problems) from error
    changes = compare_specs(own, experiment.spec)
    if not changes:
        return
    networks = [str(change) for change in changes if change.kind == "architecture"]
    if networks:
        advice = "start another run; `model.weights` can start it from the weights of this one"
        raise UsageError(_message(f"{run.path} is of another network", networks, advice))
    recipes = [str(change) for change in changes if change.kind == "trajectory"]
    if recipes and not allow_spec_change:
        advice = "add --allow-spec-change to resume all the same, or start another run"
        what = f"{run.path} was started with another recipe or other data"
        raise UsageError(_message(what, recipes, advice))
    _record_changes(run, changes, warn)
    run.publish(dump_spec(experiment.spec))


def _record_changes(run: RunDirectory, changes: Sequence[Change], warn: Warn) -> None:
    for change in changes:
        warn(f"changed: {change}")
        append_line(run.changes, change.to_json())


def _message(what: str, lines: Sequence[str], advice: str) -> str:
    return "\n".join([f"{what}:", *(f"  {line}" for line in lines), advice])
