"""Records of a run: their stored form, rows of metrics, changes of a spec, the environment."""

import importlib.metadata
import json
import math
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from resnet_builder.errors import CheckpointError, StorageError, UsageError
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import (
    COSMETIC,
    Change,
    Comparison,
    DataRecord,
    EnvRecord,
    MetricsLog,
    MetricsRow,
    Record,
    ResultRecord,
    RuntimeConfig,
    compare_specs,
    describe_environment,
    package_version,
    versions,
)
from resnet_builder.spec.schema import Spec
from tests.runs.faults import heard

GOLDEN = Path(__file__).parent / "golden"

RUNTIME = RuntimeConfig(
    device="cpu",
    precision="bf16",
    memory_format="channels_last",
    compile=False,
    fused=True,
    cpu_kernels=True,
    threads=2,
    accumulate=1,
    world_size=1,
)

VERSIONS = {"python": "3.11.7", "resnet-builder": "0.1.0", "torch": "2.14.1"}

EXAMPLES: dict[str, Record] = {
    "env": EnvRecord(
        versions=VERSIONS, platform="Linux-6.1-x86_64", device="CPU (x86_64)", runtime=RUNTIME
    ),
    "data": DataRecord(
        fingerprint="0123",
        classes=("cat", "dog"),
        images={"train": 3, "val": 1},
        validation=(2,),
        parts={"train/cat": "45", "train/dog": "67"},
        skipped=("train/cat/3.png",),
    ),
    "data-fine-tuning": DataRecord(
        fingerprint="0123",
        classes=("cat", "dog"),
        images={"train": 3},
        validation=(),
        pretrained_sha256="0" * 63 + "f",
    ),
    "change": Change(
        time="2026-01-02T03:04:05+00:00",
        path="train.optimizer.lr",
        before=0.1,
        after=0.2,
        kind="trajectory",
    ),
    "metrics-train": MetricsRow(
        event="train",
        step=10,
        epoch=1,
        lr=0.1,
        images_per_second=960.5,
        seconds=12.5,
        train_loss=1.5,
        train_top1=0.5,
        train_top5=0.75,
    ),
    "metrics-validation": MetricsRow(
        event="validation", step=10, epoch=1, val_loss=1.25, val_top1=0.5, val_top5=1.0
    ),
    "metrics-test": MetricsRow(
        event="test", step=10, epoch=1, test_loss=1.25, test_top1=0.5, test_top5=1.0
    ),
    "result": ResultRecord(
        spec_sha256="0" * 63 + "f",
        seed=1,
        steps=64_000,
        selected_on="val",
        selected_step=60_000,
        val_top1=0.925,
        test_top1=0.9275,
        test_top5=0.9975,
        test_top1_by_class={"cat": 0.875, "dog": 1.0},
        parameters=464_154,
        macs=69_124_736,
        seconds=3600.5,
        images_per_second=960.5,
        device="CPU (x86_64)",
        precision="bf16",
        versions=VERSIONS,
        published=Comparison(
            source="He et al. 2015, table 6", test_top1=0.9249, test_top1_difference=0.0026
        ),
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_record_has_its_stored_form(name: str, tmp_path: Path) -> None:
    """A field may be added under the same schema number; then the stored form is changed too."""
    example, stored = EXAMPLES[name], GOLDEN / f"{name}.json"
    example.write(tmp_path / "record.json")
    assert (tmp_path / "record.json").read_text() == stored.read_text()
    assert type(example).read(stored) == example


def test_every_stored_record_has_an_example() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == EXAMPLES.keys()


@pytest.mark.parametrize("kind", sorted({type(record) for record in EXAMPLES.values()}, key=str))
def test_newer_record_asks_to_upgrade(kind: type[Record], tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"schema": 2, "all": "is different"}')
    with pytest.raises(UsageError) as error:
        kind.read(path)
    assert str(error.value) == (
        f"{path} was written by a newer resnet-builder (schema 2; this one reads up to 1): "
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
    with pytest.raises(ValidationError, match=reason):
        RuntimeConfig.model_validate({**RUNTIME.model_dump(), **change})


def test_environment_holds_versions_and_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    found = describe_environment("a CPU", RUNTIME)
    assert (found.device, found.runtime) == ("a CPU", RUNTIME)
    assert found.platform == platform.platform()
    assert list(versions()) == ["python", "resnet-builder", "torch", "torchvision", "numpy"]
    assert found.versions == versions()
    assert found.versions["python"] == platform.python_version()
    assert torch.__version__.startswith(found.versions["torch"])

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert package_version() == "unknown"


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


def test_rows_after_the_resumed_step_are_dropped(log: MetricsLog) -> None:
    log.append(row(1))
    size = log.sync()
    log.append(row(2))
    told, warn = heard()
    log.rewind(size, warn=warn)
    log.append(row(2))
    assert log.read() == [row(1), row(2)]
    assert told == []


@pytest.mark.parametrize("half", ["{", '{"schema": 1, "event": "tr'])
def test_half_a_row_is_dropped(half: str, log: MetricsLog) -> None:
    log.append(row(1))
    size = log.sync()
    with log.path.open("a", encoding="utf-8") as file:
        file.write(half)
    assert log.read() == [row(1)]
    log.rewind(size)
    log.append(row(2))
    assert log.read() == [row(1), row(2)]


def test_lost_rows_are_told_of_and_what_is_left_is_whole(log: MetricsLog) -> None:
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
    """Return the base with another value at a path like ``model.stages.0.channels``."""
    data = Spec.model_validate(BASE).model_dump(mode="json")  # with lists, which can be changed
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
    place: Any = data
    for key in parents:
        place = place[key]
    place[last] = value
    return Spec.model_validate(data)


TABLE = [
    ("name", "other", "cosmetic", "name"),
    ("run.threads", 2, "cosmetic", "run.threads"),
    ("run.device", "cpu", "cosmetic", "run.device"),
    ("run.precision", "bf16", "cosmetic", "run.precision"),
    ("published.test_top1", 0.8, "cosmetic", "published.test_top1"),
    ("expect.parameters", 2, "cosmetic", "expect.parameters"),
    ("train.keep_checkpoints", 5, "cosmetic", "train.keep_checkpoints"),
    ("train.evaluate_every.epochs", 2, "cosmetic", "train.evaluate_every.epochs"),
    ("train.checkpoint_every.seconds", 1.0, "cosmetic", "train.checkpoint_every.seconds"),
    ("train.optimizer.lr", 0.2, "trajectory", "train.optimizer.lr"),
    ("train.batch_size", 16, "trajectory", "train.batch_size"),
    ("train.epochs", 4, "trajectory", "train.epochs"),
    ("train.seed", 1, "trajectory", "train.seed"),
    ("train.accumulate", 2, "trajectory", "train.accumulate"),
    ("train.ema", {"decay": 0.9}, "trajectory", "train.ema"),
    ("train.schedule.milestones", [1], "trajectory", "train.schedule.milestones"),
    ("train.schedule.gamma", 0.5, "trajectory", "train.schedule.gamma"),
    ("data.validation", 8, "trajectory", "data.validation"),
    ("data.augment.0", {"type": "random_crop"}, "trajectory", "data.augment[0]"),
    ("data.augment", [], "trajectory", "data.augment[0]"),
    ("data.dataset.images", 32, "trajectory", "data.dataset.images"),
    ("data.normalize", {"mean": [0.5], "std": [0.2]}, "trajectory", "data.normalize"),
    ("plugins", ["mine.py"], "trajectory", "plugins"),
    ("model.num_classes", 11, "architecture", "model.num_classes"),
    ("model.stages.1.channels", 32, "architecture", "model.stages[1].channels"),
    ("model.stages", BASE["model"]["stages"][:1], "architecture", "model.stages[1]"),
    ("model.stem.channels", 16, "architecture", "model.stem.channels"),
    ("train.freeze", ["stem"], "trajectory", "train.freeze"),
    ("train.head_lr_multiplier", 10.0, "trajectory", "train.head_lr_multiplier"),
    ("model.weights", "/body.pth", "architecture", "model.weights"),
    ("model.zero_init_residual", True, "architecture", "model.zero_init_residual"),
]


@pytest.mark.parametrize(("path", "value", "kind", "named"), TABLE)
def test_change_has_its_kind(path: str, value: Any, kind: str, named: str) -> None:
    changes = compare_specs(Spec.model_validate(BASE), changed(path, value))
    assert [(change.path, change.kind) for change in changes] == [(named, kind)]


def test_equal_specs_have_no_changes() -> None:
    base = Spec.model_validate(BASE)
    assert compare_specs(base, Spec.model_validate(BASE)) == []
    assert compare_specs(base, Spec.model_validate(base.model_dump())) == []


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("train.optimizer.lr", 0.2, "train.optimizer.lr: 0.1 in the run, 0.2 in the spec"),
        ("expect", None, "expect: {parameters: 1} in the run, nothing in the spec"),
        (
            "train.optimizer",
            {"type": "adamw", "lr": 0.1},
            "train.optimizer: {type: sgd, lr: 0.1, momentum: 0.9, weight_decay: 0.0, "
            "nesterov: false} in the run, {type: adamw, lr: 0.1, betas: [0.9, 0.999], "
            "eps: 1.0e-08, weight_decay: 0.01} in the spec",
        ),
    ],
)
def test_change_says_both_values(path: str, value: Any, text: str) -> None:
    (change,) = compare_specs(Spec.model_validate(BASE), changed(path, value))
    assert str(change) == text


@pytest.mark.parametrize("path", COSMETIC)
def test_every_cosmetic_key_is_one_of_the_schema(path: str) -> None:
    place: Any = Spec.model_validate(BASE)
    for key in path.split("."):
        assert key in type(place).model_fields
        place = getattr(place, key)
