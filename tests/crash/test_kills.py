"""SIGKILL, whenever it comes: the same line again and again ends in the same bits."""

from pathlib import Path

import pytest

from resnet_builder.runs.failpoints import POINTS
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


SOONER_AND_LATER = (1, 8)
"""Files written: the first is ``data.json``, the eighth a checkpoint or the best weights."""


@pytest.mark.ci
def test_row57_kill_at_every_point_of_every_early_save(server: Server, tmp_path: Path) -> None:
    """At each named point, while the run is set up and while it is trained."""
    spec = write_experiment(tmp_path, "early", epochs=2)
    whole = tmp_path / "whole"
    assert server.call(*train_line(spec, whole), folder=tmp_path).code == 0
    expected = left(whole)
    for point in POINTS:
        run = tmp_path / point
        for turn in SOONER_AND_LATER:
            faults = [("at_point", point, turn if point != "rotated" else 1, "SIGKILL")]
            end = server.call(*train_line(spec, run), folder=tmp_path, faults=faults)
            assert end.code == -9, end.stderr
        end = server.call(*train_line(spec, run), folder=tmp_path)
        assert end.code == 0, end.stderr
        assert_equal(left(run), expected)
