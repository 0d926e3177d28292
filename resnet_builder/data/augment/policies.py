"""Augmentations that draw photographic and affine changes from a table."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from resnet_builder.data.interfaces import AUGMENTATIONS, Batch, StatelessGenerator
from resnet_builder.data.vision import functional

BINS = 31
"""Magnitudes are numbered from 0 to 30."""

COLOURS = (1, 3)
"""Channels of the images that have a saturation and a contrast: grey ones and coloured ones."""

Magnitudes = tuple[float, ...]


def _even(first: float, last: float) -> Magnitudes:
    return tuple(torch.linspace(first, last, BINS).tolist())


def _bits(step: float) -> Magnitudes:
    return tuple(8.0 - round(number / ((BINS - 1) / step)) for number in range(BINS))


@dataclass(frozen=True, slots=True)
class Change:
    """One row of a table.

    Attributes:
        apply: Changes ``(C, H, W)`` uint8 by a magnitude.
        magnitudes: By number; empty where there is nothing to choose.
        signed: Whether the magnitude is negated half of the time.
    """

    apply: Callable[[Tensor, float], Tensor]
    magnitudes: Magnitudes = ()
    signed: bool = False


def _unchanged(image: Tensor, magnitude: float) -> Tensor:
    return image


def _shear_x(image: Tensor, magnitude: float) -> Tensor:
    degrees = math.degrees(math.atan(magnitude))
    return functional().affine(image, 0.0, [0, 0], 1.0, [degrees, 0.0], center=[0, 0])


def _shear_y(image: Tensor, magnitude: float) -> Tensor:
    degrees = math.degrees(math.atan(magnitude))
    return functional().affine(image, 0.0, [0, 0], 1.0, [0.0, degrees], center=[0, 0])


def _translate_x(image: Tensor, magnitude: float) -> Tensor:
    return functional().affine(image, 0.0, [int(magnitude), 0], 1.0, [0.0, 0.0])


def _translate_y(image: Tensor, magnitude: float) -> Tensor:
    return functional().affine(image, 0.0, [0, int(magnitude)], 1.0, [0.0, 0.0])


def _rotate(image: Tensor, magnitude: float) -> Tensor:
    return functional().rotate(image, magnitude)


def _brightness(image: Tensor, magnitude: float) -> Tensor:
    return functional().adjust_brightness(image, 1.0 + magnitude)


def _color(image: Tensor, magnitude: float) -> Tensor:
    return functional().adjust_saturation(image, 1.0 + magnitude)


def _contrast(image: Tensor, magnitude: float) -> Tensor:
    return functional().adjust_contrast(image, 1.0 + magnitude)


def _sharpness(image: Tensor, magnitude: float) -> Tensor:
    return functional().adjust_sharpness(image, 1.0 + magnitude)


def _posterize(image: Tensor, magnitude: float) -> Tensor:
    return functional().posterize(image, int(magnitude))


def _solarize(image: Tensor, magnitude: float) -> Tensor:
    return functional().solarize(image, 255 * magnitude)


def _autocontrast(image: Tensor, magnitude: float) -> Tensor:
    return functional().autocontrast(image)


def _equalize(image: Tensor, magnitude: float) -> Tensor:
    return functional().equalize(image)


_NEUTRAL = (Change(_autocontrast), Change(_equalize))

TRIVIAL = (
    Change(_unchanged),
    Change(_shear_x, _even(0.0, 0.99), signed=True),
    Change(_shear_y, _even(0.0, 0.99), signed=True),
    Change(_translate_x, _even(0.0, 32.0), signed=True),
    Change(_translate_y, _even(0.0, 32.0), signed=True),
    Change(_rotate, _even(0.0, 135.0), signed=True),
    Change(_brightness, _even(0.0, 0.99), signed=True),
    Change(_color, _even(0.0, 0.99), signed=True),
    Change(_contrast, _even(0.0, 0.99), signed=True),
    Change(_sharpness, _even(0.0, 0.99), signed=True),
    Change(_posterize, _bits(6)),
    Change(_solarize, _even(1.0, 0.0)),
    *_NEUTRAL,
)
"""The wide space of Müller and Hutter 2021, table 1, as torchvision reads it."""


def rand_space(height: int, width: int) -> tuple[Change, ...]:
    """Return the space of Cubuk et al. 2019 for images of a size, as torchvision reads it."""
    return (
        Change(_unchanged),
        Change(_shear_x, _even(0.0, 0.3), signed=True),
        Change(_shear_y, _even(0.0, 0.3), signed=True),
        Change(_translate_x, _even(0.0, 150 / 331 * width), signed=True),
        Change(_translate_y, _even(0.0, 150 / 331 * height), signed=True),
        Change(_rotate, _even(0.0, 30.0), signed=True),
        Change(_brightness, _even(0.0, 0.9), signed=True),
        Change(_color, _even(0.0, 0.9), signed=True),
        Change(_contrast, _even(0.0, 0.9), signed=True),
        Change(_sharpness, _even(0.0, 0.9), signed=True),
        Change(_posterize, _bits(4)),
        Change(_solarize, _even(1.0, 0.0)),
        *_NEUTRAL,
    )


@AUGMENTATIONS.register("trivial_augment")
class TrivialAugment:
    """Make one change of any kind and any magnitude to each image (Müller and Hutter 2021)."""

    works_on: Literal["pixels"] = "pixels"
    channels = COLOURS
    reach = 0

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Change every image by its own numbers."""
        images = [
            change_image(image, TRIVIAL, kind, strength, sign)
            for image, (kind, strength, sign) in zip(
                batch.images, draws.per_sample(3).tolist(), strict=True
            )
        ]
        return replace(batch, images=torch.stack(images))


@AUGMENTATIONS.register("rand_augment")
class RandAugment:
    """Make some changes of any kind and one magnitude to each image (Cubuk et al. 2019).

    Args:
        num_ops: Changes to each image.
        magnitude: Their number, 0 to 30.
    """

    works_on: Literal["pixels"] = "pixels"
    channels = COLOURS
    reach = 0

    def __init__(
        self,
        *,
        num_ops: Annotated[int, Field(ge=1, le=14)] = 2,
        magnitude: Annotated[int, Field(ge=0, le=BINS - 1)] = 9,
    ) -> None:
        self._num_ops = num_ops
        self._magnitude = magnitude

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Change every image by its own numbers."""
        space = rand_space(*batch.images.shape[-2:])
        strength = (self._magnitude + 0.5) / BINS
        numbers = draws.per_sample(2 * self._num_ops).tolist()
        images = []
        for image, row in zip(batch.images, numbers, strict=True):
            changed = image
            for kind, sign in zip(row[::2], row[1::2], strict=True):
                changed = change_image(changed, space, kind, strength, sign)
            images.append(changed)
        return replace(batch, images=torch.stack(images))


def change_image(
    image: Tensor, space: tuple[Change, ...], kind: float, strength: float, sign: float
) -> Tensor:
    """Change one image, choosing by numbers in [0, 1).

    Args:
        image: ``(C, H, W)`` uint8.
        space: The table to choose from.
        kind: Chooses the row.
        strength: Chooses the magnitude.
        sign: Below one half, a signed magnitude is negated.
    """
    change = space[int(kind * len(space))]
    if not change.magnitudes:
        return change.apply(image, 0.0)
    magnitude = change.magnitudes[int(strength * BINS)]
    return change.apply(image, -magnitude if change.signed and sign < 0.5 else magnitude)
