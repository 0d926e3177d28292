"""Tracking of a training: each tracker of ``run.log`` in a thread of its own."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import Full, Queue
from typing import Any

from resnet_builder.errors import ResnetBuilderError, Stopped, first_line
from resnet_builder.experiment import Experiment
from resnet_builder.parts import PlacedPart, tracker_parts
from resnet_builder.registry import described
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import Warn
from resnet_builder.runs.records import ResultRecord
from resnet_builder.spec.dump import dump_value, plain_data
from resnet_builder.spec.schema import Spec
from resnet_builder.trackers import Outcome, Scalar, TrackedRun, Tracker
from resnet_builder.training.callbacks import Callback, CallbackList, LogFile, Progress, TrainStart
from resnet_builder.training.distributed import DistributedContext
from resnet_builder.training.metrics import Metrics
from resnet_builder.training.result import Result

CLOSE_SECONDS = 30.0
"""Time that a tracker is given at the end of a training to write, or send, its last points."""

STOP_SECONDS = 5.0
"""The same where training was stopped or failed: a scheduler ends the process soon."""

_QUEUE = 10_000


def run_callbacks(
    callbacks: Sequence[Callback],
    experiment: Experiment,
    run: RunDirectory,
    ctx: DistributedContext,
) -> CallbackList:
    """Callbacks of a training: its log file, its trackers, and the caller's; in the main process.

    Args:
        callbacks: The caller's callbacks.
        experiment: The experiment, whose ``run.log`` names the trackers.
        run: The run directory.
        ctx: The processes that train.
    """
    if not ctx.is_main_process:
        return CallbackList([])
    log_file = LogFile(run.log, CallbackList(callbacks).on_warning)
    warn = CallbackList([log_file, *callbacks]).on_warning
    trackers = [
        Tracking(part, experiment.spec, run, warn) for part in tracker_parts(experiment.run)
    ]
    return CallbackList([log_file, *trackers, *callbacks])


class Tracking(Callback):
    """Callback that drives one tracker, in a thread of its own, so that training never waits.

    The first error of the tracker becomes a warning. The next points are tried all the same, unless
    the tracker could not be started.

    Args:
        part: Tracker, as a spec names it.
        spec: Resolved spec of the training.
        run: Run directory.
        warn: Told of the tracker's first error, in the training's thread.
    """

    def __init__(self, part: PlacedPart, spec: Spec, run: RunDirectory, warn: Warn) -> None:
        self._part = part
        self._spec = spec
        self._run = run
        self._warn = warn
        self._validated_step = -1
        self._error: str | None = None
        self._warned = False
        self._tasks: Queue[_Task | None] = Queue(_QUEUE)
        self._thread: threading.Thread | None = None

    def on_train_start(self, start: TrainStart) -> None:
        """Start the tracker."""
        run = TrackedRun(self._run.path, start.step, hyperparameters(self._spec))
        name = f"tracker {self._part.part.type}"
        self._thread = threading.Thread(target=self._work, args=(run,), name=name, daemon=True)
        self._thread.start()

    def on_progress(self, progress: Progress) -> None:
        """Log the metrics of training."""
        metrics = {
            "epoch": progress.epoch,
            "lr": progress.lr,
            "images_per_second": progress.images_per_second,
            "train.loss": progress.loss,
            "train.top1": progress.top1,
        }
        self._put(lambda tracker: tracker.log("train", progress.step, metrics))

    def on_evaluate(self, step: int, split: str, metrics: Metrics, *, is_best: bool) -> None:
        """Log the metrics of validation; those of the test come with the result."""
        # At the end the selected weights are validated again, in fp32: the result has that.
        if split == "val" and step > self._validated_step:
            self._validated_step = step
            named = metrics.named("val")
            self._put(lambda tracker: tracker.log("val", step, named))

    def on_train_end(self, result: Result) -> None:
        """Log the test's metrics and the result, and wait until they are written."""
        record, test, weights = result.record, result.test, self._run.best
        if test is not None:
            named = test.named("test")
            self._put(lambda tracker: tracker.log("test", record.selected_step, named))
        self._put(lambda tracker: tracker.finish(result_numbers(record), weights))
        self._close("finished")

    def on_exception(self, error: BaseException) -> None:
        """Close the tracker."""
        self._close("stopped" if isinstance(error, Stopped) else "failed")

    def _close(self, outcome: Outcome) -> None:
        if self._thread is None:
            return
        self._put(lambda tracker: tracker.close(outcome))
        self._put(None)
        seconds = CLOSE_SECONDS if outcome == "finished" else STOP_SECONDS
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._fail(f"it did not end within {seconds:.0f} s")
        self._tell()

    def _put(self, task: "_Task | None") -> None:
        try:
            self._tasks.put_nowait(task)
        except Full:
            self._fail(f"it is {_QUEUE:,} points behind, and points are left out")
        self._tell()

    def _fail(self, reason: str) -> None:
        self._error = self._error or reason

    def _tell(self) -> None:
        if self._error is not None and not self._warned:
            self._warned = True
            self._warn(
                f"tracker {self._part.part.type}: {self._error}; training goes on without it"
            )

    def _work(self, run: TrackedRun) -> None:
        """Start the tracker, and do its tasks in order, until the one that is ``None``."""
        tracker: Tracker | None = None
        try:
            tracker = self._part.make()
            tracker.start(run)
        except (Exception, SystemExit) as error:
            tracker = None
            self._fail(_reason(error))
        while (task := self._tasks.get()) is not None:
            try:
                if tracker is not None:
                    task(tracker)
            except (Exception, SystemExit) as error:
                self._fail(_reason(error))


_Task = Callable[[Tracker], None]


def _reason(error: BaseException) -> str:
    """What went wrong; a full disk needs no name of a Python class."""
    if isinstance(error, ResnetBuilderError):
        return first_line(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return described(error)


def hyperparameters(spec: Spec) -> dict[str, Scalar]:
    """Values of a resolved spec by the keys that ``--set`` takes; a list of values is text."""
    return dict(_flat("", plain_data(spec)))


def _flat(key: str, value: Any) -> Iterator[tuple[str, Scalar]]:
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        inside = enumerate(value)
    elif isinstance(value, Scalar):
        yield key, value
    elif value:
        yield key, dump_value(value)
    for step, item in inside:
        yield from _flat(f"{key}.{step}" if key else str(step), item)


def result_numbers(record: ResultRecord) -> dict[str, float]:
    """Numbers of ``result.json`` by their names there, with the difference from the published."""
    values = record.model_dump(by_alias=True, exclude_none=True, exclude={"schema_number"})
    values |= values.get("published", {})
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
