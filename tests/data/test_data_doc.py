"""``docs/data.md`` says what is so."""

from pathlib import Path

from PIL import Image

from resnet_builder.data import DATASETS, cifar, image_folder, unpacking
from resnet_builder.data.cifar import CIFAR10, CIFAR100
from resnet_builder.data.fashion_mnist import FOLDERS
from resnet_builder.data.pictures import ENDINGS, FORMATS

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
FLAT = " ".join(TEXT.split())


def listed(names: tuple[str, ...], last: str) -> str:
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


def test_every_data_set_is_told() -> None:
    assert all(f"`{name}`" in TEXT for name in DATASETS.names())


def test_places_are_those_that_are_looked_at() -> None:
    for layout in (CIFAR10, CIFAR100):
        assert f"`{layout.folder}`" in TEXT
        assert f"`{layout.archive.name}`" in TEXT
    assert all(f"`{folder}`" in TEXT for folder in FOLDERS)


def test_endings_and_formats_are_those_that_are_read() -> None:
    assert listed(tuple(f"`{ending}`" for ending in sorted(ENDINGS)), "or") in FLAT
    assert listed(FORMATS, "and") in FLAT


def test_bounds_are_those_that_hold() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels" in TEXT
    assert f"({cifar.MOST_BYTES // 2**20} MiB for CIFAR)" in FLAT
    assert f"more than {unpacking.MOST_MEMBERS:,} files" in FLAT
    assert f"fits into {image_folder.MEMORY_BYTES // 2**30} GiB" in FLAT
