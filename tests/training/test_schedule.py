"""Plan of a training: learning rates as PyTorch's schedulers set them, seeds, and intervals."""

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from resnet_builder.builder import read_spec
from resnet_builder.errors import SpecError
from resnet_builder.spec.recipe import TrainSpec
from resnet_builder.training.schedule import Plan, private_generators, seed_step, step_seed
from tests.training.recipes import images, recipe
from tests.training.runs import experiment, train

CPU = torch.device("cpu")
PAPER = {"type": "multistep", "milestones": [32_000, 48_000]}
PAPER_OPTIMIZER = {"type": "sgd", "lr": 0.1, "weight_decay": 1e-4}


def rates(given: TrainSpec, steps_per_epoch: int = 5) -> list[float]:
    plan = Plan(given, steps_per_epoch)
    return [plan.lr(step) for step in range(plan.total_steps)]


def torch_rates(make: Any, steps: int = 20) -> list[float]:
    """Return the rates that a scheduler of PyTorch's sets."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler: LRScheduler = make(optimizer)
    found = []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < steps - 1:
            scheduler.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (
            {"type": "multistep", "milestones": [3, 4, 17], "gamma": 0.3},
            lambda optimizer: MultiStepLR(optimizer, [3, 4, 17], 0.3),
        ),
        (
            {"type": "cosine", "end": 0.01},
            lambda optimizer: CosineAnnealingLR(optimizer, T_max=19, eta_min=0.01),
        ),
        (
            {"type": "step", "every": {"steps": 6}, "gamma": 0.3},
            lambda optimizer: StepLR(optimizer, 6, 0.3),
        ),
        (
            {"type": "exponential", "every": {"steps": 1}, "gamma": 0.9},
            lambda optimizer: ExponentialLR(optimizer, 0.9),
        ),
        (
            {
                "type": "cosine_restarts",
                "first_cycle": {"steps": 3},
                "cycle_multiplier": 2,
                "end": 0.01,
            },
            lambda optimizer: CosineAnnealingWarmRestarts(optimizer, 3, 2, 0.01),
        ),
        (
            {"type": "cosine_restarts", "first_cycle": {"steps": 7}},
            lambda optimizer: CosineAnnealingWarmRestarts(optimizer, 7),
        ),
    ],
    ids=["multistep", "cosine", "step", "exponential", "restarts", "equal restarts"],
)
def test_schedule_equals_torchs(schedule: Any, make: Any) -> None:
    assert rates(recipe(schedule=schedule)) == pytest.approx(torch_rates(make), rel=1e-12)


def test_exponential_by_epochs_is_torchs_at_the_start_of_each() -> None:
    found = rates(recipe(epochs=4, schedule={"type": "exponential", "gamma": 0.5}))
    expected = torch_rates(lambda optimizer: ExponentialLR(optimizer, 0.5), 4)
    assert found[::5] == pytest.approx(expected, rel=1e-12)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [  # The falls of `step` count from the start of training, as milestones do.
        ({"type": "step", "every": {"steps": 6}, "gamma": 0.5}, [0.1] * 2 + [0.05] * 6),
        ({"type": "exponential", "every": {"steps": 2}, "gamma": 0.25}, [0.1, 0.05, 0.025]),
        ({"type": "cosine_restarts", "first_cycle": {"steps": 2}}, [0.1, 0.05, 0.1, 0.05]),
        ({"type": "plateau"}, [0.1] * 16),
    ],
)
def test_schedule_begins_after_the_warm_up(schedule: Any, expected: list[float]) -> None:
    found = rates(recipe(schedule={**schedule, "warmup": {"steps": 4}}))
    assert found[:4] == pytest.approx([0, 0.025, 0.05, 0.075])
    assert found[4 : 4 + len(expected)] == pytest.approx(expected, rel=1e-12)


NAN = {"val.top1": 0.5}  # a loss that is not finite is left out
LOSSES = [1.0, 0.9, 0.91, 0.8999, 0.92, 0.5, 0.51, 0.6, 0.7, 0.4999, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("monitor", ["val.loss", "val.top1"])
@pytest.mark.parametrize(
    "options",
    [
        {"patience": 0},
        {"patience": 1, "factor": 0.3, "threshold": 0.01},
        {"patience": 0, "cooldown": 2, "factor": 0.5, "min_lr": 0.02},
        {"patience": 0, "factor": 0.01},  # falls below 1e-8 are left out
        {},
    ],
    ids=str,
)
def test_plateau_is_torchs_at_every_step(options: dict[str, Any], monitor: str) -> None:
    """An evaluation changes the rate from its step on, and nothing of the rates before."""
    plan = Plan(recipe(schedule={"type": "plateau", "monitor": monitor, **options}), 5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    mode: Any = "min" if monitor == "val.loss" else "max"
    scheduler = ReduceLROnPlateau(optimizer, mode, **{"factor": 0.1, "patience": 10, **options})
    history: dict[int, dict[str, float]] = {}
    expected = []
    for number, loss in enumerate(LOSSES):
        expected += [optimizer.param_groups[0]["lr"]] * 3
        metrics = NAN if number == 3 else {"val.loss": loss, "val.top1": 1 - loss / 2}
        history[3 * (number + 1)] = metrics
        scheduler.step(metrics.get(monitor, math.nan))
        steps = range(3 * (number + 1))
        assert [plan.lr(step, history) for step in steps] == expected
    assert options == {} or expected[-1] < 0.1


def test_plateau_does_not_count_evaluations_of_the_warm_up() -> None:
    schedule = {"type": "plateau", "patience": 0, "warmup": {"steps": 4}}
    plan = Plan(recipe(schedule=schedule), 5)
    worse = {step: {"val.loss": float(step)} for step in range(2, 20, 2)}
    assert plan.lr(7, worse) == 0.1
    assert plan.lr(8, worse) == pytest.approx(0.01)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize(
    ("steps", "pct_start"), [(1, 0.3), (2, 0.3), (3, 0.9), (20, 0.3), (97, 0.05)]
)
def test_one_cycle_equals_torchs(anneal: Any, steps: int, pct_start: float) -> None:
    options: Any = {"pct_start": pct_start, "div_factor": 10.0, "final_div_factor": 100.0}
    expected = torch_rates(
        lambda o: OneCycleLR(o, 0.1, total_steps=steps, anneal_strategy=anneal, **options), steps
    )
    given = recipe(steps=steps, schedule={"type": "one_cycle", "anneal": anneal, **options})
    assert rates(given) == pytest.approx(expected, rel=1e-12)


def test_one_cycle_may_rise_for_no_step() -> None:
    """PyTorch's divides by zero here."""
    found = rates(recipe(schedule={"type": "one_cycle", "pct_start": 0.05, "anneal": "linear"}))
    assert found[0] == 0.1
    assert found[19] == pytest.approx(0.1 / 25 / 1e4)


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        (
            None,
            {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001},
        ),
        # akamaster's ResNet-110 stays at 0.01 for ever.
        (
            {"steps": 400, "type": "constant", "lr": 0.01},
            {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1},
        ),
    ],
    ids=["plain", "warm-up"],
)
def test_multistep_falls_at_the_papers_iterations(warmup: Any, expected: dict[int, float]) -> None:
    schedule = {**PAPER, "warmup": warmup}
    paper = recipe(steps=64_000, batch_size=128, optimizer=PAPER_OPTIMIZER, schedule=schedule)
    plan = Plan(paper, 351)
    assert {step: plan.lr(step) for step in expected} == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        (None, [0.1] * 15),
        ({"steps": 4, "start": 0.02}, [0.02, 0.04, 0.06, 0.08] + [0.1] * 11),
        ({"epochs": 2, "type": "constant", "lr": 0.01}, [0.01] * 10 + [0.1] * 5),
    ],
    ids=["no warm-up", "linear warm-up", "warm-up in epochs"],
)
def test_constant_rate_follows_the_warm_up(warmup: Any, expected: list[float]) -> None:
    given = recipe(epochs=3, schedule={"type": "constant", "warmup": warmup})
    assert rates(given) == pytest.approx(expected, rel=1e-12)


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


