"""Augmentations: pure functions of batches, and the registered classes that draw for them."""

from resnet_builder.data.augment import erasing, geometry, mixing, policies

__all__ = ["erasing", "geometry", "mixing", "policies"]
