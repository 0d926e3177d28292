"""Timing, and summing turns up."""

from time import sleep

import pytest
import torch

from resnet_builder.bench.clock import rate, seconds_of, seconds_per_call

CPU = torch.device("cpu")


def test_rate_is_the_median_turn_s_with_quartiles() -> None:
    found = rate([0.5, 0.1, 0.2, 0.25, 1.0], images=10)
    assert found.images_per_second == 40
    assert (found.low, found.high) == (20, 50)
    assert found.seconds_per_step == 0.25


def test_call_is_timed() -> None:
    assert seconds_of(lambda: sleep(0.01), CPU) >= 0.01


@pytest.mark.parametrize(("seconds", "least"), [(0, 1), (0.05, 2)])
def test_calls_are_repeated_until_the_time_is_over_and_made_once_at_least(
    seconds: float, least: int
) -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        sleep(0.01)

    assert seconds_per_call(call, CPU, seconds) >= 0.01
    assert len(calls) >= least
    assert (len(calls) - 1) * 0.01 <= seconds
