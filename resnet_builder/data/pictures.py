"""Decoding picture files to tensors, whatever their mode, in one documented way."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from resnet_builder.errors import DataError

ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Files with these endings, in any case, are pictures."""

_DEEP = 65_535


def decode(path: Path, channels: int) -> Tensor:
    """Decode a picture.

    It is turned upright by its EXIF orientation; of an animation the first frame is taken;
    transparency is dropped; 16 bits a channel are scaled to 8.

    Args:
        path: The file.
        channels: 3 for RGB (grey is repeated), 1 for grey (colours are weighted by ITU-R 601).

    Returns:
        ``(channels, H, W)`` uint8.

    Raises:
        DataError: The file is no picture, is broken, or is suspiciously large.
    """
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(_eight_bits(opened))
            pixels = np.array(picture.convert("RGB" if channels == 3 else "L"))
    except (
        OSError,
        SyntaxError,
        ValueError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(f"{path}: cannot be decoded: {error}") from error
    tensor = torch.from_numpy(pixels)
    return tensor.permute(2, 0, 1).contiguous() if channels == 3 else tensor[None]


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scale 16 bits to 8: Pillow's own conversion clips them to white."""
    if not picture.mode.startswith("I"):
        return picture
    values = np.array(picture).astype(np.int64).clip(0, _DEEP)
    scaled = Image.fromarray((values * 255 // _DEEP).astype(np.uint8))
    scaled.info = dict(picture.info)
    return scaled
