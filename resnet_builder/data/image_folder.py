"""Pictures in folders: ``train/CLASS/...``, ``test/CLASS/...`` and maybe ``val/CLASS/...``."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from resnet_builder.data.contract import DATASETS, Facts, ImageSource, Loaded, Surroundings
from resnet_builder.data.digits import fingerprint
from resnet_builder.data.memory import MemorySource
from resnet_builder.data.pictures import ENDINGS, decode
from resnet_builder.data.streamed import StreamedSource
from resnet_builder.errors import DataError, Stopped

SMALL_PIXELS = 128 * 128
"""Pictures of at most this many pixels are decoded once and held in memory."""

MEMORY_BYTES = 4 * 1024**3
"""Unless they would take more than this."""

_SHOWN = 20
_SPLITS = ("train", "val", "test")
_JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini"}


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one split: relative paths in order, and their labels."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]


@DATASETS.register("image_folder")
class ImageFolder:
    """Your own pictures, one folder for each class.

    Small pictures are decoded once and kept in the data folder as one tensor; large ones are
    streamed from their files by worker processes.

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
        """List the folder, and decode what is small.

        Raises:
            DataError: A folder is missing or empty, classes differ between splits, or pictures
                are broken or of several sizes.
        """
        root = surroundings.data_dir / self._path
        classes, listings, ignored = _list(root, surroundings)
        notices: tuple[str, ...] = ()
        if ignored:
            notices = (f"ignored {ignored:,} hidden or foreign entries in {root}",)
        if self._is_small(root, listings, surroundings):
            sources, digest, more = self._cached(root, classes, listings, surroundings)
            notices += more
        else:
            sources, digest = self._streamed(root, classes, listings, surroundings)
        return Loaded(
            train=sources["train"],
            validation=sources.get("val"),
            test=sources.get("test"),
            classes=classes,
            fingerprint=digest,
            notices=notices,
        )

    def _is_small(
        self, root: Path, listings: dict[str, Listing], surroundings: Surroundings
    ) -> bool:
        first = decode(root / listings["train"].paths[0], self._channels)
        count = sum(len(listing.paths) for listing in listings.values())
        fed = surroundings.preprocess(first[None])
        return first[0].numel() <= SMALL_PIXELS and count * fed.numel() <= MEMORY_BYTES

    def _streamed(
        self,
        root: Path,
        classes: tuple[str, ...],
        listings: dict[str, Listing],
        surroundings: Surroundings,
    ) -> tuple[dict[str, ImageSource], str]:
        sources: dict[str, ImageSource] = {}
        for split, listing in listings.items():
            paths = [root / path for path in listing.paths]
            labels = torch.tensor(listing.labels)
            sources[split] = StreamedSource(paths, labels, self._channels, surroundings.preprocess)
        sizes = {split: _sizes(root, listing) for split, listing in listings.items()}
        return sources, _digest(classes, listings, sizes)

    def _cached(
        self,
        root: Path,
        classes: tuple[str, ...],
        listings: dict[str, Listing],
        surroundings: Surroundings,
    ) -> tuple[dict[str, ImageSource], str, tuple[str, ...]]:
        """Decode every picture, or take what an earlier run decoded of the same files."""
        stamps = {split: _stamps(root, listing) for split, listing in listings.items()}
        what = [str(root.resolve()), self._channels, repr(surroundings.preprocess)]
        key = _digest(classes, listings, stamps, what)
        path = surroundings.data_dir / "decoded" / f"{key[:32]}.safetensors"
        notices: tuple[str, ...] = ()
        images = _read_cache(path, listings)
        if images is None:
            images = {
                split: self._decode(root, listing, split, surroundings)
                for split, listing in listings.items()
            }
            notices = _write_cache(path, images)
        sources: dict[str, ImageSource] = {
            split: MemorySource(images[split], torch.tensor(listing.labels))
            for split, listing in listings.items()
        }
        tensors = [
            tensor
            for split, listing in listings.items()
            for tensor in (images[split], torch.tensor(listing.labels))
        ]
        names = hashlib.sha256(json.dumps(classes).encode()).hexdigest()
        return sources, f"{fingerprint(*tensors)}-{names[:16]}", notices

    def _decode(
        self, root: Path, listing: Listing, split: str, surroundings: Surroundings
    ) -> Tensor:
        """Decode a split; every broken picture is named before any training."""
        images: list[Tensor] = []
        broken: list[str] = []
        count = len(listing.paths)
        for number, path in enumerate(listing.paths):
            if surroundings.stop():
                raise Stopped(f"stopped while decoding {root}")
            try:
                picture = decode(root / path, self._channels)
                images.append(surroundings.preprocess(picture[None])[0])
            except DataError as error:
                broken.append(str(error))
            surroundings.report(f"decoding {split}", number + 1, count)
        if broken:
            raise DataError(_several(f"{len(broken)} pictures cannot be decoded", broken))
        _refuse_several_sizes(images, listing)
        return torch.stack(images)


