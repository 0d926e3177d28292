"""Reports of a training: the callbacks' events, train.log, and the rows of metrics.jsonl."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from resnet_builder.errors import NonFiniteError, Stopped
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import MetricsLog
from resnet_builder.training import meter
from tests.training.runs import Recorder, after, experiment, train


def test_progress_is_reported_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks: Iterator[int] = iter(range(10_000))
    monkeypatch.setattr(meter, "monotonic", lambda: next(ticks) / 24)  # three looks a step
    recorder = Recorder()
    spec = experiment(steps=60, evaluate_every={"steps": 60}, optimizer={"type": "sgd", "lr": 0.1})
    train(tmp_path / "run", spec, callbacks=[recorder])
    [row] = (r for r in MetricsLog(RunDirectory(tmp_path / "run")).read() if r.event == "train")
    steps = [progress.step for progress in recorder.progress]
    assert len(steps) >= 6
    assert steps[-1] == 60
    assert all(later - sooner >= 4 for sooner, later in pairwise(steps[:-1]))
    counted = zip(recorder.progress, [0, *steps], strict=False)
    correct = sum(p.top1 * (p.step - before) * 8 for p, before in counted)
    assert correct <= (row.train_top1 or 0) * 480 + 1e-6
    assert (recorder.progress[0].lr, recorder.progress[0].total_steps) == (0.1, 60)


def test_rows_are_of_the_steps_since_the_row_before(tmp_path: Path) -> None:
    train(tmp_path / "run", experiment(schedule="linear"))
    rows = MetricsLog(RunDirectory(tmp_path / "run")).read()
    assert [(row.event, row.step, row.epoch) for row in rows[:-1]] == [
        (event, step, step // 4) for step in (4, 8, 12) for event in ("train", "validation")
    ]
    assert rows[-1].event == "test"
    trained = [row for row in rows if row.event == "train"]
    assert [row.lr for row in trained] == pytest.approx([0.05 * 8 / 11, 0.05 * 4 / 11, 0.0])
    assert all((row.train_top1 or 0) * 32 % 1 == 0 for row in trained)
    assert (trained[0].train_loss or 0) > (trained[-1].train_loss or 0) > 0
    assert {row.precision for row in rows if row.event != "train"} == {"fp32"}


def test_every_event_has_a_line_in_train_log(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path / "run", experiment(), should_stop=after(3))
    train(tmp_path / "run", experiment())
    lines = RunDirectory(tmp_path / "run").log.read_text().splitlines()
    texts = [line.split(" ", 1)[1] for line in lines]
    assert texts[0].startswith("from step 0 of 12 on ")
    assert texts[1] == "step 3: saved step-000000003.safetensors"
    assert texts[2] == "stopped after step 3, which is saved"
    assert texts[3].startswith("from step 3 of 12 on ")
    assert texts[4].startswith("step 4: val.loss ")
    assert texts[4].endswith(" in fp32, the best so far")
    assert texts[-1].startswith("finished after 12 steps and ")


def test_failure_is_the_last_line_of_train_log(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError) as caught:
        train(tmp_path / "run", experiment(optimizer={"type": "sgd", "lr": 1e30}))
    last = RunDirectory(tmp_path / "run").log.read_text().splitlines()[-1]
    assert last.split(" ", 1)[1] == f"failed: {str(caught.value).splitlines()[0]}"


def test_training_goes_on_when_its_log_cannot_be_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.log.mkdir(parents=True)
    recorder = Recorder()
    train(tmp_path / "run", experiment(), callbacks=[recorder])
    [warning] = recorder.warnings
    assert "train.log" in warning
