"""Augmentations that move pixels: crops and flips."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from resnet_builder.data.hashing import HashedDraws
from resnet_builder.data.interfaces import AUGMENTATIONS, Batch, StatelessGenerator
from resnet_builder.data.vision import functional
from resnet_builder.errors import PartError

_Share = Annotated[float, Field(gt=0, le=1)]
_Proportion = Annotated[float, Field(gt=0, le=100)]

Shares = Annotated[tuple[_Share, _Share], Field(strict=False)]
Proportions = Annotated[tuple[_Proportion, _Proportion], Field(strict=False)]

_ATTEMPTS = 10
_EVEN = 0.5


@AUGMENTATIONS.register("random_crop")
class RandomCrop:
    """Pad every image, and cut its own size out of it anywhere (He et al. 2015, section 4.2).

    Args:
        padding: Pixels added on each side.
        mode: Pad with zeros (black), or with the image reflected at its edge.
    """

    works_on: Literal["pixels"] = "pixels"  # zero is black only before normalisation
    reach = 0

    def __init__(
        self,
        *,
        padding: Annotated[int, Field(ge=1, le=1_024)] = 4,
        mode: Literal["zero", "reflect"] = "zero",
    ) -> None:
        self._padding = padding
        self._mode = mode

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Cut every image at an offset of its own."""
        offsets = (draws.per_sample(2) * (2 * self._padding + 1)).long()
        images = crop_batch(batch.images, offsets[:, 0], offsets[:, 1], self._padding, self._mode)
        return replace(batch, images=images)


def crop_batch(
    images: Tensor, top: Tensor, left: Tensor, padding: int, mode: Literal["zero", "reflect"]
) -> Tensor:
    """Pad images and cut their own size out of them.

    Args:
        images: ``(B, C, H, W)``.
        top: ``(B,)`` int64, from 0 to twice the padding.
        left: ``(B,)`` int64, from 0 to twice the padding.
        padding: Pixels added on each side.
        mode: What they are.

    Returns:
        ``(B, C, H, W)``.
    """
    height, width = images.shape[-2:]
    if mode == "zero":
        padded = pad(images, (padding,) * 4)
    else:
        rows = _reflected(height, padding, images.device)
        columns = _reflected(width, padding, images.device)
        padded = images.index_select(2, rows).index_select(3, columns)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def _reflected(size: int, padding: int, device: torch.device) -> Tensor:
    """Return the pixels of a padded line, mirrored at its first and last (torch pads no uint8)."""
    period = max(1, 2 * (size - 1))
    positions = torch.arange(-padding, size + padding, device=device).abs() % period
    return torch.minimum(positions, period - positions) if size > 1 else positions


@AUGMENTATIONS.register("horizontal_flip")
class HorizontalFlip:
    """Mirror images left to right.

    Args:
        p: Probability.
    """

    works_on: Literal["any"] = "any"
    reach = 0

    def __init__(self, *, p: Annotated[float, Field(gt=0, le=1)] = 0.5) -> None:
        self._p = p

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Mirror the images whose number is below the probability."""
        flipped = draws.per_sample(1)[:, 0] < self._p
        return replace(batch, images=flip_batch(batch.images, flipped))


@AUGMENTATIONS.register("alternating_flip")
class AlternatingFlip:
    """Mirror images left to right in every second epoch (Jordan 2024, arXiv 2404.00498).

    Half of the images, decided once, begin mirrored. So any two epochs in a row show each image in
    both ways, where independent draws show half of them twice in the same.
    """

    works_on: Literal["any"] = "any"
    reach = 0

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Mirror the images whose turn it is."""
        begins_mirrored = draws.once_per_sample(1)[:, 0] < _EVEN
        is_odd = draws.epoch % 2 == 1
        return replace(batch, images=flip_batch(batch.images, begins_mirrored ^ is_odd))


