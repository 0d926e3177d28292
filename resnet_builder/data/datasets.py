"""Published datasets, and a synthetic one.

CIFAR and Fashion-MNIST are downloaded and read by torchvision; ``digits`` comes with the package.
"""

import contextlib
import http.client
import io
import socket
import urllib.error
from collections.abc import Iterator
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from pydantic import Field
from torch import Tensor

from resnet_builder.data.cifar_files import (
    archives_elsewhere,
    batches_elsewhere,
    describe_files,
)
from resnet_builder.data.interfaces import DATASETS, DatasetInfo, LoadContext, LoadedDataset
from resnet_builder.data.random import hash_seed
from resnet_builder.data.sources import (
    InMemoryImages,
    combine_fingerprints,
    fingerprint,
    preprocess_images,
)
from resnet_builder.errors import (
    DataError,
    MissingDataError,
    RegistryError,
    Stopped,
    StorageError,
    UsageError,
)
from resnet_builder.spec.families import LARGE_IMAGES
from resnet_builder.spec.section import height_and_width
from resnet_builder.system import open_regular

# What urllib raises besides OSError, of which URLError and a broken connection are kinds, too.
_NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
)
# What torchvision raises for files that are missing, not the published ones, or cut short.
_DAMAGED = (AssertionError, EOFError, RuntimeError, TypeError, ValueError)


_LOCK = ".download.lock"
_POLL_SECONDS = 0.2
_STALL_SECONDS = 20.0
_MAX_NAMED = 20


class _OfTorchvision:
    """Dataset of ``torchvision.datasets``, by the name of its class there."""

    name: str

    def load(self, context: LoadContext) -> LoadedDataset:
        """Read the dataset from the data folder; it is downloaded if it is not there.

        Raises:
            DataError: It cannot be downloaded, or is damaged.
            StorageError: It cannot be written.
            Stopped: ``context.stop`` became true.
        """
        train, test = _open_or_download(self.name, context)
        sources, parts = [], {}
        for split, dataset in (("train", train), ("test", test)):
            images = torch.as_tensor(dataset.data)
            # (N, H, W, C) of CIFAR, (N, H, W) of Fashion-MNIST
            is_rgb = images.dim() == 4
            images = images.permute(0, 3, 1, 2).contiguous() if is_rgb else images[:, None]
            labels = torch.as_tensor(dataset.targets)
            parts[split] = fingerprint(images, labels)
            sources.append(InMemoryImages(preprocess_images(images, context.preprocess), labels))
        return LoadedDataset(
            train=sources[0],
            validation=None,
            test=sources[1],
            classes=tuple(train.classes),
            fingerprint=combine_fingerprints(parts),
            parts=parts,
        )


@DATASETS.register("cifar10")
class Cifar10(_OfTorchvision):
    """60,000 colour images of 32x32 pixels in 10 classes, 10,000 of them for the test.

    Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html.
    """

    name = "CIFAR10"  # in cifar-10-batches-py
    info = DatasetInfo(10, channels=3, image_size=32, own_validation=False, training_images=50_000)


@DATASETS.register("cifar100")
class Cifar100(_OfTorchvision):
    """60,000 colour images of 32x32 pixels in 100 classes, 10,000 of them for the test.

    Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html.
    """

    name = "CIFAR100"  # in cifar-100-python
    info = DatasetInfo(100, channels=3, image_size=32, own_validation=False, training_images=50_000)


@DATASETS.register("fashion_mnist")
class FashionMnist(_OfTorchvision):
    """70,000 grey images of 28x28 pixels in 10 classes of clothing, 10,000 of them for the test.

    Xiao et al. 2017, https://arxiv.org/abs/1708.07747.
    """

    name = "FashionMNIST"  # in FashionMNIST/raw
    info = DatasetInfo(10, channels=1, image_size=28, own_validation=False, training_images=60_000)


def image_sizes(dataset: str) -> dict[str, Any]:
    """Number of classes of a dataset, and pixels a side of its images, for a new spec.

    Raises:
        UsageError: There is no such dataset, or it has options that must be given.
    """
    if dataset == LARGE_IMAGES:
        return {"num_classes": 1000}
    try:
        fields = DATASETS.options(dataset).model_fields.items()
        if needed := [name for name, field in fields if field.is_required()]:
            raise UsageError(
                f"--dataset {dataset} needs {', '.join(needed)}: give --dataset image_folder "
                "or cifar10, and change `dataset` in the new file"
            )
        info = DATASETS.get(dataset)().info
    except RegistryError as error:
        meant = error.suggestion
        names = f"did you mean: {meant}" if meant else f"one of {', '.join(error.allowed)}"
        raise UsageError(f"{error}; {names}") from error
    return {"num_classes": info.num_classes, "image_size": info.image_size}


