"""Decoding of image files to tensors, whatever their mode, in one documented way."""

import hashlib
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from resnet_builder.data.interfaces import Preprocess
from resnet_builder.errors import DataError
from resnet_builder.system import open_regular

RAW_ENDINGS = frozenset(
    (
        *(".3fr", ".arw", ".cr2", ".dng", ".erf", ".iiq", ".kdc", ".nef", ".nrw", ".orf"),
        *(".pef", ".raw", ".rw2", ".sr2", ".srf", ".srw"),
    )
)
"""Endings of raw photographs: TIFF files of which Pillow would read the thumbnail."""

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

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_MAX_16_BITS = 65_535
_MAX_STRIPPED = 2**28  # bytes of a file that is read again without its metadata
_PNG_START, _JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"

_TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image of each EXIF orientation is turned upright."""

_ON_THEIR_SIDE = frozenset({5, 6, 7, 8})

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

Warn = Callable[[str], None]


def decode_image(path: str | Path, channels: int, warn: Warn | None = None) -> Tensor:
    """Decode an image file.

    The image is turned upright by its EXIF orientation; of an animation the first frame is taken;
    transparency is dropped, which leaves the colours below it, unless there are four channels; of
    16 bits a channel the upper 8 are kept; CMYK is converted without a colour profile. Pillow's
    limit on the number of pixels holds. Damaged metadata cost no pixels: the image is turned only
    if its orientation can be read.

    Args:
        path: Image file.
        channels: 3 for RGB (grey is repeated), 1 for grey (colours are weighted by ITU-R 601), 4
            for RGB and alpha (255 where nothing is transparent).
        warn: Called if metadata are damaged, with a phrase that does not name the file.

    Returns:
        ``(channels, H, W)`` uint8.

    Raises:
        DataError: The file is not an image, is broken, or is suspiciously large.
    """
    with _decoding_errors(path), open_regular(path) as file:
        pixels, _ = _read_pixels(file, channels, warn)
    # numpy copies in this thread; torch would wake its thread pool for every image
    planes = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(planes.copy())


def to_grey(image: Tensor) -> Tensor:
    """Turn ``(3, H, W)`` uint8 into ``(1, H, W)``, with the weights of :func:`decode_image`."""
    grey = Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")
    return torch.from_numpy(np.array(grey)[None])


def verify_image(
    path: str | Path, channels: int, warn: Warn | None = None
) -> tuple[bytes, tuple[int, int]]:
    """Make sure that an image can be decoded, as cheaply as its format allows.

    A JPEG is read in full, but only an eighth of its side is computed.

    Args:
        path: Image file.
        channels: Number of channels, see :func:`decode_image`.
        warn: As for :func:`decode_image`.

    Returns:
        The SHA-256 of the file, 32 bytes, and the image's height and width, upright.

    Raises:
        DataError: As for :func:`decode_image`.
    """
    with _decoding_errors(path), open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0)
        _, size = _read_pixels(file, channels, warn, is_draft=True)
    return digest, size


@dataclass(frozen=True, slots=True)
class ImageReader:
    """Decoding and preprocessing of a dataset's image files; worker processes receive it.

    Attributes:
        channels: Number of channels, see :func:`decode_image`.
        preprocess: Preprocessing of the spec.
        shape: Channels, height and width of every image after preprocessing.
    """

    channels: int
    preprocess: Preprocess
    shape: tuple[int, ...]

    def read(self, path: str | Path, warn: Warn | None = None) -> Tensor:
        """Decode and preprocess an image file; see :func:`decode_image`."""
        return preprocess_image(decode_image(path, self.channels, warn), path, self.preprocess)

    def shape_after(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape of an image of a height and width after preprocessing.

        Raises:
            DataError: It would be suspiciously large.
        """
        images = torch.empty(1, self.channels, *size, dtype=torch.uint8, device="meta")
        return tuple(self.preprocess(images).shape[1:])

    def check_shape(self, shape: Sequence[int], path: str | Path) -> None:
        """Compare the shape of a preprocessed image with that of the others.

        Raises:
            DataError: It is larger or smaller.
        """
        if tuple(shape) != self.shape:
            size, others = (f"{one[1]}x{one[2]}" for one in (shape, self.shape))
            raise DataError(
                f"images have several sizes: {path} is {size} (height x width), others are "
                f"{others}; add `resize` and `center_crop` under data.preprocess"
            )


def preprocess_image(image: Tensor, path: str | Path, preprocess: Preprocess) -> Tensor:
    """Preprocess one image.

    Args:
        image: ``(C, H, W)`` uint8.
        path: File of the image, for the message.
        preprocess: Preprocessing of the spec.

    Raises:
        DataError: The result would be suspiciously large.
    """
    try:
        return preprocess(image[None])[0]
    except DataError as error:
        raise DataError(f"{path}: {error.args[0]}") from error


