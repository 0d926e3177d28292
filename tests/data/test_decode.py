"""Image files of every kind, each with the one way in which it becomes pixels."""

import hashlib
import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from resnet_builder.data.decode import IMAGE_FORMATS, decode_image, to_grey, verify_image
from resnet_builder.errors import DataError
from tests.fuzz.damage import damage_bytes

GREY = (np.arange(35, dtype=np.uint8) * 7).reshape(5, 7)
RGB = np.stack([GREY, GREY // 2, 255 - GREY], axis=2)
HALF = np.full((5, 7), 128, np.uint8)
DEEP = np.arange(35, dtype=np.uint16).reshape(5, 7) * 1_927


def saved(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def png(colours: int, samples: np.ndarray) -> bytes:
    """Write a PNG of 16 bits a sample, which Pillow only reads."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, colours, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def turned(orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.fromarray(RGB), kind, exif=exif)


def palette(transparency: bytes | None = None) -> bytes:
    image = Image.fromarray(RGB).quantize(35)
    return saved(image) if transparency is None else saved(image, transparency=transparency)


def animation(kind: str) -> bytes:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    how = {"lossless": True} if kind == "WEBP" else {}
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], **how)


# The first digits of the SHA-256 of pixels in RGB.
COLOURED, GREYS = "84ab3766db8171a6", "b9cd706d35d42918"
DEEP_COLOURS, DEEP_GREYS = "709781d7f6598ca8", "e5d8270bbb51e285"
QUARTER = "07bc1ec33bb0c070"

FILES: dict[str, tuple[bytes, str]] = {
    # name: (the file, what it becomes)
    "grey": (saved(Image.fromarray(GREY)), GREYS),
    "grey-and-alpha": (saved(Image.fromarray(np.dstack([GREY, HALF]))), GREYS),
    "one-bit": (saved(Image.fromarray(GREY > 100)), "6f05ce89a3b38097"),
    "rgb": (saved(Image.fromarray(RGB)), COLOURED),
    "rgba": (saved(Image.fromarray(np.dstack([RGB, HALF]))), COLOURED),
    "palette": (palette(), COLOURED),
    "palette-with-transparency": (palette(bytes(range(0, 245, 7))), COLOURED),
    "palette-with-one-clear-colour": (palette(b"\0"), COLOURED),
    "cmyk-tiff": (
        saved(Image.fromarray(np.dstack([RGB, HALF]), "CMYK"), "TIFF"),
        "989599663587cc6a",
    ),
    "cmyk-jpeg": (
        saved(Image.new("CMYK", (8, 8), (255, 0, 0, 51)), "JPEG", quality=100),
        "e53627d642d7884a",
    ),
    "16-bit-grey": (saved(Image.fromarray(DEEP)), DEEP_GREYS),
    "16-bit-grey-tiff": (saved(Image.fromarray(DEEP), "TIFF"), DEEP_GREYS),
    "16-bit-grey-and-alpha": (png(4, np.dstack([DEEP, DEEP])), DEEP_GREYS),
    "16-bit-rgb": (png(2, np.dstack([DEEP, DEEP // 2, DEEP // 3])), DEEP_COLOURS),
    "16-bit-rgba": (png(6, np.dstack([DEEP, DEEP // 2, DEEP // 3, DEEP])), DEEP_COLOURS),
    "exif-1": (turned(1), COLOURED),
    "exif-2": (turned(2), "f4f70748f92bd1df"),
    "exif-3": (turned(3), "541a6f1c231c80ef"),
    "exif-4": (turned(4), "30c0e90076d5b824"),
    "exif-5": (turned(5), "014401dac8abb797"),
    "exif-6": (turned(6), QUARTER),
    "exif-7": (turned(7), "6b83c4d3c39b2533"),
    "exif-8": (turned(8), "c6d8bc10ea43177f"),
    "exif-tiff": (turned(6, "TIFF"), QUARTER),
    "animated-gif": (animation("GIF"), COLOURED),
    "animated-webp": (animation("WEBP"), COLOURED),
    "bmp": (saved(Image.fromarray(RGB), "BMP"), COLOURED),
    "ppm": (saved(Image.fromarray(RGB), "PPM"), COLOURED),
}


def pixels_of(content: bytes, folder: Path, channels: int = 3) -> Tensor:
    path = folder / "x.png"  # the content tells what it is, not the ending
    path.write_bytes(content)
    return decode_image(path, channels)


def digest(pixels: Tensor) -> str:
    text = str(tuple(pixels.shape)).encode()
    return hashlib.sha256(text + pixels.numpy().tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", FILES)
def test_image_file_becomes_these_pixels_and_no_others(name: str, tmp_path: Path) -> None:
    content, wanted = FILES[name]
    assert digest(pixels_of(content, tmp_path)) == wanted


def test_digests_are_of_the_pixels_that_were_meant() -> None:
    def of(pixels: np.ndarray) -> str:
        return digest(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))

    deep = np.dstack([DEEP, DEEP // 2, DEEP // 3]) >> 8
    assert of(RGB) == COLOURED
    assert of(np.dstack([GREY] * 3)) == GREYS
    assert of(np.rot90(RGB, -1)) == QUARTER
    assert of(deep.astype(np.uint8)) == DEEP_COLOURS
    assert of(np.dstack([deep[:, :, 0]] * 3).astype(np.uint8)) == DEEP_GREYS


def test_alpha_is_kept_as_the_fourth_of_four_channels(tmp_path: Path) -> None:
    opaque = np.full_like(HALF, 255)
    for name, alpha in (
        ("rgba", HALF),
        ("grey-and-alpha", HALF),
        ("rgb", opaque),
        ("grey", opaque),
        ("palette", opaque),
        ("cmyk-tiff", opaque),
        ("16-bit-rgb", opaque),
        ("16-bit-grey-tiff", opaque),
        ("bmp", opaque),
    ):
        found = pixels_of(FILES[name][0], tmp_path, 4)
        assert torch.equal(found[:3], pixels_of(FILES[name][0], tmp_path)), name
        assert torch.equal(found[3], torch.from_numpy(alpha)), name
    for name in ("palette-with-transparency", "palette-with-one-clear-colour"):
        found = pixels_of(FILES[name][0], tmp_path, 4)
        assert torch.equal(found[:3], pixels_of(FILES[name][0], tmp_path)), name
        assert found[3].min() == 0, name


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    found = pixels_of(saved(Image.fromarray(ramp)), tmp_path, channels=1)
    assert torch.equal(found[0], torch.arange(256).byte()[:, None].expand(256, 256))


def test_grey_is_asked_for_by_the_number_of_channels(tmp_path: Path) -> None:
    for name in ("grey", "grey-and-alpha"):
        assert torch.equal(pixels_of(FILES[name][0], tmp_path, 1)[0], torch.from_numpy(GREY))
    lab = saved(Image.new("LAB", (3, 2), (90, 0, 0)), "TIFF")
    assert torch.equal(pixels_of(lab, tmp_path, 1), to_grey(pixels_of(lab, tmp_path)))
    found = pixels_of(FILES["rgb"][0], tmp_path, 1)[0].numpy()
    weighted = RGB.astype(float) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(found - weighted).max() <= 1


def test_decoded_colours_become_the_grey_that_the_file_becomes(tmp_path: Path) -> None:
    path = tmp_path / "image"
    for name, (content, _) in FILES.items():
        path.write_bytes(content)
        assert torch.equal(to_grey(decode_image(path, 3)), decode_image(path, 1)), name


def test_other_formats_are_not_read(tmp_path: Path) -> None:
    """Pillow hands an EPS to Ghostscript, whatever the file is called."""
    assert not {"EPS", "PSD", "FITS"} & set(IMAGE_FORMATS)
    with pytest.raises(DataError, match="it is none of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"):
        pixels_of(saved(Image.fromarray(RGB), "EPS"), tmp_path)


def test_bomb_is_refused_by_the_limit_of_pillow(tmp_path: Path) -> None:
    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    body = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1_000_000)), (b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in body)
    path = tmp_path / "x.png"
    path.write_bytes(bomb)
    for read in (decode_image, verify_image):
        with pytest.raises(DataError, match=r"x\.png: cannot be decoded: .*decompression bomb"):
            read(path, 3)


def test_warnings_of_pillow_are_not_shown(tmp_path: Path) -> None:
    """Warnings are errors in these tests."""
    content = turned(6, "JPEG").replace(b"Exif\0\0MM\0*", b"Exif\0\0MM\0\0")
    assert pixels_of(content, tmp_path).shape == (3, 5, 7)


JPEGS = [
    saved(Image.fromarray(RGB).resize((40, 30)), "JPEG", progressive=progressive)
    for progressive in (False, True)
]


@pytest.mark.parametrize("seed", range(2))
def test_damaged_images_are_refused_or_decoded(seed: int, tmp_path: Path) -> None:
    """Verifying an image finds what decoding it would find."""
    draw = random.Random(seed)
    corpus = [*JPEGS, *(content for content, _ in FILES.values())]
    path = tmp_path / "x.png"
    outcomes: list[bool] = []
    for _ in range(250):
        path.write_bytes(damage_bytes(draw.choice(corpus), draw, corpus))
        outcomes.append(fails(decode_image, path))
        assert fails(verify_image, path) == outcomes[-1]
    assert 10 < outcomes.count(False) < 240
    for start in (b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"\xff\xd8\xff", b"BM", b"P6\n"):
        path.write_bytes(start + draw.randbytes(draw.randrange(300)))
        assert fails(decode_image, path)
        assert fails(verify_image, path)


def fails(read: Callable[[Path, int], object], path: Path) -> bool:
    try:
        read(path, 3)
    except DataError as error:
        return str(error).startswith(f"{path}: cannot be decoded: ")
    return False


def with_chunk(kind: bytes, body: bytes, *, checksum: bool = True) -> bytes:
    """Return a PNG file with one more chunk, before its pixels."""
    content = saved(Image.fromarray(RGB))
    added = chunk(kind, body)
    return content[:33] + (added if checksum else added[:-4] + b"\0\0\0\0") + content[33:]


def exif_block(*entries: bytes) -> bytes:
    return b"MM\0*" + struct.pack(">IH", 8, len(entries)) + b"".join(entries) + b"\0\0\0\0"


def with_segment(marker: int, body: bytes) -> bytes:
    """Return a JPEG file with one more segment."""
    return JPEG[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + JPEG[2:]


JPEG = saved(Image.fromarray(RGB), "JPEG")
ORIENTATION_6 = struct.pack(">HHIHH", 0x112, 3, 1, 6, 0)
OVERLONG = b"key\0\0" + zlib.compress(bytes(2_000_000))
FAR = b"MM\0*\xff\xff\xff\xff"
DAMAGED_METADATA = {
    "png-exif": with_chunk(b"eXIf", b"garbage"),
    "png-exif-that-points-nowhere": with_chunk(b"eXIf", FAR),
    "png-exif-checksum": with_chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0", checksum=False),
    "png-profile": with_chunk(b"iCCP", b"x"),
    "png-long-text": with_chunk(b"zTXt", OVERLONG),
    "png-gamma": with_chunk(b"gAMA", b""),
    "png-transparency": with_chunk(b"tRNS", b""),
    "png-animation": with_chunk(b"acTL", b""),
    "webp-exif": saved(Image.fromarray(RGB), "WEBP", lossless=True, exif=b"garbage"),
    "jpeg-exif-that-points-nowhere": with_segment(0xE1, b"Exif\0\0" + FAR),
    "jpeg-profile": with_segment(0xE2, b"ICC_PROFILE\0\1"),
    "jpeg-header": with_segment(0xE0, b"JFIF"),
}


@pytest.mark.parametrize("name", DAMAGED_METADATA)
def test_damaged_metadata_cost_no_pixels(name: str, tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "x"
    path.write_bytes(DAMAGED_METADATA[name])
    pixels = decode_image(path, 3, told.append)
    if not name.startswith("jpeg"):
        assert digest(pixels) == COLOURED
    else:
        assert torch.equal(pixels, pixels_of(JPEG, tmp_path))
    assert told == ["its EXIF data are damaged"] or told == ["its metadata are damaged"]
    verify_image(path, 3, told.append)
    assert told[0] == told[1]


def test_orientation_is_read_beside_a_tag_that_cannot_be_written_back(tmp_path: Path) -> None:
    """Orientation 6, and a comment whose place lies beyond the file."""
    block = exif_block(ORIENTATION_6, struct.pack(">HHII", 0x9286, 7, 99, 9_999))
    assert digest(pixels_of(with_chunk(b"eXIf", block), tmp_path)) == QUARTER


def test_orientation_is_read_beside_other_damaged_metadata(tmp_path: Path) -> None:
    png = with_chunk(b"eXIf", exif_block(ORIENTATION_6))
    assert digest(pixels_of(png[:33] + chunk(b"gAMA", b"") + png[33:], tmp_path)) == QUARTER
    jpeg = with_segment(0xE1, b"Exif\0\0" + exif_block(ORIENTATION_6))
    broken = jpeg[:2] + b"\xff\xe0\0\6JFIF" + jpeg[2:]
    assert torch.equal(pixels_of(broken, tmp_path), pixels_of(jpeg, tmp_path))


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_orientation_that_does_not_exist_turns_nothing(orientation: int, tmp_path: Path) -> None:
    assert digest(pixels_of(turned(orientation), tmp_path)) == COLOURED


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_only_regular_files_are_decoded(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", "device.png", "."):
        path = tmp_path / name
        if name == "device.png":
            path.symlink_to("/dev/zero")
        with pytest.raises(DataError, match=r"cannot be decoded: it is a .*, not a regular file"):
            decode_image(path, 3)


def test_thumbnail_of_a_raw_photograph_is_not_its_image(tmp_path: Path) -> None:
    path = tmp_path / "x.NEF"
    path.write_bytes(FILES["exif-tiff"][0])
    with pytest.raises(DataError, match="it is a raw photograph; convert it"):
        decode_image(path, 3)


def test_pixels_without_a_white_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="floating-point"):
        pixels_of(saved(Image.new("F", (2, 2), 0.5), "TIFF"), tmp_path)
    with pytest.raises(DataError, match="numbers whose white is not known; convert it to 8 or 16"):
        pixels_of(saved(Image.new("I", (2, 2), 200), "TIFF"), tmp_path)
