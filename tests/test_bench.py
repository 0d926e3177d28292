"""The benchmark of a spec: steady-state spec, interleaved timing, batch-size search, roofline."""

import time
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnet_builder import bench
from resnet_builder.bench import count_convolutions, find_batch_size, measure, steady_state
from resnet_builder.builder import load_experiment
from resnet_builder.errors import Stopped
from resnet_builder.experiment import Experiment
from resnet_builder.summary import summarize

CPU = torch.device("cpu")

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
    rounds = []
    experiment = tiny("train.accumulate=2", "model.weights={path: nowhere.safetensors}")
    found = measure(
        experiment, seconds=0.2, warn=pytest.fail, report=lambda *told: rounds.append(told)
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
    summary = summarize(experiment.spec)
    assert found.memory.parameters == summary.parameters
    assert found.memory.activation_bytes == pytest.approx(8 * summary.activation_bytes, rel=0.01)
    roofline = found.roofline
    parts = roofline.forward + roofline.weight_gradient + roofline.input_gradient
    assert roofline.seconds == pytest.approx(parts)
    assert roofline.share == pytest.approx(roofline.seconds / found.train.seconds_per_step)
    assert found.runtime.precision == "fp32"


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


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a step take 10 ms an image, and 1 s more the first time; return the sizes tried."""
    sizes: list[int] = []

    def train(self: Any, seconds: float) -> float:
        sizes.append(self.images)
        return self.images * 0.01 + (1 if sizes.count(self.images) == 1 else 0)

    monkeypatch.setattr(bench._Baseline, "train", train)
    return sizes


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "seconds", "expected"),
    [
        (64, 1, 0.64, (64, 1)),
        (64, 1, 0.63, (32, 1)),
        (64, 1, 0.01, (2, 1)),
        (48, 1, 9.0, (48, 1)),
        (64, 4, 0.64, (16, 4)),
        (64, 4, 0.63, (16, 1)),
        (1, 1, 9.0, (1, 1)),
    ],
)
def test_batch_size_is_the_recipe_s_or_as_large_as_time_allows(
    batch_size: int, accumulate: int, seconds: float, expected: tuple[int, int], tried: list[int]
) -> None:
    experiment = tiny(f"train.batch_size={batch_size}", f"train.accumulate={accumulate}")
    assert find_batch_size(experiment, CPU, seconds) == expected
    assert max(tried) <= max(2, batch_size // accumulate)


@pytest.mark.usefixtures("tried")
def test_batch_size_is_no_larger_than_memory_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "free_memory", lambda _: 1)
    assert find_batch_size(tiny("train.batch_size=64"), CPU, 9.0) == (2, 1)


class Twice(nn.Module):
    """A network that computes one convolution twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(self.conv(x)))


def test_convolutions_are_counted_wherever_they_stand() -> None:
    counts = count_convolutions(Twice().to("meta"), (2, 4, 6, 6))
    by_kind = {op.kind: count for op, count in counts.items()}
    assert by_kind == {"forward": 2, "weight_gradient": 2, "input_gradient": 1}
    assert {op.output for op in counts} == {(2, 4, 6, 6)}


def test_frozen_convolutions_have_no_gradient() -> None:
    network = Twice().to("meta").requires_grad_(False)
    network.register_parameter("other", nn.Parameter(torch.ones(4, 1, 1, device="meta")))
    network.register_forward_pre_hook(lambda module, given: (given[0] * module.other,))
    counts = count_convolutions(network, (2, 4, 6, 6))
    assert {op.kind for op in counts} == {"forward", "input_gradient"}
