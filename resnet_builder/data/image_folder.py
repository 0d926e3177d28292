"""Image folders: ``train/CLASS/...``, ``test/CLASS/...`` and maybe ``val/CLASS/...``.

The images are decoded once and held in memory if they fit, else read from their files. Every one
of them is decoded or verified before any training, and the outcome is cached.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from resnet_builder.data.decode import (
    IMAGE_EXTENSIONS,
    ImageReader,
    decode_image,
    verify_image,
)
from resnet_builder.data.interfaces import (
    DATASETS,
    DatasetInfo,
    ImageSource,
    LoadContext,
    LoadedDataset,
    Stop,
)
from resnet_builder.data.sources import (
    ImageFiles,
    InMemoryImages,
    combine_fingerprints,
    fingerprint,
    read_ahead,
)
from resnet_builder.errors import DataError, Stopped

MAX_BYTES_IN_MEMORY = 4 * 1024**3
"""Data sets that take more than this after preprocessing are read from their files."""

SPLITS = ("train", "val", "test")

_SYSTEM_FILES = {"__MACOSX", "Thumbs.db", "desktop.ini"}
_MAX_NAMED = 20
_DIGITS_OF_PART = 16  # enough to tell that a part has changed
_DIGEST_BYTES = 32  # of SHA-256
_VERIFIED_AT_ONCE = 64
_ABANDONED_SECONDS = 3_600.0


@DATASETS.register("image_folder")
class ImageFolder:
    """Your own images, one folder for each class.

    Images are decoded and preprocessed once, cached in the data folder and held in memory, unless
    that takes more than 4 GiB, or training crops full images that are larger than the
    preprocessed ones: then worker processes decode them each time. The fingerprint is of the
    decoded images; of images that stay in their files, it is of the files.

    Args:
        path: Folder that holds ``train``, ``test`` and maybe ``val``; relative to the data folder.
        channels: 3 for RGB, 1 for grey.
    """

    def __init__(
        self, *, path: Annotated[str, Field(min_length=1)], channels: Literal[1, 3] = 3
    ) -> None:
        self._path = path
        self._channels = channels
        self.info = DatasetInfo(channels=channels)

    def load(self, context: LoadContext) -> LoadedDataset:
        """List the folder, scan every image, and hold the images in memory if they fit.

        Raises:
            DataError: A folder is missing or empty, classes differ between splits, or images
                are broken or of several sizes.
            Stopped: ``context.stop`` became true.
        """
        root = context.data_dir / self._path
        folders = find_classes(root, context.stop)
        # The first image decides the size of all, and whether they fit into memory.
        first = _first_image(root, folders, self._channels, context.stop)
        shape = context.preprocess(first[None])[0].shape
        reader = ImageReader(self._channels, context.preprocess, tuple(shape))
        needs_full_images = context.crops_while_reading and first.numel() > shape.numel()
        size = sum(len(files.names) for files in folders.splits.values()) * shape.numel()
        in_memory = not needs_full_images and size <= MAX_BYTES_IN_MEMORY

        scan, cache_problem = scan_images(root, folders, reader, context, decode=in_memory)
        if scan.broken and not context.skip_bad:
            raise _broken_images(root, scan.broken)
        usable, rows = _leave_out_broken(folders, scan)
        parts = _part_fingerprints(usable, rows)
        sources: dict[str, ImageSource] = {}
        for split, files in usable.splits.items():
            labels = torch.tensor(files.labels)
            if in_memory:
                sources[split] = InMemoryImages(rows[split], labels)
            else:
                paths = [str(root / name) for name in files.names]
                sources[split] = ImageFiles(paths, labels, rows[split], reader)
        return LoadedDataset(
            train=sources["train"],
            validation=sources.get("val"),
            test=sources.get("test"),
            classes=usable.classes,
            fingerprint=combine_fingerprints(parts),
            notices=tuple(_notices(root, folders, scan, cache_problem)),
            parts={name: digest[:_DIGITS_OF_PART] for name, digest in parts.items()},
            skipped=tuple(sorted(scan.broken)),
        )


def _first_image(root: Path, folders: "ClassFolders", channels: int, stop: Stop) -> Tensor:
    """Decode the first training image that is not broken."""
    broken: dict[str, str] = {}
    for name in folders.splits["train"].names:
        if stop():
            raise Stopped(f"stopped while decoding {root}")
        try:
            return decode_image(root / name, channels)
        except DataError as error:
            broken[name] = _without_path(error, root / name)
    raise _broken_images(root, broken)


def _leave_out_broken(
    folders: "ClassFolders", scan: "Scan"
) -> tuple["ClassFolders", Mapping[str, Tensor]]:
    """Return the images that can be decoded, and their rows of the scan."""
    if not scan.broken:
        return folders, scan.rows
    splits, rows = {}, {}
    for split, files in folders.splits.items():
        usable = [number for number, name in enumerate(files.names) if name not in scan.broken]
        names = tuple(files.names[number] for number in usable)
        labels = tuple(files.labels[number] for number in usable)
        if missing := {*files.labels} - {*labels}:
            classes = {folders.classes[label] for label in missing}
            raise DataError(f"no image in {split} can be decoded of {_shorten(classes)}")
        splits[split], rows[split] = SplitFiles(names, labels), scan.rows[split][usable]
    return replace(folders, splits=splits), rows


def _part_fingerprints(folders: "ClassFolders", rows: Mapping[str, Tensor]) -> dict[str, str]:
    """Return a digest of each class in each split."""
    parts = {}
    for split, files in folders.splits.items():
        counts = torch.tensor(files.labels).bincount().tolist()
        for name, some in zip(folders.classes, rows[split].split(counts), strict=True):
            parts[f"{split}/{name}"] = fingerprint(some)
    return parts


def _notices(
    root: Path, folders: "ClassFolders", scan: "Scan", cache_problem: str | None
) -> Iterator[str]:
    if folders.ignored:
        yield f"ignored {folders.ignored:,} hidden or foreign entries in {root}"
    if cache_problem is not None:
        yield cache_problem
    for name, reason in sorted(scan.broken.items()):
        yield f"left out {root / name}: {reason}"


def _broken_images(root: Path, broken: Mapping[str, str]) -> DataError:
    """Name the images that cannot be decoded, as far as there is room."""
    lines = [f"{root / name}: {reason}" for name, reason in sorted(broken.items())]
    count = "1 image" if len(lines) == 1 else f"{len(lines):,} images"
    shown = [
        f"{count} cannot be decoded; repair or remove them, or leave them out by --skip-bad",
        *lines[:_MAX_NAMED],
    ]
    if (more := len(lines) - _MAX_NAMED) > 0:
        shown.append(f"and {more:,} more, which --skip-bad names")
    return DataError("\n  ".join(shown))


# Listing


@dataclass(frozen=True, slots=True)
class SplitFiles:
    """Image files of one split.

    Attributes:
        names: Paths below the data set's folder, with ``/``, in the order of classes and names.
        labels: Class of each.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ClassFolders:
    """Classes and image files of a data set.

    Attributes:
        classes: Names of the training split's folders, sorted; every split has the same.
        splits: ``train``, and ``val`` and ``test`` if they are there.
        ignored: Number of entries that were passed over: hidden ones, files that are not images,
            folders and pipes named like images, and links back into the split.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, SplitFiles]
    ignored: int


def find_classes(root: Path, stop: Stop) -> ClassFolders:
    """List the classes and image files of a data set.

    Args:
        root: Folder that holds ``train``.
        stop: Polled at every folder.

    Raises:
        DataError: A folder is missing, empty or unreadable, or classes differ between splits.
        Stopped: ``stop`` became true.
    """
    if not (root / "train").is_dir():
        fault = "is not a folder" if (root / "train").exists() else "does not exist"
        raise DataError(
            f"{root / 'train'} {fault}; image_folder needs train/CLASS/... and "
            "test/CLASS/... under data.dataset.path, which is relative to --data-dir"
        )
    try:
        listed = {
            split: _list_split(root / split, stop) for split in SPLITS if (root / split).is_dir()
        }
    except OSError as error:
        raise DataError(f"{error.filename or root}: {error.strerror or error}") from error
    classes = tuple(sorted(listed["train"][0]))
    splits = {}
    for split, (images, _) in listed.items():
        _check_classes(root / split, images, set(classes))
        names: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = sorted(Path(path).relative_to(root).as_posix() for path in images[name])
            names += found
            labels += [label] * len(found)
        splits[split] = SplitFiles(tuple(names), tuple(labels))
    return ClassFolders(classes, splits, ignored=sum(ignored for _, ignored in listed.values()))


def _list_split(split: Path, stop: Stop) -> tuple[dict[str, list[str]], int]:
    """Return the image files of a split by class, and the number of entries that are ignored."""
    images: dict[str, list[str]] = {}
    ignored = 0
    entered: set[str] = set()
    for entry in _entries(split):
        if _is_hidden(entry.name) or not entry.is_dir():
            ignored += 1
        else:
            images[entry.name], passed_over = _list_class(entry.path, split, entered, stop)
            ignored += passed_over
    return images, ignored


def _list_class(folder: str, split: Path, entered: set[str], stop: Stop) -> tuple[list[str], int]:
    """Return the images in a class's folder and those below it, following links out of it."""
    images: list[str] = []
    ignored = 0
    waiting = [folder]
    while waiting:
        if stop():
            raise Stopped(f"stopped while listing {folder}")
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in entered:  # links may form loops
            continue
        entered.add(real)
        for entry in _entries(here):
            if _is_hidden(entry.name):
                ignored += 1
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS:
                # A link that leads nowhere is an error later; folders, pipes, devices are ignored.
                if entry.is_file() or not os.path.exists(entry.path):
                    images.append(entry.path)
                else:
                    ignored += 1
            elif entry.is_dir() and not _leads_into(entry, split):
                waiting.append(entry.path)
            else:
                ignored += 1
    return images, ignored


