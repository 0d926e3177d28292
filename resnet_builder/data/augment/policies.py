"""Augmentations that draw photographic and affine changes from a table, by torchvision."""

from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from resnet_builder.data.augment.geometry import Probability
from resnet_builder.data.interfaces import AUGMENTATIONS, PerImageAugmentation

GREY_OR_RGB = (1, 3)
"""Numbers of channels of the images that have a saturation and a contrast."""

NUM_MAGNITUDES = 31
"""Magnitudes are numbered from 0 to 30."""


@AUGMENTATIONS.register("trivial_augment")
class TrivialAugment(PerImageAugmentation):
    """One change of any kind and any magnitude to each image (Müller and Hutter 2021)."""

    channels = GREY_OR_RGB

    @cached_property
    def transform(self) -> Callable[[Tensor], Tensor]:
        """Transform of torchvision."""
        # torchvision is imported on use: it takes longer than torch
        from torchvision.transforms import v2

        transform: Callable[[Tensor], Tensor] = v2.TrivialAugmentWide(
            num_magnitude_bins=NUM_MAGNITUDES
        )
        return transform


@AUGMENTATIONS.register("rand_augment")
class RandAugment(PerImageAugmentation):
    """Some changes of any kind and one magnitude to each image (Cubuk et al. 2019).

    Args:
        num_ops: Number of changes to each image.
        magnitude: Magnitude of the changes, 0 to 30.
    """

    channels = GREY_OR_RGB

    def __init__(
        self,
        *,
        num_ops: Annotated[int, Field(ge=1, le=14)] = 2,
        magnitude: Annotated[int, Field(ge=0, le=NUM_MAGNITUDES - 1)] = 9,
    ) -> None:
        self._num_ops = num_ops
        self._magnitude = magnitude

    @cached_property
    def transform(self) -> Callable[[Tensor], Tensor]:
        """Transform of torchvision."""
        from torchvision.transforms import v2

        transform: Callable[[Tensor], Tensor] = v2.RandAugment(
            num_ops=self._num_ops,
            magnitude=self._magnitude,
            num_magnitude_bins=NUM_MAGNITUDES,
        )
        return transform


@AUGMENTATIONS.register("augmix")
class AugMix(PerImageAugmentation):
    """Mixture of an image and several chains of changes to it (Hendrycks et al. 2019).

    It is torchvision's ``AugMix``, with the changes; the paper's consistency loss is not part of
    it.

    Args:
        severity: Largest magnitude of the changes, of 10.
        mixture_width: Number of chains.
        chain_depth: Number of changes in a chain; 0 draws 1 to 3.
        alpha: Parameter of the Dirichlet and Beta distributions of the weights.
        all_ops: Whether to change brightness, saturation, contrast and sharpness, too, as test
            sets of corrupted images do.
        p: Probability of a mixture.
    """

    channels = GREY_OR_RGB

    def __init__(
        self,
        *,
        severity: Annotated[int, Field(ge=1, le=10)] = 3,
        mixture_width: Annotated[int, Field(ge=1, le=16)] = 3,
        chain_depth: Annotated[int, Field(ge=0, le=16)] = 0,
        alpha: Annotated[float, Field(gt=0, le=100)] = 1.0,
        all_ops: bool = True,
        p: Probability = 1.0,
    ) -> None:
        self._severity = severity
        self._mixture_width = mixture_width
        self._chain_depth = chain_depth
        self._alpha = alpha
        self._all_ops = all_ops
        self._p = p

    @cached_property
    def transform(self) -> Callable[[Tensor], Tensor]:
        """Transform of torchvision."""
        from torchvision.transforms import v2

        mix: Any = v2.AugMix(
            severity=self._severity,
            mixture_width=self._mixture_width,
            chain_depth=self._chain_depth,
            alpha=self._alpha,
            all_ops=self._all_ops,
        )
        # torchvision draws the weights where the image is; only the CPU's generator is seeded
        mix._sample_dirichlet = _sample_dirichlet
        transform: Callable[[Tensor], Tensor] = v2.RandomApply([mix], self._p)
        return transform


def _sample_dirichlet(params: Tensor) -> Tensor:
    return torch._sample_dirichlet(params.cpu()).to(params.device)
