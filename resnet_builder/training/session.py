"""A run around its training: begun, or found again with the same spec and the same data."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from resnet_builder.builder import build
from resnet_builder.data.interfaces import Report, Stop, never, silent
from resnet_builder.data.loader import steps_per_epoch
from resnet_builder.data.splits import DataSplits, load_data
from resnet_builder.errors import DataError, ResourceError, UsageError
from resnet_builder.model import ResNet
from resnet_builder.parts import resolve
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import Warn, append_line, unheard
from resnet_builder.runs.records import Change, DataRecord, ResultRecord, compare_specs
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.load import load_spec
from resnet_builder.spec.schema import Spec
from resnet_builder.training.callbacks import Callback
from resnet_builder.training.checkpoint import has_checkpoints
from resnet_builder.training.distributed import (
    SINGLE_PROCESS,
    DistributedContext,
    check_batch_size,
)
from resnet_builder.training.own_data import check_data_unchanged, describe_data, leaves_out
from resnet_builder.training.resources import (
    OVERRIDE,
    Estimate,
    check_disk,
    check_memory,
    estimate_training,
    image_bytes,
)
from resnet_builder.training.runtime import pick_precision, resolve_device
from resnet_builder.training.trainer import fit
from resnet_builder.weights.pretrained import pretrained_digest

RUNS = Path("runs")
"""Where runs are made that were given no directory."""


def ignore_run(run: RunDirectory) -> None:
    """Do nothing with a run that was opened."""


@dataclass(frozen=True, slots=True)
class _Task:
    """What the leader of several processes found to do.

    Attributes:
        record: What a run came to that is complete already.
        skip_bad: Whether pictures that cannot be decoded are left out.
    """

    record: ResultRecord | None = None
    skip_bad: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """An experiment that is to be trained, from nothing or from where it was interrupted.

    Several processes each have a session of their own; their leader alone holds the run.

    Attributes:
        spec: The experiment, resolved.
        data_dir: Where data sets live; ``None`` for the user's own place.
        allow_spec_change: Whether a run may go on although recipe or data have changed.
        allow_inexact: Whether it may go on where it cannot be to the same bits.
        skip_bad: Whether pictures that cannot be decoded are left out, instead of refused; a run
            that was begun so goes on so.
        ignore_memory_estimate: Whether to train although that is not expected to fit into memory.
        observer: Told what happens.
        report: Told of downloads and scans.
        say: Told what else the user should know, in one line.
        opened: Given the run once it is locked, before anything is computed.
        stop: Polled in every loop.
        ctx: The processes that train.
    """

    spec: Spec
    data_dir: Path | None = None
    allow_spec_change: bool = False
    allow_inexact: bool = False
    skip_bad: bool = False
    ignore_memory_estimate: bool = False
    observer: Callback = field(default_factory=Callback)
    report: Report = silent
    say: Warn = unheard
    opened: Callable[[RunDirectory], None] = ignore_run
    stop: Stop = never
    ctx: DistributedContext = SINGLE_PROCESS

    def begin(self, out: Path | None = None) -> ResultRecord:
        """Train in a directory that is made for it.

        Images and first weights are read first, so that no directory is left behind if they
        cannot be.

        Args:
            out: Exactly this directory; by default the next ``runs/<name>-NNN``.

        Raises:
            ResourceError: It is not expected to fit into memory.
            StorageError: There is no room for its checkpoints.
            UsageError: ``out`` exists, or there is nothing to train.
            ResnetBuilderError: What :func:`data.splits.load_data`, :func:`builder.build`,
                :func:`begun` and :func:`training.trainer.fit` raise.
        """
        self._refuse_untrainable()
        if not self.ctx.is_main_process:
            return self._help()
        if out is not None and out.exists():
            RunDirectory.create(out)  # says why it cannot be made
        self.ctx.broadcast_object(_Task(skip_bad=self.skip_bad))
        estimate = self._estimated(out or RUNS)
        splits = self._load(skip_bad=self.skip_bad)
        self._refuse_unfit(estimate, splits)
        with begun(self.spec, self._describe(splits), out) as run:
            return self._fit(run, splits)

    def go_on(self, directory: Path) -> ResultRecord:
        """Train to the end whatever a directory holds, be it nothing or a finished run.

        Raises:
            ResourceError: It is not expected to fit into memory.
            StorageError: There is no room for its checkpoints.
            UsageError: The directory holds another experiment, or there is nothing to train.
            ResnetBuilderError: What :func:`found`, :func:`data.splits.load_data`,
                :func:`check_data_unchanged`, :func:`check_pretrained_unchanged`, :func:`builder.build` and
                :func:`training.trainer.fit` raise.
        """
        self._refuse_untrainable()
        if not self.ctx.is_main_process:
            return self._help()
        changing = self.allow_spec_change
        with found(
            self.spec,
            directory,
            allow_spec_change=changing,
            warn=self.observer.on_warning,
        ) as run:
            if run.is_finished:
                self.say(f"{run.path} is already complete")
                record = ResultRecord.read(run.result)
                self.ctx.broadcast_object(_Task(record))
                return record
            skip_bad = self.skip_bad or (run.is_published and leaves_out(run))
            self.ctx.broadcast_object(_Task(skip_bad=skip_bad))
            estimate = self._estimated(run.path)
            splits = self._load(skip_bad=skip_bad)
            self._refuse_unfit(estimate, splits)
            if run.is_published:
                check_data_unchanged(run, splits, allow_spec_change=changing)
                check_pretrained_unchanged(run, self.spec)
            else:
                publish(run, self.spec, self._describe(splits))
            return self._fit(run, splits)

    def _help(self) -> ResultRecord:
        """Train with the leader, in whose run this process touches nothing."""
        task = self.ctx.broadcast_object(_Task())
        if task.record is not None:
            return task.record
        return self._fit(None, self._load(skip_bad=task.skip_bad))

    def _refuse_untrainable(self) -> None:
        if self.spec.data is None or self.spec.train is None:
            raise UsageError(f"{self.spec.name}: a spec to train needs `data` and `train`")
        check_batch_size(self.spec.train.batch_size, self.spec.train.accumulate, self.ctx)

    def _estimated(self, place: Path) -> Estimate:
        """Estimate what the training takes, before any of it is taken, and look for room."""
        device = resolve_device(self.spec.run.device, self.ctx)
        precision = pick_precision(self.spec.run.precision, device)
        estimate = estimate_training(self.spec, precision, processes=self.ctx.world_size)
        check_disk(estimate, place, self.say)
        self._refuse_unfit(estimate)
        return estimate

    def _refuse_unfit(self, estimate: Estimate, splits: DataSplits | None = None) -> None:
        """Refuse what is not expected to fit, unless the user insists; images count if loaded."""
        held = 0 if splits is None else image_bytes(splits)
        estimate = replace(estimate, images=held) if held else estimate
        device = resolve_device(self.spec.run.device, self.ctx)
        try:
            check_memory(estimate, device, processes=self.ctx.local_world_size, held=held)
        except ResourceError as error:
            if not self.ignore_memory_estimate:
                raise
            if splits is None:
                self.say(f"{OVERRIDE}: {error}")

    def _load(self, *, skip_bad: bool) -> DataSplits:
        assert self.spec.train is not None, "refused before"
        resolve_device(self.spec.run.device, self.ctx)  # a missing one is told before any download
        with self.ctx.main_process_first(self.stop):
            splits = load_data(
                self.spec,
                data_dir=self.data_dir,
                skip_bad=skip_bad,
                stop=self.stop,
                report=self.report,
            )
        for notice in splits.notices:
            self.say(notice)
        steps_per_epoch(len(splits.train), self.spec.train.batch_size)
        return splits

    def _describe(self, splits: DataSplits) -> DataRecord:
        """Record what is trained on, once it is known that the first weights fit."""
        weights = self.spec.model.weights
        if weights is None:
            return describe_data(splits)
        self._build()
        return describe_data(splits, pretrained_digest(weights))

    def _build(self, *, pretrained: bool = True) -> ResNet:
        assert self.spec.train is not None, "refused before"
        return build(self.spec, seed=self.spec.train.seed, pretrained=pretrained)

    def _fit(self, own: RunDirectory | None, splits: DataSplits) -> ResultRecord:
        run = self.ctx.broadcast_object(own)
        assert run is not None, "the leader has one"
        self.opened(run)
        result = fit(
            self._build(pretrained=self.ctx.is_main_process and not has_checkpoints(run)),
            splits,
            self.spec,
            run,
            callbacks=[self.observer],
            should_stop=self.stop,
            allow_inexact=self.allow_inexact,
            ctx=self.ctx,
        )
        return result.record


@contextmanager
def begun(spec: Spec, data: DataRecord, out: Path | None) -> Iterator[RunDirectory]:
    """Make a run, and hold its lock.

    Args:
        spec: The experiment, resolved.
        data: What it trains on.
        out: Exactly this directory; by default the next ``runs/<name>-NNN``.

    Raises:
        UsageError: ``out`` exists.
        BusyError: It exists, and a process is using it.
        StorageError: The disk is full, read-only or failing.
    """
    run = RunDirectory.create_numbered(RUNS, spec.name) if out is None else RunDirectory.create(out)
    with run.locked():
        publish(run, spec, data)
        yield run


def publish(run: RunDirectory, spec: Spec, data: DataRecord) -> None:
    """Write down what a run trains on, then its spec: from then on, resuming finishes it.

    Raises:
        StorageError: The disk is full, read-only or failing.
    """
    data.write(run.data)
    run.publish(dump_spec(spec))


@contextmanager
def found(
    spec: Spec,
    path: Path,
    *,
    allow_spec_change: bool = False,
    warn: Warn = unheard,
) -> Iterator[RunDirectory]:
    """Find a run, or a directory that may become one, and hold its lock.

    Args:
        spec: The experiment to go on with, resolved.
        path: The directory; it is made if it is not there.
        allow_spec_change: Whether a run may go on although that changes what comes of it; what
            changes is recorded.
        warn: Told of what changes, and of a lock that was left behind.

    Raises:
        UsageError: The spec is not the run's, or the directory holds something else.
        BusyError: A process is using it.
        StorageError: The disk is full, read-only or failing.
    """
    run = RunDirectory.open_or_create(path)
    with run.locked(warn=warn):
        if run.is_published:
            _settle_spec(run, spec, allow_spec_change=allow_spec_change, warn=warn)
        yield run


def check_pretrained_unchanged(run: RunDirectory, spec: Spec) -> None:
    """Compare the weights that a run starts from with those that it began with.

    From its first checkpoint on, a run needs them no more.

    Raises:
        CheckpointError: The file is missing.
        DataError: It is another, or cannot be downloaded.
        StorageError: It, or what it was, cannot be read.
    """
    if spec.model.weights is None or has_checkpoints(run):
        return
    before, now = DataRecord.read(run.data), pretrained_digest(spec.model.weights)
    if now != before.pretrained_sha256:
        raise DataError(
            f"{run.path} cannot go on, as {spec.model.weights.path} has changed: its SHA-256 was "
            f"{before.pretrained_sha256} and is {now}; bring the file back, or start another run"
        )


def _settle_spec(run: RunDirectory, spec: Spec, *, allow_spec_change: bool, warn: Warn) -> None:
    """Refuse a spec that is not the run's, or record what it changes and write it down."""
    changes = compare_specs(_own_spec(run), spec)
    if not changes:
        return
    _refuse(run, changes, allow_spec_change=allow_spec_change)
    for change in changes:
        warn(f"changed: {change}")
        append_line(run.changes, change.to_json())
    run.publish(dump_spec(spec))


def _own_spec(run: RunDirectory) -> Spec:
    """Read a run's spec, which is resolved, unless somebody has changed it since.

    Raises:
        SpecError: It is no spec any more.
        StorageError: It cannot be read.
    """
    return resolve(load_spec(run.spec))


def _refuse(run: RunDirectory, changes: Sequence[Change], *, allow_spec_change: bool) -> None:
    """Raise an error if the changes are more than may be.

    Raises:
        UsageError: They are.
    """
    others = [str(change) for change in changes if change.kind == "architecture"]
    if others:
        mend = "start another run; `model.weights` can start it from the weights of this one"
        raise UsageError(_listed(f"{run.path} is of another network", others, mend))
    shifts = [str(change) for change in changes if change.kind == "trajectory"]
    if shifts and not allow_spec_change:
        raise UsageError(
            _listed(
                f"{run.path} was begun with another recipe or other data",
                shifts,
                "add --allow-spec-change to go on all the same, or start another run",
            )
        )


def _listed(what: str, lines: Sequence[str], mend: str) -> str:
    return "\n".join([f"{what}:", *(f"  {line}" for line in lines), mend])
