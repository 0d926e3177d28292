"""Images that are held in memory, as one tensor."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from resnet_builder.data.contract import Preprocess, SampleCrop

_CHUNK = 1024


class MemorySource:
    """A split whose images all have one size, in memory.

    Args:
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        assert images.dtype == torch.uint8
        assert images.dim() == 4
        assert len(images) == len(labels)
        self.images = images
        self._labels = labels.to(torch.int64)

    @property
    def labels(self) -> Tensor:
        """``(N,)`` int64, on the CPU."""
        return self._labels

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor) -> "MemorySource":
        """Return a source of these images alone, in this order."""
        return MemorySource(self.images[indices], self._labels[indices])

    def read(self, batches: Iterable[Tensor], crop: SampleCrop | None = None) -> Iterator[Tensor]:
        """Yield the images of each batch of indices, ``(B, C, H, W)`` uint8."""
        for indices in batches:
            images = self.images[indices]
            yield images if crop is None else crop_each(images, indices, crop)


def crop_each(images: Tensor, indices: Tensor, crop: SampleCrop) -> Tensor:
    """Crop every image by its own index."""
    pairs = zip(images, indices.tolist(), strict=True)
    return torch.stack([crop(image, index) for image, index in pairs])


def preprocessed(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Preprocess a whole split, some images at a time, so that memory holds it only twice."""
    return torch.cat([preprocess(chunk) for chunk in images.split(_CHUNK)])
