"""Callbacks: what a training reports to its display, its log file and the user's own code."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from resnet_builder.errors import Stopped, StorageError, counted, printable
from resnet_builder.runs.files import Warn, append_line
from resnet_builder.runs.records import RuntimeConfig
from resnet_builder.runs.status import FAILED
from resnet_builder.training.metrics import Metrics

if TYPE_CHECKING:
    from resnet_builder.training.result import Result

LOG_SECONDS = 60.0
"""Least time between two lines of ``train.log`` about progress."""


@dataclass(frozen=True, slots=True)
class TrainStart:
    """Start of a training, or of its continuation.

    Attributes:
        step: Steps done by earlier processes.
        total_steps: Steps of the whole training.
        steps_per_epoch: Steps per epoch.
        device: Name of the hardware.
        runtime: Device, precision, threads and the like.
    """

    step: int
    total_steps: int
    steps_per_epoch: int
    device: str
    runtime: RuntimeConfig


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a training; the metrics are those of the steps since the last report.

    Attributes:
        step: Steps done.
        total_steps: Steps of the whole training.
        epoch: Epochs done, with a fraction.
        lr: Learning rate of the last step.
        loss: Mean training loss.
        top1: Training accuracy, as a fraction.
        images_per_second: Training speed.
    """

    step: int
    total_steps: int
    epoch: float
    lr: float
    loss: float
    top1: float
    images_per_second: float


class Callback:
    """Base class of callbacks; a subclass overrides the events that it needs.

    :func:`~resnet_builder.training.trainer.fit` calls the methods in its own thread, with plain
    numbers. In a distributed run only the main process has callbacks.
    """

    def on_train_start(self, start: TrainStart) -> None:
        """Training starts, or is resumed."""

    def on_progress(self, progress: Progress) -> None:
        """Some steps were done. Called at most once a second."""

    def on_evaluate(self, step: int, split: str, metrics: Metrics, *, is_best: bool) -> None:
        """The weights after ``step`` steps were evaluated.

        Args:
            step: Steps done.
            split: ``"val"`` or ``"test"``.
            metrics: Their metrics on the split.
            is_best: Whether these weights are the best so far on validation.
        """

    def on_checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint was saved."""

    def on_warning(self, message: str) -> None:
        """Something failed that training survives. The message is one line."""

    def on_train_end(self, result: "Result") -> None:
        """The run is complete."""

    def on_exception(self, error: BaseException) -> None:
        """Training ends by an error, or by a stop that was asked for."""


class CallbackList(Callback):
    """Several callbacks as one, called in order.

    Args:
        callbacks: The callbacks.
    """

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self._callbacks = tuple(callbacks)

    def on_train_start(self, start: TrainStart) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_train_start(start)

    def on_progress(self, progress: Progress) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_progress(progress)

    def on_evaluate(self, step: int, split: str, metrics: Metrics, *, is_best: bool) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_evaluate(step, split, metrics, is_best=is_best)

    def on_checkpoint(self, step: int, path: Path) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_checkpoint(step, path)

    def on_warning(self, message: str) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_warning(message)

    def on_train_end(self, result: "Result") -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_train_end(result)

    def on_exception(self, error: BaseException) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_exception(error)


class LogFile(Callback):
    """Writer of ``train.log``: one line per event, with the time.

    Training goes on when a line cannot be written. ``warn`` is called once, and again only after
    a line could be written in between.

    Args:
        path: The file; lines are appended.
        warn: Called when a line cannot be written.
    """

    def __init__(self, path: Path, warn: Warn) -> None:
        self._path = path
        self._warn = warn
        self._failed = False
        self._last_progress = monotonic()

    def on_train_start(self, start: TrainStart) -> None:
        """Write the first step, the device and the runtime settings."""
        settings = ", ".join(f"{name} {value}" for name, value in start.runtime)
        self._write(f"from step {start.step} of {start.total_steps} on {start.device}: {settings}")

    def on_progress(self, progress: Progress) -> None:
        """Write a line per minute."""
        if monotonic() - self._last_progress >= LOG_SECONDS:
            self._last_progress = monotonic()
            self._write(
                f"step {progress.step}: train.loss {progress.loss:.4f}, "
                f"train.top1 {progress.top1:.4f}, lr {progress.lr:g}, "
                f"{progress.images_per_second:.0f} images/s"
            )

    def on_evaluate(self, step: int, split: str, metrics: Metrics, *, is_best: bool) -> None:
        """Write the metrics."""
        text = ", ".join(f"{name} {value:.4f}" for name, value in metrics.named(split).items())
        best = ", the best so far" if is_best else ""
        self._write(f"step {step}: {text} in {metrics.precision}{best}")

    def on_checkpoint(self, step: int, path: Path) -> None:
        """Write the name of the checkpoint."""
        self._write(f"step {step}: saved {path.name}")

    def on_warning(self, message: str) -> None:
        """Write the warning."""
        self._write(f"warning: {message}")

    def on_train_end(self, result: "Result") -> None:
        """Write the number of steps and the time, and why there are no more."""
        record = result.record
        if (reason := result.early_end) is not None:
            self._write(reason)
        self._write(f"finished after {counted(record.steps, 'step')} and {record.seconds:.0f} s")

    def on_exception(self, error: BaseException) -> None:
        """Write the first line of its message."""
        if isinstance(error, Stopped):
            self._write(str(error))
        else:
            message = str(error).partition("\n")[0] or type(error).__name__
            self._write(f"{FAILED}: {message}")

    def _write(self, line: str) -> None:
        time = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            append_line(self._path, f"{time} {printable(line)}")
        except StorageError as error:
            if not self._failed:
                self._failed = True
                self._warn(str(error))
        else:
            self._failed = False


@contextmanager
def exceptions_told(callbacks: Callback) -> Iterator[None]:
    """Context whose exceptions are told to callbacks."""
    try:
        yield
    except BaseException as error:
        callbacks.on_exception(error)
        raise


@contextmanager
def storage_warnings(callbacks: Callback) -> Iterator[None]:
    """Turn an error of the disk into a warning."""
    try:
        yield
    except StorageError as error:
        callbacks.on_warning(str(error))
