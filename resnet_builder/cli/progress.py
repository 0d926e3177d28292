"""Progress of a training on stderr: bars on a terminal, now and then a line anywhere else."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from time import monotonic
from typing import Any, TextIO, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from resnet_builder.cli.console import note
from resnet_builder.errors import counted, percent, printable
from resnet_builder.runs.files import ignore
from resnet_builder.runs.records import METRIC_WORDS
from resnet_builder.training.callbacks import Callback, Progress, TrainStart
from resnet_builder.training.metrics import Metrics
from resnet_builder.training.result import Result

LINE_SECONDS = 10.0
"""Least time between two lines about progress; evaluations have lines of their own."""


@contextmanager
def display(*, is_shown: bool = True) -> Iterator["Lines"]:
    """Context with the display that suits stderr, which is cleared away afterwards.

    Args:
        is_shown: Whether anything is shown at all; of several processes, one does.
    """
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if not is_shown or not is_terminal or os.environ.get("TERM") == "dumb":
        yield Lines(note if is_shown else ignore)
        return
    console = Console(file=cast(TextIO, Tolerant(sys.stderr)))
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield Screen(live)


class AtStart(Callback):
    """Callback that calls a function when training starts: all before has nothing to finish.

    Args:
        function: The function.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def on_train_start(self, start: TrainStart) -> None:
        """Call it."""
        self._function()


class Lines(Callback):
    """Progress in lines, few enough for a log.

    Args:
        say: Prints a line.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, say: Callable[[str], None], *, clock: Callable[[], float] = monotonic
    ) -> None:
        self.say = say
        self._clock = clock
        self._start: TrainStart | None = None
        self._began = 0.0
        self._last: dict[str, float] = {}
        self._mentioned: set[str] = set()

    def on_train_start(self, start: TrainStart) -> None:
        """Show the steps, the device and the precision."""
        self._start, self._began = start, self._clock()
        runtime = start.runtime
        how = f"{start.device}, {runtime.precision}, {counted(runtime.threads, 'thread')}"
        if runtime.world_size > 1:
            how += f" in each of {runtime.world_size} processes"
        self.say(
            f"training from step {start.step:,} of {start.total_steps:,}, "
            f"{start.steps_per_epoch:,} an epoch, on {how}"
        )
        self._is_due("training")

    def on_progress(self, progress: Progress) -> None:
        """Show the latest metrics, if no line was shown for a while."""
        if self._is_due("training"):
            done = f"step {progress.step:,} of {progress.total_steps:,}"
            self.say(f"{done}: {self._figures(progress)}")

    def on_evaluate(self, step: int, split: str, metrics: Metrics, *, is_best: bool) -> None:
        """Show the metrics of a split."""
        assert self._start is not None, "the training has started"
        epoch = f"{step / self._start.steps_per_epoch:.1f}".removesuffix(".0")
        found = f"{split} loss {metrics.loss:.4f}, top-1 {percent(metrics.top1)}"
        if metrics.map is not None:
            found = f"{split} loss {metrics.loss:.4f}, mAP {percent(metrics.map)}"
        if metrics.monitored.startswith("macro_"):
            found += f", {METRIC_WORDS[metrics.monitored]} {percent(metrics.score)}"
        if metrics.precision != "fp32":  # `evaluate` computes in fp32 and may find another number
            found += f" in {metrics.precision}"
        self.say(f"epoch {epoch}, step {step:,}: {found}{', the best so far' if is_best else ''}")
        self._is_due("training")

    def on_warning(self, message: str) -> None:
        """Show a warning."""
        self.say(f"warning: {message}")

    def on_train_end(self, result: Result) -> None:
        """Show why the training ended, if it ended early."""
        if (reason := result.early_end) is not None:
            self.say(reason)

    def report(self, what: str, done: int, total: int) -> None:
        """Show the progress of slow work on data; ``total`` is 0 where it is not known.

        Work that is over before its first line is due is not mentioned.
        """
        is_over = 0 < total <= done
        if self._is_due(what) or (is_over and what in self._mentioned):
            self._mentioned.add(what)
            self.say(f"{what}: {percent(done / total, 0)}" if total else f"{what}: {done:,}")
        if is_over:
            self._mentioned.discard(what)
            del self._last[what]

    def _is_due(self, what: str) -> bool:
        """Whether nothing was said of some work for a while; then its time starts again."""
        now = self._clock()
        is_due = now - self._last.setdefault(what, now) >= LINE_SECONDS
        if is_due:
            self._last[what] = now
        return is_due

    def _figures(self, progress: Progress) -> str:
        """Metrics of the latest steps, and the time left at the mean speed since the start."""
        assert self._start is not None, "the training has started"
        done = max(1, progress.step - self._start.step)
        seconds = (self._clock() - self._began) / done * (progress.total_steps - progress.step)
        return (
            f"loss {progress.loss:.4f}, top-1 {percent(progress.top1)}, lr {progress.lr:.4g}, "
            f"{progress.images_per_second:,.0f} images/s, {timedelta(seconds=round(seconds))} left"
        )


class Screen(Lines):
    """Progress in bars, one for the epoch and one for the training, with the metrics below.

    Args:
        live: Part of the terminal to draw on.
    """

    def __init__(self, live: Live) -> None:
        # A line that stays is shown above the bars.
        super().__init__(lambda text: live.console.print(Text(printable(text))))
        self._live = live
        self._tasks: dict[str, TaskID] = {}
        # These columns leave room for words on a terminal of 40 columns.
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}", markup=False),
            console=live.console,
            auto_refresh=False,
            expand=True,
        )

    def on_train_start(self, start: TrainStart) -> None:
        """Show the steps, the device and the precision, and draw the bars."""
        super().on_train_start(start)
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks = {}
        self._draw_steps(start.step, "")

    def on_progress(self, progress: Progress) -> None:
        """Draw the bars, and the latest metrics."""
        self._draw_steps(progress.step, self._figures(progress))

    def on_train_end(self, result: Result) -> None:
        """Show why the training ended, and end the bars at what was done."""
        super().on_train_end(result)
        assert self._start is not None, "the training has started"
        steps = result.record.steps
        self._start = replace(self._start, total_steps=steps)
        self._draw_steps(steps, "")

    def report(self, what: str, done: int, total: int) -> None:
        """Draw a bar for slow work on data."""
        self._move(what, what, done, total)
        self._live.update(self._bars, refresh=True)

    def _draw_steps(self, step: int, text: str) -> None:
        assert self._start is not None, "the training has started"
        total, length = self._start.total_steps, self._start.steps_per_epoch
        epochs = -(-total // length)
        epoch = min(step // length, epochs - 1)
        first = epoch * length
        in_epoch = min(length, total - first)  # the last one may be shorter
        self._move("epoch", f"epoch {epoch + 1}/{epochs}", step - first, in_epoch)
        self._move("all", "training", step, total)
        self._live.update(Group(self._bars, Text(text)), refresh=True)

    def _move(self, name: str, description: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task("")
        self._bars.update(
            self._tasks[name],
            description=printable(description),
            completed=done,
            total=total or None,
            count=f"{done:,}/{total:,}" if total else f"{done:,}",
        )


class Tolerant:
    """Stream that lets training go on when nobody reads it any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, if anybody reads it."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
