"""Fashion-MNIST (Xiao et al. 2017), from its four compressed IDX files."""

import hashlib
import math
import struct

import torch
from torch import Tensor

from resnet_builder.data.download import Archive, fetch, read_bytes
from resnet_builder.data.interfaces import DATASETS, DatasetInfo, LoadContext, LoadedDataset
from resnet_builder.data.memory import InMemoryImages, combined, preprocessed
from resnet_builder.data.unpacking import unpacked
from resnet_builder.errors import DataError

_MIRROR = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"

FOLDERS = ("fashion_mnist", "FashionMNIST/raw")
"""Where unpacked files are looked for: in this program's own folder, and in torchvision's."""

ARCHIVES = {
    "train-images": Archive(
        f"{_MIRROR}/train-images-idx3-ubyte.gz",
        26_421_880,
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    ),
    "train-labels": Archive(
        f"{_MIRROR}/train-labels-idx1-ubyte.gz",
        29_515,
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    ),
    "t10k-images": Archive(
        f"{_MIRROR}/t10k-images-idx3-ubyte.gz",
        4_422_102,
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    ),
    "t10k-labels": Archive(
        f"{_MIRROR}/t10k-labels-idx1-ubyte.gz",
        5_148,
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
}

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

SIDE = 28

MOST_BYTES = 2**26
"""The largest of the files unpacks to 47 million bytes; one of more than this is another."""

_UNSIGNED_BYTES = 8  # the IDX format's code for its elements' type


@DATASETS.register("fashion_mnist")
class FashionMnist:
    """70,000 grey images of 28x28 pixels in 10 classes of clothing, 10,000 of them for the test."""

    facts = DatasetInfo(
        10, channels=1, image_size=SIDE, own_validation=False, training_images=60_000
    )

    def load(self, context: LoadContext) -> LoadedDataset:
        """Read the four files, downloading those that are not there.

        Raises:
            DataError: One is missing, broken or not the published one.
        """
        parts, tensors = {}, {}
        for name, archive in ARCHIVES.items():
            content = _content(archive, context)
            parts[name] = hashlib.sha256(content).hexdigest()
            sides = (SIDE, SIDE) if name.endswith("images") else ()
            tensors[name] = _parse_idx(content, archive.name, sides)
        sources = []
        for split in ("train", "t10k"):
            images, labels = tensors[f"{split}-images"], tensors[f"{split}-labels"]
            if len(images) != len(labels):
                raise DataError(f"fashion_mnist: {len(images)} images, {len(labels)} labels")
            ready = preprocessed(images[:, None], context.preprocess)
            sources.append(InMemoryImages(ready, labels.to(torch.int64)))
        return LoadedDataset(
            train=sources[0],
            validation=None,
            test=sources[1],
            classes=CLASSES,
            fingerprint=combined(parts),
            parts=parts,
        )


def _content(archive: Archive, context: LoadContext) -> bytes:
    """Return a file's bytes, uncompressed."""
    for folder in FOLDERS:
        plain = context.data_dir / folder / archive.name.removesuffix(".gz")
        if plain.is_file():
            return read_bytes(plain, MOST_BYTES)
    path = fetch(
        archive,
        context.data_dir / FOLDERS[0],
        stop=context.stop,
        report=context.report,
    )
    with unpacked(path, MOST_BYTES) as file:
        return file.read()


def _parse_idx(content: bytes, name: str, sides: tuple[int, ...]) -> Tensor:
    """Read an IDX file: two zero bytes, a type, the number of sides, the sides, the elements.

    Args:
        content: Of the file.
        name: Of the file.
        sides: What each of its elements must have, ``()`` for a number.
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTES:
        raise DataError(f"{name} is not an IDX file of bytes")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{name} ends in its header")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if not shape or not shape[0] or shape[1:] != sides:
        raise DataError(f"{name} has the shape {shape}, not {('N', *sides)}")
    if len(content) - start != math.prod(shape):
        raise DataError(f"{name} has {len(content) - start:,} elements, its header says {shape}")
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).view(*shape)
