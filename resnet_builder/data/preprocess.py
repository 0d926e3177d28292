"""Preprocessing: deterministic changes to every image, of every split."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from resnet_builder.errors import DataError, PartError
from resnet_builder.spec.schema import CenterCrop, Pad, Resize, ToRgb
from resnet_builder.spec.section import height_and_width

MAX_PIXELS = 2**26
"""Pixels of an image after preprocessing: a line of pixels would be resized to gigabytes."""

Step = Resize | CenterCrop | Pad | ToRgb


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
            DataError: An image would have more than :data:`MAX_PIXELS`, or cannot be padded.
        """
        for step in self.steps:
            images = _apply(step, images)
        return images


def _apply(step: Step, images: Tensor) -> Tensor:
    if isinstance(step, ToRgb):
        return to_rgb(images)
    # torchvision is imported on use: it takes longer than torch, and no spec needs it to be checked
    from torchvision.transforms.v2 import InterpolationMode, functional

    height, width = images.shape[-2:]
    match step:
        case Resize():
            size = resized_size(step, height, width)
            if math.prod(size) > MAX_PIXELS:
                short, long = sorted((height, width))
                raise DataError(
                    f"it is {long:,} pixels long and {short:,} wide; after `resize` it would have "
                    f"{math.prod(size):,} pixels, and at most {MAX_PIXELS:,} are allowed"
                )
            mode = InterpolationMode[step.interpolation.upper()]
            return functional.resize(images, [*size], interpolation=mode, antialias=True)
        case Pad():
            widths = _pad_widths(step, height, width)
            return functional.pad(images, [*widths], fill=step.fill, padding_mode=step.mode)
        case CenterCrop():
            return functional.center_crop(images, [*height_and_width(step.size)])


def default_preprocess(image_size: int | tuple[int, int]) -> tuple[Step, ...]:
    """Return the preprocessing of images of differing sizes where the spec has none.

    Nothing is stretched: the images are made to cover the network's size, and their middle is cut.
    """
    fit: Literal["auto", "cover"] = "auto" if isinstance(image_size, int) else "cover"
    resize = Resize(type="resize", size=image_size, fit=fit)
    return resize, CenterCrop(type="center_crop", size=image_size)


def to_rgb(images: Tensor) -> Tensor:
    """Repeat the channel of grey images, ``(..., 1, H, W)``, and drop a fourth channel, alpha."""
    channels = images.shape[-3]
    if channels == 1:
        return images.expand(*images.shape[:-3], 3, -1, -1)
    return images[..., :3, :, :] if channels == 4 else images


def covering_size(size: int | tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Smallest height and width that cover a size, in the proportions of an image.

    They are torchvision's for one number, the shorter side: the other side is rounded down.
    """
    target_height, target_width = height_and_width(size)
    if target_height * width >= target_width * height:
        return target_height, int(target_height * width / height)
    return int(target_width * height / width), target_width


def resized_size(step: Resize, height: int, width: int) -> tuple[int, int]:
    """Height and width of an image after a resize."""
    target_height, target_width = (
        math.floor(side / step.crop_share) for side in height_and_width(step.size)
    )
    if step.stretches:
        return target_height, target_width
    if step.fit != "contain":
        return covering_size((target_height, target_width), height, width)
    if target_height * width <= target_width * height:
        return target_height, max(1, int(target_height * width / height))
    return max(1, int(target_width * height / width)), target_width


def _pad_widths(step: Pad, height: int, width: int) -> tuple[int, int, int, int]:
    """Pixels to add at the left, the top, the right and the bottom of an image.

    Raises:
        DataError: The image is larger, or too small to be reflected so far.
    """
    target_height, target_width = height_and_width(step.size)
    rows, columns = target_height - height, target_width - width
    image = f"an image of {height}x{width} (height x width)"
    target = f"{target_height}x{target_width}"
    if rows < 0 or columns < 0:
        raise DataError(
            f"{image} is larger than `pad` makes it, {target}; put `resize` or `center_crop` first"
        )
    widths = (columns // 2, rows // 2, (columns + 1) // 2, (rows + 1) // 2)
    if step.mode == "reflect" and (widths[2] >= width or widths[3] >= height):
        raise DataError(f"{image} is too small to be reflected to {target}; use `mode: edge`")
    return widths


def shape_after(
    step: Step, channels: int | None, size: int | tuple[int, int] | None
) -> tuple[int | None, int | tuple[int, int] | None]:
    """Follow channels and size of images through a step of preprocessing.

    ``None`` stands for what is not known: not known before, or, after a resize that keeps the
    proportions of images of any size, not known until they are cropped.

    Raises:
        PartError: Images of this size cannot be padded so.
    """
    match step:
        case ToRgb():
            channels = 3 if channels in {1, 3, 4, None} else channels
        case CenterCrop():
            size = step.size
        case Pad():
            if size is not None:
                try:
                    _pad_widths(step, *height_and_width(size))
                except DataError as error:
                    raise PartError(str(error)) from error
            size = step.size
        case Resize():
            if size is not None or step.stretches:
                size = resized_size(step, *height_and_width(size or 1))
    return channels, size