@pytest.mark.parametrize("kind", ["constant", "multistep", "cosine", "linear", "one_cycle"])
@pytest.mark.parametrize("steps", [2, 3])
def test_the_shortest_trainings_have_rates(kind: str, steps: int) -> None:
    schedule = {"type": kind, **({"milestones": [1]} if kind == "multistep" else {})}
    assert all(math.isfinite(rate) for rate in rates(recipe(steps=steps, schedule=schedule)))


@pytest.mark.parametrize(
    ("length", "unit", "expected"),
    [
        ({"epochs": 4}, None, (702, 1053)),  # akamaster's epochs are not the paper's iterations
        ({"steps": 4}, None, (2, 3)),
        ({"epochs": 4}, "steps", (2, 3)),
        ({"steps": 2000}, "epochs", (702, 1053)),
    ],
)
def test_milestones_are_in_the_recipes_unit_or_their_own(
    length: Any, unit: str | None, expected: Any
) -> None:
    schedule = {"type": "multistep", "milestones": [2, 3], "unit": unit}
    assert Plan(recipe(**length, schedule=schedule), 351).milestones == expected


def test_lengths_may_be_fractions_of_an_epoch() -> None:
    schedule = {"type": "multistep", "milestones": [0.5, 2], "warmup": {"epochs": 0.25}}
    every = {"epochs": 0.75}
    plan = Plan(recipe(epochs=3, schedule=schedule, evaluate_every=every), 8)
    assert (plan.warmup_steps, plan.milestones, plan.evaluation_steps) == (2, (4, 16), 6)
    tiny = {"type": "step", "every": {"epochs": 1e-6}}
    assert rates(recipe(epochs=1, schedule=tiny), 3) == pytest.approx([0.1, 0.01, 0.001])