def _leads_into(entry: os.DirEntry[str], split: Path) -> bool:
    """Whether an entry is a link back into the split, where images have a class already."""
    target = Path(os.path.realpath(entry.path))
    return entry.is_symlink() and target.is_relative_to(os.path.realpath(split))


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _SYSTEM_FILES


def _check_classes(split: Path, images: Mapping[str, list[str]], classes: set[str]) -> None:
    for problem, names in (
        ("has no folder for", classes - images.keys()),
        ("has folders that train has not:", images.keys() - classes),
        ("has no images in", {name for name, paths in images.items() if not paths}),
    ):
        if names:
            raise DataError(f"{split} {problem} {_shorten(names)}")
    if not images:
        raise DataError(f"{split} has no folders; there must be one for each class")


def _shorten(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:_MAX_NAMED])
    more = len(names) - _MAX_NAMED
    return f"{shown} and {more} more" if more > 0 else shown


# Scanning


@dataclass(frozen=True, slots=True)
class Scan:
    """Outcome of decoding or verifying every image.

    Attributes:
        rows: uint8 tensors by split, a row for each image: its pixels after preprocessing, or the
            SHA-256 of its file; zeros where it is broken.
        broken: Why an image cannot be decoded, by its name.
    """

    rows: Mapping[str, Tensor]
    broken: Mapping[str, str]


