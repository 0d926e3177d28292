"""Recipes, networks and batches small enough to train within a test."""

from typing import Any

import torch
from torch import Tensor, nn

from resnet_builder.data.interfaces import Batch, DatasetInfo
from resnet_builder.losses import Loss
from resnet_builder.parts import build_loss
from resnet_builder.runs.records import EnvRecord, RuntimeConfig
from resnet_builder.spec.recipe import TrainSpec

SIZE = 6
CLASSES = 4


def recipe(**changes: Any) -> TrainSpec:
    """Describe 20 steps of plain SGD on batches of 8, with changes."""
    given: dict[str, Any] = {
        "steps": 20,
        "batch_size": 8,
        "optimizer": {"type": "sgd", "lr": 0.1},
        **changes,
    }
    if "epochs" in changes:
        del given["steps"]
    return TrainSpec.model_validate(given)


CLASS_COUNTS = {"ant": 50, "bee": 30, "cat": 15, "dog": 5}
CLASS_INFO = DatasetInfo(
    num_classes=4,
    training_images=100,
    classes=tuple(CLASS_COUNTS),
    class_counts=tuple(CLASS_COUNTS.values()),
)


def loss_of(train: TrainSpec) -> Loss:
    """Make the loss of a recipe, for training images of four classes, not equally many."""
    return build_loss(train, CLASS_INFO)


def small_net(*extra: nn.Module, norm: bool = True, seed: int = 0) -> nn.Sequential:
    """Make a network of two convolutions and a classifier, with weights drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            *extra,
            nn.Linear(8 * (SIZE // 2) ** 2, CLASSES),
        )


def weight(model: nn.Sequential, index: int) -> nn.Parameter:
    """Return the weight of a layer."""
    parameter = model[index].weight
    assert isinstance(parameter, nn.Parameter)
    return parameter


def images(count: int, seed: int = 1) -> Tensor:
    """Draw normalised images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator)


def labels(count: int, seed: int = 2) -> Tensor:
    """Draw labels."""
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))


def batch(step: int, size: int = 8, *, mixed: bool = False) -> Batch:
    """Draw the training batch of a step; ``mixed`` gives probabilities as targets."""
    targets = labels(size, seed=1000 + step)
    if mixed:
        first, second = (nn.functional.one_hot(t, CLASSES) for t in (targets, targets.flip(0)))
        targets = 0.7 * first + 0.3 * second
    return Batch(
        images(size, seed=2000 + step), targets, CLASSES, fill=torch.zeros(3), black=torch.zeros(3)
    )


def runtime(**changes: Any) -> RuntimeConfig:
    """Describe fp32 on the CPU with torch's operations, with changes."""
    given: dict[str, Any] = {
        "device": "cpu",
        "precision": "fp32",
        "memory_format": "contiguous",
        "compile": False,
        "fused": True,
        "cpu_kernels": None,
        "threads": 1,
        "world_size": 1,
        **changes,
    }
    return RuntimeConfig.model_validate(given)


def environment(**changes: Any) -> EnvRecord:
    """Describe a computer with this runtime, with changes."""
    return EnvRecord(device="a CPU", versions={"torch": "1"}, runtime=runtime(**changes))
