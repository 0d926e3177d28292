"""A folder of images, and an experiment on it, that are made in no time."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee")

PETS = """\
name: pets
model:
  num_classes: 2
  image_size: 9
  stem: {type: conv3x3, channels: 4}
  block: basic
  shortcut: pad
  stages: [{channels: 4, blocks: 1}]
data:
  dataset: {type: image_folder, path: pets}
  validation: 0
train:
  steps: 3
  batch_size: 4
  optimizer: {type: sgd, lr: 0.1}
run: {device: cpu, precision: fp32}
"""

STREAMED = """\
  preprocess: [{type: resize, size: 8}, {type: center_crop, size: 8}]
  augment: [{type: random_resized_crop, size: 8}]
"""
"""More of the data section: cropping full images keeps them in their files."""

WAYS = ("held", "streamed")


def write_image(path: Path, seed: int, size: tuple[int, int] = (9, 9)) -> Path:
    """Write an image of noise; two of one size have equally many bytes as BMP files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_pets(folder: Path, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """Write five images of each class into each split; return the dataset's folder."""
    for first, split in enumerate(splits):
        for second, name in enumerate(CLASSES):
            for number in range(5):
                seed = 100 * first + 10 * second + number
                write_image(folder / "pets" / split / name / f"{number}.bmp", seed)
    return folder / "pets"


def write_pets_spec(folder: Path, way: str = "held") -> Path:
    """Write an experiment on them whose images are held in memory, or read from files."""
    text = PETS
    if way == "streamed":
        text = text.replace("image_size: 9", "image_size: 8").replace(
            "train:\n", f"{STREAMED}train:\n"
        )
    path = folder / "pets.yaml"
    path.write_text(text, encoding="utf-8")
    return path