def scan_images(
    root: Path, folders: ClassFolders, reader: ImageReader, context: LoadContext, *, decode: bool
) -> tuple[Scan, str | None]:
    """Decode or verify every image, unless a cached scan is of the same files.

    A file counts as changed if its size or the time of its last change has changed.

    Args:
        root: Folder that the images' names are relative to.
        folders: Images to scan.
        reader: Decoding and preprocessing.
        context: Folder of the cache, and whom to report to.
        decode: Whether the rows are decoded images, not digests of files.

    Returns:
        The scan, and why it could not be cached, if so.

    Raises:
        DataError: Images have several sizes, or one cannot be found.
        Stopped: ``context.stop`` became true.
    """
    # Names, sizes and times stand for the files: reading all of them would take minutes.
    stamps = _stamps(root, folders, context)
    how = repr(reader.preprocess) if decode else ""
    of = (str(root.resolve()), reader.channels, how, folders.splits, stamps)
    key = hashlib.sha256(repr(of).encode()).hexdigest()[:32]
    cache = context.data_dir / ("decoded" if decode else "verified") / f"{key}.safetensors"
    counts = {split: len(files.names) for split, files in folders.splits.items()}
    if (cached := _read_cache(cache, counts)) is not None:
        return cached, None
    work = _decode_all if decode else _verify_all
    scan = work(root, folders, reader, context)
    return scan, _write_cache(cache, scan)


