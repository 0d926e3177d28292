"""Images and labels; importing this package registers the built-in data sets and augmentations."""

from resnet_builder.data import (
    augment,
    cifar,
    digits,
    fashion_mnist,
    image_folder,
    synthetic,
)
from resnet_builder.data.interfaces import AUGMENTATIONS, DATASETS, Augmentation, Dataset

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Augmentation",
    "Dataset",
    "augment",
    "cifar",
    "digits",
    "fashion_mnist",
    "image_folder",
    "synthetic",
]
