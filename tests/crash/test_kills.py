"""SIGKILL at any instant: the same command line again and again ends in the same bits."""

import random
import signal
import time
from pathlib import Path

import pytest

from resnet_builder.runs.files import POINTS
from tests.crash.experiments import assert_same_outcome, outcome_of, train_line, write_experiment
from tests.crash.program import Child, CommandLine, Server, kill

SPECS = ("everything", "early", "streamed")

SOON = 0.1
"""Seconds within which every fourth kill comes, of a process that has just begun."""

IMPORTING = 6.0
"""Seconds that a true command line takes until it trains, about."""


def survive(
    kills: int, server: Server, spec: Path, seed: int, true_lines: int, seconds: float = 120
) -> int:
    """Kill and resume until so many kills hit a process at work; compare each run.

    The first kills are of true command lines. Each run may take some seconds without a kill.

    Returns:
        Number of runs.
    """
    choose = random.Random(seed)
    whole = spec.parent / "whole"
    usual = server.start(*train_line(spec, whole), folder=spec.parent).wait(seconds)
    assert usual.code == 0, usual.stderr
    hits = runs = 0
    while hits < kills:
        run = spec.parent / f"killed-{runs}"
        end = None
        while hits < kills and (end is None or end.code):
            is_true = hits < true_lines
            start = CommandLine if is_true else server.start
            process: CommandLine | Child = start(*train_line(spec, run), folder=run.parent)
            longest = usual.seconds + (IMPORTING if is_true else 0)
            time.sleep(choose.uniform(0, SOON if choose.randrange(4) == 0 else longest))
            kill(process)
            end = process.wait()
            assert end.code in {0, -signal.SIGKILL}, end.stderr
            hits += end.code != 0
        finished = server.start(*train_line(spec, run), folder=run.parent).wait(seconds)
        assert finished.code == 0, finished.stderr
        runs += 1
        assert_same_outcome(run, outcome_of(whole))
    return runs


@pytest.mark.ci
@pytest.mark.parametrize(("name", "kills"), [*zip(SPECS, (7, 7, 6), strict=True)])
def test_killed_run_ends_in_the_bits_of_one_that_was_not(
    name: str, kills: int, server: Server, tmp_path: Path
) -> None:
    """Twenty kills in all, three of them of true command lines."""
    survive(kills, server, write_experiment(tmp_path, name), seed=SPECS.index(name), true_lines=1)


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
    began = time.monotonic()
    runs = survive(kills, server, write_experiment(tmp_path, name), 100, true_lines, seconds=600)
    request.node.user_properties += [  # benchmarks/slow.py writes them to kills.json
        ("experiment", name),
        ("kills", kills),
        ("runs", runs),
        ("seconds", round(time.monotonic() - began, 1)),
    ]


@pytest.mark.slow
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
