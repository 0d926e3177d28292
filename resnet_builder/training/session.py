"""Session: the run directory, images and network of a training, new or resumed."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from resnet_builder.builder import build
from resnet_builder.checks import label_problems, placed, recipe_notices, recipe_problems
from resnet_builder.data.interfaces import Report, Stop, never, silent
from resnet_builder.data.splits import DataSplits, load_data
from resnet_builder.errors import ResnetBuilderError, SpecError, UsageError
from resnet_builder.experiment import Experiment
from resnet_builder.memory import check_disk, estimate_training, memory_warning
from resnet_builder.model import ResNet
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import Warn, ignore
from resnet_builder.runs.records import ResultRecord, RuntimeConfig
from resnet_builder.spec.dump import dump_spec
from resnet_builder.training.distributed import SINGLE_PROCESS, DistributedContext
from resnet_builder.training.resume import inspect_run
from resnet_builder.training.runtime import (
    pick_precision,
    resolve_device,
    resolve_threads,
    set_backend_flags,
)
from resnet_builder.weights.pretrained import compare_with_pretrained

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
def open_session(
    experiment: Experiment,
    directory: Path | None = None,
    *,
    resume: bool = False,
    allow_spec_change: bool = False,
    data_dir: Path | None = None,
    skip_bad: bool = False,
    report: Report = silent,
    warn: Warn = ignore,
    should_stop: Stop = never,
    ctx: DistributedContext = SINGLE_PROCESS,
) -> Iterator[Session | ResultRecord]:
    """Load the data, build the network, and make a run directory or open one to resume.

    A new directory is made last, so that none is left behind if data or weights are missing. One
    that exists is only read: ``fit`` writes to it, once it is certain that the run goes on.

    Args:
        experiment: The experiment. It must be that of the run, if there is one.
        directory: The run directory; by default the next ``runs/<name>-NNN``.
        resume: Whether to open the run in ``directory``, if there is one. Otherwise the directory
            must not exist.
        allow_spec_change: Whether the recipe, the plugins or the place of the data may have
            changed. ``fit`` records the changes.
        data_dir: Where datasets are stored; ``None`` for the user's cache folder.
        skip_bad: Whether images that cannot be decoded are left out. Otherwise they are an error.
            A run that was started so is resumed so.
        report: Called with the progress of downloads and scans.
        warn: Called with what the user should know.
        should_stop: Polled while data are loaded.
        ctx: The processes, all of which call this. Only the main process touches the directory.

    Yields:
        The session; or the result, if the run is complete. The run directory is locked until the
        context is left.

    Raises:
        BusyError: A process uses the directory.
        CheckpointError: The pretrained weights are missing, damaged or of another network.
        DataError: The dataset is missing, damaged or too small, or has changed.
        StorageError: The disk is full, read-only or failing.
        Stopped: ``should_stop`` became true.
        SpecError: The recipe or the network does not fit the data.
        UsageError: The directory exists or holds something else, or there is no such device.
    """
    load = partial(_load, experiment, data_dir, report, warn, should_stop, ctx)
    if not ctx.is_main_process:
        with ExitStack() as stack:
            yield _follow(experiment, load, ctx, stack)
        return
    with ExitStack() as stack:
        run, runtime = None, None
        if resume and directory is not None and directory.exists():
            run = RunDirectory.open_or_create(directory)
            stack.enter_context(run.locked(warn=warn))
        elif directory is not None and directory.exists():
            RunDirectory.create(directory)  # raises the error that says why it cannot be made
        if run is not None and run.is_published:
            recorded = inspect_run(run, experiment, allow_spec_change=allow_spec_change)
            if recorded.result is not None:
                ctx.broadcast_object(_Task(recorded.result))
                yield recorded.result
                return
            skip_bad, runtime = skip_bad or recorded.skips_bad, recorded.runtime
        _check_resources(experiment, directory or RUNS, warn, ctx)
        ctx.broadcast_object(_Task(skip_bad=skip_bad, runtime=runtime))
        stack.callback(set_backend_flags(threads=resolve_threads(experiment.run, runtime, ctx)))
        data = load(skip_bad=skip_bad)
        # From its first checkpoint on, a run does not need the pretrained weights any more.
        pretrained = run is None or not run.has_checkpoints
        if pretrained:
            for notice in compare_with_pretrained(experiment.spec, data):
                warn(notice)
        model = build(experiment, seed=experiment.train.seed, pretrained=pretrained)
        if run is None:
            if directory is None:
                run = RunDirectory.create_numbered(RUNS, experiment.name)
            else:
                run = RunDirectory.create(directory)
            stack.enter_context(run.locked())
            stack.push(partial(_discard_unpublished, run))
        yield Session(ctx.broadcast_object(run), data, model)


def _discard_unpublished(run: RunDirectory, kind: type[BaseException] | None, *_: object) -> None:
    """Remove a directory in which no training began: an error was foreseen, or a signal came."""
    if kind is None or run.is_published:
        return
    if issubclass(kind, ResnetBuilderError) or not issubclass(kind, Exception):
        shutil.rmtree(run.path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Task:
    """Message of the main process to the others.

    Attributes:
        record: Result of a run that is complete already.
        skip_bad: Whether images that cannot be decoded are left out.
        runtime: Runtime configuration of the run that is resumed.
    """

    record: ResultRecord | None = None
    skip_bad: bool = False
    runtime: RuntimeConfig | None = None


def _follow(
    experiment: Experiment,
    load: Callable[..., DataSplits],
    ctx: DistributedContext,
    stack: ExitStack,
) -> Session | ResultRecord:
    """Open the session of a process that is not the main process."""
    task = ctx.broadcast_object(_Task())
    if task.record is not None:
        return task.record
    stack.callback(set_backend_flags(threads=resolve_threads(experiment.run, task.runtime, ctx)))
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
    resolve_device(experiment.run.device, ctx)  # its errors come before any download
    # On each machine one process is first: it downloads and scans for all.
    try:
        with ctx.main_process_first(should_stop):
            data = load_data(
                experiment, data_dir=data_dir, skip_bad=skip_bad, stop=should_stop, report=report
            )
    except SpecError as error:
        raise SpecError(placed(error.errors, experiment.positions)) from error
    images, recipe, positions = len(data.train), experiment.train, experiment.positions
    for notice in (*data.notices, *recipe_notices(recipe, images)):
        warn(notice)
    has_validation = data.validation is not None
    problems = [
        *recipe_problems(recipe, positions, images=images, has_validation=has_validation),
        *label_problems(experiment.data, recipe, positions, data.info),
    ]
    if problems:
        raise SpecError(problems)
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
