"""``metrics.jsonl``: whole rows, none twice."""

import json
import math

import pytest

from resnet_builder.errors import CheckpointError, UsageError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import MetricsLog, MetricsRow
from tests.runs.faults import heard


def row(step: int) -> MetricsRow:
    return MetricsRow(event="train", step=step, epoch=0, lr=0.1, train_loss=1 / (step + 1))


@pytest.fixture
def log(run: RunDirectory) -> MetricsLog:
    return MetricsLog(run)


def test_rows_are_lines_of_json_and_are_read_again(log: MetricsLog) -> None:
    log.append(row(1))
    log.append(row(2))
    lines = log.path.read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {
        "schema": 1,
        "event": "train",
        "step": 1,
        "epoch": 0,
        "lr": 0.1,
        "train.loss": 0.5,
    }
    assert log.read() == [row(1), row(2)]


def test_log_without_rows_is_empty(log: MetricsLog) -> None:
    assert log.read() == []
    assert log.sync() == 0
    log.rewind(0)
    assert not log.path.exists()


def test_row52_loss_that_is_no_number_is_null(log: MetricsLog) -> None:
    log.append(MetricsRow(event="validation", step=1, epoch=0, val_loss=math.nan, val_top1=0.5))
    assert '"val.loss":null,"val.top1":0.5' in log.path.read_text(encoding="utf-8")
    assert log.read()[0].val_loss is None


def test_row63_rows_after_the_resumed_step_are_dropped(log: MetricsLog) -> None:
    log.append(row(1))
    size = log.sync()
    log.append(row(2))
    told, warn = heard()
    log.rewind(size, warn=warn)
    log.append(row(2))
    assert log.read() == [row(1), row(2)]
    assert told == []


@pytest.mark.parametrize("half", ["{", '{"schema": 1, "event": "tr'])
def test_row63_half_a_row_is_dropped(half: str, log: MetricsLog) -> None:
    log.append(row(1))
    size = log.sync()
    with log.path.open("a", encoding="utf-8") as file:
        file.write(half)
    assert log.read() == [row(1)]
    log.rewind(size)
    log.append(row(2))
    assert log.read() == [row(1), row(2)]


def test_row63_lost_rows_are_told_of_and_what_is_left_is_whole(log: MetricsLog) -> None:
    log.append(row(1))
    kept = log.sync()
    log.append(row(2))
    size = log.sync()
    log.path.write_bytes(log.path.read_bytes()[:-5])
    told, warn = heard()
    log.rewind(size, warn=warn)
    assert log.read() == [row(1)]
    assert log.path.stat().st_size == kept
    assert told == [f"{log.path} lost {size - kept} of {size} bytes: rows are missing"]


def test_run_that_starts_over_has_no_rows(log: MetricsLog) -> None:
    log.append(row(1))
    log.rewind(0)
    assert log.read() == []


def test_damaged_row_is_named(log: MetricsLog) -> None:
    log.append(row(1))
    with log.path.open("a", encoding="utf-8") as file:
        file.write('{"schema": 1, "event": "train", "step": -1, "epoch": 0}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:2 is damaged: step: "):
        log.read()


def test_newer_row_asks_to_upgrade(log: MetricsLog) -> None:
    log.path.write_text('{"schema": 2}\n')
    with pytest.raises(UsageError, match=r"metrics\.jsonl:1 was written by a newer"):
        log.read()
