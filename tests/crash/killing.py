"""A run that is killed again and again, and goes on each time by the same command line."""

import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.crash.experiments import left, train_line
from tests.crash.program import CommandLine, Server, Started, kill

STARTING = 0.1
"""Seconds within which every fourth kill comes: a process has then just begun."""

IMPORTING = 6.0
"""Seconds that a true command line takes until it trains, about."""


@dataclass
class Killing:
    """Kills a training at random instants until it was hit often enough, and compares.

    Attributes:
        server: Calls the program.
        spec: What is trained.
        seed: Of the instants.
        true_lines: How many of the kills are of true command lines.
        hits: The instant of each kill, in seconds from the start of a process.
        runs: How many whole runs that took.
        seconds: How long.
    """

    server: Server
    spec: Path
    seed: int
    true_lines: int = 0
    hits: list[float] = field(default_factory=list)
    runs: int = 0
    seconds: float = 0.0

    def survive(self, kills: int, *, seconds: float = 120) -> None:
        """Kill, and go on, until every run that was killed is complete.

        Args:
            kills: How often to hit a process that is at work.
            seconds: That a run may take without being killed.

        Raises:
            AssertionError: A run came to other bits than one that was left alone, or ended
                otherwise than by a kill.
        """
        began = time.monotonic()
        choose = random.Random(self.seed)
        whole = self.spec.parent / "whole"
        end = self._start(whole).wait(seconds)
        assert end.code == 0, end.stderr
        expected = left(whole)
        while len(self.hits) < kills:
            run = self.spec.parent / f"killed-{self.runs}"
            while len(self.hits) < kills and self._kill_once(run, choose, end.seconds):
                pass
            finished = self._start(run).wait(seconds)
            assert finished.code == 0, finished.stderr
            self.runs += 1
            assert_equal(left(run), expected)
        self.seconds = time.monotonic() - began

    def _kill_once(self, run: Path, choose: random.Random, usual: float) -> bool:
        """Start the run, or let it go on, and kill it; tell whether it was still at work."""
        is_true = len(self.hits) < self.true_lines
        started = CommandLine.start(*self._line(run), folder=run.parent) if is_true else None
        process: Started = started or self._start(run)
        longest = IMPORTING + usual if is_true else usual
        instant = choose.uniform(0, STARTING if choose.randrange(4) == 0 else longest)
        time.sleep(instant)
        kill(process)
        end = process.wait()
        if end.code == 0:
            return False
        assert end.code == -signal.SIGKILL, end.stderr
        self.hits.append(instant)
        return True

    def _start(self, run: Path) -> Started:
        return self.server.start(*self._line(run), folder=run.parent)

    def _line(self, run: Path) -> tuple[object, ...]:
        return train_line(self.spec, run)


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare what two runs left, without printing megabytes where they differ.

    Raises:
        AssertionError: They differ; the message says in what.
    """
    assert found.keys() == expected.keys()
    differing = [name for name in expected if found[name] != expected[name]]
    assert not differing, f"other than those of the uninterrupted run: {', '.join(differing)}"
