"""Decoding picture files to tensors, whatever their mode, in one documented way."""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from resnet_builder.data.contract import Preprocess
from resnet_builder.errors import DataError

ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Files with these endings, in any case, are pictures."""

# What Pillow's readers are known to raise for files that are broken, or that are none.
_BROKEN = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_DEEP = 65_535


def decode(path: str | Path, channels: int) -> Tensor:
    """Decode a picture.

    It is turned upright by its EXIF orientation; of an animation the first frame is taken;
    transparency is dropped, which leaves the colours below it; 16 bits a channel are scaled to
    8; CMYK is converted without a colour profile. Pillow's limit on the number of pixels holds.

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
            picture.info.pop("transparency", None)
            pixels = np.array(picture.convert("RGB" if channels == 3 else "L"))
    except _BROKEN as error:
        raise DataError(f"{path}: cannot be decoded: {error}") from error
    # numpy's copy stays in this thread; torch's would wait for others at every picture
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)) if channels == 3 else pixels[None]
    return torch.from_numpy(planes)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scale 16 bits to 8: Pillow's own conversion clips them to white.

    Raises:
        ValueError: There is no telling what is white.
    """
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if not picture.mode.startswith("I"):
        return picture
    values = np.array(picture).astype(np.int64).clip(0, _DEEP)
    scaled = Image.fromarray((values * 255 // _DEEP).astype(np.uint8))
    scaled.info = dict(picture.info)
    return scaled


@dataclass(frozen=True, slots=True)
class Reader:
    """How the pictures of a data set become images of one size; it can be sent to processes.

    Attributes:
        channels: See :func:`decode`.
        preprocess: The spec's preprocessing.
        shape: Channels, height and width that it must leave of every picture.
    """

    channels: int
    preprocess: Preprocess
    shape: tuple[int, ...]

    def fit(self, picture: Tensor, path: str | Path) -> Tensor:
        """Preprocess one picture.

        Args:
            picture: ``(channels, H, W)`` uint8.
            path: Its file, for the message.

        Raises:
            DataError: It comes out larger or smaller than others.
        """
        image = self.preprocess(picture[None])[0]
        if image.shape != self.shape:
            raise DataError(
                f"pictures have several sizes: {path} is {_size(image.shape)}, others are "
                f"{_size(self.shape)}; add `resize` and `center_crop` under data.preprocess"
            )
        return image


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]}"
