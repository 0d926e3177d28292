"""Image folders: ``train/CLASS/...``, ``test/CLASS/...`` and maybe ``val/CLASS/...``.

The images are decoded once and held in memory if they fit, else read from their files. Every one
of them is decoded or verified before any training, and the outcome is cached.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from filelock import FileLock
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from resnet_builder.data.class_folders import Images, find_classes, shorten
from resnet_builder.data.decode import ImageReader, decode_image, preprocess_image, verify_image
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
from resnet_builder.errors import DataError, Stopped, counted
from resnet_builder.system import open_regular

MAX_BYTES_IN_MEMORY = 4 * 1024**3
"""Data sets that take more than this after preprocessing are read from their files."""

_MAX_NAMED = 20
_DIGITS_OF_PART = 16  # enough to tell that a part has changed
_DIGEST_BYTES = 32  # of SHA-256
_READ_AT_ONCE = 16
_LOCK_SECONDS = 5.0


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

    def inspect(self, data_dir: Path, stop: Stop) -> DatasetInfo:
        """List the folder, without decoding an image.

        Raises:
            DataError: A folder is missing or empty, or classes differ between splits.
            Stopped: ``stop`` became true.
        """
        found = find_classes(data_dir / self._path, stop)
        training = found.splits["train"]
        return DatasetInfo(
            num_classes=len(training),
            channels=self._channels,
            own_validation="val" in found.splits,
            training_images=len(_names(training)),
            classes=tuple(training),
            notices=found.notices,
        )

    def load(self, context: LoadContext) -> LoadedDataset:
        """List the folder, scan every image, and hold the images in memory if they fit.

        Raises:
            DataError: A folder is missing or empty, classes differ between splits, or images
                are broken or of several sizes.
            Stopped: ``context.stop`` became true.
        """
        root = context.data_dir / self._path
        found = find_classes(root, context.stop)
        names = [name for images in found.splits.values() for name in _names(images)]
        # The first image decides the size of all, and whether they fit into memory.
        full, first = _first_image(root, _names(found.splits["train"]), self._channels, context)
        reader = ImageReader(self._channels, context.preprocess, tuple(first.shape))
        needs_full_images = context.crops_while_reading and full.numel() > first.numel()
        fits = len(names) * first.numel() <= MAX_BYTES_IN_MEMORY
        in_memory = fits and not needs_full_images

        scan, cache_problem = scan_images(root, names, reader, context, decode=in_memory)
        if scan.broken and not context.skip_bad:
            raise _broken_images(root, scan.broken)
        splits, rows = found.splits, scan.rows
        if scan.broken:
            splits = {split: _usable(split, found.splits[split], scan.broken) for split in splits}
            rows = rows[torch.tensor([name not in scan.broken for name in names])]

        sources: dict[str, ImageSource] = {}
        parts: dict[str, str] = {}
        totals = [len(_names(images)) for images in splits.values()]
        for (split, images), own_rows in zip(splits.items(), rows.split(totals), strict=True):
            counts = [len(names) for names in images.values()]
            labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
            for name, class_rows in zip(images, own_rows.split(counts), strict=True):
                parts[f"{split}/{name}"] = fingerprint(class_rows)
            if in_memory:
                sources[split] = InMemoryImages(own_rows, labels)
            else:
                paths = [str(root / name) for name in _names(images)]
                sources[split] = ImageFiles(paths, labels, own_rows, reader, context.stop)
        return LoadedDataset(
            train=sources["train"],
            validation=sources.get("val"),
            test=sources.get("test"),
            classes=tuple(splits["train"]),
            fingerprint=combine_fingerprints(parts),
            notices=(*found.notices, *_notices(root, scan, cache_problem)),
            parts={name: digest[:_DIGITS_OF_PART] for name, digest in parts.items()},
            skipped=tuple(sorted(scan.broken)),
        )


def _names(images: Images) -> list[str]:
    """Return the files of all classes, in their order."""
    return [name for names in images.values() for name in names]


def _first_image(
    root: Path, names: list[str], channels: int, context: LoadContext
) -> tuple[Tensor, Tensor]:
    """Return the first image that is not broken, before and after preprocessing."""
    broken: dict[str, str] = {}
    for name in names:
        if context.stop():
            raise Stopped(f"stopped while decoding {root}")
        path = root / name
        try:
            image = decode_image(path, channels)
            return image, preprocess_image(image, path, context.preprocess)
        except DataError as error:
            broken[name] = _without_path(error, path)
    raise _broken_images(root, broken)


def _usable(split: str, images: Images, broken: Mapping[str, str]) -> Images:
    """Leave out the images that cannot be decoded."""
    usable = {
        label: [name for name in names if name not in broken] for label, names in images.items()
    }
    if empty := [label for label, names in usable.items() if not names]:
        raise DataError(f"no image in {split} can be decoded of {shorten(empty)}")
    return usable


def _notices(root: Path, scan: "Scan", cache_problem: str | None) -> Iterator[str]:
    if cache_problem is not None:
        yield cache_problem
    if scan.damaged:
        named = shorten(f"{name}: {problem}" for name, problem in sorted(scan.damaged.items()))
        images = counted(len(scan.damaged), "image")
        yield f"{root}: read {images} in spite of damaged metadata: {named}"
    for name, reason in sorted(scan.broken.items()):
        yield f"left out {root / name}: {reason}"


def _broken_images(root: Path, broken: Mapping[str, str]) -> DataError:
    """Name the images that cannot be decoded, as far as there is room."""
    lines = [f"{root / name}: {reason}" for name, reason in sorted(broken.items())]
    count = counted(len(lines), "image")
    shown = [
        f"{count} cannot be decoded; repair or remove them, or leave them out by --skip-bad",
        *lines[:_MAX_NAMED],
    ]
    if (more := len(lines) - _MAX_NAMED) > 0:
        shown.append(f"and {more:,} more, which --skip-bad names")
    return DataError(shown[0], *(f"  {line}" for line in shown[1:]))


@dataclass(frozen=True, slots=True)
class Scan:
    """Outcome of decoding or verifying every image.

    Attributes:
        rows: ``(N, ...)`` uint8, a row for each image: its pixels after preprocessing, or the
            SHA-256 of its file; zeros where it is broken.
        broken: Why an image cannot be decoded, by its name.
        damaged: What is wrong with an image's metadata, by its name.
    """

    rows: Tensor
    broken: Mapping[str, str]
    damaged: Mapping[str, str]


def scan_images(
    root: Path, names: list[str], reader: ImageReader, context: LoadContext, *, decode: bool
) -> tuple[Scan, str | None]:
    """Decode or verify every image, unless a cached scan is of the same files.

    A file counts as changed if its size or the time of its last change has changed.

    Args:
        root: Folder that the images' names are relative to.
        names: Images to scan.
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
    stamps = [_stamp(f"{root}/{name}", context.stop) for name in names]
    how = repr(reader.preprocess) if decode else ""
    of = (str(root.resolve()), reader.channels, how, names, stamps)
    key = hashlib.sha256(repr(of).encode()).hexdigest()[:32]
    cache = context.data_dir / ("decoded" if decode else "verified") / f"{key}.safetensors"
    if (cached := _read_cache(cache, len(names))) is not None:
        return cached, None

    paths = [str(root / name) for name in names]
    rows = np.zeros((len(names), *(reader.shape if decode else [_DIGEST_BYTES])), dtype=np.uint8)
    broken: dict[str, str] = {}
    damaged: dict[str, str] = {}
    doing = "decoding" if decode else "verifying"
    batches = torch.arange(len(names)).split(_READ_AT_ONCE)
    read = partial(_read_row, paths, reader, decode)
    found = read_ahead(paths, read, batches, list, overlap=False, stop=context.stop)
    for indices, results in zip(batches, found, strict=True):
        if context.stop():
            raise Stopped(f"stopped while {doing} {root}")
        for index, (row, problem) in zip(indices.tolist(), results, strict=True):
            if row is not None:
                rows[index] = row
            if problem is not None:
                (broken if row is None else damaged)[names[index]] = problem
        context.report(f"{doing} images", index + 1, len(names))
    scan = Scan(torch.from_numpy(rows), broken, damaged)
    return scan, _write_cache(cache, scan)


