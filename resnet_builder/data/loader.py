"""Deterministic batches: shuffled and augmented for training, in order for evaluation.

Every batch is a function of (seed, step), and every image of (seed, epoch, sample). So training
can begin at any step, and any number of processes sees the same images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from resnet_builder.data.interfaces import (
    AUGMENTATIONS,
    Augmentation,
    Batch,
    ImageSource,
    ReadTimeCrop,
    SampleCrop,
)
from resnet_builder.data.random import StatelessGenerator, balanced_draws, permutation
from resnet_builder.data.sources import InMemoryImages
from resnet_builder.data.transfer import prefetch, to_device
from resnet_builder.device import fits
from resnet_builder.errors import DataError, counted
from resnet_builder.registry import wrong_result
from resnet_builder.spec.recipe import TrainSpec
from resnet_builder.spec.schema import DataSpec

if TYPE_CHECKING:
    from resnet_builder.data.splits import DataSplits

WHITE = 255.0


@dataclass(frozen=True, slots=True)
class Shard:
    """One process's part of every batch: positions rank, rank + world_size, ...

    Attributes:
        rank: Number of the process, from 0.
        world_size: Number of processes, which divides every batch.
    """

    rank: int = 0
    world_size: int = 1

    def positions(self, batch_size: int, mixes_with: int | None) -> tuple[Tensor, Tensor]:
        """Return the positions to augment, and where this shard's own are among them.

        An image that is mixed with those that follow it needs these too: they stand right behind
        it, and after the last position of a batch follows the first.

        Args:
            batch_size: Images in a batch.
            mixes_with: How many of the following images change an image; ``None``: any.

        Returns:
            Two tensors of int64, ascending.
        """
        own = torch.arange(self.rank, batch_size, self.world_size)
        if mixes_with is None or mixes_with >= self.world_size - 1:
            return torch.arange(batch_size), own
        needed = ((own[:, None] + torch.arange(mixes_with + 1)) % batch_size).unique()
        return needed, torch.searchsorted(needed, own)


WHOLE_BATCH = Shard()
"""Shard of a single process."""


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Turn ``(B, C, H, W)`` uint8 into float32 of mean 0 and standard deviation 1.

    Args:
        images: Pixels.
        mean: ``(C,)``, in units where white is 1.
        std: ``(C,)``, in units where white is 1.
    """
    scale = 1 / (WHITE * std)
    # float() makes the only copy; the rest works in place
    return images.float().mul_(scale[:, None, None]).sub_((mean / std)[:, None, None])


class Pipeline:
    """Augmentations and normalisation of training batches, in order.

    Args:
        augmentations: Augmentations in the order of the spec.
        mean: Mean of each channel, in units where white is 1.
        std: Standard deviation of each channel, in units where white is 1.
        num_classes: Number of classes.
        seed: Seed of the recipe.
    """

    def __init__(
        self,
        augmentations: Sequence[Augmentation],
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        seed: int,
    ) -> None:
        # The place in the list is part of the name: two equal augmentations draw differently.
        named = [(op, f"{number}:{type(op).__name__}") for number, op in enumerate(augmentations)]
        first = augmentations[0] if augmentations else None
        self._crop: ReadTimeCrop | None = first if isinstance(first, ReadTimeCrop) else None
        self._named = named[1:] if self._crop is not None else named
        self._mean, self._std = torch.tensor(mean), torch.tensor(std)
        self._num_classes = num_classes
        self._seed = seed

    @property
    def mixes_with(self) -> int | None:
        """Number of following images that change an image; ``None``: any of the batch."""
        total = 0
        for operation, _ in self._named:
            one: int | None = getattr(operation, "mixes_with", None)
            if one is None:
                return None
            total += one
        return total

    def crop(self, epoch: int) -> SampleCrop | None:
        """Return the crop to take of images while they are read, if the spec begins with one."""
        if self._crop is None:
            return None
        return self._crop.for_epoch(self._seed, epoch, f"0:{type(self._crop).__name__}")

    def __call__(
        self, images: Tensor, labels: Tensor, samples: Tensor, *, epoch: int, step: int
    ) -> Batch:
        """Augment and normalise a batch.

        Args:
            images: ``(B, C, H, W)`` uint8.
            labels: ``(B,)`` int64, or ``(B, K)`` uint8 of several labels.
            samples: ``(B,)`` int64 draws of the images, on the CPU.
            epoch: Epoch, counted from 0.
            step: Step of the whole training, counted from 0.
        """
        mean = to_device(self._mean, images.device)
        several = labels.ndim == 2
        targets = labels.float() if several else labels
        fill, black = mean * WHITE, torch.zeros_like(mean)
        batch = Batch(images, targets, self._num_classes, fill, black, multi_label=several)
        for augmentation, name in self._named:
            if augmentation.works_on == "normalised":
                batch = self._normalised(batch)
            draws = StatelessGenerator(self._seed, epoch, step, samples, name, images.device)
            batch = _checked(augmentation, augmentation(batch, draws), len(samples))
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


