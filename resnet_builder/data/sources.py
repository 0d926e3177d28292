"""Image sources: the images of one split, in memory or in files that are decoded when needed."""

import atexit
import hashlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resnet_builder.data.decode import ImageReader, decode_image
from resnet_builder.data.interfaces import Preprocess, SampleCrop, Stop, never
from resnet_builder.data.preprocess import to_rgb
from resnet_builder.data.transfer import to_device
from resnet_builder.errors import (
    DataError,
    ResnetBuilderError,
    ResourceError,
    Stopped,
    UsageError,
)
from resnet_builder.registry import described, import_plugin, imported_plugins, outside_error
from resnet_builder.system import safe_path

MIN_FILES_FOR_WORKERS = 2_048
"""A split of fewer files is read in this process: starting workers would take longer."""

MAX_WORKERS = 8

_POLL_SECONDS = 1
_KILLED = {-9, -7}  # SIGKILL; SIGBUS, where shared memory has run out

_CHUNK = 1024

T = TypeVar("T")
R = TypeVar("R")


class InMemoryImages:
    """A split whose images all have one size, as one tensor.

    Args:
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` whole numbers, or ``(N, K)`` of several labels an image.
        names: Names of the files that the images come from, if they are known.

    Attributes:
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` int64, or ``(N, K)`` uint8; on the CPU.
        names: Names of the files, if they are known.

    Raises:
        DataError: The images have another shape or type, or a label is not a whole number.
    """

    def __init__(self, images: Tensor, labels: Tensor, names: Sequence[str] | None = None) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4 or len(images) != len(labels):
            raise DataError(
                f"images must be (N, C, H, W) uint8 with N labels, not {tuple(images.shape)} "
                f"{images.dtype} with {len(labels)}"
            )
        self.images = images
        self.names = names
        self.labels = labels.to(torch.int64 if labels.dim() == 1 else torch.uint8)
        changed = (self.labels != labels).nonzero()[:, 0].tolist()
        if changed:
            label = labels[changed[0]].item()
            raise DataError(f"image {changed[0]} has label {label}, which is no whole number")

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> "InMemoryImages":
        """Return a source of these images alone, in this order."""
        names = None if self.names is None else [self.names[index] for index in indices.tolist()]
        return InMemoryImages(self.images[indices], self.labels[indices], names)

    def to(self, device: torch.device) -> "InMemoryImages":
        """Return a source of these images that holds them on a device."""
        return InMemoryImages(self.images.to(device), self.labels, self.names)

    def hashes(self) -> list[int]:
        """Return a number for each image, equal for equal images, within this process."""
        return [hash(pixels.tobytes()) for pixels in self.images.numpy()]

    def read(self, batches: Iterable[Tensor], crop: SampleCrop | None = None) -> Iterator[Tensor]:
        """Yield the images of each batch of indices, ``(B, C, H, W)`` uint8."""
        for indices in batches:
            images = self.images[to_device(indices % len(self), self.images.device)]
            if crop is not None:
                pairs = zip(images, indices.tolist(), strict=True)
                images = torch.stack([crop(image, index) for image, index in pairs])
            yield images


