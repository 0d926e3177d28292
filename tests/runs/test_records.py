"""Records of a run: their stored form, rows of metrics, changes of a spec, the environment."""

import json
import math
import platform
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from resnet_builder.errors import CheckpointError, StorageError, UsageError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import (
    Change,
    DataRecord,
    EnvRecord,
    MetricsLog,
    MetricsRow,
    Record,
    ResultRecord,
    RuntimeConfig,
    compare_specs,
    curve_rows,
    versions,
)
from resnet_builder.spec.schema import Spec

GOLDEN = Path(__file__).parent / "golden"

KINDS: dict[str, type[Record]] = {
    "env": EnvRecord,
    "data": DataRecord,
    "change": Change,
    "metrics": MetricsRow,
    "result": ResultRecord,
}


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.iterdir()))
def test_record_has_its_stored_form(name: str, tmp_path: Path) -> None:
    """A field may be added under the same schema number; then the stored form is changed too."""
    stored = GOLDEN / f"{name}.json"
    KINDS[name.partition("-")[0]].read(stored).write(tmp_path / "record.json")
    assert (tmp_path / "record.json").read_text() == stored.read_text()


@pytest.mark.parametrize("kind", KINDS.values())
def test_newer_record_asks_to_upgrade(kind: type[Record]) -> None:
    with pytest.raises(UsageError) as error:
        kind.from_json('{"schema": 2, "all": "is different"}', "x")
    assert str(error.value) == (
        "x was written by a newer resnet-builder (schema 2; this one reads up to 1): "
        "upgrade resnet-builder"
    )


def test_field_that_was_added_later_is_ignored() -> None:
    text = '{"schema": 1, "event": "test", "step": 1, "epoch": 0, "added.later": [1]}'
    assert MetricsRow.from_json(text, "x") == MetricsRow(event="test", step=1, epoch=0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Invalid JSON"),
        ("{}", "schema: Field required"),
        ('{"schema": 0, "event": "test", "step": 1, "epoch": 0}', "schema: "),
        ('{"schema": 1, "event": "lunch", "step": 1, "epoch": 0}', "event: "),
        ('{"schema": 1, "event": "test", "step": 1, "epoch": 0, "test.top1": 93}', "test.top1: "),
    ],
)
def test_damaged_record_is_named(text: str, reason: str) -> None:
    with pytest.raises(CheckpointError) as error:
        MetricsRow.from_json(text, "x")
    assert str(error.value).startswith(f"x is damaged: {reason}")


def test_missing_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*env\.json: No such file"):
        EnvRecord.read(tmp_path / "env.json")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tensor_parallel": 2}, "tensor_parallel"),
        ({"threads": 10**9}, "less than or equal to 1024"),  # all would be started before step 1
    ],
)
def test_runtime_that_is_not_known_is_refused(change: dict[str, int], reason: str) -> None:
    runtime = EnvRecord.read(GOLDEN / "env.json").runtime
    with pytest.raises(ValidationError, match=reason):
        RuntimeConfig.model_validate({**runtime.model_dump(), **change})


def test_versions_are_those_of_python_and_of_what_computes() -> None:
    found = versions()
    assert list(found) == ["python", "resnet-builder", "torch", "torchvision", "numpy", "pillow"]
    assert found["python"] == platform.python_version()
    assert torch.__version__.startswith(found["torch"])


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


def test_loss_that_is_no_number_is_null(log: MetricsLog) -> None:
    log.append(MetricsRow(event="validation", step=1, epoch=0, val_loss=math.nan, val_top1=0.5))
    assert '"val.loss":null,"val.top1":0.5' in log.path.read_text(encoding="utf-8")
    assert log.read()[0].val_loss is None


@pytest.mark.parametrize(
    "more", ["", row(2).to_json() + "\n", '{"schema": 1, "event": "tr', "\0" * 100], ids=len
)
def test_rows_after_the_resumed_step_are_dropped(more: str, log: MetricsLog) -> None:
    log.append(row(1))
    size = log.sync()
    with log.path.open("a", encoding="utf-8") as file:
        file.write(more)
    assert log.read() == [row(1), row(2)][: 1 + more.endswith("\n")]
    told: list[str] = []
    log.rewind(size, warn=told.append)
    log.append(row(3))
    assert log.read() == [row(1), row(3)]
    assert told == []


def test_lost_rows_are_told_of_and_what_is_left_is_whole(log: MetricsLog) -> None:
    log.append(row(1))
    kept = log.sync()
    log.append(row(2))
    size = log.sync()
    log.path.write_bytes(log.path.read_bytes()[:-5])
    told: list[str] = []
    log.rewind(size, warn=told.append)
    assert log.read() == [row(1)]
    assert told == [f"{log.path} lost {size - kept} of {size} bytes: rows are missing"]


