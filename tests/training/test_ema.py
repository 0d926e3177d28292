"""Exponential moving average of a network's weights."""

import torch
from torch import nn

from resnet_builder.spec.recipe import EmaSpec
from resnet_builder.training.ema import Ema, initial_share
from tests.training.recipes import images


class Counting(nn.Module):
    """One weight, one running statistic, one counter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.mean: torch.Tensor
        self.count: torch.Tensor
        self.register_buffer("mean", torch.tensor([10.0]))
        self.register_buffer("count", torch.tensor(0))

    def move(self) -> None:
        with torch.no_grad():
            self.weight.add_(1)
            self.mean.add_(10)
            self.count.add_(1)


def values(model: nn.Module) -> list[float]:
    return [float(tensor) for tensor in model.state_dict().values()]


def test_update_averages_floats_and_copies_integers() -> None:
    model = Counting()
    ema = Ema(model, EmaSpec(decay=0.75))
    model.move()
    assert values(ema.model) == [1.0, 10.0, 0.0]
    ema.update(1)
    assert values(ema.model) == [1.25, 12.5, 1.0]
    model.move()
    ema.update(2)
    assert values(ema.model) == [1.25 + 0.25 * 1.75, 12.5 + 0.25 * 17.5, 2.0]
    assert values(model) == [3.0, 30.0, 2.0]


def test_updates_are_made_at_the_interval() -> None:
    model = Counting()
    ema = Ema(model, EmaSpec(decay=0.5, every=3))
    seen = []
    for step in range(1, 7):
        model.move()
        ema.update(step)
        seen.append(values(ema.model)[0])
    assert seen == [1.0, 1.0, 2.5, 2.5, 2.5, 4.75]


def test_share_of_the_initial_weights_is_what_the_updates_leave() -> None:
    model = Counting()
    spec = EmaSpec(decay=0.5, every=3)
    ema = Ema(model, spec)
    with torch.no_grad():
        model.weight.zero_()
    for step in range(1, 8):
        ema.update(step)
    assert values(ema.model)[0] == initial_share(spec, 7) == 0.25


def test_average_needs_no_gradients_and_is_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout())
    model.to(memory_format=torch.channels_last)
    ema = Ema(model, EmaSpec(decay=0.5))
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert torch.equal(ema.model(images(2)), ema.model(images(2)))
    assert next(ema.model.parameters()).stride() == next(model.parameters()).stride()
    assert model.training
