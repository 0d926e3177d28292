"""Pictures that are decoded from their files each time they are needed."""

import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resnet_builder.data.contract import SampleCrop
from resnet_builder.data.memory import whole
from resnet_builder.data.pictures import Reader, decode
from resnet_builder.errors import DataError

FEW = 2_048
"""A split of fewer pictures is decoded in this process: starting others would take longer."""

MOST_WORKERS = 8


class StreamedSource:
    """A split whose pictures stay in their files.

    Worker processes decode ahead, one for each core but one, at most eight; what they give does
    not depend on how many there are. They are not forked, so that a script that trains must
    stand below ``if __name__ == "__main__":``.

    Args:
        paths: The files, N of them.
        labels: ``(N,)`` whole numbers.
        digests: ``(N, 32)`` uint8: the SHA-256 of each file.
        reader: Makes images of them.

    Raises:
        DataError: A label is no whole number.
    """

    def __init__(
        self, paths: Sequence[str], labels: Tensor, digests: Tensor, reader: Reader
    ) -> None:
        assert len(paths) == len(labels) == len(digests)
        self._paths = tuple(paths)
        self._labels = whole(labels)
        self._digests = digests
        self._reader = reader

    @property
    def labels(self) -> Tensor:
        """``(N,)`` int64, on the CPU."""
        return self._labels

    def __len__(self) -> int:
        return len(self._paths)

    def take(self, indices: Tensor) -> "StreamedSource":
        """Return a source of these pictures alone, in this order."""
        paths = [self._paths[index] for index in indices.tolist()]
        return StreamedSource(paths, self._labels[indices], self._digests[indices], self._reader)

    def hashes(self) -> list[int]:
        """Return a number for each picture, the same where files are, within this process."""
        return [hash(digest.tobytes()) for digest in self._digests.numpy()]

    def read(self, batches: Iterable[Tensor], crop: SampleCrop | None = None) -> Iterator[Tensor]:
        """Yield the pictures of each batch of indices, ``(B, C, H, W)`` uint8.

        Raises:
            DataError: A picture cannot be decoded, or is not of the others' size.
        """
        pictures = _Pictures(self._paths, self._reader, crop)
        for batch in read_ahead(pictures, batches, len(self)):
            if isinstance(batch, str):
                raise DataError(batch)
            yield batch


def read_ahead(files: Dataset[Any], batches: Iterable[Tensor], count: int) -> Iterator[Any]:
    """Yield what a data set makes of each batch of indices, in order.

    Args:
        files: Its ``__getitems__`` is called in worker processes, unless there are few files.
        batches: ``(B,)`` int64 indices.
        count: How many files there are.
    """
    workers = _workers(count)
    yield from DataLoader(
        files,
        batch_sampler=_AsLists(batches),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_interrupts_to_the_parent,
        multiprocessing_context=_context() if workers else None,
        generator=torch.Generator(),  # or a draw from the global one would be made
    )


@dataclass(frozen=True)
class _Pictures(Dataset[Tensor]):
    """What a worker process is sent."""

    paths: tuple[str, ...]
    reader: Reader
    crop: SampleCrop | None

    def __getitems__(self, indices: list[int]) -> Tensor | str:
        """Return a batch, or what is wrong: an error would bring the worker's traceback along."""
        try:
            return torch.stack([self._picture(index) for index in indices])
        except DataError as error:
            return str(error)

    def _picture(self, index: int) -> Tensor:
        picture = decode(self.paths[index], self.reader.channels)
        if self.crop is not None:
            return self.crop(picture, index)
        return self.reader.fit(picture, self.paths[index])


class _AsLists:
    """Batches of indices in the form that a ``DataLoader`` wants."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return (indices.tolist() for indices in self._batches)


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Go on when the terminal interrupts every process at once: the parent finishes its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _workers(pictures: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 0 if pictures < FEW else min(MOST_WORKERS, (cores or 1) - 1)


def _context() -> BaseContext:
    """Start workers without forking: a fork copies locks that other threads hold."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
