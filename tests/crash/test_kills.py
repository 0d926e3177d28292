"""SIGKILL at any instant: the same command line again and again ends in the same bits."""

import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from resnet_builder.runs.files import POINTS
from tests.crash.experiments import assert_same_outcome, outcome_of, train_line, write_experiment
from tests.crash.program import CommandLine, Server, Started, kill

SPECS = ("everything", "early", "streamed")

SOON = 0.1
"""Seconds within which every fourth kill comes, of a process that has just begun."""

IMPORTING = 6.0
"""Seconds that a true command line takes until it trains, about."""


@dataclass
class KillLoop:
    """Kills of one training at random instants.

    Attributes:
        server: Calls the program.
        spec: Spec of the training.
        seed: Seed of the instants.
        true_lines: Number of the kills that are of true command lines.
        hits: Instant of each kill, in seconds from the start of a process.
        runs: Number of runs that were completed after kills.
    """

    server: Server
    spec: Path
    seed: int
    true_lines: int = 0
    hits: list[float] = field(default_factory=list)
    runs: int = 0

    def survive(self, kills: int, *, seconds: float = 120) -> None:
        """Kill and resume until a number of kills hit a process at work; compare each run.

        Args:
            kills: Number of kills.
            seconds: Seconds that a run may take without being killed.
        """
        choose = random.Random(self.seed)
        whole = self.spec.parent / "whole"
        end = self._start(whole).wait(seconds)
        assert end.code == 0, end.stderr
        expected = outcome_of(whole)
        while len(self.hits) < kills:
            run = self.spec.parent / f"killed-{self.runs}"
            while len(self.hits) < kills and self._kill_once(run, choose, end.seconds):
                pass
            finished = self._start(run).wait(seconds)
            assert finished.code == 0, finished.stderr
            self.runs += 1
            assert_same_outcome(run, expected)

    def _kill_once(self, run: Path, choose: random.Random, usual: float) -> bool:
        """Start or resume the run, and kill it; return whether it was still at work."""
        is_true = len(self.hits) < self.true_lines
        process: Started = (
            CommandLine.start(*train_line(self.spec, run), folder=run.parent)
            if is_true
            else self._start(run)
        )
        longest = IMPORTING + usual if is_true else usual
        instant = choose.uniform(0, SOON if choose.randrange(4) == 0 else longest)
        time.sleep(instant)
        kill(process)
        end = process.wait()
        if end.code == 0:
            return False
        assert end.code == -signal.SIGKILL, end.stderr
        self.hits.append(instant)
        return True

    def _start(self, run: Path) -> Started:
        return self.server.start(*train_line(self.spec, run), folder=run.parent)


@pytest.mark.ci
@pytest.mark.parametrize("name", SPECS)
def test_killed_run_ends_in_the_bits_of_one_that_was_not(
    name: str, server: Server, tmp_path: Path
) -> None:
    """Twelve kills in all, three of them of true command lines."""
    spec = write_experiment(tmp_path, name)
    KillLoop(server, spec, seed=SPECS.index(name), true_lines=1).survive(4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kills", "true_lines"), [*((name, 17, 2) for name in SPECS), ("compiled", 8, 0)]
)
def test_run_survives_many_kills(
    name: str,
    kills: int,
    true_lines: int,
    server: Server,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """51 kills over three specs, and some of a compiled network."""
    loop = KillLoop(server, write_experiment(tmp_path, name), seed=100, true_lines=true_lines)
    began = time.monotonic()
    loop.survive(kills, seconds=600)
    request.node.user_properties += [  # benchmarks/slow.py writes them to kills.json
        ("experiment", name),
        ("kills", len(loop.hits)),
        ("runs", loop.runs),
        ("seconds", round(time.monotonic() - began, 1)),
    ]


@pytest.mark.ci
def test_run_killed_at_every_failpoint_ends_in_the_same_bits(
    server: Server, tmp_path: Path
) -> None:
    """One run is killed at each point of its set-up, and then of the checkpoints to come."""
    spec = write_experiment(tmp_path, "early", epochs=6)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert server.call(*train_line(spec, whole), folder=tmp_path).code == 0
    for turn in (1, 2):  # before a resumed run saves a checkpoint, it may write its best weights
        for point in POINTS:
            fault = ("at_point", point, 1 if point == "rotated" else turn, "SIGKILL")
            end = server.call(*train_line(spec, run), folder=tmp_path, faults=[fault])
            assert end.code == -signal.SIGKILL, end.stderr
    end = server.call(*train_line(spec, run), folder=tmp_path)
    assert end.code == 0, end.stderr
    assert_same_outcome(run, outcome_of(whole))