def _stamp(path: str, stop: Stop) -> tuple[int, int]:
    """Return size and time of a file; zeros of one that cannot be found, nor then be decoded."""
    if stop():
        raise Stopped("stopped while listing images")
    try:
        stat = os.stat(path)
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _read_row(
    paths: list[str], reader: ImageReader, decode: bool, index: int
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]] | None, str | None]:
    """Return an image's row of a scan, unless it is broken, and its problem if it has one.

    Worker processes run this.
    """
    path = paths[index]
    problem: list[str | None] = [None]
    try:
        if not decode:
            digest = verify_image(path, reader.channels, problem.append)
            return np.frombuffer(digest, np.uint8), problem[-1]
        image = reader.read(path, problem.append)
    except DataError as error:
        return None, _without_path(error, path)
    reader.check_size(image, path)
    return image.numpy(), problem[-1]


def _without_path(error: DataError, path: Path | str) -> str:
    """Take the path off a message: the folder may be called something else next time."""
    return str(error.args[0]).removeprefix(f"{path}: ")


def _read_cache(path: Path, count: int) -> Scan | None:
    """Return the cached scan of so many images, unless it is damaged."""
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            rows = file.get_tensor("rows")
        problems = TypeAdapter(dict[str, dict[str, str]]).validate_json(metadata["problems"])
        scan = Scan(rows, problems["broken"], problems["damaged"])
    except (OSError, SafetensorError, LookupError, ValueError):
        return None
    return scan if len(rows) == count and metadata.get("fingerprint") == _digest(scan) else None


def _write_cache(path: Path, scan: Scan) -> str | None:
    """Cache a scan; return why that failed, if so: the next run then scans again."""
    problems = {"broken": dict(scan.broken), "damaged": dict(scan.damaged)}
    metadata = {"fingerprint": _digest(scan), "problems": json.dumps(problems)}
    partial_file = path.parent / ".partial"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # One process writes at a time, always to this name: one that is killed leaves one file.
        with FileLock(path.parent / ".lock", timeout=_LOCK_SECONDS):
            save_file({"rows": scan.rows}, partial_file, metadata)
            partial_file.replace(path)
    except (OSError, NotImplementedError, SafetensorError) as error:
        return f"decoded images are not kept for the next run: {error}"
    return None


def _digest(scan: Scan) -> str:
    return fingerprint(scan.rows, about=repr((dict(scan.broken), dict(scan.damaged))))
