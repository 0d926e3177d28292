"""From a split to batches: the order of training, and every image once for evaluation."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from resnet_builder.data.hashing import permutation
from resnet_builder.data.interfaces import Batch, ImageSource
from resnet_builder.data.pipeline import Pipeline, normalise
from resnet_builder.data.share import WHOLE, Shard
from resnet_builder.device import prefetch, to_device
from resnet_builder.errors import DataError


class TrainBatches:
    """Training batches by step: batch ``step`` is the same however it is reached.

    An epoch is as many full batches as the split has; the images left over, fewer than a batch,
    are others in each epoch.

    Args:
        source: The training images.
        batch_size: Images in every batch.
        seed: The recipe's.
        pipeline: Augments and normalises.
        device: Where the batches are wanted.
        share: Which of every batch's images are wanted; these are the same as in the whole batch.

    Raises:
        DataError: There are fewer images than a batch has.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        batch_size: int,
        seed: int,
        pipeline: Pipeline,
        device: torch.device,
        share: Shard = WHOLE,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch(len(source), batch_size)
        self._source = source
        self._batch_size = batch_size
        self._seed = seed
        self._pipeline = pipeline
        self._device = device
        self._positions, self._own = share.window(batch_size, pipeline.reach)

    def starting_at(self, step: int) -> Iterator[Batch]:
        """Yield the batches of this step and those after it, for ever.

        Args:
            step: Of the whole training, counted from 0.
        """
        epoch, first = divmod(step, self.steps_per_epoch)
        while True:
            yield from self._epoch(epoch, first)
            epoch, first = epoch + 1, 0

    def _epoch(self, epoch: int, first: int) -> Iterator[Batch]:
        size = self._batch_size
        order = permutation(self._seed, epoch, len(self._source))
        whole = order[first * size : self.steps_per_epoch * size].split(size)
        batches = [samples[self._positions] for samples in whole]
        read = self._source.read(batches, self._pipeline.crop(epoch))
        labelled = zip(read, (self._source.labels[samples] for samples in batches), strict=True)
        pairs = zip(prefetch(labelled, self._device), batches, strict=True)
        for number, ((images, labels), samples) in enumerate(pairs):
            batch = self._pipeline(
                images,
                labels,
                samples,
                epoch=epoch,
                step=epoch * self.steps_per_epoch + first + number,
            )
            yield batch if len(self._own) == len(samples) else _only(batch, self._own)


def _only(batch: Batch, positions: Tensor) -> Batch:
    positions = to_device(positions, batch.images.device)
    return replace(batch, images=batch.images[positions], targets=batch.targets[positions])


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return how many full batches there are in an epoch.

    Raises:
        DataError: There is none.
    """
    if images < batch_size:
        raise DataError(
            f"{images:,} training images are fewer than one batch of {batch_size:,}; "
            "lower train.batch_size"
        )
    return images // batch_size


def evaluation_batches(
    source: ImageSource,
    *,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    share: Shard = WHOLE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every image of a split once, in order, without augmentation.

    Args:
        source: The images.
        batch_size: Images in every batch but the last, which may have fewer.
        mean: Of each channel, in units where white is 1.
        std: Of each channel, in units where white is 1.
        device: Where the batches are wanted.
        share: Which part of the batches, all in a row; the shares' parts make up the whole.

    Yields:
        ``(B, C, H, W)`` float32 normalised images and ``(B,)`` int64 labels.
    """
    means, deviations = (torch.tensor(values, device=device) for values in (mean, std))
    batches = torch.arange(len(source)).split(batch_size)
    first, beyond = (len(batches) * rank // share.of for rank in (share.rank, share.rank + 1))
    batches = batches[first:beyond]
    labelled = zip(source.read(batches), (source.labels[i] for i in batches), strict=True)
    for images, labels in prefetch(labelled, device):
        yield normalise(images, means, deviations), labels
