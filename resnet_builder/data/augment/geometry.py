"""Augmentations that move pixels: crops, flips, rotations and other affine changes."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from resnet_builder.data.interfaces import AUGMENTATIONS, Batch, SampleCrop
from resnet_builder.data.random import StatelessGenerator
from resnet_builder.errors import PartError
from resnet_builder.spec.section import Side, Sides, height_and_width

Probability = Annotated[float, Field(gt=0, le=1)]

_Share = Annotated[float, Field(gt=0, le=1)]
_Proportion = Annotated[float, Field(gt=0, le=100)]

Shares = Annotated[tuple[_Share, _Share], Field(strict=False)]
Proportions = Annotated[tuple[_Proportion, _Proportion], Field(strict=False)]

_Angle = Annotated[float, Field(ge=-180, le=180)]
Angles = (
    Annotated[float, Field(ge=0, le=180)] | Annotated[tuple[_Angle, _Angle], Field(strict=False)]
)
_Translation = Annotated[float, Field(ge=0, le=1)]
_Interpolation = Literal["nearest", "bilinear"]
_Fill = Literal["mean", "zero"]

_EVEN = 0.5


@AUGMENTATIONS.register("random_crop")
class RandomCrop:
    """A window of the image's own size, anywhere in the padded image (He et al. 2015, section 4.2).

    Args:
        padding: Pixels added on each side.
        mode: Kind of padding: zeros (black), or the image reflected at its edge.
    """

    works_on: Literal["pixels"] = "pixels"  # zero is black only before normalisation
    mixes_with = 0

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
        mode: Kind of padding.

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


class _Flip:
    """Random mirroring along an axis of ``(B, C, H, W)`` images."""

    works_on: Literal["any"] = "any"
    mixes_with = 0
    axis: ClassVar[int]

    def __init__(self, *, p: Probability = 0.5) -> None:
        self._p = p

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Mirror the images whose number is below the probability."""
        flipped = draws.per_sample(1)[:, 0] < self._p
        return replace(batch, images=flip_batch(batch.images, flipped, self.axis))


@AUGMENTATIONS.register("horizontal_flip")
class HorizontalFlip(_Flip):
    """Random mirroring left to right.

    Args:
        p: Probability of mirroring.
    """

    axis = -1


@AUGMENTATIONS.register("vertical_flip")
class VerticalFlip(_Flip):
    """Random mirroring top to bottom.

    Args:
        p: Probability of mirroring.
    """

    axis = -2


@AUGMENTATIONS.register("alternating_flip")
class AlternatingFlip:
    """Mirroring left to right in every second epoch (Jordan 2024, arXiv 2404.00498).

    Half of the images, decided once, begin mirrored. So any two epochs in a row show each image in
    both ways, where independent draws show half of them twice in the same.
    """

    works_on: Literal["any"] = "any"
    mixes_with = 0

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Mirror the images whose turn it is."""
        begins_mirrored = draws.once_per_sample(1)[:, 0] < _EVEN
        is_odd = draws.epoch % 2 == 1
        return replace(batch, images=flip_batch(batch.images, begins_mirrored ^ is_odd))


def flip_batch(images: Tensor, flipped: Tensor, axis: int = -1) -> Tensor:
    """Mirror those of ``(B, C, H, W)`` images that ``(B,)`` bool says, along an axis."""
    return torch.where(flipped[:, None, None, None], images.flip(axis), images)


@AUGMENTATIONS.register("random_resized_crop")
class RandomResizedCrop:
    """A part of random area and proportions, resized (Szegedy et al. 2014).

    Where it stands first, it cuts training images from the full images in their files, not from
    the preprocessed ones; see :class:`data.interfaces.ReadTimeCrop`.

    Args:
        size: Height and width of the result: one number, or [height, width].
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest width over height.
        interpolation: Interpolation of pixels.

    Raises:
        PartError: A range is upside down.
    """

    works_on: Literal["pixels"] = "pixels"
    mixes_with = 0

    def __init__(
        self,
        *,
        size: Side | Sides,
        scale: Shares = (0.08, 1.0),
        ratio: Proportions = (3 / 4, 4 / 3),
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    ) -> None:
        self.size = size
        self._scale = check_ascending("scale", scale)
        self._ratio = check_ascending("ratio", ratio)
        self._interpolation = interpolation

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Cut every image by draws of its own."""
        return replace(batch, images=draws.map_seeded(self._transform, batch.images))

    def for_epoch(self, seed: int, epoch: int, operation: str) -> SampleCrop:
        """Return the crop of single images, while they are read."""
        return partial(_crop_sample, self._transform, seed, epoch, operation)

    @cached_property
    def _transform(self) -> Any:
        # torchvision is imported on use: it takes longer than torch
        from torchvision.transforms import v2

        size = height_and_width(self.size)
        mode = v2.InterpolationMode(self._interpolation)
        return v2.RandomResizedCrop(size, scale=self._scale, ratio=self._ratio, interpolation=mode)


def _crop_sample(
    transform: Callable[[Tensor], Tensor],
    seed: int,
    epoch: int,
    operation: str,
    image: Tensor,
    sample: int,
) -> Tensor:
    draws = StatelessGenerator(seed, epoch, 0, torch.tensor([sample]), operation)
    return draws.map_seeded(transform, image[None])[0]


