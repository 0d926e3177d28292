"""Statistics of images: mean and standard deviation of each channel, for normalisation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from resnet_builder.data.interfaces import ImageSource, Stop, never
from resnet_builder.data.loader import WHITE
from resnet_builder.data.sources import InMemoryImages
from resnet_builder.errors import DataError, Stopped

STATISTICS_IMAGES = 10_000
"""Images that stay in files are not all read for their mean: this many, evenly spaced, are."""

_BYTES_AT_ONCE = 2**24
_FILES_AT_ONCE = 100

Moments = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, in units where white is 1."""


def channel_statistics(source: ImageSource, stop: Stop = never) -> Moments:
    """Return mean and standard deviation of each channel, over all pixels of all images.

    Not the mean of each image's deviation, which is smaller, though it is often quoted. Of images
    that stay in files at most 10,000, evenly spaced, are read. The deviation of a channel that is
    the same everywhere is 0.

    Args:
        source: Images.
        stop: Polled at every batch of them.

    Raises:
        DataError: All channels are the same everywhere.
        Stopped: ``stop`` became true.
    """
    counts = torch.zeros((), dtype=torch.int64)  # becomes (C, 256)
    for images in source.read(_statistics_batches(source)):
        if stop():
            raise Stopped("stopped while computing the images' statistics")
        channels = [channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]
        counts = counts + torch.stack(channels)
    levels, pixels = torch.arange(256, dtype=torch.float64), counts.sum(1)
    mean = counts.double() @ levels / pixels
    variance = (counts * (levels - mean[:, None]).square()).sum(1) / pixels
    if not bool((variance > 0).any()):
        raise DataError("all training images are the same everywhere; there is nothing to learn")
    return tuple((mean / WHITE).tolist()), tuple((variance.sqrt() / WHITE).tolist())


def describe_constant(channel: int, mean: Sequence[float]) -> str:
    """Return a notice of a channel that is the same in every image."""
    names = ("red", "green", "blue", "alpha")
    colour = f" ({names[channel]})" if len(mean) in {3, 4} else ""
    return (
        f"channel {channel + 1}{colour} is {round(mean[channel] * WHITE)} in every pixel of the "
        "training images; it is divided by 1, unless data.normalize says otherwise"
    )


def _statistics_batches(source: ImageSource) -> tuple[Tensor, ...]:
    """Choose the images whose pixels are counted, in batches that take little memory."""
    count = len(source)
    if isinstance(source, InMemoryImages):
        return torch.arange(count).split(max(1, _BYTES_AT_ONCE // source.images[0].numel()))
    if count <= STATISTICS_IMAGES:
        return torch.arange(count).split(_FILES_AT_ONCE)
    spaced = torch.linspace(0, count - 1, STATISTICS_IMAGES, dtype=torch.float64).long()
    return spaced.split(_FILES_AT_ONCE)
