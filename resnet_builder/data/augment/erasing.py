"""Augmentations that cut holes into images."""

import math
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from resnet_builder.data.augment.geometry import Proportions, Shares, ascending
from resnet_builder.data.interfaces import AUGMENTATIONS, Batch, StatelessGenerator

_ATTEMPTS = 10


@AUGMENTATIONS.register("cutout")
class Cutout:
    """Fill a square anywhere, clipped at the border (DeVries and Taylor 2017, section 3.1).

    Args:
        size: Side of the square.
        fill: The training images' mean, or zero (black).
    """

    works_on: Literal["any"] = "any"
    reach = 0

    def __init__(
        self,
        *,
        size: Annotated[int, Field(ge=1, le=4_096)],
        fill: Literal["mean", "zero"] = "mean",
    ) -> None:
        self._size = size
        self._fill = fill

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Fill a square of every image; its centre is any of the image's pixels."""
        height, width = batch.images.shape[-2:]
        numbers = draws.per_sample(2)
        top = (numbers[:, 0] * height).long() - self._size // 2
        left = (numbers[:, 1] * width).long() - self._size // 2
        sizes = torch.full_like(top, self._size)
        fill = batch.fill if self._fill == "mean" else batch.black
        return replace(batch, images=fill_batch(batch.images, top, left, sizes, sizes, fill))


@AUGMENTATIONS.register("random_erasing")
class RandomErasing:
    """Fill a rectangle of random area and proportions with the mean (Zhong et al. 2017).

    Args:
        p: Probability.
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest height over width.

    Raises:
        PartError: A range is upside down.
    """

    works_on: Literal["any"] = "any"
    reach = 0

    def __init__(
        self,
        *,
        p: Annotated[float, Field(gt=0, le=1)] = 0.5,
        scale: Shares = (0.02, 0.33),
        ratio: Proportions = (0.3, 3.3),
    ) -> None:
        self._p = p
        self._scale = ascending("scale", scale)
        self._ratio = ascending("ratio", ratio)

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Fill a rectangle of those images whose number is below the probability."""
        height, width = batch.images.shape[-2:]
        numbers = draws.per_sample(2 * _ATTEMPTS + 3)
        rectangles = torch.tensor(
            [
                rectangle(height, width, self._scale, self._ratio, row[1:])
                if row[0] < self._p
                else (0, 0, 0, 0)
                for row in numbers.tolist()
            ],
            device=batch.images.device,
        )
        top, left, rows, columns = rectangles.unbind(1)
        images = fill_batch(batch.images, top, left, rows, columns, batch.fill)
        return replace(batch, images=images)


def rectangle(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    numbers: list[float],
) -> tuple[int, int, int, int]:
    """Choose a rectangle smaller than the image, as torchvision's RandomErasing does.

    Args:
        height: Of the image.
        width: Of the image.
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest height over width; drawn evenly on a logarithmic scale.
        numbers: 22 numbers in [0, 1): area and ratio of ten attempts, then where.

    Returns:
        Top, left, height and width; all zero if no attempt fits.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(_ATTEMPTS):
        share, shape = numbers[2 * attempt : 2 * attempt + 2]
        area = height * width * (scale[0] + share * (scale[1] - scale[0]))
        aspect = math.exp(low + shape * (high - low))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rows < height and columns < width:
            top = int(numbers[-2] * (height - rows + 1))
            left = int(numbers[-1] * (width - columns + 1))
            return top, left, rows, columns
    return 0, 0, 0, 0


def fill_batch(
    images: Tensor, top: Tensor, left: Tensor, rows: Tensor, columns: Tensor, fill: Tensor
) -> Tensor:
    """Fill a rectangle of every image; what lies outside the image is clipped.

    Args:
        images: ``(B, C, H, W)``.
        top: ``(B,)`` int64, may be negative.
        left: ``(B,)`` int64, may be negative.
        rows: ``(B,)`` int64.
        columns: ``(B,)`` int64.
        fill: ``(C,)``, in the units of ``images``.
    """
    hole = _inside(images.shape[-2], top, rows)[:, :, None]
    hole = hole & _inside(images.shape[-1], left, columns)[:, None, :]
    filling = fill.to(images.dtype) if images.is_floating_point() else fill.round().to(images.dtype)
    return torch.where(hole[:, None], filling[None, :, None, None], images)


def _inside(size: int, start: Tensor, length: Tensor) -> Tensor:
    """Return ``(B, size)`` bool: which positions lie from ``start`` on for ``length``."""
    positions = torch.arange(size, device=start.device)
    return (positions >= start[:, None]) & (positions < (start + length)[:, None])
