"""SIGKILL, whenever it comes: the same line again and again ends in the same bits."""

import signal
from pathlib import Path

import pytest

from resnet_builder.runs.files import POINTS
from tests.crash.experiments import left, train_line, write_experiment
from tests.crash.killing import Killing, assert_equal
from tests.crash.program import Server

SPECS = ("plain", "average", "parts", "early", "held", "streamed")


@pytest.mark.ci
@pytest.mark.parametrize("name", SPECS, ids=lambda name: f"row56-{name}")
def test_killed_run_ends_in_the_bits_of_one_that_was_not(
    name: str, server: Server, tmp_path: Path
) -> None:
    """Twenty kills in all, two of them of a true command line."""
    spec = write_experiment(tmp_path, name)
    killing = Killing(server, spec, seed=SPECS.index(name), true_lines=name in {"plain", "held"})
    killing.survive(4 if name in {"plain", "held"} else 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS, ids=lambda name: f"row56-{name}")
def test_run_survives_many_kills(
    name: str, server: Server, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Two hundred and ten in all, twelve of them of true command lines."""
    spec = write_experiment(tmp_path, name)
    killing = Killing(server, spec, seed=100 + SPECS.index(name), true_lines=2)
    killing.survive(35)
    note(killing, request)


@pytest.mark.slow
def test_row56_compiled_run_survives_kills(
    server: Server, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    spec = write_experiment(tmp_path, "compiled")
    killing = Killing(server, spec, seed=7)
    killing.survive(8, seconds=600)
    note(killing, request)


def note(killing: Killing, request: pytest.FixtureRequest) -> None:
    """Note in the report what ``benchmarks/slow.py`` writes down."""
    request.node.user_properties += [
        ("experiment", killing.spec.stem),
        ("kills", len(killing.hits)),
        ("runs", killing.runs),
        ("seconds", round(killing.seconds, 1)),
    ]


@pytest.mark.ci
def test_row57_run_killed_at_every_point_of_a_save_ends_in_the_same_bits(
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
    assert_equal(left(run), left(whole))