@AUGMENTATIONS.register("rotation")
class Rotation:
    """Rotation about the middle by a random angle, torchvision's ``RandomRotation``.

    Args:
        degrees: Largest angle in both directions, or smallest and largest, counter-clockwise.
        p: Probability of a rotation.
        interpolation: Interpolation of pixels.
        fill: Colour of the corners: zero (black), or the training images' mean.

    Raises:
        PartError: The range is upside down.
    """

    works_on: Literal["pixels"] = "pixels"
    mixes_with = 0

    def __init__(
        self,
        *,
        degrees: Angles,
        p: Probability = 1.0,
        interpolation: _Interpolation = "nearest",
        fill: _Fill = "zero",
    ) -> None:
        self._degrees = _check_angles("degrees", degrees)
        self._p = p
        self._interpolation = interpolation
        self._fill = fill

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Rotate every image by draws of its own."""
        from torchvision.transforms import v2

        rotate = v2.RandomRotation(
            self._degrees,
            interpolation=v2.InterpolationMode(self._interpolation),
            fill=_colour(batch, self._fill),
        )
        transform = v2.RandomApply([rotate], self._p)
        return replace(batch, images=draws.map_seeded(transform, batch.images))


@AUGMENTATIONS.register("affine")
class Affine:
    """Rotation, shift, scaling and shear by random amounts, torchvision's ``RandomAffine``.

    Args:
        degrees: Largest angle in both directions, or smallest and largest, counter-clockwise.
        translate: Largest shift to the sides, as a share of the width, and up and down, as a share
            of the height.
        scale: Smallest and largest factor of the size.
        shear: Largest angle of the shear along the x axis, in both directions, or smallest and
            largest.
        p: Probability of a change.
        interpolation: Interpolation of pixels.
        fill: Colour of what opens at the edges: zero (black), or the training images' mean.

    Raises:
        PartError: A range is upside down, or there is nothing to change.
    """

    works_on: Literal["pixels"] = "pixels"
    mixes_with = 0

    def __init__(
        self,
        *,
        degrees: Angles = 0.0,
        translate: Annotated[tuple[_Translation, _Translation], Field(strict=False)] = (0.0, 0.0),
        scale: Proportions = (1.0, 1.0),
        shear: Angles = 0.0,
        p: Probability = 1.0,
        interpolation: _Interpolation = "nearest",
        fill: _Fill = "zero",
    ) -> None:
        if (degrees, translate, scale, shear) == (0, (0, 0), (1, 1), 0):
            raise PartError(
                "it has no effect without `degrees`, `translate`, `scale` or `shear`",
                code="no-effect",
            )
        self._degrees = _check_angles("degrees", degrees)
        self._translate = translate
        self._scale = check_ascending("scale", scale)
        self._shear = _check_angles("shear", shear)
        self._p = p
        self._interpolation = interpolation
        self._fill = fill

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Change every image by draws of its own."""
        from torchvision.transforms import v2

        change = v2.RandomAffine(
            self._degrees,
            translate=self._translate,
            scale=self._scale,
            shear=self._shear,
            interpolation=v2.InterpolationMode(self._interpolation),
            fill=_colour(batch, self._fill),
        )
        transform = v2.RandomApply([change], self._p)
        return replace(batch, images=draws.map_seeded(transform, batch.images))


@AUGMENTATIONS.register("perspective")
class Perspective:
    """View from a random side, torchvision's ``RandomPerspective``.

    An image three of whose corners are drawn on one line stays as it is.

    Args:
        distortion_scale: Largest shift of a corner, as a share of half the height and width.
        p: Probability of a change.
        interpolation: Interpolation of pixels.
        fill: Colour of what opens at the edges: zero (black), or the training images' mean.
    """

    works_on: Literal["pixels"] = "pixels"
    mixes_with = 0

    def __init__(
        self,
        *,
        distortion_scale: Annotated[float, Field(gt=0, le=1)] = 0.5,
        p: Probability = 0.5,
        interpolation: _Interpolation = "bilinear",
        fill: _Fill = "zero",
    ) -> None:
        self._distortion_scale = distortion_scale
        self._p = p
        self._interpolation = interpolation
        self._fill = fill

    def __call__(self, batch: Batch, draws: StatelessGenerator) -> Batch:
        """Change every image by draws of its own."""
        from torchvision.transforms import v2

        transform = v2.RandomPerspective(
            self._distortion_scale,
            self._p,
            interpolation=v2.InterpolationMode(self._interpolation),
            fill=_colour(batch, self._fill),
        )

        def change(image: Tensor) -> Tensor:
            try:
                return transform(image)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch does not list it
                return image  # three of its corners were drawn on one line

        return replace(batch, images=draws.map_seeded(change, batch.images))


def _colour(batch: Batch, fill: _Fill) -> list[float]:
    """Return the value that fills each channel."""
    colour = batch.fill if fill == "mean" else batch.black
    return colour.round().tolist()


def _check_angles(option: str, angles: float | tuple[float, float]) -> float | tuple[float, float]:
    return angles if isinstance(angles, int | float) else check_ascending(option, angles)


def check_ascending(option: str, bounds: tuple[float, float]) -> tuple[float, float]:
    """Return an option's two numbers, if they stand in their order.

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
