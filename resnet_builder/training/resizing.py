"""Progressive resizing: images are smaller in the first parts of a training."""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import interpolate

from resnet_builder.spec.recipe import TrainSpec

Resizing = Callable[[Tensor, int], Tensor]
"""Turns a step's ``(B, C, H, W)`` float32 images into those that are fed; steps count from 0."""


def unchanged(images: Tensor, step: int) -> Tensor:
    """Feed images as they are."""
    return images


def make_resizing(train: TrainSpec, total_steps: int) -> Resizing:
    """Make the resizing of a recipe, a pure function of the step.

    Args:
        train: The recipe.
        total_steps: Its length.
    """
    if not train.progressive_resizing:
        return unchanged
    ends: list[tuple[float, int]] = []
    for part in train.progressive_resizing:
        ends.append(((ends[-1][0] if ends else 0.0) + part.fraction, part.size))

    def resize(images: Tensor, step: int) -> Tensor:
        progress = step / total_steps
        size = next((size for end, size in ends if progress < end), images.shape[-1])
        return images if size == images.shape[-1] else resized(images, size)

    return resize


def resized(images: Tensor, size: int) -> Tensor:
    """Return ``(B, C, size, size)`` images, averaged over what each new pixel covers."""
    return interpolate(images, size=(size, size), mode="bilinear", antialias=True)
