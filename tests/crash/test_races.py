"""Two processes that want one directory, and readers of a run that is being written."""

import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from resnet_builder.inference import load_model
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import MetricsLog
from resnet_builder.weights.file import read_weights
from tests.crash.experiments import left, train_line, write_experiment
from tests.crash.killing import assert_equal
from tests.crash.program import Child, End, Fault, Server

STEP = "resnet_builder.training.step:TrainStep.__call__"

HOLDING = [("in_call", STEP, 1, "SIGSTOP")]
"""Whoever wins holds the directory, stopped before its first step, until the other has ended."""


class Pairs:
    """Pairs of processes that call the same line at the same instant."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._line = ("train", write_experiment(folder, "plain", epochs=1), "--data-dir", folder)
        self._begun, alone = folder / "begun", folder / "alone"
        dying = [("in_call", STEP, 5, "SIGKILL")]
        assert self._call("--out", self._begun, faults=dying) == -signal.SIGKILL
        assert self._call("--out", alone) == 0
        self._expected = left(alone)

    def new(self, turn: int) -> End:
        """Let two processes make the same directory; return how the loser ended."""
        run = self._folder / f"new-{turn}"
        return self._race(run, (*self._line, "--out", run))

    def resumed(self, turn: int) -> End:
        """Let two processes go on with the same run; return how the loser ended."""
        run = self._folder / f"resumed-{turn}"
        shutil.copytree(self._begun, run)
        return self._race(run, ("train", "--resume", run, "--data-dir", self._folder))

    def _race(self, run: Path, line: tuple[object, ...]) -> End:
        at = self._server.soon()
        pair = [
            self._server.start(*line, folder=self._folder, faults=HOLDING, at=at) for _ in range(2)
        ]
        loser, end = self._server.first_of(pair)
        (winner,) = (child for child in pair if child is not loser)
        winner.go_on()
        won = winner.wait()
        assert won.code == 0, won.stderr
        assert_equal(left(run), self._expected)
        return end

    def _call(self, *more: object, faults: Sequence[Fault] = ()) -> int:
        end = self._server.call(*self._line, *more, folder=self._folder, faults=faults)
        return end.code


def assert_is_refused(end: End) -> None:
    """Check how a loser ended: soon, which is measured by its work, and told who won.

    Raises:
        AssertionError: It ended otherwise.
    """
    assert end.code == 8, end.stderr
    assert "is in use by process " in end.stderr
    assert end.cpu_seconds < 1
    assert end.seconds < 20


@pytest.mark.parametrize(
    "races", [3, pytest.param(100, marks=pytest.mark.slow)], ids=["row73-3", "row73-100"]
)
def test_of_two_processes_one_wins(races: int, server: Server, tmp_path: Path) -> None:
    """By turns new and resumed; the winner's run is what it would have been without the other."""
    pairs = Pairs(server, tmp_path)
    for turn in range(races):
        assert_is_refused(pairs.new(turn) if turn % 2 == 0 else pairs.resumed(turn))


READS = 1_000


@pytest.mark.ci
def test_row75_readers_of_a_run_see_old_or_new(server: Server, tmp_path: Path) -> None:
    """While it trains, saves after every step, is killed and resumed."""
    spec = write_experiment(
        tmp_path,
        "average",
        epochs=20,
        evaluate_every={"steps": 1},
        checkpoint_every={"steps": 1},
    )
    run = RunDirectory(tmp_path / "run")
    line = train_line(spec, run.path, "--set", "data.validation=20")
    first = server.start(*line, folder=tmp_path, faults=[("in_call", STEP, 40, "SIGKILL")])
    first.wait_for("the best so far")
    wait_for(run.best)
    steps = read(run, READS // 2, first)
    second = server.start(*line, folder=tmp_path)
    steps |= read(run, READS // 2, second)
    assert len(steps) > 3


def wait_for(path: Path) -> None:
    """Wait until there is a file."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def read(run: RunDirectory, times: int, writer: Child) -> set[int | None]:
    """Read a run until its writer ends, and at least so often; return the steps of its weights."""
    steps = set()
    count = 0
    while count < times or writer.is_running:
        _, header = read_weights(run.best)
        steps.add(header.step)
        rows = [row.step for row in MetricsLog(run).read() if row.event != "test"]
        assert rows == sorted(rows)
        if count % 100 == 0:
            load_model(run.path)
        count += 1
    return steps
