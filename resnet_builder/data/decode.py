"""Decoding of image files to tensors, whatever their mode, in one documented way."""

import hashlib
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from resnet_builder.data.interfaces import Preprocess
from resnet_builder.errors import DataError

IMAGE_EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Extensions, in any case, of the files that are read as images."""

IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats of images, whatever their extension; Pillow would run Ghostscript on some others."""

# What Pillow's readers raise for broken files: the operating system's errors, and whatever their
# arithmetic comes to on numbers that make no sense.
_BROKEN = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_MAX_16_BITS = 65_535


def decode_image(path: str | Path, channels: int) -> Tensor:
    """Decode an image file.

    The image is turned upright by its EXIF orientation; of an animation the first frame is taken;
    transparency is dropped, which leaves the colours below it; of 16 bits a channel the upper 8
    are kept; CMYK is converted without a colour profile. Pillow's limit on the number of pixels
    holds.

    Args:
        path: Image file.
        channels: 3 for RGB (grey is repeated), 1 for grey (colours are weighted by ITU-R 601).

    Returns:
        ``(channels, H, W)`` uint8.

    Raises:
        DataError: The file is not an image, is broken, or is suspiciously large.
    """
    with _decoding_errors(path), Image.open(path, formats=IMAGE_FORMATS) as opened:
        pixels = _pixels(opened, channels)
    # numpy copies in this thread; torch would wake its thread pool for every image
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)) if channels == 3 else pixels[None]
    return torch.from_numpy(planes)


def verify_image(path: str | Path, channels: int) -> bytes:
    """Make sure that an image can be decoded, as cheaply as its format allows.

    A JPEG is read in full, but only an eighth of its side is computed.

    Args:
        path: Image file.
        channels: Number of channels, see :func:`decode_image`.

    Returns:
        The SHA-256 of the file, 32 bytes.

    Raises:
        DataError: As for :func:`decode_image`.
    """
    with _decoding_errors(path), open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0)
        with Image.open(file, formats=IMAGE_FORMATS) as opened:
            opened.draft(None, (1, 1))
            _pixels(opened, channels)
    return digest


@dataclass(frozen=True, slots=True)
class ImageReader:
    """Decoding and preprocessing of a data set's image files; worker processes receive it.

    Attributes:
        channels: Number of channels, see :func:`decode_image`.
        preprocess: Preprocessing of the spec.
        shape: Channels, height and width of every image after preprocessing.
    """

    channels: int
    preprocess: Preprocess
    shape: tuple[int, ...]

    def decode(self, path: str | Path) -> Tensor:
        """Decode an image file to ``(channels, H, W)`` uint8, without preprocessing."""
        return decode_image(path, self.channels)

    def fit(self, image: Tensor, path: str | Path) -> Tensor:
        """Preprocess one decoded image.

        Args:
            image: ``(channels, H, W)`` uint8.
            path: File of the image, for the message.

        Raises:
            DataError: The result is larger or smaller than that of other images.
        """
        image = self.preprocess(image[None])[0]
        if image.shape != self.shape:
            raise DataError(
                f"images have several sizes: {path} is {_size(image.shape)}, others are "
                f"{_size(self.shape)}; add `resize` and `center_crop` under data.preprocess"
            )
        return image


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]}"


@contextmanager
def _decoding_errors(path: str | Path) -> Iterator[None]:
    """Turn Pillow's exceptions into an error that names the file, and drop its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except _BROKEN as error:
        raise DataError(f"{path}: cannot be decoded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Describe an error without its path, which some of Pillow's messages repeat."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(IMAGE_FORMATS)}"
    reason = error.strerror if isinstance(error, OSError) else None
    return reason or str(error) or type(error).__name__


def _pixels(opened: Image.Image, channels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return ``(H, W, 3)`` or ``(H, W)`` pixels of an opened image."""
    image = _to_8_bits(ImageOps.exif_transpose(opened))
    image.info.pop("transparency", None)
    return np.array(image.convert("RGB" if channels == 3 else "L"))


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Keep the upper 8 of 16 bits: Pillow's own conversion of grey ones clips them to white.

    Raises:
        ValueError: The pixels have no known white.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if not image.mode.startswith("I"):
        return image
    values = np.array(image).astype(np.int64).clip(0, _MAX_16_BITS)
    return Image.fromarray((values >> 8).astype(np.uint8))
