"""Images that are held in memory, as one tensor."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from resnet_builder.data.interfaces import Preprocess, SampleCrop
from resnet_builder.device import to_device
from resnet_builder.errors import DataError

_CHUNK = 1024


class InMemoryImages:
    """A split whose images all have one size, in memory.

    Args:
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` whole numbers.

    Raises:
        DataError: A label is no whole number.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        assert images.dtype == torch.uint8
        assert images.dim() == 4
        assert len(images) == len(labels)
        self.images = images
        self._labels = whole(labels)

    @property
    def labels(self) -> Tensor:
        """``(N,)`` int64, on the CPU."""
        return self._labels

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor) -> "InMemoryImages":
        """Return a source of these images alone, in this order."""
        return InMemoryImages(self.images[indices], self._labels[indices])

    def on(self, device: torch.device) -> "InMemoryImages":
        """Return a source of these images that holds them on a device."""
        return InMemoryImages(self.images.to(device), self._labels)

    def hashes(self) -> list[int]:
        """Return a number for each image, the same where images are, within this process."""
        return [hash(pixels.tobytes()) for pixels in self.images.numpy()]

    def read(self, batches: Iterable[Tensor], crop: SampleCrop | None = None) -> Iterator[Tensor]:
        """Yield the images of each batch of indices, ``(B, C, H, W)`` uint8."""
        for indices in batches:
            images = self.images[to_device(indices, self.images.device)]
            yield images if crop is None else _cropped(images, indices, crop)


def whole(labels: Tensor) -> Tensor:
    """Return labels as ``(N,)`` int64.

    Raises:
        DataError: One is no whole number.
    """
    numbers = labels.to(torch.int64)
    wrong = (numbers != labels).nonzero()[:, 0]
    if len(wrong):
        index = int(wrong[0])
        raise DataError(f"image {index} has label {labels[index].item()}, which is no whole number")
    return numbers


def preprocessed(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Preprocess a whole split, some images at a time, so that memory holds it only twice."""
    return torch.cat([preprocess(chunk) for chunk in images.split(_CHUNK)])


def fingerprint(*tensors: Tensor, about: str = "") -> str:
    """Return a digest of tensors' bytes, shapes and types, and of a text about them."""
    digest = hashlib.sha256(about.encode())
    for tensor in tensors:
        digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.contiguous().view(-1).numpy().data)
    return digest.hexdigest()


def combined(parts: Mapping[str, str]) -> str:
    """Return a digest of the digests of parts, and of their names and order."""
    return hashlib.sha256(repr(list(parts.items())).encode()).hexdigest()


def _cropped(images: Tensor, indices: Tensor, crop: SampleCrop) -> Tensor:
    pairs = zip(images, indices.tolist(), strict=True)
    return torch.stack([crop(image, index) for image, index in pairs])
