"""Who watches a training, and what is told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from resnet_builder.runs.records import RuntimeConfig
from resnet_builder.training.metrics import Evaluation
from resnet_builder.training.result import Result


@dataclass(frozen=True, slots=True)
class Start:
    """A training that is about to take a step.

    Attributes:
        step: Steps done before, by an earlier process.
        total_steps: Steps that it takes in all.
        steps_per_epoch: Steps of an epoch.
        device: The hardware's own name.
        choices: How it is computed.
    """

    step: int
    total_steps: int
    steps_per_epoch: int
    device: str
    choices: RuntimeConfig


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training is; the numbers are of the steps since the report before.

    Attributes:
        step: Steps done.
        total_steps: Steps that it takes in all.
        epoch: Epochs done, with a fraction.
        lr: Rate of the last step.
        loss: Mean training loss.
        top1: Training images answered right, as a fraction.
        images_per_second: Images trained on.
    """

    step: int
    total_steps: int
    epoch: float
    lr: float
    loss: float
    top1: float
    images_per_second: float


class Observer(Protocol):
    """Told what happens while training, in plain numbers, from the training's own thread."""

    def started(self, start: Start) -> None:
        """Training begins, or goes on."""

    def progressed(self, progress: Progress) -> None:
        """Steps were taken; told at most once a second."""

    def evaluated(self, step: int, split: str, evaluation: Evaluation, *, best: bool) -> None:
        """The weights after ``step`` steps were evaluated on ``"val"`` or ``"test"``.

        ``best`` tells whether they are now the ones selected.
        """

    def saved(self, step: int, path: Path) -> None:
        """A checkpoint was saved."""

    def warned(self, message: str) -> None:
        """Something went wrong that training survives, in one line."""

    def finished(self, result: Result) -> None:
        """The run is complete."""


class Silent:
    """An observer that does not look; others may look at some of it."""

    def started(self, start: Start) -> None:
        """Do nothing."""

    def progressed(self, progress: Progress) -> None:
        """Do nothing."""

    def evaluated(self, step: int, split: str, evaluation: Evaluation, *, best: bool) -> None:
        """Do nothing."""

    def saved(self, step: int, path: Path) -> None:
        """Do nothing."""

    def warned(self, message: str) -> None:
        """Do nothing."""

    def finished(self, result: Result) -> None:
        """Do nothing."""


SILENT: Observer = Silent()