def test_milestones_in_steps_are_whole() -> None:
    with pytest.raises(SpecError) as caught:
        read_spec("resnet20", overrides=["train.schedule.milestones=[100, 2000.5]"])
    [problem] = caught.value.errors
    assert problem.path == "train.schedule.milestones"
    assert problem.message.startswith("steps must be whole numbers: [100, 2000.5]")


@pytest.mark.parametrize(
    ("changes", "steps", "evaluated", "saved"),
    [
        ({"epochs": 2, "evaluate_every": {"epochs": 1}}, 14, [7, 14], []),
        ({"steps": 10, "evaluate_every": {"steps": 4}}, 10, [4, 8, 10], []),
        ({"steps": 10, "evaluate_every": {"steps": 50}}, 10, [10], []),
        ({"steps": 10, "checkpoint_every": {"steps": 4}}, 10, [7, 10], [4, 8]),
        ({"epochs": 2, "checkpoint_every": {"epochs": 1}}, 14, [7, 14], [7, 14]),
    ],
)
def test_evaluations_and_checkpoints_are_due_at_intervals_and_an_evaluation_at_the_end(
    changes: Any, steps: int, evaluated: list[int], saved: list[int]
) -> None:
    plan = Plan(recipe(**{"checkpoint_every": {"seconds": 2.5}, **changes}), 7)
    assert plan.total_steps == steps
    assert [step for step in range(steps + 1) if plan.evaluates_at(step)] == evaluated
    assert [step for step in range(steps + 1) if plan.saves_at(step)] == saved
    assert plan.checkpoint_seconds == (None if saved else 2.5)


def test_micro_batches_are_equal_and_epochs_fractions() -> None:
    assert Plan(recipe(batch_size=12, accumulate=3), 7, processes=2).micro_batch_size == 2
    assert Plan(recipe(), 8).epoch(12) == 1.5


def test_image_sizes_follow_the_fractions_of_the_training() -> None:
    parts = [{"size": 3, "fraction": 0.25}, {"size": 4, "fraction": 0.3}]
    plan = Plan(recipe(progressive_resizing=parts), 5)
    sizes = [plan.resize(images(2), step).shape[-1] for step in range(20)]
    assert sizes == [3] * 5 + [4] * 6 + [6] * 9
    given = images(2)
    assert plan.resize(given, 19) is given
    assert Plan(recipe(), 5).resize(given, 0) is given