class ImageFiles:
    """A split whose images stay in their files.

    Worker processes decode ahead, one for each core but one, at most eight; the images do not
    depend on their number. They are not forked, so a script that trains must stand below
    ``if __name__ == "__main__":``.

    Args:
        paths: Image files, N of them.
        labels: ``(N,)`` int64, or ``(N, K)`` uint8; on the CPU.
        digests: ``(N, ...)`` uint8, a row for each file: its digest, which tells it from others.
        reader: Decoding and preprocessing.
        stop: Polled while worker processes are waited for.
        crops_full: Whether a random crop sees the full image, not the preprocessed one.
        ahead: Whether worker processes decode ahead; for a few images, to start them takes longer.

    Attributes:
        labels: ``(N,)`` int64, or ``(N, K)`` uint8; on the CPU.
        names: Paths of the files.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Tensor,
        digests: Tensor,
        reader: ImageReader,
        stop: Stop = never,
        *,
        crops_full: bool = True,
        ahead: bool = True,
    ) -> None:
        assert len(paths) == len(labels) == len(digests)
        self.names = self._paths = tuple(paths)
        self.labels = labels
        self._digests = digests
        self._reader = reader
        self._stop = stop
        self._how = {"crops_full": crops_full, "ahead": ahead}

    def __len__(self) -> int:
        return len(self._paths)

    def subset(self, indices: Tensor) -> "ImageFiles":
        """Return a source of these images alone, in this order."""
        paths = [self._paths[index] for index in indices.tolist()]
        labels, digests = self.labels[indices], self._digests[indices]
        return ImageFiles(paths, labels, digests, self._reader, self._stop, **self._how)

    def hashes(self) -> list[int]:
        """Return a number for each image, equal for equal files, within this process."""
        return [hash(digest.tobytes()) for digest in self._digests.numpy()]

    def read(self, batches: Iterable[Tensor], crop: SampleCrop | None = None) -> Iterator[Tensor]:
        """Yield the images of each batch of indices, ``(B, C, H, W)`` uint8.

        Raises:
            DataError: An image cannot be decoded, or is not of the others' size; or a worker
                process was lost.
            ResourceError: A worker process was killed, probably for lack of memory.
            Stopped: ``stop`` became true.
        """
        read = partial(_read_image, self._paths, self._reader, crop, self._how["crops_full"])
        if not self._how["ahead"]:
            for indices in batches:
                yield torch.stack([read(index) for index in indices.tolist()])
            return
        yield from read_ahead(self._paths, read, batches, torch.stack, stop=self._stop)


def _read_image(
    paths: Sequence[str],
    reader: ImageReader,
    crop: SampleCrop | None,
    crops_full: bool,
    index: int,
) -> Tensor:
    path = paths[index % len(paths)]
    if crop is not None and crops_full:
        # The crop takes the place of the preprocessing, but not of `to_rgb`.
        image = crop(decode_image(path, reader.channels), index)
        return to_rgb(image) if reader.shape[0] == 3 else image
    image = reader.read(path)
    reader.check_shape(image.shape, path)
    return image if crop is None else crop(image, index)


def preprocess_images(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Preprocess a whole split, some images at a time, so that memory holds it only twice."""
    return torch.cat([preprocess(chunk) for chunk in images.split(_CHUNK)])


def fingerprint(*tensors: Tensor, about: str = "") -> str:
    """Return a digest of tensors' bytes, shapes and types, and of a text about them."""
    digest = hashlib.sha256(about.encode())
    for tensor in tensors:
        digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.contiguous().view(-1).numpy().data)
    return digest.hexdigest()


def combine_fingerprints(parts: Mapping[str, str]) -> str:
    """Return a digest of the digests of parts, and of their names and order."""
    return hashlib.sha256(repr(list(parts.items())).encode()).hexdigest()


class UnexpectedReadError(Exception):
    """A fault of the program while a file was read; the message names the file."""


