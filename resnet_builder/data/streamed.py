"""Pictures that are decoded from their files each time they are needed."""

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resnet_builder.data.contract import Preprocess, SampleCrop
from resnet_builder.data.pictures import decode

FEW = 2_048
"""A split of fewer pictures is decoded in this process: starting others would take longer."""

MOST_WORKERS = 8


class StreamedSource:
    """A split whose pictures stay in their files.

    Worker processes decode ahead, one for each core but one, at most eight; what they give does
    not depend on how many there are.

    Args:
        paths: The files, N of them.
        labels: ``(N,)`` int64.
        channels: Of the decoded pictures.
        preprocess: Gives every picture the one size that the network is fed.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Tensor, channels: int, preprocess: Preprocess
    ) -> None:
        assert len(paths) == len(labels)
        self._paths = tuple(paths)
        self._labels = labels.to(torch.int64)
        self._channels = channels
        self._preprocess = preprocess

    @property
    def labels(self) -> Tensor:
        """``(N,)`` int64, on the CPU."""
        return self._labels

    def __len__(self) -> int:
        return len(self._paths)

    def take(self, indices: Tensor) -> "StreamedSource":
        """Return a source of these pictures alone, in this order."""
        paths = [self._paths[index] for index in indices.tolist()]
        return StreamedSource(paths, self._labels[indices], self._channels, self._preprocess)

    def read(self, batches: Iterable[Tensor], crop: SampleCrop | None = None) -> Iterator[Tensor]:
        """Yield the pictures of each batch of indices, ``(B, C, H, W)`` uint8.

        Raises:
            DataError: A picture cannot be decoded.
        """
        pictures = _Pictures(self._paths, self._channels, self._preprocess, crop)
        workers = self._workers()
        yield from DataLoader(
            pictures,
            batch_sampler=_AsLists(batches),
            num_workers=workers,
            multiprocessing_context=_context() if workers else None,
            generator=torch.Generator(),  # or a draw from the global one would be made
        )

    def _workers(self) -> int:
        cores = os.cpu_count() or 1
        return 0 if len(self) < FEW else min(MOST_WORKERS, cores - 1)


@dataclass(frozen=True)
class _Pictures(Dataset[Tensor]):
    """What a worker process is sent."""

    paths: tuple[Path, ...]
    channels: int
    preprocess: Preprocess
    crop: SampleCrop | None

    def __getitem__(self, index: int) -> Tensor:
        picture = decode(self.paths[index], self.channels)
        if self.crop is not None:
            return self.crop(picture, index)
        return self.preprocess(picture[None])[0]


class _AsLists:
    """Batches of indices in the form that a ``DataLoader`` wants."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return (indices.tolist() for indices in self._batches)


def _context() -> multiprocessing.context.BaseContext:
    """Start workers without forking: a fork copies locks that other threads hold."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
