"""What is done to every image, of every split, before anything random."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from resnet_builder.data.vision import functional
from resnet_builder.spec.schema import CenterCrop, Resize, ToRgb

Step = Resize | CenterCrop | ToRgb


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """A spec's preprocessing, as a function that can be sent to other processes.

    Attributes:
        steps: What is done, in order.
    """

    steps: tuple[Step, ...] = ()

    def __call__(self, images: Tensor) -> Tensor:
        """Turn ``(N, C, H, W)`` uint8 into ``(N, C', H', W')`` uint8."""
        for step in self.steps:
            images = _apply(step, images)
        return images


def _apply(step: Step, images: Tensor) -> Tensor:
    if isinstance(step, Resize):
        return functional().resize(images, [step.size], antialias=True)
    if isinstance(step, CenterCrop):
        return functional().center_crop(images, [step.size])
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def preprocess_shape(
    steps: Sequence[Step], channels: int | None, size: int | None
) -> tuple[int | None, int | None]:
    """Follow channels and side of a square image through a spec's preprocessing.

    ``None`` stands for what is not known: not known before, or, after a resize of images that
    may not be square, not known until they are cropped.
    """
    for step in steps:
        if isinstance(step, ToRgb):
            channels = 3 if channels in {1, 3, None} else channels
        elif isinstance(step, CenterCrop) or size is not None:
            size = step.size
    return channels, size