def _open_or_download(name: str, context: LoadContext) -> tuple[Any, Any]:
    """Return torchvision's training and test split.

    torchvision compares the MD5 of CIFAR's files before it unpickles them, and that of archives
    before it unpacks them.
    """
    # torchvision is imported on use: it takes longer than torch, and no spec needs it to be checked
    from torchvision import datasets

    kind: Any = getattr(datasets, name)
    folder = context.data_dir
    archive, unpacked = _places(kind, folder)
    try:
        for path in (archive, *(unpacked.iterdir() if unpacked.is_dir() else ())):
            if path.exists() and not path.is_dir():
                open_regular(path).close()  # torchvision would wait for a FIFO
        try:
            return kind(folder, train=True), kind(folder, train=False)
        except RuntimeError:  # it is not there, or its files are not the published ones
            if hasattr(kind, "tgz_md5") and (found := _open_elsewhere(kind, context)) is not None:
                return found
            if not context.verify:
                raise MissingDataError(f"there is no {name} in {folder}") from None
            with (
                _made_for_download(folder, unpacked),
                _only_process(folder / _LOCK, name, context),
                _progress(name, context),
            ):
                return kind(folder, train=True, download=True), kind(folder, train=False)
    except (*_NETWORK_ERRORS, *_DAMAGED) as error:
        lying_there = describe_files(kind, folder) if hasattr(kind, "tgz_md5") else ()
        raise DataError(
            f"cannot load {name}: {error}; {_remedy(kind, folder)}",
            *(f"  {line}" for line in islice(lying_there, _MAX_NAMED)),
        ) from error
    except OSError as error:
        raise StorageError(f"{error.filename or folder}: {error.strerror or error}") from error


def _open_elsewhere(kind: Any, context: LoadContext) -> tuple[Any, Any] | None:
    """Open a copy of CIFAR near the place where torchvision looks; an archive is unpacked there."""
    from torchvision.datasets.utils import extract_archive

    folder = context.data_dir
    for found, root in batches_elsewhere(kind, folder):
        with contextlib.suppress(RuntimeError):  # its files are not the published ones
            return found(root, train=True), found(root, train=False)
    for archive in archives_elsewhere(kind, folder):
        with _only_process(folder / _LOCK, kind.__name__, context):
            extract_archive(str(archive), str(folder))
        return kind(folder, train=True), kind(folder, train=False)
    return None


def _places(kind: Any, folder: Path) -> tuple[Path, Path]:
    """Return the archive of a dataset of torchvision, and the folder that it is unpacked into."""
    if hasattr(kind, "base_folder"):
        return folder / kind.filename, folder / kind.base_folder
    raw = folder / kind.__name__ / "raw"  # each file has its own archive, in the same folder
    return raw / "archive", raw


def _remedy(kind: Any, folder: Path) -> str:
    archive, unpacked = _places(kind, folder)
    if hasattr(kind, "tgz_md5"):
        published = f"{kind.url} (MD5 {kind.tgz_md5})"
    else:
        published = f"the four .gz files of {kind.mirrors[0]}"
    return (
        f"if {unpacked} is damaged, remove it; without a network, put {published} into "
        f"{archive.parent}"
    )


@contextlib.contextmanager
def _made_for_download(folder: Path, unpacked: Path) -> Iterator[None]:
    """Make a folder; a failure that leaves it empty removes it, and what was made around it."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            (folder / _LOCK).unlink(missing_ok=True)
        inner = [path for path in (unpacked, unpacked.parent) if path != folder]
        for path in (*inner, *made):
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()
        raise


@contextlib.contextmanager
def _only_process(path: Path, name: str, context: LoadContext) -> Iterator[None]:
    """Wait for processes that download, too: two would write into each other's file."""
    lock = FileLock(path)
    while not lock.is_locked:
        if context.stop():
            raise Stopped(f"stopped while another process downloads {name}")
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=_POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _progress(name: str, context: LoadContext) -> Iterator[None]:
    """Report a download of torchvision, which draws a bar of its own on stderr instead."""

    class Bar(io.StringIO):
        def write(self, text: str) -> int:
            context.report(f"downloading {name}", 0, 0)
            if context.stop():
                raise Stopped(f"stopped while downloading {name}")
            return len(text)

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALL_SECONDS)  # torchvision sets none, and would wait for ever
    try:
        with contextlib.redirect_stderr(Bar()):
            yield
    finally:
        socket.setdefaulttimeout(before)
    context.report(f"downloading {name}", 1, 1)


