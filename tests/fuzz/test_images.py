"""300 image files of every kind and damage: each is read or named, by all commands alike."""

import io
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from tests.cli.experiments import call
from tests.data.folders import CLASSES, PETS, write_image
from tests.fuzz.damage import damage_bytes

SEED = 20
FILES = 300

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "WEBP": ("L", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I"),
    # formats that are not read
    "TGA": ("L", "RGB"),
    "SGI": ("L", "RGB"),
    "JPEG2000": ("L", "RGB"),
    "PCX": ("RGB",),
    "EPS": ("RGB",),
}
READ = ("PNG", "TIFF", "JPEG", "GIF", "WEBP", "BMP", "PPM")
SIZES = ((1, 1), (1, 9), (9, 1), (16, 16), (5, 7), (40, 30), (1, 3_000), (4_000, 2))
ENDINGS = {
    "PNG": (".png", ".PNG", ".apng"),
    "TIFF": (".tif", ".tiff", ".TIFF"),
    "JPEG": (".jpg", ".jpeg", ".JPG", ".jfif", ".jpe"),
    "PPM": (".ppm", ".pgm", ".pnm"),
}
OTHER_ENDINGS = ("", ".", ".png", ".jpg", ".dat", ".bild", ".写真", ".txt", ".nef", ".jpg_large")
STEMS = (
    "plain",
    "two words",
    "new\nline",
    ".hidden",
    "._resource",
    "\u202egnp.exe",
    "\u200b",
    "tab\there",
    "caf\u00e9",
    "cafe\u0301",
    "写真",
    "-dash",
    "--json",
    "'\"$(x)",
    "x" * 200,
    "[1;31mred",
)


def pixels(draw: random.Random, mode: str, size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(draw.randrange(2**32))
    if mode in {"I;16", "I", "F"}:
        kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
        return Image.fromarray(noise.integers(0, 65_536, size).astype(kinds[mode]))
    image = Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8))
    if mode == "LAB":
        return Image.merge("LAB", image.split())
    if mode == "PA":
        return image.convert("P").convert("PA")
    return image.convert(mode)


def exif(draw: random.Random) -> dict[str, Any]:
    kind = draw.choice(("none", "none", "valid", "damaged", "garbage"))
    if kind == "none":
        return {}
    block = Image.Exif()
    block[0x0112] = draw.randrange(10)
    content = block.tobytes()
    if kind == "damaged":
        content = damage_bytes(content, draw, [content])
    return {"exif": draw.randbytes(30) if kind == "garbage" else content}


def encoded(draw: random.Random, kind: str) -> bytes:
    buffer = io.BytesIO()
    image = pixels(draw, draw.choice(MODES[kind]), draw.choice(SIZES))
    how = exif(draw) if kind in {"PNG", "JPEG", "WEBP"} else {}
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def damaged(draw: random.Random, content: bytes) -> bytes:
    how = draw.choice(
        ("whole", "whole", "whole", "whole", "whole", "cut", "empty", "text", "bytes", "longer")
    )
    if how == "cut":
        return content[: draw.randrange(len(content))]
    if how == "empty":
        return b""
    if how == "text":
        return draw.choice((b"no image", b"BM P6 GIF89", b"<html></html>", b"P5 Porsche"))
    if how == "longer":
        return content + draw.randbytes(50)
    return damage_bytes(content, draw, [content]) if how == "bytes" else content


def write_files(pets: Path, draw: random.Random) -> list[Path]:
    """Write the files, and for each class an image that is sound."""
    written = []
    for split in ("train", "test"):
        for name in CLASSES:
            written.append(write_image(pets / split / name / "sound.png", 1))
    while len(written) < FILES:
        kind = draw.choice(READ if draw.random() < 0.9 else tuple(MODES))
        ending = draw.choice((*ENDINGS.get(kind, (f".{kind.lower()}",)), *OTHER_ENDINGS))
        folder = pets / draw.choice(("train", "test")) / draw.choice(CLASSES)
        if draw.random() < 0.1:
            folder /= "deeper"
            folder.mkdir(exist_ok=True)
        stem = draw.choice(STEMS)
        path = folder / f"{stem}{len(written) if draw.random() < 0.9 else ''}{ending}"
        if path.exists():
            continue
        path.write_bytes(damaged(draw, encoded(draw, kind)))
        written.append(path)
    return written


def test_each_file_is_read_or_named_by_all_commands_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pets = Path("pets")
    files = set(write_files(pets, random.Random(SEED)))
    steps = "  preprocess: [{type: resize, size: 9}, {type: center_crop, size: 9}]\n"
    Path("pets.yaml").write_text(PETS.replace("train:\n", f"{steps}train:\n", 1))

    line = ("train", "pets.yaml", "--data-dir", ".", "--out", "run")
    refused, trained = call(*line), call(*line, "--skip-bad")
    assert (refused.exit_code, trained.exit_code) == (3, 0), trained.output
    data = json.loads(Path("run", "data.json").read_text(encoding="utf-8"))
    broken = {pets / name for name in data["skipped"]}
    assert f"error: {len(broken)} images cannot be decoded" in refused.stderr

    in_folder = outcomes(call("predict", "run", pets, "--json"))
    read = {path for path, error in in_folder.items() if error is None}
    assert in_folder.keys() - read == broken
    assert len(read) == sum(data["images"].values())

    # All else is counted by its ending.
    counts = Counter(
        path.suffix.lower() or "without an ending" for path in files - in_folder.keys()
    )
    (notice,) = re.findall("passed over files that are not images: (.*)\n", trained.stderr)
    for ending, count in counts.items():
        assert f"{count} {ending} (" in notice
    assert sum(map(int, re.findall(r"(\d+) [^ ]+(?: an ending)? \(", notice))) == counts.total()
    assert len(read) > 100 < len(broken) + counts.total()

    one_by_one = outcomes(call("predict", "run", *sorted(files), "--json"))
    assert {path for path, error in one_by_one.items() if error is None} == read

    evaluated = call("evaluate", "run", "--data-dir", ".", "--skip-bad", "--json")
    assert evaluated.exit_code == 0, evaluated.output
    assert json.loads(evaluated.stdout)["images"] == data["images"]["test"]


def outcomes(result: Result) -> dict[Path, str | None]:
    """Return the error of each image that was to be predicted, if there was one."""
    assert result.exit_code in {0, 3}, result.output
    return {Path(one["path"]): one.get("error") for one in json.loads(result.stdout)["images"]}