def test_smaller_image_averages_around_each_pixel() -> None:
    plan = Plan(recipe(progressive_resizing=[{"size": 4, "fraction": 0.5}]), 5)
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    assert torch.allclose(plan.resize(ramp, 0)[0, 0, 0, 1:3], torch.tensor([2.5, 4.5]))
    assert torch.allclose(plan.resize(torch.full((1, 3, 7, 7), 0.7), 0), torch.tensor(0.7))


def test_network_is_trained_on_each_size_in_its_turn(tmp_path: Path) -> None:
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []
            self.classify = nn.Linear(3, 4)

        def forward(self, given: Tensor) -> Tensor:
            if self.training:
                self.sizes.append(given.shape[-1])
            scores: Tensor = self.classify(given.mean((2, 3)))
            return scores

    spec = experiment(progressive_resizing=[{"size": 5, "fraction": 0.5}])
    network = Watched()
    train(tmp_path / "run", spec, model=network)
    half = len(network.sizes) // 2
    assert network.sizes == [5] * half + [spec.model.image_size] * half


@pytest.mark.parametrize(
    ("parts", "code", "key"),
    [
        ("[{size: 32, fraction: 0.5}]", "no-effect", "[0].size"),
        ("[{size: 3, fraction: 0.5}]", "shape", "[0].size"),
        ("[{size: 16, fraction: 0.5}, {size: 24, fraction: 0.5}]", "out-of-range", ""),
        ("[{size: 16, fraction: 1.0}]", "out-of-range", "[0].fraction"),
    ],
)
def test_sizes_without_sense_are_refused(parts: str, code: str, key: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_spec("resnet20", overrides=[f"train.progressive_resizing={parts}"])
    [problem] = caught.value.errors
    assert (problem.code, problem.path) == (code, f"train.progressive_resizing{key}")


def test_steps_have_different_seeds_of_32_bits() -> None:
    """Drawn at random, 32 bits would meet within 78,200 steps in half of all runs."""
    assert len({step_seed(0, step) for step in range(100_000)}) == 100_000
    seeds = [step_seed(7, step) for step in range(1_000)]
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert all(300 < sum(seed >> bit & 1 for seed in seeds) < 700 for bit in range(32))
    for one, other in (((0, 1), (1, 0)), ((1, 0), (2**32 + 1, 0)), ((3, 5), (5, 3))):
        assert step_seed(*one) != step_seed(*other)


def test_seed_of_a_step_never_changes() -> None:
    """Any other value would change the result of a seed from one release to the next."""
    found = [step_seed(0, 0), step_seed(0, 1), step_seed(1, 0), step_seed(2**40, 63_999)]
    assert found == [1463837468, 905481526, 3042146117, 4176018560]


def test_random_numbers_follow_from_the_step_and_the_process() -> None:
    drawn = []
    for before, rank in ((0, 0), (5, 0), (0, 1), (2, 1), (0, 2)):
        torch.rand(before)
        seed_step(3, 17, CPU, rank=rank)
        drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[1]
    assert drawn[2] == drawn[3]
    assert drawn[0] != drawn[2] != drawn[4] != drawn[0]


@pytest.mark.parametrize("error", [False, True])
def test_callers_generator_is_left_as_it_was(error: bool) -> None:
    before = torch.get_rng_state()
    with contextlib.suppress(KeyError), private_generators(CPU):
        seed_step(0, 0, CPU)
        torch.rand(3)
        if error:
            raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_generator_of_mps_is_seeded_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: "before")
    monkeypatch.setattr(torch.mps, "set_rng_state", calls.append)
    monkeypatch.setattr(torch.mps, "manual_seed", calls.append)
    with private_generators(torch.device("mps")):
        seed_step(0, 0, torch.device("mps"))
    assert calls == [step_seed(0, 0), "before"]
