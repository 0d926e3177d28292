"""Images and labels; importing this package registers the built-in datasets and augmentations."""

from resnet_builder.data import augment, datasets, image_folder, image_table
from resnet_builder.data.interfaces import (
    AUGMENTATIONS,
    DATASETS,
    Augmentation,
    Dataset,
    PerImageAugmentation,
)

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Augmentation",
    "Dataset",
    "PerImageAugmentation",
    "augment",
    "datasets",
    "image_folder",
    "image_table",
]
