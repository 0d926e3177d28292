"""Augmentations: registered classes that draw, and the pure functions of batches they call."""

from resnet_builder.data.augment import color, erasing, geometry, mixing, policies

__all__ = ["color", "erasing", "geometry", "mixing", "policies"]
