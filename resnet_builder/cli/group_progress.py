"""Progress of a group of runs on stderr: a line for each run that is trained, or a plain log."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic
from typing import TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from resnet_builder.cli.console import note
from resnet_builder.cli.progress import Tolerant
from resnet_builder.cli.result import progress
from resnet_builder.errors import percent, printable
from resnet_builder.launch.plan import Trial
from resnet_builder.launch.workers import Display
from resnet_builder.runs.status import RunStatus

LINE_SECONDS = 60.0
"""Least time between two lines about a run; its begin and its end have lines of their own."""


@contextmanager
def display(total: int) -> Iterator[Display]:
    """Context with the display that suits stderr, which is cleared away afterwards.

    Args:
        total: Number of runs.
    """
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if not is_terminal or os.environ.get("TERM") == "dumb":
        yield GroupLines(total, note)
        return
    console = Console(file=cast(TextIO, Tolerant(sys.stderr)))
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield GroupScreen(total, live)


class GroupLines(Display):
    """Progress in lines, few enough for a log.

    Args:
        total: Number of runs.
        say: Prints a line.
    """

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.total = total
        self.done = 0
        self.say = say
        self._last = monotonic()

    def begins(self, trial: Trial) -> None:
        """Show its name."""
        self.say(f"{trial.name}: training")

    def shows(self, running: Sequence[RunStatus]) -> None:
        """Show the steps and accuracies, if nothing was shown for a while."""
        if monotonic() - self._last >= LINE_SECONDS:
            self._last = monotonic()
            for one in running:
                self.say(_line(one))

    def ends(self, trial: Trial, state: str, status: RunStatus, error: str | None) -> None:
        """Show its state, and its result or its error."""
        self.done += state != "stopped"
        time = [] if status.seconds is None else [str(timedelta(seconds=round(status.seconds)))]
        figures = ", ".join([*_accuracies(status), *time])
        first, *more = (error or figures).split("\n")
        self.say(f"[{self.done}/{self.total}] {trial.name}: {state}{f': {first}' * bool(first)}")
        for line in more:
            self.say(f"    {line}")


class GroupScreen(GroupLines):
    """Progress in the last lines of the terminal, one for each run that is trained.

    Args:
        total: Number of runs.
        live: Part of the terminal to draw on.
    """

    def __init__(self, total: int, live: Live) -> None:
        super().__init__(total, lambda text: live.console.print(Text(printable(text))))
        self._live = live
        self._start = monotonic()
        self._begun: set[str] = set()
        self._trained = 0

    def begins(self, trial: Trial) -> None:
        """Show nothing: it has a line of its own."""
        self._begun.add(trial.name)

    def ends(self, trial: Trial, state: str, status: RunStatus, error: str | None) -> None:
        """Show its state, and its result or its error."""
        super().ends(trial, state, status, error)
        self._trained += trial.name in self._begun  # finished ones are passed over in no time

    def shows(self, running: Sequence[RunStatus]) -> None:
        """Draw a line for each run."""
        lines = [*map(_line, running), f"{self.done} of {self.total} done{self._time_left()}"]
        self._live.update(Text("\n".join(map(printable, lines))), refresh=True)

    def _time_left(self) -> str:
        """Time left, if the other runs take as long as those that ended."""
        if not self._trained:
            return ""
        seconds = (monotonic() - self._start) / self._trained * (self.total - self.done)
        return f", about {timedelta(seconds=round(seconds))} left"


def _line(one: RunStatus) -> str:
    steps, _, time = progress(one)
    parts = [f"step {steps}" if steps else "starting", *([time] if time else [])]
    return f"{one.path.name}: {', '.join([*parts, *_accuracies(one)])}"


def _accuracies(one: RunStatus) -> list[str]:
    val = one.val_top1 if one.val_map is None else one.val_map
    test = one.test_top1 if one.test_map is None else one.test_map
    found = (("validation", val), ("test", test))
    return [f"{name} {percent(value)}" for name, value in found if value is not None]
