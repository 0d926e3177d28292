"""Augmentations: registered classes that draw, and the pure functions of batches they call."""

from resnet_builder.data.augment import erasing, geometry, mixing, policies

__all__ = ["erasing", "geometry", "mixing", "policies"]
