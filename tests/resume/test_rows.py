"""Rows of metrics and times of a resumed run, with a damaged file and a clock set back."""

import itertools
import time

import pytest

from resnet_builder.runs.records import MetricsLog, ResultRecord
from tests.crash.experiments import assert_same_outcome, outcome_of
from tests.resume.conftest import Interrupted


def test_rows_behind_the_checkpoint_are_cut_off(interrupted: Interrupted) -> None:
    before = MetricsLog(interrupted.run).read()
    with interrupted.run.metrics.open("a", encoding="utf-8") as file:
        file.write('{"schema":1,"event":"train","step":11,"epoch":1}\n{"schema":1,"eve')
    result = interrupted.resume()
    assert result.exit_code == 0, result.stderr
    rows = MetricsLog(interrupted.run).read()
    assert rows[: len(before)] == before
    assert_same_outcome(interrupted.run.path, interrupted.expected)


def test_clock_that_goes_back_changes_nothing(
    interrupted: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when a run is saved nor how long it took: a checkpoint is due after no time."""
    seconds = itertools.count(2e9, -3600)
    monkeypatch.setattr(time, "time", lambda: next(seconds))
    result = interrupted.resume("--set", "train.checkpoint_every={seconds: 1e-6}")
    assert result.exit_code == 0, result.stderr
    names = sorted(path.name for path in interrupted.run.checkpoints.iterdir())
    assert names == [f"step-{step:09d}.safetensors" for step in (12, 13, 14)]
    assert 0 < ResultRecord.read(interrupted.run.result).seconds < 600
    assert outcome_of(interrupted.run.path)["checkpoint"] == interrupted.expected["checkpoint"]
