"""Augmentations that mix images, and their labels, in pairs."""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from resnet_builder.data.interfaces import AUGMENTATIONS, Batch
from resnet_builder.data.random import StatelessGenerator

Alpha = Annotated[float, Field(gt=0, le=100)]


@AUGMENTATIONS.register("mixup")
class Mixup:
    """Average of every image and its neighbour in the batch (Zhang et al. 2017).

    Args:
        alpha: Parameter of the Beta distribution that a batch's weight is drawn from.
    """

    works_on: Literal["normalised"] = "normalised"
    mixes_with = 1

    def __init__(self, *, alpha: Alpha = 0.2) -> None:
        self._alpha = alpha

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Mix the batch by one weight."""
        return mixup_batch(batch, draws.beta(self._alpha))


@AUGMENTATIONS.register("cutmix")
class CutMix:
    """A rectangle of every image's neighbour, pasted into the image (Yun et al. 2019).

    Args:
        alpha: Parameter of the Beta distribution that a batch's share of the area is drawn from.
    """

    works_on: Literal["any"] = "any"
    mixes_with = 1

    def __init__(self, *, alpha: Alpha = 1.0) -> None:
        self._alpha = alpha

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Paste one rectangle, the same in every image of the batch."""
        height, width = batch.images.shape[-2:]
        side = (1 - draws.beta(self._alpha)) ** 0.5
        rows, columns = int(height * side), int(width * side)
        middle_row, middle_column = draws.per_batch(2).tolist()
        top = int(middle_row * height) - rows // 2
        left = int(middle_column * width) - columns // 2
        bottom, right = min(height, top + rows), min(width, left + columns)
        return cutmix_batch(batch, max(0, top), max(0, left), bottom, right)


def mixup_batch(batch: Batch, weight: float) -> Batch:
    """Average images and targets with those of the next image, the last one with the first.

    Args:
        batch: Normalised images.
        weight: Weight of the image itself; the rest is its neighbour's.
    """
    targets = probabilities(batch)
    return replace(
        batch,
        images=torch.lerp(batch.images.roll(-1, 0), batch.images, weight),
        targets=torch.lerp(targets.roll(-1, 0), targets, weight),
    )


def cutmix_batch(batch: Batch, top: int, left: int, bottom: int, right: int) -> Batch:
    """Paste a rectangle of the next image, and mix targets by the area that is left.

    Args:
        batch: Any images.
        top: First row pasted.
        left: First column pasted.
        bottom: First row below.
        right: First column beyond.
    """
    height, width = batch.images.shape[-2:]
    images = batch.images.clone()
    neighbours = batch.images.roll(-1, 0)
    images[:, :, top:bottom, left:right] = neighbours[:, :, top:bottom, left:right]
    pasted = max(0, bottom - top) * max(0, right - left)
    targets = probabilities(batch)
    weight = 1 - pasted / (height * width)
    return replace(batch, images=images, targets=torch.lerp(targets.roll(-1, 0), targets, weight))


def probabilities(batch: Batch) -> Tensor:
    """Return a batch's targets as ``(B, K)`` float32 probabilities."""
    if batch.targets.is_floating_point():
        return batch.targets
    return functional.one_hot(batch.targets, batch.num_classes).float()
