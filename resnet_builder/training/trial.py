"""Steps of a training that is not begun: taken by a copy, on images that are made up."""

import copy
from dataclasses import dataclass
from itertools import count
from time import perf_counter

import torch
from torch import nn

from resnet_builder.cpu.norm import has_fusible
from resnet_builder.data.interfaces import Batch, Stop, never
from resnet_builder.errors import Stopped
from resnet_builder.runs.records import RuntimeConfig
from resnet_builder.spec.recipe import TrainSpec
from resnet_builder.training.choices import MEMORY_FORMATS
from resnet_builder.training.compiling import Step
from resnet_builder.training.randomness import private_generators
from resnet_builder.training.schedule import Schedule
from resnet_builder.training.step import TrainStep, make_train_step


@dataclass(frozen=True)
class TrialSteps:
    """Steps as a training takes them, which leave its network and all random numbers as they are.

    Attributes:
        model: The network.
        train: Its recipe.
        schedule: The recipe's learning rate.
        device: Where to compute.
        images: ``(B, C, H, W)`` of what the network is fed in a step.
        classes: Number of classes.
        steps: Steps of the whole training.
        stop: Polled at every step but the first.
    """

    model: nn.Module
    train: TrainSpec
    schedule: Schedule
    device: torch.device
    images: tuple[int, int, int, int]
    classes: int
    steps: int
    stop: Stop = never

    @property
    def layers(self) -> int:
        """Convolutions of the network."""
        return sum(isinstance(layer, nn.Conv2d) for layer in self.model.modules())

    @property
    def has_own_operations(self) -> bool:
        """Whether operations of our own can compute any of its layers."""
        return has_fusible(self.model)

    def __call__(self, choices: RuntimeConfig) -> Step:
        """Copy the network; return what takes a step of the copy by these choices.

        It raises ``Stopped`` once ``stop`` is true.
        """
        train_step, batch = self._learner(choices), self._batch()
        taken = count()

        def step() -> float:
            if next(taken) and self.stop():
                raise Stopped("stopped while trying how to compute")
            started = perf_counter()
            with private_generators(self.device):
                train_step(0, batch)[0].item()  # waits for the device
            return perf_counter() - started

        return step

    def _learner(self, choices: RuntimeConfig) -> TrainStep:
        network = copy.deepcopy(self.model).to(self.device)
        network.to(memory_format=MEMORY_FORMATS[choices.memory_format])
        return make_train_step(network, self.train, self.schedule, choices)

    def _batch(self) -> Batch:
        size, channels = self.images[:2]
        noise = torch.randn(self.images, generator=torch.Generator().manual_seed(0))
        channel = torch.zeros(channels, device=self.device)
        targets = torch.arange(size, device=self.device) % self.classes
        return Batch(noise.to(self.device), targets, self.classes, fill=channel, black=channel)