def _checked(augmentation: Augmentation, batch: object, images: int) -> Batch:
    """Return what an augmentation has made of a batch, if the network can be trained with it.

    Raises:
        RegistryError: It is no batch, or not of as many images, or of another type.
    """
    if not isinstance(batch, Batch):
        message = f"returns {type(batch).__name__}, not a Batch"
    elif not len(batch.images) == len(batch.targets) == images:
        sizes = f"{len(batch.images)} images with {len(batch.targets)} targets"
        message = f"returns {sizes}, not {images}"
    elif batch.images.dtype not in {torch.uint8, torch.float32}:
        message = f"returns images of {batch.images.dtype}, not of uint8 or float32"
    else:
        return batch
    raise wrong_result(type(augmentation), message)


class TrainLoader:
    """Training batches by step: batch ``step`` is the same however it is reached.

    An epoch is as many full batches as the split has. The images left over, fewer than a batch,
    are others in each epoch.

    Args:
        source: Training images.
        batch_size: Images in every batch, of all processes together.
        seed: Seed of the recipe.
        sampler: ``balanced``, if each class is equally likely.
        pipeline: Augmentations and normalisation.
        device: Device on which the batches are wanted.
        shard: Part of every batch that is wanted; its images are those of the whole batch.

    Raises:
        DataError: There are fewer images than a batch has.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        batch_size: int,
        seed: int,
        sampler: Literal["uniform", "balanced"] = "uniform",
        pipeline: Pipeline,
        device: torch.device,
        shard: Shard = WHOLE_BATCH,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch(len(source), batch_size)
        self._source = source
        self._batch_size = batch_size
        self._seed = seed
        self._sampler = sampler
        self._pipeline = pipeline
        self._device = device
        self._positions, self._own = shard.positions(batch_size, pipeline.mixes_with)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yield the batches from a step of the whole training on, for ever."""
        epoch, first = divmod(start, self.steps_per_epoch)
        while True:
            yield from self._epoch(epoch, first)
            epoch, first = epoch + 1, 0

    def preview(self, count: int) -> tuple[Tensor, Tensor, Batch]:
        """Return the first images of the first batch; no more are read than these need.

        Args:
            count: Number of images; all of the batch, if that is less.

        Returns:
            ``(count,)`` draws of the images, ``(count, C, H, W)`` uint8 images as they are without
            augmentation, and the batch cut down to these images.
        """
        others, size, images = self._pipeline.mixes_with, self._batch_size, len(self._source)
        count = min(count, size)
        needed = size if others is None else min(size, count + others)
        samples = self._order(0)[:needed]
        shown = samples[:count] % images
        [plain] = self._source.read([shown])
        [pixels] = self._source.read([samples], self._pipeline.crop(0))
        batch = self._pipeline(
            pixels, self._source.labels[samples % images], samples, epoch=0, step=0
        )
        cut = replace(batch, images=batch.images[:count], targets=batch.targets[:count])
        return samples[:count], plain, cut

    def _order(self, epoch: int) -> Tensor:
        """Draws of an epoch, in their order."""
        if self._sampler == "balanced":
            return balanced_draws(self._seed, epoch, self._source.labels)
        return permutation(self._seed, epoch, len(self._source))

    def _epoch(self, epoch: int, first: int) -> Iterator[Batch]:
        size, images = self._batch_size, len(self._source)
        order = self._order(epoch)
        whole = order[first * size : self.steps_per_epoch * size].split(size)
        indices = [samples[self._positions] for samples in whole]
        # The whole epoch is asked for at once, so that files are read ahead across steps.
        read = self._source.read(indices, self._pipeline.crop(epoch))
        labels = (self._source.labels[samples % images] for samples in indices)
        labelled = zip(read, labels, strict=True)
        arrived = prefetch(labelled, self._device)
        first_step = epoch * self.steps_per_epoch + first
        for number, ((pixels, targets), samples) in enumerate(zip(arrived, indices, strict=True)):
            step = first_step + number
            batch = self._pipeline(pixels, targets, samples, epoch=epoch, step=step)
            if len(self._own) < len(samples):
                own = to_device(self._own, batch.images.device)
                batch = replace(batch, images=batch.images[own], targets=batch.targets[own])
            yield batch


