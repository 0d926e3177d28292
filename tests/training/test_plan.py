"""Lengths in steps, and what is due after which of them."""

import pytest

from resnet_builder.training.plan import make_plan
from tests.training.recipes import recipe


def test_lengths_in_epochs_are_counted_in_steps() -> None:
    plan = make_plan(
        recipe(epochs=3, evaluate_every={"epochs": 2}, checkpoint_every={"epochs": 1}), 7
    )
    assert (plan.total_steps, plan.evaluate_every, plan.checkpoint_steps) == (21, 14, 7)


def test_lengths_in_steps_are_kept() -> None:
    plan = make_plan(
        recipe(steps=10, evaluate_every={"steps": 4}, checkpoint_every={"steps": 3}), 7
    )
    assert (plan.total_steps, plan.evaluate_every, plan.checkpoint_steps) == (10, 4, 3)


def test_checkpoints_may_go_by_the_clock() -> None:
    plan = make_plan(recipe(checkpoint_every={"seconds": 2.5}), 7)
    assert (plan.checkpoint_steps, plan.checkpoint_seconds) == (None, 2.5)


@pytest.mark.parametrize(("every", "expected"), [(4, [4, 8, 10]), (5, [5, 10]), (50, [10])])
def test_the_last_step_is_always_evaluated(every: int, expected: list[int]) -> None:
    plan = make_plan(recipe(steps=10, evaluate_every={"steps": every}), 7)
    assert [step for step in range(11) if plan.evaluates_after(step)] == expected


def test_parts_of_a_batch_are_equal() -> None:
    assert make_plan(recipe(batch_size=12, accumulate=3), 7).part_size == 4


def test_epochs_are_fractions_of_steps() -> None:
    assert make_plan(recipe(), 8).epoch(12) == 1.5
