"""Grouping of runs by their specs up to the seed, and statistics over seeds."""

import math
from typing import Any

import pytest

from resnet_builder.runs.seeds import group_by_spec, mean_and_std
from resnet_builder.spec.dump import plain_data
from resnet_builder.spec.load import load_spec

RESNET20 = plain_data(load_spec("resnet20"))


def changed(path: str, value: object) -> dict[str, Any]:
    section, _, key = path.rpartition(".")
    if not section:
        return {**RESNET20, key: value}
    return {**RESNET20, section: {**RESNET20[section], key: value}}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.seed", 7),
        ("train.checkpoint_every", 1),
        ("train.keep_checkpoints", 9),
        ("run.device", "cpu"),
        ("run.threads", 3),
        ("run.log", ["csv"]),
        ("run.report", False),
        ("expect", None),
        ("published", None),
    ],
)
def test_seed_and_place_of_a_run_make_no_other_experiment(path: str, value: object) -> None:
    assert changed(path, value) != RESNET20
    assert group_by_spec([RESNET20, changed(path, value)]) == [(0, 1)]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "other"),
        ("train.batch_size", 16),
        ("train.evaluate_every", 1),
        ("train.activation_checkpointing", True),
        ("run.precision", "fp32"),
        ("run.compile", False),
        ("run.cpu_kernels", False),
    ],
)
def test_all_else_does(path: str, value: object) -> None:
    assert group_by_spec([RESNET20, changed(path, value)]) == [(0,), (1,)]


def test_runs_without_a_spec_are_alone() -> None:
    other = changed("name", "other")
    assert group_by_spec([other, None, RESNET20, None, other]) == [(0, 4), (1,), (2,), (3,)]


def test_standard_deviation_is_that_of_a_sample() -> None:
    assert mean_and_std([0.5]) == (0.5, None)
    assert mean_and_std([1, 2, 6]) == pytest.approx((3, math.sqrt(7)))


def test_runs_on_other_images_are_no_seeds_of_one_experiment() -> None:
    same = [RESNET20, changed("train.seed", 1), RESNET20]
    assert group_by_spec(same, ["a", "b", "a"]) == [(0, 2), (1,)]
    assert group_by_spec(same, [None, "b", "b"]) == [(0, 1, 2)]
