"""Made-up images that can be learned, for trying things out and for tests."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from resnet_builder.data.hashing import mix, tag
from resnet_builder.data.interfaces import DATASETS, DatasetInfo, LoadContext, LoadedDataset
from resnet_builder.data.memory import InMemoryImages, fingerprint, preprocessed

Count = Annotated[int, Field(ge=1, le=1_000_000)]

_CONTRAST, _NOISE = 0.25, 0.2
_CHUNK = 1024  # images drawn at a time: their noise takes four times the memory


@DATASETS.register("synthetic")
class Synthetic:
    """One random pattern for each class, seen through noise.

    Args:
        num_classes: Number of classes.
        channels: Channels of an image.
        image_size: Height and width of an image.
        train: Training images.
        test: Test images.
        seed: Chooses patterns and noise.
    """

    def __init__(
        self,
        *,
        num_classes: Annotated[int, Field(ge=1, le=10_000)] = 10,
        channels: Annotated[int, Field(ge=1, le=16)] = 3,
        image_size: Annotated[int, Field(ge=1, le=512)] = 32,
        train: Count = 512,
        test: Count = 128,
        seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0,
    ) -> None:
        self.facts = DatasetInfo(num_classes, channels, image_size, False, training_images=train)
        self._counts = (train, test)
        self._seed = seed
        self._shape = (channels, image_size, image_size)
        self._num_classes = num_classes

    def load(self, context: LoadContext) -> LoadedDataset:
        """Draw the images."""
        generator = torch.Generator().manual_seed(mix(self._seed, tag("synthetic")) & 0xFFFFFFFF)
        patterns = torch.randn(self._num_classes, *self._shape, generator=generator)
        drawn = [self._draw(patterns, count, generator) for count in self._counts]
        sources = [
            InMemoryImages(preprocessed(images, context.preprocess), labels)
            for images, labels in drawn
        ]
        return LoadedDataset(
            train=sources[0],
            validation=None,
            test=sources[1],
            classes=tuple(f"class_{number}" for number in range(self._num_classes)),
            fingerprint=fingerprint(*(tensor for split in drawn for tensor in split)),
        )

    def _draw(
        self, patterns: Tensor, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % self._num_classes
        images = torch.empty(count, *self._shape, dtype=torch.uint8)
        for chunk, shown in zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True):
            noise = torch.randn(chunk.shape, generator=generator)
            values = 0.5 + _CONTRAST * patterns[shown] + _NOISE * noise
            chunk.copy_((values.clamp(0, 1) * 255).round())
        return images, labels
