"""The learning rate at every corner, by the formula and by PyTorch's own schedulers."""

import math
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from resnet_builder.errors import UsageError
from resnet_builder.spec.recipe import TrainSpec
from resnet_builder.training.plan import make_plan
from resnet_builder.training.schedule import make_schedule
from tests.training.recipes import recipe

PAPER = {"type": "multistep", "milestones": [32_000, 48_000]}
PAPER_OPTIMIZER = {"type": "sgd", "lr": 0.1, "weight_decay": 1e-4}


def rates(train: TrainSpec, steps_per_epoch: int = 5) -> list[float]:
    schedule = make_schedule(train, steps_per_epoch)
    total = make_plan(train, steps_per_epoch).total_steps
    return [schedule(step) for step in range(total)]


def torch_rates(make: Any, lr: float, steps: int) -> list[float]:
    """Return the rates that a scheduler of PyTorch's sets."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler: LRScheduler = make(optimizer)
    found = []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < steps - 1:
            scheduler.step()
    return found


def test_constant_is_the_optimizers_rate() -> None:
    assert rates(recipe()) == [0.1] * 20


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.1), (31_999, 0.1), (32_000, 0.01), (47_999, 0.01), (48_000, 0.001), (63_999, 0.001)],
)
def test_multistep_falls_at_the_papers_iterations(step: int, rate: float) -> None:
    schedule = make_schedule(
        recipe(steps=64_000, batch_size=128, optimizer=PAPER_OPTIMIZER, schedule=PAPER), 351
    )
    assert schedule(step) == pytest.approx(rate, rel=1e-12)


def test_multistep_equals_torchs() -> None:
    schedule = {"type": "multistep", "milestones": [3, 4, 17], "gamma": 0.3}
    expected = torch_rates(lambda o: MultiStepLR(o, [3, 4, 17], 0.3), 0.1, 20)
    assert rates(recipe(schedule=schedule)) == pytest.approx(expected, rel=1e-12)


def test_a_warm_up_returns_to_the_full_rate() -> None:
    """akamaster's ResNet-110 stays at 0.01 for ever."""
    schedule = {**PAPER, "warmup": {"steps": 400, "type": "constant", "lr": 0.01}}
    rate = make_schedule(
        recipe(steps=64_000, batch_size=128, optimizer=PAPER_OPTIMIZER, schedule=schedule), 351
    )
    assert [rate(0), rate(399), rate(400), rate(31_999)] == [0.01, 0.01, 0.1, 0.1]


def test_linear_warm_up_rises_in_equal_steps_from_its_start() -> None:
    schedule = {"type": "constant", "warmup": {"steps": 4, "start": 0.02}}
    assert rates(recipe(schedule=schedule))[:6] == pytest.approx(
        [0.02, 0.04, 0.06, 0.08, 0.1, 0.1], rel=1e-12
    )


def test_warm_up_in_epochs_is_counted_in_steps() -> None:
    schedule = {"type": "constant", "warmup": {"epochs": 2, "type": "constant", "lr": 0.01}}
    assert rates(recipe(epochs=3, schedule=schedule), 5) == [0.01] * 10 + [0.1] * 5


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [None, {"steps": 5}])
def test_progress_runs_over_the_steps_after_warm_up(kind: str, warmup: Any) -> None:
    found = rates(recipe(schedule={"type": kind, "end": 0.001, "warmup": warmup}))
    start = 0 if warmup is None else 5
    middle = (start + 19) / 2
    assert found[start] == pytest.approx(0.1, rel=1e-12)
    assert found[19] == pytest.approx(0.001, rel=1e-12)
    assert (found[math.floor(middle)] + found[math.ceil(middle)]) / 2 == pytest.approx(0.0505)
    assert found[start:] == sorted(found[start:], reverse=True)


def test_cosine_equals_torchs() -> None:
    expected = torch_rates(lambda o: CosineAnnealingLR(o, T_max=19, eta_min=0.01), 0.1, 20)
    assert rates(recipe(schedule={"type": "cosine", "end": 0.01})) == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize(
    ("steps", "pct_start"), [(1, 0.3), (2, 0.3), (3, 0.9), (20, 0.3), (97, 0.05)]
)
def test_one_cycle_equals_torchs(anneal: Any, steps: int, pct_start: float) -> None:
    options: dict[str, Any] = {
        "pct_start": pct_start,
        "div_factor": 10.0,
        "final_div_factor": 100.0,
    }
    expected = torch_rates(
        lambda o: OneCycleLR(o, 0.1, total_steps=steps, anneal_strategy=anneal, **options),
        0.1,
        steps,
    )
    train = recipe(steps=steps, schedule={"type": "one_cycle", "anneal": anneal, **options})
    assert rates(train) == pytest.approx(expected, rel=1e-12)


def test_one_cycle_may_rise_for_no_step() -> None:
    """PyTorch's divides by zero here."""
    found = rates(recipe(schedule={"type": "one_cycle", "pct_start": 0.05, "anneal": "linear"}))
    assert found[0] == 0.1
    assert found[19] == pytest.approx(0.1 / 25 / 1e4)


@pytest.mark.parametrize(
    "schedule",
    [
        {"type": "constant"},
        {"type": "multistep", "milestones": [1]},
        {"type": "cosine"},
        {"type": "linear"},
        {"type": "one_cycle"},
    ],
)
@pytest.mark.parametrize("steps", [2, 3])
def test_the_shortest_trainings_have_rates(schedule: Any, steps: int) -> None:
    assert all(math.isfinite(rate) for rate in rates(recipe(steps=steps, schedule=schedule)))


def test_milestones_are_in_the_recipes_unit() -> None:
    """akamaster's epochs are not the paper's iterations."""
    schedule = {"type": "multistep", "milestones": [2, 3]}
    in_epochs = make_plan(recipe(epochs=4, schedule=schedule), 351)
    in_steps = make_plan(recipe(steps=4, schedule=schedule), 351)
    assert in_epochs.milestones == (702, 1053)
    assert in_steps.milestones == (2, 3)


@pytest.mark.parametrize(
    ("length", "unit", "expected"),
    [({"epochs": 4}, "steps", (2, 3)), ({"steps": 20}, "epochs", (10, 15))],
)
def test_milestones_may_name_the_other_unit(length: Any, unit: str, expected: Any) -> None:
    schedule = {"type": "multistep", "milestones": [2, 3], "unit": unit}
    assert make_plan(recipe(**length, schedule=schedule), 5).milestones == expected


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            {"type": "multistep", "milestones": [2, 4], "unit": "epochs"},
            "train.schedule.milestones: epoch 4, step 20, is beyond the training's 20 steps; "
            "lower it or train longer",
        ),
        (
            {"type": "cosine", "warmup": {"epochs": 4}},
            "train.schedule.warmup: its 20 steps leave nothing of the training's 20 steps; "
            "shorten it or train longer",
        ),
    ],
)
def test_what_lies_beyond_the_end_is_refused(schedule: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_schedule(recipe(schedule=schedule), 5)
    assert str(caught.value) == message


def test_milestones_in_steps_beyond_the_epochs_are_refused() -> None:
    schedule = {"type": "multistep", "milestones": [10], "unit": "steps"}
    with pytest.raises(UsageError, match="10 is beyond the training's 10 steps"):
        make_schedule(recipe(epochs=2, schedule=schedule), 5)
