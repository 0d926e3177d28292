"""Augmentations that change colours and sharpness, by torchvision."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from resnet_builder.data.augment.geometry import Probability, check_ascending
from resnet_builder.data.interfaces import AUGMENTATIONS, Batch, PerImageAugmentation
from resnet_builder.data.random import StatelessGenerator
from resnet_builder.errors import PartError

_Amount = Annotated[float, Field(ge=0, le=10)]
_Sigma = Annotated[float, Field(gt=0, le=100)]


@AUGMENTATIONS.register("color_jitter")
class ColorJitter(PerImageAugmentation):
    """Random brightness, contrast, saturation and hue, torchvision's ``ColorJitter``.

    Grey images have neither saturation nor hue.

    Args:
        brightness: Largest change of the factor 1 of the brightness; 0.4 draws from 0.6 to 1.4.
        contrast: Largest change of the factor 1 of the contrast.
        saturation: Largest change of the factor 1 of the saturation.
        hue: Largest shift of the hue, in turns of the colour circle.
        p: Probability of a change.

    Raises:
        PartError: There is nothing to change.
    """

    def __init__(
        self,
        *,
        brightness: _Amount = 0.0,
        contrast: _Amount = 0.0,
        saturation: _Amount = 0.0,
        hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
        p: Probability = 1.0,
    ) -> None:
        if brightness == contrast == saturation == hue == 0:
            raise PartError(
                "it has no effect without `brightness`, `contrast`, `saturation` or `hue`",
                code="no-effect",
            )
        self.channels = (3,) if saturation or hue else (1, 3)
        self._amounts = (brightness, contrast, saturation, hue)
        self._p = p

    @cached_property
    def transform(self) -> Callable[[Tensor], Tensor]:
        """Transform of torchvision."""
        # torchvision is imported on use: it takes longer than torch
        from torchvision.transforms import v2

        transform: Callable[[Tensor], Tensor] = v2.RandomApply(
            [v2.ColorJitter(*self._amounts)], self._p
        )
        return transform


@AUGMENTATIONS.register("grayscale")
class Grayscale:
    """Random loss of all colours, torchvision's ``RandomGrayscale``.

    Args:
        p: Probability of the loss.
    """

    works_on: Literal["pixels"] = "pixels"
    channels = (3,)
    mixes_with = 0

    def __init__(self, *, p: Probability = 0.1) -> None:
        self._p = p

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Take the colours from the images whose number is below the probability."""
        from torchvision.transforms.v2 import functional

        chosen = draws.per_sample(1)[:, 0] < self._p
        grey = functional.rgb_to_grayscale(batch.images, num_output_channels=3)
        return replace(batch, images=torch.where(chosen[:, None, None, None], grey, batch.images))


@AUGMENTATIONS.register("blur")
class Blur(PerImageAugmentation):
    """Gaussian blur of random width, torchvision's ``GaussianBlur``.

    Args:
        kernel_size: Pixels a side that a new pixel is computed from, an odd number.
        sigma: Smallest and largest standard deviation, in pixels.
        p: Probability of a blur.

    Raises:
        PartError: ``kernel_size`` is even, or ``sigma`` is upside down.
    """

    def __init__(
        self,
        *,
        kernel_size: Annotated[int, Field(ge=3, le=1_023)] = 3,
        sigma: Annotated[tuple[_Sigma, _Sigma], Field(strict=False)] = (0.1, 2.0),
        p: Probability = 1.0,
    ) -> None:
        if kernel_size % 2 == 0:
            message = f"`kernel_size` must be odd, not {kernel_size}"
            raise PartError(message, code="out-of-range", option="kernel_size")
        self.min_side = kernel_size // 2 + 1  # images are reflected at their edges
        self._kernel_size = kernel_size
        self._sigma = check_ascending("sigma", sigma)
        self._p = p

    @cached_property
    def transform(self) -> Callable[[Tensor], Tensor]:
        """Transform of torchvision."""
        from torchvision.transforms import v2

        transform: Callable[[Tensor], Tensor] = v2.RandomApply(
            [v2.GaussianBlur(self._kernel_size, self._sigma)], self._p
        )
        return transform