def read_ahead(
    paths: Sequence[str],
    read: Callable[[int], T],
    batches: Iterable[Tensor],
    combine: Callable[[list[T]], R],
    *,
    overlap: bool = True,
    stop: Stop = never,
) -> Iterator[R]:
    """Read files in batches, in order, ahead of their use.

    Args:
        paths: All files.
        read: Reads the file of an index; in worker processes, unless there are few files.
        batches: ``(B,)`` int64 indices.
        combine: Combines the results of one batch.
        overlap: Whether this process computes meanwhile. If it only waits, one worker process is
            no faster than none.
        stop: Polled while worker processes are waited for.

    Raises:
        DataError: ``read`` raised it, or a worker process was lost.
        ResourceError: A worker process was killed, as the system does when memory runs out.
        Stopped: ``stop`` became true.
        UsageError: Code of a plugin failed in ``read``.
        UnexpectedReadError: ``read`` raised another exception.
    """
    workers = _num_workers(len(paths))
    if workers == 1 and not overlap:
        workers = 0
    pending: deque[list[int]] = deque()

    def index_batches() -> Iterator[list[int]]:
        for indices in batches:
            pending.append(indices.tolist())
            yield pending[-1]

    loader = DataLoader(
        _Files(tuple(paths), read, combine),
        batch_sampler=index_batches(),
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=_start_worker,
        multiprocessing_context=_start_method() if workers else None,
        generator=torch.Generator(),  # without one, DataLoader draws from the global generator
        timeout=_POLL_SECONDS if workers else 0,
    )
    with safe_path():
        iterator = iter(loader)
    _started.update(_processes(iterator))
    try:
        while True:
            try:
                batch = next(iterator, None)
            except RuntimeError as error:  # DataLoader raises no other type of its own
                if not (workers and pending):
                    raise
                if not str(error).startswith("DataLoader timed out"):
                    path = paths[pending[0][0] % len(paths)]
                    raise _worker_lost(iterator, path, error) from error
                if stop():
                    raise Stopped("stopped while images were read") from error
                continue
            if batch is None:
                return
            if isinstance(batch, Exception):
                raise batch
            pending.popleft()
            yield batch
    finally:
        _kill(_processes(iterator))


_started: WeakSet[BaseProcess] = WeakSet()


@atexit.register
def _kill(workers: Iterable[BaseProcess] = _started) -> None:
    """End workers, whatever they wait for; Python would wait for them when it ends."""
    for worker in workers:
        worker.kill()


def _worker_lost(iterator: object, path: str, error: RuntimeError) -> ResnetBuilderError:
    """Describe the end of a worker process, which may be the system's, for lack of memory."""
    codes = {worker.exitcode for worker in _processes(iterator)}
    where = f"{path}: a process that was to read it, or one after it, was"
    if codes & _KILLED:
        return ResourceError(
            f"{where} killed, as happens when memory or shared memory runs out; end other programs"
        )
    return DataError(f"{where} lost: {error}")


def _processes(iterator: object) -> list[BaseProcess]:
    workers: list[BaseProcess] = getattr(iterator, "_workers", [])
    return workers


@dataclass(frozen=True)
class _Files(Dataset[Any]):
    """Files as torch's ``Dataset``, for worker processes.

    Errors are returned, not raised: ``DataLoader`` would put a traceback into their message.
    """

    paths: tuple[str, ...]
    read: Callable[[int], Any]
    combine: Callable[[list[Any]], Any]

    def __reduce__(self) -> Any:
        """Take along the plugins, whose classes may be part of ``read``, to a worker process."""
        fields = ForkingPickler.dumps((self.paths, self.read, self.combine))
        return _unpickled, (imported_plugins(), bytes(fields))

    def __getitems__(self, indices: list[int]) -> Any:
        results = []
        for index in indices:
            try:
                results.append(self.read(index))
            except (DataError, MemoryError) as error:
                return error
            except (Exception, SystemExit) as error:
                path = self.paths[index % len(self.paths)]
                if found := outside_error(error):
                    return UsageError(f"{path}: a plugin fails in {found}")
                unexpected = UnexpectedReadError(f"{path}: {described(error)}")
                unexpected.add_note("".join(traceback.format_exception(error)))
                return unexpected
        return self.combine(results)


def _unpickled(plugins: Mapping[str, str], fields: bytes) -> _Files:
    while True:
        try:
            return _Files(*ForkingPickler.loads(fields))
        except ModuleNotFoundError as error:
            if error.name is None or error.name not in plugins:
                raise
            import_plugin(plugins[error.name])


def _identity(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    """Ignore the terminal's interrupt, which every process receives, but end with the parent.

    Nothing else would end a worker whose parent was killed: it is a child of the fork server, and
    keeps that one alive.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only worker processes run this"
    parent.join()
    os._exit(1)


def _num_workers(files: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 0 if files < MIN_FILES_FOR_WORKERS else min(MAX_WORKERS, (cores or 1) - 1)


def _start_method() -> BaseContext:
    """Start workers without forking: a fork copies locks that other threads hold."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
