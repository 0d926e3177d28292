"""From pixels to what the network is fed: augmentations and normalisation, in order."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from resnet_builder.data.hashing import HashedDraws
from resnet_builder.data.interfaces import Augmentation, Batch, CropsPictures, SampleCrop
from resnet_builder.device import to_device

WHITE = 255.0


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Turn ``(B, C, H, W)`` uint8 into float32 of mean 0 and deviation 1.

    Args:
        images: Pixels.
        mean: ``(C,)``, in units where white is 1.
        std: ``(C,)``, in units where white is 1.
    """
    scale = 1 / (WHITE * std)
    return images.float().mul_(scale[:, None, None]).sub_((mean / std)[:, None, None])


class Pipeline:
    """Augments and normalises training batches.

    Args:
        augmentations: In the order of the spec.
        mean: Of each channel, in units where white is 1.
        std: Of each channel, in units where white is 1.
        num_classes: Number of classes.
        seed: The recipe's.
    """

    def __init__(
        self,
        augmentations: Sequence[Augmentation],
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        seed: int,
    ) -> None:
        named = [(op, f"{number}:{type(op).__name__}") for number, op in enumerate(augmentations)]
        first = augmentations[0] if augmentations else None
        self._crop: CropsPictures | None = first if isinstance(first, CropsPictures) else None
        self._named = named[1:] if self._crop is not None else named
        self._mean, self._std = torch.tensor(mean), torch.tensor(std)
        self._num_classes = num_classes
        self._seed = seed

    @property
    def reach(self) -> int | None:
        """By how many of those that follow it in the batch an image is changed; None: by any."""
        total = 0
        for operation, _ in self._named:
            reach: int | None = getattr(operation, "reach", None)
            if reach is None:
                return None
            total += reach
        return total

    def crop(self, epoch: int) -> SampleCrop | None:
        """Return the crop to take of pictures while they are read, if the spec begins with one."""
        if self._crop is None:
            return None
        return self._crop.for_epoch(self._seed, epoch, f"0:{type(self._crop).__name__}")

    def __call__(
        self, images: Tensor, labels: Tensor, samples: Tensor, *, epoch: int, step: int
    ) -> Batch:
        """Augment and normalise a batch.

        Args:
            images: ``(B, C, H, W)`` uint8.
            labels: ``(B,)`` int64.
            samples: ``(B,)`` int64 indices of the images in their split, on the CPU.
            epoch: Counted from 0.
            step: Of the whole training, counted from 0.
        """
        mean = to_device(self._mean, images.device)
        batch = Batch(images, labels, self._num_classes, mean * WHITE, torch.zeros_like(mean))
        for augmentation, name in self._named:
            if augmentation.works_on == "normalised":
                batch = self._normalised(batch)
            draws = HashedDraws(self._seed, epoch, step, samples, name, images.device)
            batch = augmentation(batch, draws)
        return self._normalised(batch)

    def _normalised(self, batch: Batch) -> Batch:
        if batch.images.is_floating_point():
            return batch
        mean, std = (to_device(values, batch.images.device) for values in (self._mean, self._std))
        return replace(
            batch,
            images=normalise(batch.images, mean, std),
            fill=torch.zeros_like(mean),
            black=-mean / std,
        )
