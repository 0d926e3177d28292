"""Progress of a training: bars on a terminal, a line now and then anywhere else."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any, TextIO, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from resnet_builder.cli.console import escaped, note, percent
from resnet_builder.runs.files import unheard
from resnet_builder.training.callbacks import Callback, Progress, TrainStart
from resnet_builder.training.evaluation import Metrics
from resnet_builder.training.trainer import Result

LINE_SECONDS = 10.0
"""Between two lines about progress, at least; evaluations have lines of their own."""


class Display(Callback):
    """Base class of displays of a training, and of the work on data before it."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def report(self, what: str, done: int, total: int) -> None:
        """Show how far slow work on data is; ``total`` is 0 where it is not known."""


@contextmanager
def display(*, is_shown: bool = True) -> Iterator[Display]:
    """Choose what suits stderr, and clear it away afterwards.

    Args:
        is_shown: Whether anything is shown at all; of several processes, one does.
    """
    if not is_shown or not _is_terminal():
        yield Lines(note if is_shown else unheard)
        return
    console = Console(file=cast(TextIO, _Tolerant(sys.stderr)))
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield Screen(live)


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class Lines(Display):
    """Shows a training in lines, few enough for a log.

    Args:
        say: Prints a line.
        clock: Tells the time, in seconds.
    """

    def __init__(
        self, say: Callable[[str], None], *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._say = say
        self._clock = clock
        self._last: dict[str, float] = {}
        self._steps_per_epoch = 1
        self._pace: Pace | None = None

    def on_train_start(self, start: TrainStart) -> None:
        """Say what is about to be trained, and how."""
        self._steps_per_epoch = start.steps_per_epoch
        self._pace = Pace(start, self._clock)
        self.say(started_text(start))
        self._is_due("training")

    def on_progress(self, progress: Progress) -> None:
        """Say how far it is, now and then."""
        if self._is_due("training"):
            assert self._pace is not None, "it has started"
            done = f"step {progress.step:,} of {progress.total_steps:,}"
            self.say(f"{done}: {figures(progress)}, {self._pace.left(progress.step)} left")

    def on_evaluate(self, step: int, split: str, metrics: Metrics, *, is_best: bool) -> None:
        """Say how the weights did on the validation images."""
        self._is_due("training")
        self.say(evaluated_text(step, self._steps_per_epoch, split, metrics, is_best=is_best))

    def on_checkpoint(self, step: int, path: Path) -> None:
        """Say nothing: the run's log does."""

    def on_warning(self, message: str) -> None:
        """Say what went wrong."""
        self.say(f"warning: {message}")

    def on_train_end(self, result: Result) -> None:
        """Say nothing: the command does."""

    def say(self, text: str) -> None:
        """Print a line."""
        self._say(text)

    def report(self, what: str, done: int, total: int) -> None:
        """Say how far the work on data is, now and then."""
        is_over = 0 < total <= done  # and was so fast that it need not be mentioned
        if not is_over and self._is_due(what):
            self.say(f"{what}: {done / total:.0%}" if total else f"{what}: {done:,}")

    def _is_due(self, what: str) -> bool:
        """Tell whether something was not said for a while, and take it as said."""
        now = self._clock()
        is_due = now - self._last.get(what, -LINE_SECONDS) >= LINE_SECONDS
        if is_due:
            self._last[what] = now
        return is_due


class Screen(Display):
    """Shows a training as a bar for the epoch, one for the whole, and the figures below.

    Args:
        live: The part of the terminal to draw on.
    """

    def __init__(self, live: Live) -> None:
        self._live = live
        self._bars = _make_bars(live.console)
        self._tasks: dict[str, TaskID] = {}
        self._start: TrainStart | None = None
        self._pace: Pace | None = None

    def on_train_start(self, start: TrainStart) -> None:
        """Say how it is computed, and draw the bars."""
        self._start, self._pace = start, Pace(start)
        self.say(started_text(start))
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks = {}
        self._draw_steps(start.step, "")

    def on_progress(self, progress: Progress) -> None:
        """Move the bars on."""
        assert self._pace is not None, "it has started"
        self._draw_steps(
            progress.step, f"{figures(progress)}, {self._pace.left(progress.step)} left"
        )

    def on_evaluate(self, step: int, split: str, metrics: Metrics, *, is_best: bool) -> None:
        """Say above the bars how the weights did."""
        assert self._start is not None, "it has started"
        text = evaluated_text(step, self._start.steps_per_epoch, split, metrics, is_best=is_best)
        self.say(text)

    def on_checkpoint(self, step: int, path: Path) -> None:
        """Say nothing: the run's log does."""

    def on_warning(self, message: str) -> None:
        """Say above the bars what went wrong."""
        self.say(f"warning: {message}")

    def on_train_end(self, result: Result) -> None:
        """Say nothing: the command does."""

    def report(self, what: str, done: int, total: int) -> None:
        """Move a bar on for the work on data."""
        self._move(what, what, done, total)
        self._live.update(self._bars, refresh=True)

    def _draw_steps(self, step: int, text: str) -> None:
        assert self._start is not None, "it has started"
        total, length = self._start.total_steps, self._start.steps_per_epoch
        epoch, within = divmod(step, length)
        epochs = -(-total // length)
        self._move("epoch", f"epoch {min(epoch + 1, epochs)}/{epochs}", within, length)
        self._move("all", "training", step, total)
        self._live.update(Group(self._bars, Text(text)), refresh=True)

    def _move(self, name: str, description: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task("")
        count = f"{done:,}/{total:,}" if total else f"{done:,}"
        self._bars.update(
            self._tasks[name],
            description=escaped(description),
            completed=done,
            total=total or None,
            count=count,
        )

    def say(self, text: str) -> None:
        """Show a line that stays, above the bars."""
        self._live.console.print(Text(escaped(text)))


def _make_bars(console: Console) -> Bars:
    """Make bars that leave room for words on a terminal of 40 columns."""
    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[count]}", markup=False),
        console=console,
        auto_refresh=False,
        expand=True,
    )


class Pace:
    """Tells how long a training will take from its average until now.

    Args:
        start: What it began with.
        clock: Tells the time, in seconds.
    """

    def __init__(self, start: TrainStart, clock: Callable[[], float] = monotonic) -> None:
        self._start = start
        self._clock = clock
        self._began = clock()

    def left(self, step: int) -> str:
        """Return the time that is left after ``step`` steps, as hours, minutes and seconds."""
        done = max(1, step - self._start.step)
        seconds = (self._clock() - self._began) / done * (self._start.total_steps - step)
        return str(timedelta(seconds=round(seconds)))


def started_text(start: TrainStart) -> str:
    """Say what is about to be trained, and how."""
    how = f"{start.device}, {start.runtime.precision}, {start.runtime.threads} threads"
    if start.runtime.world_size > 1:
        how += f" in each of {start.runtime.world_size} processes"
    return (
        f"training from step {start.step:,} of {start.total_steps:,}, "
        f"{start.steps_per_epoch:,} an epoch, on {how}"
    )


def figures(progress: Progress) -> str:
    """Write the figures of the latest steps."""
    return (
        f"loss {progress.loss:.4f}, top-1 {percent(progress.top1)}, lr {progress.lr:.4g}, "
        f"{progress.images_per_second:,.0f} images/s"
    )


def evaluated_text(
    step: int, steps_per_epoch: int, split: str, metrics: Metrics, *, is_best: bool
) -> str:
    """Say how the weights did on a split."""
    epoch = f"{step / steps_per_epoch:.1f}".removesuffix(".0")
    found = f"{split} loss {metrics.loss:.4f}, top-1 {percent(metrics.top1)}"
    return f"epoch {epoch}, step {step:,}: {found}{', the best so far' if is_best else ''}"


class _Tolerant:
    """A stream that lets training go on when nobody can be written to any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
