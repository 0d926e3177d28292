"""Which changes of a spec a run can go on with."""

from typing import Any

import pytest

from resnet_builder.runs.records import COSMETIC, compare_specs
from resnet_builder.spec.schema import Spec

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


@pytest.mark.parametrize(
    ("path", "value", "kind", "named"), TABLE, ids=[f"row70-{row[0]}" for row in TABLE]
)
def test_change_has_its_kind(path: str, value: Any, kind: str, named: str) -> None:
    changes = compare_specs(Spec.model_validate(BASE), changed(path, value))
    assert [(change.path, change.kind) for change in changes] == [(named, kind)]


def test_equal_specs_have_no_changes() -> None:
    base = Spec.model_validate(BASE)
    assert compare_specs(base, Spec.model_validate(BASE)) == []
    assert compare_specs(base, Spec.model_validate(base.model_dump())) == []


def test_change_says_both_values() -> None:
    (change,) = compare_specs(Spec.model_validate(BASE), changed("train.optimizer.lr", 0.2))
    assert (change.before, change.after) == (0.1, 0.2)
    assert str(change) == "train.optimizer.lr: 0.1 in the run, 0.2 in the spec"


def test_part_that_is_replaced_is_told_whole() -> None:
    other = changed("train.optimizer", {"type": "adamw", "lr": 0.1})
    (change,) = compare_specs(Spec.model_validate(BASE), other)
    assert (change.path, change.kind) == ("train.optimizer", "trajectory")
    assert str(change) == (
        "train.optimizer: {type: sgd, lr: 0.1, momentum: 0.9, weight_decay: 0.0, nesterov: false} "
        "in the run, {type: adamw, lr: 0.1, betas: [0.9, 0.999], eps: 1.0e-08, "
        "weight_decay: 0.01} in the spec"
    )


def test_section_that_is_gone_is_a_change() -> None:
    (change,) = compare_specs(Spec.model_validate(BASE), changed("expect", None))
    assert (change.path, change.before, change.after, change.kind) == (
        "expect",
        {"parameters": 1},
        None,
        "cosmetic",
    )
    assert str(change) == "expect: {parameters: 1} in the run, nothing in the spec"


@pytest.mark.parametrize("path", COSMETIC)
def test_every_cosmetic_key_is_one_of_the_schema(path: str) -> None:
    place: Any = Spec.model_validate(BASE)
    for key in path.split("."):
        assert key in type(place).model_fields
        place = getattr(place, key)
