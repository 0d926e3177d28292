"""Preprocessing: deterministic changes to every image, of every split."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from resnet_builder.errors import DataError
from resnet_builder.spec.schema import CenterCrop, Resize, ToRgb

MAX_PIXELS = 2**26
"""Pixels of an image after preprocessing: a line of pixels would be resized to gigabytes."""

Step = Resize | CenterCrop | ToRgb


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """A spec's preprocessing, as a function that worker processes can receive.

    Attributes:
        steps: Steps, in order.
    """

    steps: tuple[Step, ...] = ()

    def __call__(self, images: Tensor) -> Tensor:
        """Turn ``(N, C, H, W)`` uint8 into ``(N, C', H', W')`` uint8.

        Raises:
            DataError: An image would have more than :data:`MAX_PIXELS`.
        """
        for step in self.steps:
            images = _apply(step, images)
        return images


def _apply(step: Step, images: Tensor) -> Tensor:
    if isinstance(step, ToRgb):
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    # torchvision is imported on use: it takes longer than torch, and no spec needs it to be checked
    from torchvision.transforms.v2 import functional

    if isinstance(step, Resize):
        short, long = sorted(images.shape[-2:])
        pixels = round(step.size**2 * long / short)
        if pixels > MAX_PIXELS:
            raise DataError(
                f"it is {long:,} pixels long and {short:,} wide; after `resize` it would have "
                f"{pixels:,} pixels, and at most {MAX_PIXELS:,} are allowed"
            )
        return functional.resize(images, [step.size], antialias=True)
    return functional.center_crop(images, [step.size])


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
