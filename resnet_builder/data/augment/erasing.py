"""Augmentations that cut holes into images."""

from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from resnet_builder.data.augment.geometry import Proportions, Shares, check_ascending
from resnet_builder.data.interfaces import AUGMENTATIONS, Batch
from resnet_builder.data.random import StatelessGenerator
from resnet_builder.data.transfer import to_device


@AUGMENTATIONS.register("cutout")
class Cutout:
    """A filled square anywhere, clipped at the border (DeVries and Taylor 2017, section 3.1).

    Args:
        size: Side of the square.
        fill: Colour of the square: the training images' mean, or zero (black).
    """

    works_on: Literal["any"] = "any"
    mixes_with = 0

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
    """A rectangle of random area and proportions, filled with the mean (Zhong et al. 2017).

    Args:
        p: Probability of a hole.
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest height over width.

    Raises:
        PartError: A range is upside down.
    """

    works_on: Literal["any"] = "any"
    mixes_with = 0

    def __init__(
        self,
        *,
        p: Annotated[float, Field(gt=0, le=1)] = 0.5,
        scale: Shares = (0.02, 0.33),
        ratio: Proportions = (0.3, 3.3),
    ) -> None:
        self._p = p
        self._scale = check_ascending("scale", scale)
        self._ratio = check_ascending("ratio", ratio)

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Fill a rectangle of those images that chance picks."""
        boxes = draws.map_seeded(self._draw_box, batch.images)
        top, left, rows, columns = to_device(boxes, batch.images.device).unbind(1)
        images = fill_batch(batch.images, top, left, rows, columns, batch.fill)
        return replace(batch, images=images)

    def _draw_box(self, image: Tensor) -> Tensor:
        """Return top, left, height and width of an image's hole, all zero for none.

        Only the box is torchvision's: holes of the whole batch are filled at once.
        """
        if torch.rand(()) >= self._p:
            return torch.zeros(4, dtype=torch.int64)
        box = self._transform.make_params([image])
        # a box of the whole image stands for none: ten attempts did not fit
        is_none = box["v"] is None
        return torch.tensor([0 if is_none else box[key] for key in ("i", "j", "h", "w")])

    @cached_property
    def _transform(self) -> Any:
        from torchvision.transforms import v2

        return v2.RandomErasing(1.0, scale=self._scale, ratio=self._ratio)


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