def _read_cache(path: Path, counts: Mapping[str, int]) -> Scan | None:
    """Return the cached scan with so many images in each split, unless it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            rows = {split: file.get_tensor(split) for split in counts}
        reasons = TypeAdapter(dict[str, str]).validate_json(metadata.get("broken", ""))
    except (OSError, SafetensorError, ValueError):
        return None
    scan = Scan(rows, reasons)
    fits = all(len(rows[split]) == count for split, count in counts.items())
    return scan if fits and metadata.get("fingerprint") == _digest(scan) else None


def _write_cache(path: Path, scan: Scan) -> str | None:
    """Cache a scan; return why that failed, if so: the next run then scans again."""
    metadata = {"fingerprint": _digest(scan), "broken": json.dumps(dict(scan.broken))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(".writing-*"):  # by a process that was killed
            if left.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        # A folder of its own keeps processes that scan the same images apart.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as own:
            temporary = Path(own) / path.name
            save_file(dict(scan.rows), temporary, metadata)
            temporary.replace(path)
    except (OSError, SafetensorError) as error:
        return f"decoded images are not kept for the next run: {error}"
    return None


def _digest(scan: Scan) -> str:
    return fingerprint(*scan.rows.values(), about=repr(sorted(scan.broken.items())))


def _stamps(root: Path, folders: ClassFolders, context: LoadContext) -> list[tuple[int, int]]:
    """Return size and time of every file."""
    stamps = []
    for files in folders.splits.values():
        for name in files.names:
            _poll(context, f"stopped while listing {root}")
            try:
                stat = (root / name).stat()
            except OSError as error:
                raise DataError(f"{root / name}: {error.strerror or error}") from error
            stamps.append((stat.st_size, stat.st_mtime_ns))
    return stamps


def _decode_all(
    root: Path, folders: ClassFolders, reader: ImageReader, context: LoadContext
) -> Scan:
    rows: dict[str, Tensor] = {}
    broken: dict[str, str] = {}
    for split, files in folders.splits.items():
        count = len(files.names)
        rows[split] = torch.zeros((count, *reader.shape), dtype=torch.uint8)
        for number, name in enumerate(files.names):
            _poll(context, f"stopped while decoding {root}")
            try:
                image = reader.decode(root / name)
            except DataError as error:
                broken[name] = _without_path(error, root / name)
            else:
                rows[split][number] = reader.fit(image, name)
            context.report(f"decoding {split}", number + 1, count)
    return Scan(rows, broken)


def _verify_all(
    root: Path, folders: ClassFolders, reader: ImageReader, context: LoadContext
) -> Scan:
    """Verify every image, in worker processes if they are many."""
    names = [name for files in folders.splits.values() for name in files.names]
    paths = tuple(str(root / name) for name in names)
    batches = torch.arange(len(paths)).split(_VERIFIED_AT_ONCE)
    digests: list[bytes] = []
    broken: dict[str, str] = {}
    for results in read_ahead(paths, partial(_verify, paths, reader.channels), batches, list):
        _poll(context, f"stopped while verifying {root}")
        for result in results:
            if isinstance(result, DataError):
                name = names[len(digests)]
                broken[name] = _without_path(result, root / name)
                result = bytes(_DIGEST_BYTES)
            digests.append(result)
        context.report("verifying images", len(digests), len(names))
    rows = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8)
    counts = [len(files.names) for files in folders.splits.values()]
    by_split = rows.view(-1, _DIGEST_BYTES).split(counts)
    return Scan(dict(zip(folders.splits, by_split, strict=True)), broken)


def _verify(paths: tuple[str, ...], channels: int, index: int) -> bytes | DataError:
    try:
        return verify_image(paths[index], channels)
    except DataError as error:
        return error


def _poll(context: LoadContext, message: str) -> None:
    if context.stop():
        raise Stopped(message)


def _without_path(error: DataError, path: Path) -> str:
    """Take the path off a message: the folder may be called something else next time."""
    return str(error).removeprefix(f"{path}: ")