@contextmanager
def _decoding_errors(path: str | Path) -> Iterator[None]:
    """Turn Pillow's exceptions into an error that names the file, and raw photographs away."""
    try:
        if os.path.splitext(path)[1].lower() in RAW_ENDINGS:
            raise ValueError("it is a raw photograph; convert it to JPEG, PNG or TIFF")
        yield
    except _BROKEN as error:
        raise DataError(f"{path}: cannot be decoded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Describe an error without its path, which some of Pillow's messages repeat."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(IMAGE_FORMATS)}"
    reason = error.strerror if isinstance(error, OSError) else None
    return reason or str(error) or type(error).__name__


def _read_pixels(
    file: BinaryIO, channels: int, warn: Warn | None, *, is_draft: bool = False
) -> tuple[Pixels, tuple[int, int]]:
    """Return pixels of an open file in spite of its metadata, and the height and width.

    The pixels are ``(H, W, C)``, or ``(H, W)`` if grey; fewer, if only a draft is wanted.
    """
    try:
        pixels, size, problem = _decode(file, channels, is_draft=is_draft)
    except _BROKEN as error:
        file.seek(0)
        stripped = BytesIO(_without_metadata(file.read(_MAX_STRIPPED)))
        try:
            pixels, size, _ = _decode(stripped, channels, is_draft=is_draft)
        except _BROKEN:  # the pixels are broken, too
            raise error from None
        problem = "its metadata are damaged"
    if problem is not None and warn is not None:
        warn(problem)
    return pixels, size


def _decode(
    file: BinaryIO, channels: int, *, is_draft: bool
) -> tuple[Pixels, tuple[int, int], str | None]:
    """Return pixels, height and width, and what is wrong with the metadata.

    They are upright, if the orientation can be read.
    """
    problem = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Image.open(file, formats=IMAGE_FORMATS) as opened:
            width, height = opened.size
            if is_draft:
                opened.draft(None, (1, 1))
            opened.load()
            image: Image.Image = opened
            try:
                orientation = opened.getexif().get(ExifTags.Base.Orientation)
            except _BROKEN:
                orientation, problem = None, "its EXIF data are damaged"
            if orientation in _TURNS:
                image = image.transpose(_TURNS[orientation])
                if orientation in _ON_THEIR_SIDE:
                    width, height = height, width
            if opened.format == "TIFF" and image.mode == "I":
                raise ValueError(
                    "its pixels are numbers whose white is not known; convert it to 8 or 16 bits"
                )
            image = _to_8_bits(image)
            if channels != 4:
                image.info.pop("transparency", None)
            if image.mode == "LAB":
                image = image.convert("RGB")  # Pillow converts it to nothing else
            mode = _MODES[channels]
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    if orientation is None and any("EXIF" in str(one.message) for one in caught):
        problem = "its EXIF data are damaged"
    return pixels, (height, width), problem


def _without_metadata(content: bytes) -> bytes:
    """Return the parts of a PNG or JPEG file that pixels need, and EXIF; nothing of other formats.

    Damaged EXIF data do no harm to the decoding.
    """
    if content.startswith(_PNG_START):
        return _PNG_START + b"".join(_critical_chunks(content))
    if content.startswith(_JPEG_START):
        return _JPEG_START + b"".join(_image_segments(content))
    return b""


def _critical_chunks(png: bytes) -> Iterator[bytes]:
    start = len(_PNG_START)
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4])
        kind, body, checksum = (
            png[start + 4 : start + 8],
            png[start + 4 : end - 4],
            png[end - 4 : end],
        )
        is_exif = kind == b"eXIf" and zlib.crc32(body) == int.from_bytes(checksum)
        if kind[:1].isupper() or is_exif:  # the case tells what pixels need
            yield png[start:end]
        start = end


def _image_segments(jpeg: bytes) -> Iterator[bytes]:
    start = len(_JPEG_START)
    while jpeg[start : start + 1] == b"\xff":
        marker = jpeg[start + 1 : start + 2]
        if marker == b"\xda":  # the scans; what follows is no segment
            yield jpeg[start:]
            return
        end = start + 2 + int.from_bytes(jpeg[start + 2 : start + 4])
        is_metadata = b"\xe0" <= marker <= b"\xef" or marker == b"\xfe"
        if not is_metadata or marker in {b"\xe1", b"\xee"}:  # EXIF; Adobe's tells the colours
            yield jpeg[start:end]
        start = end


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
