"""Two processes that want one directory, and readers of a run that is being written."""

import shutil
import signal
import time
from pathlib import Path

import pytest

from resnet_builder.inference import load_model
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import MetricsLog
from resnet_builder.weights.file import read_weights
from tests.crash.experiments import assert_same_outcome, outcome_of, train_line, write_experiment
from tests.crash.program import Child, Server, wait_until

STEP = "resnet_builder.training.step:TrainStep.__call__"


@pytest.mark.parametrize(
    "races", [pytest.param(3, marks=pytest.mark.ci), pytest.param(100, marks=pytest.mark.slow)]
)
def test_of_two_processes_one_wins(races: int, server: Server, tmp_path: Path) -> None:
    """By turns new and resumed; the winner's run is what it would have been without the other."""
    line = ("train", write_experiment(tmp_path, "plain", epochs=1), "--data-dir", tmp_path)
    begun, alone = tmp_path / "begun", tmp_path / "alone"
    dying = [("in_call", STEP, 5, "SIGKILL")]
    killed = server.call(*line, "--out", begun, folder=tmp_path, faults=dying)
    assert killed.code == -signal.SIGKILL
    assert server.call(*line, "--out", alone, folder=tmp_path).code == 0
    for turn in range(races):
        run = tmp_path / f"run-{turn}"
        if turn % 2:
            shutil.copytree(begun, run)
            race(server, run, "train", "--resume", run, "--data-dir", tmp_path)
        else:
            race(server, run, *line, "--out", run)
        assert_same_outcome(run, outcome_of(alone))


def race(server: Server, run: Path, *line: object) -> None:
    """Give the same line twice at the same instant; the loser is refused soon.

    The winner holds the directory, stopped before its first step, until the loser has ended.
    """
    at = time.monotonic() + 0.1  # both are ready by then
    holding = [("in_call", STEP, 1, "SIGSTOP")]
    pair = [server.start(*line, folder=run.parent, faults=holding, at=at) for _ in range(2)]
    wait_until(lambda: not all(child.is_running for child in pair))
    winner, loser = sorted(pair, key=lambda child: child.is_running, reverse=True)
    end = loser.wait()
    assert end.code == 8, end.stderr
    assert "is in use by process " in end.stderr
    assert end.seconds < 20
    winner.go_on()
    won = winner.wait()
    assert won.code == 0, won.stderr


@pytest.mark.slow
def test_readers_of_a_run_see_old_or_new(server: Server, tmp_path: Path) -> None:
    """While it trains, saves after every step, is killed and resumed."""
    recipe: dict[str, object] = {
        "epochs": 20,
        "evaluate_every": {"steps": 1},
        "checkpoint_every": {"steps": 1},
        "optimizer": {"type": "sgd", "lr": 0.01, "weight_decay": 1e-3},  # the best changes often
    }
    spec = write_experiment(tmp_path, "everything", **recipe)
    run = RunDirectory(tmp_path / "run")
    line = train_line(spec, run.path)
    first = server.start(*line, folder=tmp_path, faults=[("in_call", STEP, 40, "SIGKILL")])
    first.wait_for("the best so far")
    wait_until(run.best.exists)
    steps = read(run, first)
    steps |= read(run, server.start(*line, folder=tmp_path))
    assert len(steps) > 3


def read(run: RunDirectory, writer: Child) -> set[int | None]:
    """Read a run until its writer ends, at least 500 times; return the steps of its weights."""
    steps = set()
    count = 0
    while count < 500 or writer.is_running:
        steps.add(read_weights(run.best)[1].step)
        # The last rows are of the selected weights, evaluated in fp32.
        rows = [row.step for row in MetricsLog(run).read() if row.precision != "fp32"]
        assert rows == sorted(rows)
        if count % 100 == 0:
            load_model(run.path)
        count += 1
    return steps