@DATASETS.register("digits")
class Digits:
    """8x8 grey handwritten digits, 1,437 for training and 360 for the test; needs no network.

    Alpaydin and Kaynak 1998, the test set of "Optical Recognition of Handwritten Digits" of the
    UCI repository, in the order of scikit-learn's ``load_digits``.
    """

    info = DatasetInfo(
        10,
        channels=1,
        image_size=8,
        own_validation=False,
        training_images=1437,
        classes=tuple(str(digit) for digit in range(10)),
    )

    def load(self, context: LoadContext) -> LoadedDataset:
        """Read the digits from the package's own file."""
        with (files("resnet_builder.data") / "digits.npz").open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            levels, labels, test = (
                torch.from_numpy(arrays[name]) for name in ("levels", "labels", "test")
            )
        images = (levels.double() * (255 / 16)).round().byte()  # 16 is white
        train = torch.ones(len(labels), dtype=torch.bool).index_fill(0, test, value=False)
        ready = preprocess_images(images[:, None], context.preprocess)
        return LoadedDataset(
            train=InMemoryImages(ready[train], labels[train]),
            validation=None,
            test=InMemoryImages(ready[test], labels[test]),
            classes=self.info.classes or (),
            fingerprint=fingerprint(images, labels, test),
        )


_Count = Annotated[int, Field(ge=1, le=1_000_000)]
_Side = Annotated[int, Field(ge=1, le=512)]

_CONTRAST, _NOISE = 0.25, 0.2
_CHUNK = 1024  # images drawn at a time: their noise takes four times the memory


@DATASETS.register("synthetic")
class Synthetic:
    """One random pattern for each class, seen through noise.

    Args:
        num_classes: Number of classes.
        channels: Channels of an image.
        image_size: Height and width of an image: one number, or [height, width].
        train: Number of training images.
        test: Number of test images.
        seed: Seed of patterns and noise.
    """

    def __init__(
        self,
        *,
        num_classes: Annotated[int, Field(ge=2, le=10_000)] = 10,
        channels: Annotated[int, Field(ge=1, le=16)] = 3,
        image_size: _Side | Annotated[tuple[_Side, _Side], Field(strict=False)] = 32,
        train: Annotated[int, Field(ge=2, le=1_000_000)] = 512,
        test: _Count = 128,
        seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0,
    ) -> None:
        self._classes = tuple(f"class_{number}" for number in range(num_classes))
        self.info = DatasetInfo(
            num_classes,
            channels,
            image_size,
            own_validation=False,
            training_images=train,
            classes=self._classes,
        )
        self._counts = (train, test)
        self._seed = seed
        self._shape = (channels, *height_and_width(image_size))
        self._num_classes = num_classes

    def load(self, context: LoadContext) -> LoadedDataset:
        """Draw the images."""
        seed = hash_seed(self._seed, "synthetic") & 0xFFFFFFFF
        generator = torch.Generator().manual_seed(seed)
        patterns = torch.randn(self._num_classes, *self._shape, generator=generator)
        drawn = [self._draw(patterns, count, generator) for count in self._counts]
        train, test = (
            InMemoryImages(preprocess_images(images, context.preprocess), labels)
            for images, labels in drawn
        )
        return LoadedDataset(
            train=train,
            validation=None,
            test=test,
            classes=self._classes,
            fingerprint=fingerprint(*(tensor for split in drawn for tensor in split)),
        )

    def _draw(
        self, patterns: Tensor, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % self._num_classes
        images = torch.empty(count, *self._shape, dtype=torch.uint8)
        for chunk, shown in zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True):
            noise = torch.randn(chunk.shape, generator=generator)
            values = 0.5 + _CONTRAST * patterns[shown] + _NOISE * noise
            chunk.copy_((values.clamp(0, 1) * 255).round())
        return images, labels
