"""The benchmark of a spec: steady-state spec, interleaved timing, batch-size search."""

import os
import time
from typing import Any

import pytest
import torch

from resnet_builder import bench
from resnet_builder.bench import find_batch_size, measure, steady_state
from resnet_builder.builder import load_experiment
from resnet_builder.errors import Stopped
from resnet_builder.experiment import Experiment

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "num_classes": 4,
        "image_size": 8,
        "stem": {"type": "conv3x3", "channels": 4},
        "block": "basic",
        "shortcut": "pad",
        "stages": [{"channels": 4, "blocks": 1}, {"channels": 8, "blocks": 1, "stride": 2}],
    },
    "data": {
        "dataset": {"type": "image_folder", "path": "nowhere"},
        "augment": ["horizontal_flip"],
    },
    "train": {"steps": 1000, "batch_size": 16, "optimizer": {"type": "sgd", "lr": 0.1}},
    "run": {"device": "cpu", "precision": "fp32"},
}


def tiny(*overrides: str) -> Experiment:
    """Return an experiment whose steps take milliseconds, with changes as ``--set`` makes them."""
    return load_experiment(TINY, overrides=overrides, with_weights=False)


def test_figures_fit_together_and_pretrained_weights_are_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "find_batch_size", lambda *_: (8, 2))

    def slow(self: object, seconds: float) -> float:
        time.sleep(0.2)  # not counted as the training's
        return 0.2

    monkeypatch.setattr(bench._Baseline, "train", slow)
    monkeypatch.setattr(bench, "cpu_seconds", lambda: None)  # this machine may be busy
    rounds: list[tuple[object, ...]] = []
    found = measure(
        tiny("train.accumulate=2", "model.weights={path: nowhere.safetensors}"),
        seconds=0.2,
        warn=pytest.fail,
        report=lambda *told: rounds.append(told),
    )
    assert rounds == [("measuring", number, 5) for number in range(1, 6)]
    assert (found.batch_size, found.accumulate) == (16, 2)
    assert found.train.images_per_second == pytest.approx(16 / found.train.seconds_per_step)
    assert found.train.seconds_per_step < 0.2
    assert found.baseline.images_per_second == pytest.approx(8 / 0.2)
    assert found.train.low <= found.train.images_per_second <= found.train.high
    assert found.speed_up == found.train.images_per_second / found.baseline.images_per_second
    assert found.recipe.steps == 1000
    assert found.recipe.seconds == pytest.approx(1000 * found.train.seconds_per_step)
    assert found.runtime.precision == "fp32"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="nobody counts cores")
@pytest.mark.parametrize(
    "by_others", [3.0, *(pytest.param(one, marks=pytest.mark.ci) for one in (0.0, None))]
)
def test_figures_of_a_busy_machine_are_no_facts(
    by_others: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "find_batch_size", lambda *_: (8, 1))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    started = time.perf_counter()

    def cpu_seconds() -> tuple[float, float] | None:
        """Count two busy threads of this process, and those of others."""
        seconds = time.perf_counter() - started
        return None if by_others is None else (seconds * (2 + by_others), seconds * 2)

    monkeypatch.setattr(bench, "cpu_seconds", cpu_seconds)
    found = measure(tiny(), seconds=0.2, warn=pytest.fail)
    assert found.other_cores == (None if by_others is None else pytest.approx(by_others, abs=0.01))
    assert found.is_busy == (by_others == 3.0)
    assert (found.recipe.seconds is None) == found.is_busy


def test_user_can_stop_it() -> None:
    polls = iter([False] * 5 + [True])
    with pytest.raises(Stopped, match="stopped while measuring"):
        measure(tiny(), seconds=0.2, warn=pytest.fail, should_stop=lambda: next(polls))


def test_steady_state_trains_alike_on_synthetic_images_without_end() -> None:
    experiment = tiny("train.progressive_resizing=null", "train.seed=3")
    steady = steady_state(experiment, batch_size=8, accumulate=2)
    assert steady.model == experiment.model
    assert steady.data.augment == experiment.data.augment
    assert steady.data.dataset.type == "synthetic"
    assert (steady.train.batch_size, steady.train.accumulate) == (8, 2)
    assert (steady.train.steps, steady.train.seed) == (2**31 - 1, 3)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "seconds", "free", "expected"),
    [
        (64, 1, 0.64, 2**40, (64, 1)),
        (64, 1, 0.63, 2**40, (32, 1)),
        (64, 1, 0.01, 2**40, (2, 1)),
        (48, 1, 9.0, 2**40, (48, 1)),
        (64, 4, 0.64, 2**40, (16, 4)),
        (64, 4, 0.63, 2**40, (16, 1)),
        (1, 1, 9.0, 2**40, (1, 1)),
        (64, 1, 9.0, 1, (2, 1)),
    ],
)
def test_batch_size_is_the_recipe_s_or_as_large_as_time_and_memory_allow(
    batch_size: int,
    accumulate: int,
    seconds: float,
    free: int,
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []

    def train(self: Any, seconds: float) -> float:
        """Take 10 ms an image, and 1 s more the first time."""
        sizes.append(self.images)
        return self.images * 0.01 + (1 if sizes.count(self.images) == 1 else 0)

    monkeypatch.setattr(bench._Baseline, "train", train)
    monkeypatch.setattr(bench, "free_memory", lambda _: free)
    experiment = tiny(f"train.batch_size={batch_size}", f"train.accumulate={accumulate}")
    assert find_batch_size(experiment, torch.device("cpu"), seconds) == expected
    assert max(sizes, default=0) <= max(2, batch_size // accumulate)
