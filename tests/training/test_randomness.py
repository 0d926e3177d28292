"""Each step's seed, and the caller's generators."""

import contextlib
from typing import Any

import pytest
import torch

from resnet_builder.training.randomness import private_generators, seed_step, step_seed

CPU = torch.device("cpu")


def test_no_two_steps_of_a_run_share_a_seed() -> None:
    """Drawn at random, 32 bits would meet within 78,200 steps in half of all runs."""
    assert len({step_seed(0, step) for step in range(100_000)}) == 100_000


def test_seeds_fill_32_bits() -> None:
    seeds = [step_seed(7, step) for step in range(1_000)]
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert all(300 < sum(seed >> bit & 1 for seed in seeds) < 700 for bit in range(32))


@pytest.mark.parametrize(
    ("one", "other"), [((0, 1), (1, 0)), ((1, 0), (2**32 + 1, 0)), ((3, 5), (5, 3))]
)
def test_other_runs_have_other_streams(one: Any, other: Any) -> None:
    assert step_seed(*one) != step_seed(*other)


def test_the_seed_of_a_step_never_changes() -> None:
    """Any other value would keep runs of an older release from going on to the same bits."""
    found = [step_seed(0, 0), step_seed(0, 1), step_seed(1, 0), step_seed(2**40, 63_999)]
    assert found == [1463837468, 905481526, 3042146117, 4176018560]


def test_a_step_draws_the_same_whatever_was_drawn_before() -> None:
    drawn = []
    for before in (0, 5):
        torch.rand(before)
        seed_step(3, 17, CPU)
        drawn.append(torch.rand(4))
    assert torch.equal(*drawn)


def test_the_callers_generator_is_left_as_it_was() -> None:
    before = torch.get_rng_state()
    with private_generators(CPU):
        seed_step(0, 0, CPU)
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_callers_generator_is_left_as_it_was_after_an_error() -> None:
    before = torch.get_rng_state()
    with contextlib.suppress(KeyError), private_generators(CPU):
        seed_step(0, 0, CPU)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_the_generator_of_mps_is_seeded_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    fakes = {
        "get_rng_state": lambda: "before",
        "set_rng_state": calls.append,
        "manual_seed": calls.append,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.mps, name, fake)
    device = torch.device("mps")
    with private_generators(device):
        seed_step(0, 0, device)
    assert calls == [step_seed(0, 0), "before"]