def _list(
    root: Path, surroundings: Surroundings
) -> tuple[tuple[str, ...], dict[str, Listing], int]:
    """List every split, with the training split's classes for all."""
    if not (root / "train").is_dir():
        raise DataError(
            f"{root / 'train'} is no folder; image_folder needs train/CLASS/... and "
            "test/CLASS/... under data.dataset.path, which is relative to --data-dir"
        )
    ignored = 0
    found: dict[str, dict[str, list[str]]] = {}
    for split in _SPLITS:
        if (root / split).is_dir():
            found[split], passed = _classes(root, split, surroundings)
            ignored += passed
    classes = tuple(sorted(found["train"]))
    for split, folders in found.items():
        _refuse_other_classes(root / split, classes, folders)
    listings = {
        split: Listing(
            paths=tuple(path for name in classes for path in folders[name]),
            labels=tuple(label for label, name in enumerate(classes) for _ in folders[name]),
        )
        for split, folders in found.items()
    }
    return classes, listings, ignored


def _classes(
    root: Path, split: str, surroundings: Surroundings
) -> tuple[dict[str, list[str]], int]:
    """Return the pictures of each class of a split, relative to the root, and what was ignored."""
    folders: dict[str, list[str]] = {}
    ignored = 0
    for entry in sorted((root / split).iterdir()):
        if _is_junk(entry.name) or not entry.is_dir():
            ignored += 1
            continue
        pictures, others = [], 0
        for path in _files(entry, surroundings):
            if path.suffix.lower() in ENDINGS and not _is_junk(path.name):
                pictures.append(path.relative_to(root).as_posix())
            else:
                others += 1
        folders[entry.name] = sorted(pictures)
        ignored += others
    return folders, ignored


def _files(folder: Path, surroundings: Surroundings) -> Iterator[Path]:
    """Walk a folder, following links, but entering each real folder once."""
    waiting, seen = [folder], set()
    while waiting:
        if surroundings.stop():
            raise Stopped(f"stopped while listing {folder}")
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        for entry in os.scandir(here):
            if entry.is_dir():
                if not _is_junk(entry.name) and Path(entry.name).suffix.lower() not in ENDINGS:
                    waiting.append(Path(entry.path))
            else:
                yield Path(entry.path)


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name in _JUNK


def _refuse_other_classes(
    folder: Path, classes: tuple[str, ...], folders: dict[str, list[str]]
) -> None:
    for what, names in (
        ("has no folder for", set(classes) - set(folders)),
        ("has folders that train has not:", set(folders) - set(classes)),
        ("has no pictures in", {name for name in folders if not folders[name]}),
    ):
        if names:
            raise DataError(f"{folder} {what} {', '.join(sorted(names)[:_SHOWN])}")


def _refuse_several_sizes(images: list[Tensor], listing: Listing) -> None:
    shapes = Counter(tuple(image.shape[1:]) for image in images)
    if len(shapes) > 1:
        (usual, _), (other, _) = shapes.most_common(2)
        odd = next(i for i, image in enumerate(images) if tuple(image.shape[1:]) == other)
        raise DataError(
            f"pictures have several sizes: most are {usual[1]}x{usual[0]}, "
            f"{listing.paths[odd]} is {other[1]}x{other[0]}; add `resize` and `center_crop` "
            "under data.preprocess"
        )


def _several(what: str, lines: list[str]) -> str:
    more = len(lines) - _SHOWN
    shown = [what, *lines[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
    return "\n  ".join(shown)


def _sizes(root: Path, listing: Listing) -> list[int]:
    return [(root / path).stat().st_size for path in listing.paths]


def _stamps(root: Path, listing: Listing) -> list[tuple[int, int]]:
    stats = ((root / path).stat() for path in listing.paths)
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


def _digest(*what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()


def _read_cache(path: Path, listings: dict[str, Listing]) -> dict[str, Tensor] | None:
    """Read what was decoded before, unless it is not there or not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            images = {split: file.get_tensor(split) for split in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    counts = {split: len(listing.paths) for split, listing in listings.items()}
    return images if {s: len(tensor) for s, tensor in images.items()} == counts else None


def _write_cache(path: Path, images: dict[str, Tensor]) -> tuple[str, ...]:
    """Keep what was decoded, if the data folder can be written to."""
    partial = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(images, partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        return (f"decoded pictures are not kept for the next run: {error}",)
    return ()
