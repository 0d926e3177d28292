"""The form of what programs read: stored examples, which are read and written unchanged."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from resnet_builder.errors import CheckpointError, StorageError, UsageError
from resnet_builder.runs.records import (
    Change,
    Comparison,
    DataRecord,
    EnvRecord,
    MetricsRow,
    Record,
    ResultRecord,
    RuntimeConfig,
)

GOLDEN = Path(__file__).parent / "golden"

CHOICES = RuntimeConfig(
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
        versions=VERSIONS, platform="Linux-6.1-x86_64", device="CPU (x86_64)", choices=CHOICES
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
    EXAMPLES[name].write(tmp_path / "record.json")
    assert (tmp_path / "record.json").read_text() == (GOLDEN / f"{name}.json").read_text()


@pytest.mark.parametrize("name", EXAMPLES)
def test_stored_record_is_read(name: str) -> None:
    example = EXAMPLES[name]
    assert type(example).read(GOLDEN / f"{name}.json") == example


def test_every_stored_record_has_an_example() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_row69_newer_record_asks_to_upgrade(name: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"schema": 2, "all": "is different"}')
    with pytest.raises(UsageError) as error:
        type(EXAMPLES[name]).read(path)
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
        ("", "x is damaged: Invalid JSON"),
        ("{}", "x is damaged: schema: Field required"),
        ('{"schema": 0, "event": "test", "step": 1, "epoch": 0}', "x is damaged: schema: "),
        ('{"schema": 1, "event": "lunch", "step": 1, "epoch": 0}', "x is damaged: event: "),
        (
            '{"schema": 1, "event": "test", "step": 1, "epoch": 0, "test.top1": 93}',
            r"x is damaged: test\.top1: ",
        ),
    ],
)
def test_damaged_record_is_named(text: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        MetricsRow.from_json(text, "x")


def test_missing_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*env\.json: No such file"):
        EnvRecord.read(tmp_path / "env.json")


def test_accuracies_are_fractions() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        MetricsRow(event="validation", step=1, epoch=0, val_top1=93.1)


def test_choice_that_is_not_known_is_not_passed_over() -> None:
    with pytest.raises(ValidationError, match="tensor_parallel"):
        RuntimeConfig.model_validate({**CHOICES.model_dump(), "tensor_parallel": 2})


def test_more_threads_than_a_spec_may_ask_for_are_none_that_a_run_has_used() -> None:
    """They would all be started before the first step."""
    with pytest.raises(ValidationError, match="less than or equal to 1024"):
        RuntimeConfig.model_validate({**CHOICES.model_dump(), "threads": 10**9})
