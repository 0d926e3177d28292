"""Differences between two specs, value by value."""

from typing import Any

import pytest

from resnet_builder.errors import dotted
from resnet_builder.spec.differences import spec_differences
from resnet_builder.spec.dump import plain_data
from resnet_builder.spec.load import load_spec
from resnet_builder.spec.yaml_source import parse_plain
from tests.spec.texts import FULL

BASE = parse_plain(FULL.partition("expect:")[0], "full")

TOLD = [
    ("model.block=bottleneck", [("model.block", "basic", "bottleneck")]),
    ("model.shortcut.position=both", [("model.shortcut.position", "end", "both")]),
    (
        "model.shortcut=projection",
        [("model.shortcut", {"type": "pad", "position": "end"}, "projection")],
    ),
    ("model.shortcut={type: pad}", [("model.shortcut.position", "end", None)]),
    ("model.stages.1.blocks=5", [("model.stages[1].blocks", 2, 5)]),
    ("model.stages.1.block=basic", [("model.stages[1].block", None, "basic")]),
    (
        "model.stages=[{channels: 16, blocks: 1}]",
        [("model.stages[1]", {"channels": 32, "blocks": 2, "stride": 2, "dilation": 1}, None)],
    ),
    (
        "data.augment=[horizontal_flip, random_crop]",
        [("data.augment[1]", None, "random_crop")],
    ),
    ("data.augment=[]", [("data.augment[0]", "horizontal_flip", None)]),
    ("train.schedule.milestones=[5, 50]", [("train.schedule.milestones", [500], [5, 50])]),
    (
        "train.schedule.warmup=null",
        [("train.schedule.warmup", {"steps": 10, "type": "linear", "start": 0.0}, None)],
    ),
    ("train.ema={decay: 0.9}", [("train.ema", None, {"decay": 0.9, "every": 1})]),
    ("train.batch_size=32", []),
]


@pytest.mark.parametrize(("override", "told"), TOLD, ids=[row[0] for row in TOLD])
def test_difference_is_told_where_it_is(override: str, told: list[tuple[str, Any, Any]]) -> None:
    found = [
        (dotted(one.path), plain_data(one.before), plain_data(one.after))
        for one in spec_differences(load_spec(BASE), load_spec(BASE, overrides=[override]))
    ]
    assert found == told