def flip_batch(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror those of ``(B, C, H, W)`` images that ``(B,)`` bool says."""
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


@AUGMENTATIONS.register("random_resized_crop")
class RandomResizedCrop:
    """Cut out a part of random area and proportions and resize it (Szegedy et al. 2014).

    Where it stands first, it cuts training images from whole pictures, instead of from what
    preprocessing leaves of them, if these are larger; see :class:`data.contract.CropsPictures`.

    Args:
        size: Height and width of the result.
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest width over height.

    Raises:
        PartError: A range is upside down.
    """

    works_on: Literal["pixels"] = "pixels"
    reach = 0

    def __init__(
        self,
        *,
        size: Annotated[int, Field(ge=1, le=4_096)],
        scale: Shares = (0.08, 1.0),
        ratio: Proportions = (3 / 4, 4 / 3),
    ) -> None:
        self._size = size
        self._scale = ascending("scale", scale)
        self._ratio = ascending("ratio", ratio)

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Cut every image by its own numbers."""
        numbers = draws.per_sample(2 * _ATTEMPTS + 2).tolist()
        pairs = zip(batch.images, numbers, strict=True)
        cut = [self.cut(image, row) for image, row in pairs]
        return replace(batch, images=torch.stack(cut))

    def for_epoch(self, seed: int, epoch: int, operation: str) -> "EpochCrop":
        """Return the crop of single pictures, while they are read."""
        return EpochCrop(self, seed, epoch, operation)

    def cut(self, image: Tensor, numbers: list[float]) -> Tensor:
        """Cut ``(C, H, W)`` to ``(C, size, size)``."""
        height, width = image.shape[-2:]
        top, left, rows, columns = window(height, width, self._scale, self._ratio, numbers)
        size = [self._size, self._size]
        return functional().resized_crop(image, top, left, rows, columns, size, antialias=True)


@dataclass(frozen=True, slots=True)
class EpochCrop:
    """A random crop of single pictures in one epoch; see :class:`data.contract.SampleCrop`."""

    augmentation: RandomResizedCrop
    seed: int
    epoch: int
    operation: str

    def __call__(self, picture: Tensor, sample: int) -> Tensor:
        """Cut ``(C, H, W)`` to ``(C, size, size)``."""
        draws = HashedDraws(self.seed, self.epoch, 0, torch.tensor([sample]), self.operation)
        return self.augmentation.cut(picture, draws.per_sample(2 * _ATTEMPTS + 2)[0].tolist())


def ascending(option: str, bounds: tuple[float, float]) -> tuple[float, float]:
    """Check that an option's two numbers stand in their order.

    Raises:
        PartError: They do not.
    """
    if bounds[0] > bounds[1]:
        raise PartError(
            f"`{option}` is [smallest, largest], not [{bounds[0]}, {bounds[1]}]",
            code="out-of-range",
            option=option,
        )
    return bounds


def window(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    numbers: list[float],
) -> tuple[int, int, int, int]:
    """Choose a part of an image, as torchvision's RandomResizedCrop does.

    Args:
        height: Of the image.
        width: Of the image.
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest width over height; drawn evenly on a logarithmic scale.
        numbers: 22 numbers in [0, 1): area and ratio of ten attempts, then where.

    Returns:
        Top, left, height and width.
    """
    for attempt in range(_ATTEMPTS):
        share, shape = numbers[2 * attempt : 2 * attempt + 2]
        area = height * width * (scale[0] + share * (scale[1] - scale[0]))
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + shape * (high - low))
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            top = int(numbers[-2] * (height - rows + 1))
            left = int(numbers[-1] * (width - columns + 1))
            return top, left, rows, columns
    return _central_window(height, width, ratio)


def _central_window(
    height: int, width: int, ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Take the largest part in the middle whose proportions are allowed."""
    if width / height < ratio[0]:
        rows, columns = round(width / ratio[0]), width
    elif width / height > ratio[1]:
        rows, columns = height, round(height * ratio[1])
    else:
        rows, columns = height, width
    return (height - rows) // 2, (width - columns) // 2, rows, columns
