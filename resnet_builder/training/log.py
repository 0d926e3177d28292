"""``train.log``: what an observer is told, in lines, whatever becomes of the screen."""

from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from resnet_builder.errors import StorageError, visible
from resnet_builder.runs.files import append_line
from resnet_builder.training.callbacks import Observer, Progress, Start
from resnet_builder.training.metrics import Evaluation
from resnet_builder.training.result import Result

PROGRESS_SECONDS = 60.0
"""Between two lines about progress, at least."""


class Logged:
    """An observer that writes down what it is told and tells another.

    Training goes on when a line cannot be written: the other observer is told, once until a
    line can be written again.

    Args:
        path: The file to add lines to.
        observer: The other.
    """

    def __init__(self, path: Path, observer: Observer) -> None:
        self._path = path
        self._observer = observer
        self._fails = False
        self._progressed = monotonic()

    def started(self, start: Start) -> None:
        """Write down what training begins with."""
        how = ", ".join(f"{name} {value}" for name, value in start.choices)
        self._write(f"from step {start.step} of {start.total_steps} on {start.device}: {how}")
        self._write(f"compile {start.choices.compile}")
        self._observer.started(start)

    def progressed(self, progress: Progress) -> None:
        """Write down some of the reports."""
        if monotonic() - self._progressed >= PROGRESS_SECONDS:
            self._progressed = monotonic()
            self._write(
                f"step {progress.step}: train.loss {progress.loss:.4f}, "
                f"train.top1 {progress.top1:.4f}, lr {progress.lr:g}, "
                f"{progress.images_per_second:.0f} images/s"
            )
        self._observer.progressed(progress)

    def evaluated(self, step: int, split: str, evaluation: Evaluation, *, best: bool) -> None:
        """Write down an evaluation."""
        metrics = ", ".join(f"{k} {v:.4f}" for k, v in evaluation.metrics(split).items())
        self._write(f"step {step}: {metrics}{', the best so far' if best else ''}")
        self._observer.evaluated(step, split, evaluation, best=best)

    def saved(self, step: int, path: Path) -> None:
        """Write down a checkpoint."""
        self._write(f"step {step}: saved {path.name}")
        self._observer.saved(step, path)

    def warned(self, message: str) -> None:
        """Write down a warning."""
        self._write(f"warning: {message}")
        self._observer.warned(message)

    def finished(self, result: Result) -> None:
        """Write down the outcome."""
        record = result.record
        self._write(f"finished after {record.steps} steps and {record.seconds:.0f} s")
        self._observer.finished(result)

    def _write(self, line: str) -> None:
        time = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            append_line(self._path, f"{time} {visible(line)}")
        except StorageError as error:
            if not self._fails:
                self._observer.warned(str(error))
            self._fails = True
        else:
            self._fails = False