def test_row_that_cannot_be_read_is_named(log: MetricsLog) -> None:
    log.append(row(1))
    sound = log.path.read_bytes()
    log.path.write_bytes(sound + b'{"schema": 1, "event": "train", "step": -1, "epoch": 0}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:2 is damaged: step: "):
        log.read()
    log.path.write_bytes(sound + b'{"schema": 2}\n')
    with pytest.raises(UsageError, match=r"metrics\.jsonl:2 was written by a newer"):
        log.read()


BASE: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "num_classes": 10,
        "stem": {"type": "conv3x3", "channels": 8},
        "block": "basic",
        "shortcut": "pad",
        "stages": [{"channels": 8, "blocks": 1}, {"channels": 16, "blocks": 1, "stride": 2}],
    },
    "data": {"dataset": {"type": "synthetic", "images": 64}, "augment": ["horizontal_flip"]},
    "train": {
        "epochs": 3,
        "batch_size": 8,
        "optimizer": {"type": "sgd", "lr": 0.1},
        "schedule": {"type": "multistep", "milestones": [1, 2]},
    },
    "published": {"test_top1": 0.9, "source": "somewhere"},
    "expect": {"parameters": 1},
}


def changed(path: str, value: Any) -> Spec:
    """Return the base with another value at a path."""
    data = Spec.model_validate(BASE).model_dump(mode="json")  # with lists, which can be changed
    keys = re.findall(r"[^.\[\]]+", path)
    *parents, last = (int(key) if key.isdigit() else key for key in keys)
    place: Any = data
    for key in parents:
        place = place[key]
    place[last] = value
    return Spec.model_validate(data)


@pytest.mark.parametrize(
    ("path", "value", "kind"),
    [
        ("name", "other", "cosmetic"),
        ("run.device", "cpu", "cosmetic"),
        ("published.test_top1", 0.8, "cosmetic"),
        ("expect.parameters", 2, "cosmetic"),
        ("train.keep_checkpoints", 5, "cosmetic"),
        ("train.evaluate_every.epochs", 2, "trajectory"),
        ("train.checkpoint_every.seconds", 1.0, "cosmetic"),
        ("train.optimizer.lr", 0.2, "trajectory"),
        ("train.epochs", 4, "trajectory"),
        ("train.accumulate", 2, "trajectory"),
        ("train.ema", {"decay": 0.9}, "trajectory"),
        ("train.schedule.milestones", [1], "trajectory"),
        ("train.freeze", ["stem"], "trajectory"),
        ("data.validation", 8, "split"),
        ("data.augment[0]", {"type": "random_crop"}, "trajectory"),
        ("data.dataset.images", 32, "trajectory"),
        ("data.normalize", {"mean": [0.5], "std": [0.2]}, "trajectory"),
        ("plugins", ["mine.py"], "trajectory"),
        ("model.num_classes", 11, "architecture"),
        ("model.stages[1].channels", 32, "architecture"),
        ("model.weights", "/body.pth", "architecture"),
        ("model.zero_init_residual", True, "architecture"),
    ],
)
def test_change_has_its_kind(path: str, value: Any, kind: str) -> None:
    changes = compare_specs(Spec.model_validate(BASE), changed(path, value))
    assert [(change.path, change.kind) for change in changes] == [(path, kind)]


@pytest.mark.parametrize(("section", "key"), [("data", "augment"), ("model", "stages")])
def test_shorter_list_is_a_change_of_what_is_left_out(section: str, key: str) -> None:
    values = BASE[section][key][:-1]
    [change] = compare_specs(Spec.model_validate(BASE), changed(f"{section}.{key}", values))
    assert change.path == f"{section}.{key}[{len(values)}]"


def test_equal_specs_have_no_changes() -> None:
    base = Spec.model_validate(BASE)
    assert compare_specs(base, Spec.model_validate(base.model_dump())) == []


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("train.optimizer.lr", 0.2, "train.optimizer.lr: 0.1 in the run, 0.2 now"),
        ("expect", None, "expect: {parameters: 1} in the run, nothing now"),
    ],
)
def test_change_says_both_values(path: str, value: Any, text: str) -> None:
    [change] = compare_specs(Spec.model_validate(BASE), changed(path, value))
    assert str(change) == text


def test_second_evaluation_of_the_selected_weights_is_no_point_of_a_curve() -> None:
    rows = [
        MetricsRow(event="train", step=8, epoch=1, train_top1=0.5),
        MetricsRow(event="validation", step=8, epoch=1, val_top1=0.6),
        MetricsRow(event="validation", step=16, epoch=2, val_top1=0.5),
        MetricsRow(event="validation", step=8, epoch=1, val_top1=0.6),
        MetricsRow(event="test", step=8, epoch=1, test_top1=0.4),
    ]
    assert list(curve_rows(rows)) == [*rows[:3], rows[4]]
