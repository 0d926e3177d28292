"""Pictures that are decoded from their files each time they are needed."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resnet_builder.data.interfaces import SampleCrop
from resnet_builder.data.memory import whole
from resnet_builder.data.pictures import Reader, decode
from resnet_builder.errors import DataError

FEW = 2_048
"""A split of fewer pictures is decoded in this process: starting others would take longer."""

MOST_WORKERS = 8

T = TypeVar("T")
R = TypeVar("R")


class ImageFiles:
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

    def take(self, indices: Tensor) -> "ImageFiles":
        """Return a source of these pictures alone, in this order."""
        paths = [self._paths[index] for index in indices.tolist()]
        return ImageFiles(paths, self._labels[indices], self._digests[indices], self._reader)

    def hashes(self) -> list[int]:
        """Return a number for each picture, the same where files are, within this process."""
        return [hash(digest.tobytes()) for digest in self._digests.numpy()]

    def read(self, batches: Iterable[Tensor], crop: SampleCrop | None = None) -> Iterator[Tensor]:
        """Yield the pictures of each batch of indices, ``(B, C, H, W)`` uint8.

        Raises:
            DataError: A picture cannot be decoded, or is not of the others' size; or a process
                that decodes them was lost.
        """
        pictures = _Pictures(self._paths, self._reader, crop)
        yield from read_ahead(self._paths, pictures, batches, torch.stack)


def read_ahead(
    paths: Sequence[str],
    read: Callable[[int], T],
    batches: Iterable[Tensor],
    combine: Callable[[list[T]], R],
) -> Iterator[R]:
    """Yield what is read of each batch of files, in order.

    Args:
        paths: All files.
        read: Given an index, reads one; in worker processes, unless there are few files.
        batches: ``(B,)`` int64 indices.
        combine: Makes one thing of what was read of a batch.

    Raises:
        DataError: What ``read`` raises, or a worker process was lost.
        UnforeseenError: ``read`` raised something else.
    """
    workers = _workers(len(paths))
    waited_for: deque[list[int]] = deque()
    loader = DataLoader(
        _Files(tuple(paths), read, combine),
        batch_sampler=_Noted(batches, waited_for),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_begin,
        multiprocessing_context=_context() if workers else None,
        generator=torch.Generator(),  # or a draw from the global one would be made
    )
    with _loss_named(paths, waited_for if workers else ()):
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            waited_for.popleft()
            yield batch


class UnforeseenError(Exception):
    """A fault of ours, or of a plugin, in reading a file; it names the file."""


@contextmanager
def _loss_named(paths: Sequence[str], waited_for: Sequence[list[int]]) -> Iterator[None]:
    """Say what was read when a worker process was lost.

    Raises:
        DataError: One was.
    """
    try:
        yield
    except RuntimeError as error:  # the loader raises no other type of its own
        if not waited_for:
            raise
        raise DataError(
            f"{paths[waited_for[0][0]]}: a process that was to read it, or one after it, was "
            f"lost: {error}; it may have been killed for lack of memory, or of shared memory"
        ) from error


@dataclass(frozen=True)
class _Files(Dataset[Any]):
    """What a worker process is sent.

    It gives back what goes wrong: an error that is raised would bring its traceback along.
    """

    paths: tuple[str, ...]
    read: Callable[[int], Any]
    combine: Callable[[list[Any]], Any]

    def __getitems__(self, indices: list[int]) -> Any:
        found = []
        for index in indices:
            try:
                found.append(self.read(index))
            except (DataError, MemoryError) as error:
                return error
            except Exception as error:
                unforeseen = UnforeseenError(f"{self.paths[index]}: {error!r}")
                unforeseen.add_note("".join(traceback.format_exception(error)))
                return unforeseen
        return self.combine(found)


@dataclass(frozen=True)
class _Pictures:
    """Reads pictures by their numbers."""

    paths: tuple[str, ...]
    reader: Reader
    crop: SampleCrop | None

    def __call__(self, index: int) -> Tensor:
        picture = decode(self.paths[index], self.reader.channels)
        if self.crop is not None:
            return self.crop(picture, index)
        return self.reader.fit(picture, self.paths[index])


class _Noted:
    """Batches of indices in the form that a ``DataLoader`` wants, noted as they are handed out."""

    def __init__(self, batches: Iterable[Tensor], handed_out: deque[list[int]]) -> None:
        self._batches = batches
        self._handed_out = handed_out

    def __iter__(self) -> Iterator[list[int]]:
        for indices in self._batches:
            self._handed_out.append(indices.tolist())
            yield self._handed_out[-1]


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin(worker: int) -> None:
    """Go on when the terminal interrupts every process at once: the parent finishes its step.

    But end with it: nothing else would end a worker whose parent was killed, since it is a child
    of the process that starts workers, and keeps that one alive.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only worker processes begin"
    parent.join()
    os._exit(1)


def _workers(pictures: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 0 if pictures < FEW else min(MOST_WORKERS, (cores or 1) - 1)


def _context() -> BaseContext:
    """Start workers without forking: a fork copies locks that other threads hold."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
