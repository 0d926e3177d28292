"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from their binary archives: no pickle is read."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from resnet_builder.data.download import Archive, fetch, read_bytes
from resnet_builder.data.interfaces import DATASETS, DatasetInfo, LoadContext, LoadedDataset
from resnet_builder.data.memory import InMemoryImages, combined, preprocessed
from resnet_builder.data.unpacking import tar_files
from resnet_builder.errors import DataError

SIDE = 32
PIXELS = 3 * SIDE * SIDE

MOST_BYTES = 2**28
"""Both archives unpack to 185 million bytes; one of more than this is something else."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How one of the two archives is laid out.

    Attributes:
        archive: The published file.
        folder: Its one folder.
        train: Files of training images.
        test: Files of test images.
        names: File of class names.
        label_bytes: Bytes before an image's pixels; the last one is its label.
        num_classes: Number of classes.
    """

    archive: Archive
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    label_bytes: int
    num_classes: int


CIFAR10 = Layout(
    archive=Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test=("test_batch.bin",),
    names="batches.meta.txt",
    label_bytes=1,
    num_classes=10,
)

CIFAR100 = Layout(
    archive=Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        168_513_733,
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
    folder="cifar-100-binary",
    train=("train.bin",),
    test=("test.bin",),
    names="fine_label_names.txt",
    label_bytes=2,
    num_classes=100,
)


@DATASETS.register("cifar10")
class Cifar10:
    """60,000 colour images of 32x32 pixels in 10 classes, 10,000 of them for the test."""

    layout = CIFAR10
    facts = DatasetInfo(
        10, channels=3, image_size=SIDE, own_validation=False, training_images=50_000
    )

    def load(self, context: LoadContext) -> LoadedDataset:
        """Read the folder, or the archive, which is downloaded if neither is there.

        Raises:
            DataError: It is missing, broken or not the published one.
        """
        return _load(self.layout, context)


@DATASETS.register("cifar100")
class Cifar100(Cifar10):
    """60,000 colour images of 32x32 pixels in 100 classes, 10,000 of them for the test."""

    layout = CIFAR100
    facts = DatasetInfo(
        100, channels=3, image_size=SIDE, own_validation=False, training_images=50_000
    )


def _load(layout: Layout, context: LoadContext) -> LoadedDataset:
    files = _contents(layout, context)
    parts = {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}
    classes = tuple(files[layout.names].decode("utf-8", "replace").split())
    if len(classes) != layout.num_classes:
        raise DataError(f"{layout.names} names {len(classes)} classes, not {layout.num_classes}")
    sources = []
    for split in (layout.train, layout.test):
        parsed = [_parse(files[name], layout, name) for name in split]
        images, labels = (torch.cat(tensors) for tensors in zip(*parsed, strict=True))
        sources.append(InMemoryImages(preprocessed(images, context.preprocess), labels))
    return LoadedDataset(
        train=sources[0],
        validation=None,
        test=sources[1],
        classes=classes,
        fingerprint=combined(parts),
        parts=parts,
    )


def _contents(layout: Layout, context: LoadContext) -> dict[str, bytes]:
    """Return the files' bytes, from the folder if it is there, else from the archive."""
    wanted = (*layout.train, *layout.test, layout.names)
    folder = context.data_dir / layout.folder
    if folder.is_dir():
        return {name: read_bytes(folder / name, MOST_BYTES) for name in wanted}
    path = fetch(
        layout.archive,
        context.data_dir,
        stop=context.stop,
        report=context.report,
    )
    names = {f"{layout.folder}/{name}": name for name in wanted}
    members = tar_files(path, names, MOST_BYTES, context.stop)
    files = {names[name]: content for name, content in members}
    if missing := set(wanted) - files.keys():
        raise DataError(f"{path} does not hold {', '.join(sorted(missing))}")
    return files


def _parse(content: bytes, layout: Layout, name: str) -> tuple[Tensor, Tensor]:
    """Split a file's records of labels and pixels; each colour's plane is in row-major order."""
    record = layout.label_bytes + PIXELS
    if not content or len(content) % record:
        raise DataError(f"{name}: {len(content):,} bytes are not records of {record:,}")
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, record)
    labels = records[:, layout.label_bytes - 1].to(torch.int64)
    pixels = records[:, layout.label_bytes :].reshape(-1, 3, SIDE, SIDE).contiguous()
    return pixels, labels
