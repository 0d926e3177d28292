"""Your own pictures, in folders: ``train/CLASS/...``, ``test/CLASS/...``, maybe ``val/CLASS/...``.

They are decoded once and held in memory if they fit, else streamed from their files.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from resnet_builder.data.contract import DATASETS, Facts, ImageSource, Loaded, Surroundings
from resnet_builder.data.decoded import read_decoded, write_decoded
from resnet_builder.data.listing import Files, Listing, list_pictures
from resnet_builder.data.memory import MemorySource, fingerprint
from resnet_builder.data.pictures import Reader, decode
from resnet_builder.data.streamed import StreamedSource
from resnet_builder.errors import DataError, Stopped

MEMORY_BYTES = 4 * 1024**3
"""Data sets that take more than this after preprocessing are streamed."""

_SHOWN = 20


@DATASETS.register("image_folder")
class ImageFolder:
    """Your own pictures, one folder for each class.

    Pictures are decoded and preprocessed once, kept in the data folder and held in memory, unless
    that takes more than 4 GiB, or training cuts its images from whole pictures that are larger
    than the preprocessed ones: then worker processes decode them each time. The fingerprint is of
    what was decoded; of pictures that are streamed, it is of their names and sizes.

    Args:
        path: The folder that holds ``train``, ``test`` and maybe ``val``; relative to the data
            folder.
        channels: 3 for RGB, 1 for grey.
    """

    def __init__(
        self, *, path: Annotated[str, Field(min_length=1)], channels: Literal[1, 3] = 3
    ) -> None:
        self._path = path
        self._channels = channels
        self.facts = Facts(channels=channels)

    def load(self, surroundings: Surroundings) -> Loaded:
        """List the folder, and decode what is to be held in memory.

        Raises:
            DataError: A folder is missing or empty, classes differ between splits, or pictures
                are broken or of several sizes.
            Stopped: ``surroundings.stop`` became true.
        """
        root = surroundings.data_dir / self._path
        listing = list_pictures(root, surroundings.stop)
        first = decode(root / listing.splits["train"].names[0], self._channels)
        fed = surroundings.preprocess(first[None])[0]
        reader = Reader(self._channels, surroundings.preprocess, tuple(fed.shape))
        folder = _Folder(root, listing, reader, surroundings)
        notices: list[str] = []
        if listing.ignored:
            notices.append(f"ignored {listing.ignored:,} hidden or foreign entries in {root}")
        count = sum(len(files.names) for files in listing.splits.values())
        crops_more = surroundings.whole_pictures and first.numel() > fed.numel()
        if crops_more or count * fed.numel() > MEMORY_BYTES:
            sources, digest = folder.streamed()
        else:
            sources, digest, more = folder.held()
            notices += more
        return Loaded(
            train=sources["train"],
            validation=sources.get("val"),
            test=sources.get("test"),
            classes=listing.classes,
            fingerprint=digest,
            notices=tuple(notices),
        )


@dataclass(frozen=True, slots=True)
class _Folder:
    """Everything that the two ways to read a folder need."""

    root: Path
    listing: Listing
    reader: Reader
    surroundings: Surroundings

    def streamed(self) -> tuple[dict[str, ImageSource], str]:
        """Return sources that decode pictures when they are read, and a fingerprint."""
        sources: dict[str, ImageSource] = {}
        for split, files in self.listing.splits.items():
            paths = [str(self.root / name) for name in files.names]
            sources[split] = StreamedSource(paths, torch.tensor(files.labels), self.reader)
        sizes = [size for size, _ in self._stamps()]
        return sources, _digest(self.listing.classes, self.listing.splits, sizes)

    def held(self) -> tuple[dict[str, ImageSource], str, list[str]]:
        """Return sources in memory, a fingerprint, and what a user should know."""
        images, problem = self._decoded()
        sources: dict[str, ImageSource] = {}
        tensors: list[Tensor] = []
        for split, files in self.listing.splits.items():
            labels = torch.tensor(files.labels)
            sources[split] = MemorySource(images[split], labels)
            tensors += [images[split], labels]
        notices = [*([] if problem is None else [problem]), *_repetitions(images)]
        return sources, _digest(self.listing.classes, fingerprint(*tensors)), notices

    def _decoded(self) -> tuple[dict[str, Tensor], str | None]:
        """Decode every picture, or take what an earlier run decoded of the same files.

        Returns:
            Images by split, and why they could not be kept for later runs, if so.
        """
        splits = self.listing.splits
        place = (str(self.root.resolve()), self.reader.channels, repr(self.reader.preprocess))
        key = _digest(place, self.listing.classes, splits, self._stamps())
        path = self.surroundings.data_dir / "decoded" / f"{key[:32]}.safetensors"
        images = read_decoded(path, {split: len(files.names) for split, files in splits.items()})
        if images is not None:
            return images, None
        images = {split: self._decode(split, files) for split, files in splits.items()}
        return images, write_decoded(path, images)

    def _decode(self, split: str, files: Files) -> Tensor:
        """Decode a split; every broken picture is named before any training.

        Raises:
            DataError: Pictures are broken, or of several sizes.
        """
        count = len(files.names)
        images = torch.empty((count, *self.reader.shape), dtype=torch.uint8)
        broken: list[str] = []
        for number, name in enumerate(files.names):
            if self.surroundings.stop():
                raise Stopped(f"stopped while decoding {self.root}")
            try:
                picture = decode(self.root / name, self.reader.channels)
            except DataError as error:
                broken.append(str(error))
            else:
                images[number] = self.reader.fit(picture, name)
            self.surroundings.report(f"decoding {split}", number + 1, count)
        if broken:
            raise DataError(_several(f"{len(broken):,} pictures cannot be decoded", broken))
        return images

    def _stamps(self) -> list[tuple[int, int]]:
        """Return size and time of every file.

        Raises:
            DataError: A link leads nowhere.
        """
        stamps = []
        for files in self.listing.splits.values():
            for name in files.names:
                if self.surroundings.stop():
                    raise Stopped(f"stopped while listing {self.root}")
                try:
                    stat = (self.root / name).stat()
                except OSError as error:
                    raise DataError(f"{self.root / name}: {error.strerror or error}") from error
                stamps.append((stat.st_size, stat.st_mtime_ns))
        return stamps


def _repetitions(images: dict[str, Tensor]) -> Iterator[str]:
    """Say how many pictures to test on are, bit for bit, pictures to train on."""
    known = set(_hashes(images["train"]))
    for split in [split for split in images if split != "train"]:
        again = sum(each in known for each in _hashes(images[split]))
        if again:
            yield f"{again:,} of {len(images[split]):,} {split} pictures are training pictures too"


def _hashes(images: Tensor) -> Iterator[int]:
    return (hash(pixels.tobytes()) for pixels in images.numpy())


def _several(what: str, lines: list[str]) -> str:
    more = len(lines) - _SHOWN
    shown = [what, *lines[:_SHOWN], *([f"and {more:,} more"] if more > 0 else [])]
    return "\n  ".join(shown)


def _digest(*what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()
