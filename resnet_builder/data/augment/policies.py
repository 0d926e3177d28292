"""Augmentations that draw photographic and affine changes from a table, by torchvision."""

from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

from resnet_builder.data.interfaces import AUGMENTATIONS, Batch
from resnet_builder.data.random import StatelessGenerator

GREY_OR_RGB = (1, 3)
"""Numbers of channels of the images that have a saturation and a contrast."""

NUM_MAGNITUDES = 31
"""Magnitudes are numbered from 0 to 30."""


@AUGMENTATIONS.register("trivial_augment")
class TrivialAugment:
    """One change of any kind and any magnitude to each image (Müller and Hutter 2021)."""

    works_on: Literal["pixels"] = "pixels"
    channels = GREY_OR_RGB
    mixes_with = 0

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Change every image by draws of its own."""
        return replace(batch, images=draws.map_seeded(self._transform, batch.images))

    @cached_property
    def _transform(self) -> Any:
        # torchvision is imported on use: it takes longer than torch
        from torchvision.transforms.v2 import TrivialAugmentWide

        return TrivialAugmentWide(num_magnitude_bins=NUM_MAGNITUDES)


@AUGMENTATIONS.register("rand_augment")
class RandAugment:
    """Some changes of any kind and one magnitude to each image (Cubuk et al. 2019).

    Args:
        num_ops: Number of changes to each image.
        magnitude: Magnitude of the changes, 0 to 30.
    """

    works_on: Literal["pixels"] = "pixels"
    channels = GREY_OR_RGB
    mixes_with = 0

    def __init__(
        self,
        *,
        num_ops: Annotated[int, Field(ge=1, le=14)] = 2,
        magnitude: Annotated[int, Field(ge=0, le=NUM_MAGNITUDES - 1)] = 9,
    ) -> None:
        self._num_ops = num_ops
        self._magnitude = magnitude

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Change every image by draws of its own."""
        return replace(batch, images=draws.map_seeded(self._transform, batch.images))

    @cached_property
    def _transform(self) -> Any:
        from torchvision.transforms.v2 import RandAugment as Transform

        return Transform(
            num_ops=self._num_ops,
            magnitude=self._magnitude,
            num_magnitude_bins=NUM_MAGNITUDES,
        )
