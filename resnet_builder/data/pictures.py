"""Decoding picture files to tensors, whatever their mode, in one documented way."""

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

ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Files with these endings, in any case, are pictures."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a picture may be, whatever its ending; Pillow would run Ghostscript on some others."""

# What Pillow's readers raise for files that are broken, or that are none: the operating system's
# errors, and whatever their arithmetic comes to on numbers that make no sense.
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

_DEEP = 65_535


def decode(path: str | Path, channels: int) -> Tensor:
    """Decode a picture.

    It is turned upright by its EXIF orientation; of an animation the first frame is taken;
    transparency is dropped, which leaves the colours below it; of 16 bits a channel the upper 8
    are kept; CMYK is converted without a colour profile. Pillow's limit on the number of pixels
    holds.

    Args:
        path: The file.
        channels: 3 for RGB (grey is repeated), 1 for grey (colours are weighted by ITU-R 601).

    Returns:
        ``(channels, H, W)`` uint8.

    Raises:
        DataError: The file is no picture, is broken, or is suspiciously large.
    """
    with _broken_named(path), Image.open(path, formats=FORMATS) as opened:
        pixels = _pixels(opened, channels)
    # numpy's copy stays in this thread; torch's would wait for others at every picture
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)) if channels == 3 else pixels[None]
    return torch.from_numpy(planes)


def inspect(path: str | Path, channels: int) -> bytes:
    """Make sure that a picture can be decoded, as cheaply as its format allows.

    Of a JPEG everything is read, but an eighth of its side is computed.

    Args:
        path: The file.
        channels: See :func:`decode`.

    Returns:
        The SHA-256 of the file, 32 bytes.

    Raises:
        DataError: As for :func:`decode`.
    """
    with _broken_named(path), open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0)
        with Image.open(file, formats=FORMATS) as opened:
            opened.draft(None, (1, 1))
            _pixels(opened, channels)
    return digest


@contextmanager
def _broken_named(path: str | Path) -> Iterator[None]:
    """Turn what Pillow raises into an error that names the file, and drop what it warns of."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except _BROKEN as error:
        raise DataError(f"{path}: cannot be decoded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Say what is wrong with a picture, without its path, which some messages repeat."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    reason = error.strerror if isinstance(error, OSError) else None
    return reason or str(error) or type(error).__name__


def _pixels(opened: Image.Image, channels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return ``(H, W, 3)`` or ``(H, W)`` pixels of a picture that was opened."""
    picture = _eight_bits(ImageOps.exif_transpose(opened))
    picture.info.pop("transparency", None)
    return np.array(picture.convert("RGB" if channels == 3 else "L"))


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Keep the upper 8 of 16 bits: Pillow's own conversion of grey ones clips them to white.

    Raises:
        ValueError: There is no telling what is white.
    """
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if not picture.mode.startswith("I"):
        return picture
    values = np.array(picture).astype(np.int64).clip(0, _DEEP)
    return Image.fromarray((values >> 8).astype(np.uint8))


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