def train_loader(
    data: DataSpec,
    recipe: TrainSpec,
    splits: "DataSplits",
    *,
    device: torch.device,
    shard: Shard = WHOLE_BATCH,
) -> TrainLoader:
    """Return the loader of a spec's training batches.

    Args:
        data: Section ``data``: augmentations and sampler.
        recipe: Section ``train``: seed and batch size.
        splits: Images.
        device: Device on which the batches are wanted.
        shard: Part of every batch that is wanted.

    Raises:
        DataError: There are fewer training images than a batch has.
    """
    augmentations = [AUGMENTATIONS.get(part.type)(**part.options) for part in data.augment]
    images, classes = splits.train, len(splits.classes)
    if isinstance(images, InMemoryImages) and fits(images.images.nbytes, device):
        images = images.to(device)  # no batch has to be copied to the device during training
    return TrainLoader(
        images,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        sampler=data.sampler,
        pipeline=Pipeline(augmentations, splits.mean, splits.std, classes, recipe.seed),
        device=device,
        shard=shard,
    )


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of full batches in an epoch.

    Raises:
        DataError: There is none.
    """
    if images < batch_size:
        raise DataError(
            f"a batch of {counted(batch_size, 'image')} is larger than the training set of "
            f"{counted(images, 'image')}; lower train.batch_size"
        )
    return images // batch_size


def evaluation_batches(
    source: ImageSource,
    *,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    shard: Shard = WHOLE_BATCH,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every image of a split once, in order, without augmentation.

    Args:
        source: Images of the split.
        batch_size: Images in every batch but the last, which may have fewer.
        mean: Mean of each channel, in units where white is 1.
        std: Standard deviation of each channel, in units where white is 1.
        device: Device on which the batches are wanted.
        shard: Part of the batches that is wanted: consecutive ones, so that the shards' parts, in
            the order of their ranks, make up the split.

    Yields:
        ``(B, C, H, W)`` float32 normalised images and ``(B,)`` int64 labels.
    """
    means, deviations = (torch.tensor(values, device=device) for values in (mean, std))
    indices = torch.arange(len(source)).split(batch_size)
    first = len(indices) * shard.rank // shard.world_size
    beyond = len(indices) * (shard.rank + 1) // shard.world_size
    indices = indices[first:beyond]
    labelled = zip(source.read(indices), (source.labels[some] for some in indices), strict=True)
    for images, labels in prefetch(labelled, device):
        yield normalise(images, means, deviations), labels
