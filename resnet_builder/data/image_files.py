"""Image files with labels: scanned, then held in memory or read from their files.

The images are decoded once and held in memory if they fit. Every one of them is decoded or
verified before any training, and the outcome is cached.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from filelock import FileLock
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from resnet_builder.data.class_folders import CACHES, Images, shorten
from resnet_builder.data.decode import ImageReader, decode_image, preprocess_image, verify_image
from resnet_builder.data.interfaces import (
    DatasetInfo,
    ImageSource,
    LoadContext,
    LoadedDataset,
    LoadedSplit,
    Stop,
)
from resnet_builder.data.sources import (
    ImageFiles,
    InMemoryImages,
    combine_fingerprints,
    fingerprint,
    read_ahead,
)
from resnet_builder.data.validation import class_counts, default_validation
from resnet_builder.errors import DataError, Stopped, counted
from resnet_builder.system import open_regular

MAX_BYTES_IN_MEMORY = 4 * 1024**3
"""Datasets that take more than this after preprocessing are read from their files."""

_MAX_NAMED = 20
_DIGITS_OF_PART = 16  # enough to tell that a part has changed
_DIGEST_BYTES = 32  # of SHA-256
_SIZE = np.dtype("<u4")  # of height and width, which follow a digest
_READ_AT_ONCE = 16
_LOCK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class LabelledFiles:
    """Image files of one split.

    Attributes:
        names: Paths below the root, with ``/``; N of them.
        labels: ``(N,)`` int64, with the images of a class together; or, where an image may have
            several labels, ``(N, K)`` uint8, 1 for each label that it has.
    """

    names: Sequence[str]
    labels: Tensor


@dataclass(frozen=True, slots=True)
class LabelledSplits:
    """Image files of a dataset, before any is opened.

    Attributes:
        root: Folder that the images' names are relative to.
        classes: Class names; a label is an index into them.
        splits: ``train``, ``val`` and ``test``, as far as they are there.
        notices: Notices for the user, one line each.
    """

    root: Path
    classes: tuple[str, ...]
    splits: Mapping[str, LabelledFiles]
    notices: tuple[str, ...]


def files_by_class(images: Images, classes: Sequence[str]) -> LabelledFiles:
    """Label the images of each class with its number."""
    names = [name for label in classes for name in images.get(label, ())]
    counts = torch.tensor([len(images.get(label, ())) for label in classes])
    return LabelledFiles(names, torch.arange(len(classes)).repeat_interleave(counts))


def describe(listed: LabelledSplits, channels: int) -> DatasetInfo:
    """Describe a dataset by its list of files."""
    training = listed.splits["train"]
    is_multi_label = training.labels.dim() == 2
    counts = tuple(class_counts(training.labels, len(listed.classes)).tolist())
    own_validation = "val" in listed.splits
    return DatasetInfo(
        num_classes=len(listed.classes),
        channels=channels,
        own_validation=own_validation,
        training_images=len(training.names),
        classes=listed.classes,
        notices=listed.notices,
        multi_label=is_multi_label,
        class_counts=counts,
        validation=0 if own_validation else default_validation(counts, len(training.names)),
    )


def load_images(listed: LabelledSplits, channels: int, context: LoadContext) -> LoadedDataset:
    """Scan every image, and hold the images in memory if they fit.

    Args:
        listed: Image files; there are training images.
        channels: Number of channels, see :func:`decode_image`.
        context: Preprocessing, folder of the cache, and whom to report to.

    Raises:
        DataError: Images are broken or of several sizes.
        Stopped: ``context.stop`` became true.
    """
    sources, parts, notices, skipped = _scan_and_load(listed, channels, context)
    return LoadedDataset(
        train=sources["train"],
        validation=sources.get("val"),
        test=sources.get("test"),
        classes=listed.classes,
        fingerprint=combine_fingerprints(parts),
        notices=(*listed.notices, *notices),
        parts={name: digest[:_DIGITS_OF_PART] for name, digest in parts.items()},
        skipped=skipped,
    )


def load_split_images(listed: LabelledSplits, channels: int, context: LoadContext) -> LoadedSplit:
    """Scan and load the only split of a list, as :func:`load_images` does."""
    sources, _, notices, _ = _scan_and_load(listed, channels, context)
    [images] = sources.values()
    return LoadedSplit(images, listed.classes, (*listed.notices, *notices))


def _scan_and_load(
    listed: LabelledSplits, channels: int, context: LoadContext
) -> tuple[dict[str, ImageSource], dict[str, str], list[str], tuple[str, ...]]:
    """Return the images of each split, digests of parts, notices, and what is left out."""
    root, splits = listed.root, listed.splits
    # The first image decides the size of all, and whether they fit into memory.
    first_split = next(iter(splits.values()))
    full, first = _first_image(root, first_split.names, channels, context)
    reader = ImageReader(channels, context.preprocess, tuple(first.shape))
    needs_full_images = context.crops_while_reading and full.numel() > first.numel()
    count = sum(len(files.names) for files in splits.values())
    in_memory = count * first.numel() <= MAX_BYTES_IN_MEMORY and not needs_full_images

    if not context.verify:
        unread = {
            split: _unread(root, files, reader, context, in_memory=in_memory)
            for split, files in splits.items()
        }
        return unread, {}, [], context.left_out

    groups = [files.names for files in splits.values()]
    scans, cache_problem = scan_images(root, groups, reader, context, decode=in_memory)
    broken = {name: reason for scan in scans for name, reason in scan.broken.items()}
    if broken and not context.skip_bad:
        raise _broken_images(root, broken)

    sources: dict[str, ImageSource] = {}
    parts: dict[str, str] = {}
    for (split, files), scan in zip(splits.items(), scans, strict=True):
        rows = scan.rows
        if scan.broken:
            files, rows = _usable(split, files, rows, listed.classes, scan.broken)
        parts |= _digests(split, rows, files.labels, listed.classes)
        paths = _paths(root, files.names)
        if in_memory:
            sources[split] = InMemoryImages(rows, files.labels, paths)
        else:
            sources[split] = ImageFiles(paths, files.labels, rows, reader, context.stop)
    notices = [] if cache_problem is None else [cache_problem]
    damaged = {name: problem for scan in scans for name, problem in scan.damaged.items()}
    notices += _notices(root, broken, damaged)
    return sources, parts, notices, tuple(sorted(broken))


def _unread(
    root: Path,
    files: LabelledFiles,
    reader: ImageReader,
    context: LoadContext,
    *,
    in_memory: bool,
) -> ImageSource:
    """Return a split of which a few images are read, as those of the whole split would be."""
    names, labels = files.names, files.labels
    if context.left_out:
        left_out = set(context.left_out)
        kept = [place for place, name in enumerate(names) if name not in left_out]
        names, labels = [names[place] for place in kept], labels[kept]
    digests = torch.empty(len(names), 0, dtype=torch.uint8)
    return ImageFiles(
        _paths(root, names),
        labels,
        digests,
        reader,
        context.stop,
        crops_full=not in_memory,
        ahead=False,
    )


def _paths(root: Path, names: Sequence[str]) -> list[str]:
    """Paths of files; pathlib would take as long for a million names as to look at the files."""
    start = os.path.join(root, "")
    return [start + name.replace("/", os.sep) for name in names]


def _digests(
    split: str, rows: Tensor, labels: Tensor, classes: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """Yield name and digest of the images of each class; of all, if they have several labels."""
    if labels.dim() == 2:
        yield split, fingerprint(rows, labels, about=repr(classes))
        return
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    for name, class_rows in zip(classes, rows.split(counts), strict=True):
        yield f"{split}/{name}", fingerprint(class_rows)


def _first_image(
    root: Path, names: Sequence[str], channels: int, context: LoadContext
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


def _usable(
    split: str,
    files: LabelledFiles,
    rows: Tensor,
    classes: tuple[str, ...],
    broken: Mapping[str, str],
) -> tuple[LabelledFiles, Tensor]:
    """Leave out the images that cannot be decoded.

    Raises:
        DataError: A class, or the split, has no other images.
    """
    sound = torch.tensor([name not in broken for name in files.names])
    names = [name for name in files.names if name not in broken]
    labels = files.labels[sound]
    if not names:
        raise DataError(f"no image in {split} can be decoded")
    if labels.dim() == 1:
        before, after = (set(each.tolist()) for each in (files.labels, labels))
        if empty := [classes[label] for label in sorted(before - after)]:
            raise DataError(f"no image in {split} can be decoded of {shorten(empty)}")
    return LabelledFiles(names, labels), rows[sound]


def _notices(root: Path, broken: Mapping[str, str], damaged: Mapping[str, str]) -> Iterator[str]:
    if damaged:
        named = shorten(f"{name}: {problem}" for name, problem in sorted(damaged.items()))
        images = counted(len(damaged), "image")
        yield f"{root}: read {images} in spite of damaged metadata: {named}"
    for name, reason in sorted(broken.items()):
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
            SHA-256 of its file with its height and width; zeros where it is broken.
        broken: Why an image cannot be decoded, by its name.
        damaged: What is wrong with an image's metadata, by its name.
    """

    rows: Tensor
    broken: Mapping[str, str]
    damaged: Mapping[str, str]


def scan_images(
    root: Path,
    groups: Sequence[Sequence[str]],
    reader: ImageReader,
    context: LoadContext,
    *,
    decode: bool,
) -> tuple[list[Scan], str | None]:
    """Decode or verify every image, unless a cached scan is of the same files.

    A file counts as changed if its size or one of its times has changed. The time of change shows
    what the time of modification does not: files that were swapped, or copied with their times.

    Args:
        root: Folder that the images' names are relative to.
        groups: Images to scan. Each group is cached by itself, so that one split of a dataset can
            be scanned alone.
        reader: Decoding and preprocessing.
        context: Folder of the cache, and whom to report to.
        decode: Whether the rows are decoded images, not digests of files.

    Returns:
        The scan of each group, and why one could not be cached, if so.

    Raises:
        DataError: Images have several sizes, or one cannot be found.
        Stopped: ``context.stop`` became true.
    """
    # Another version of these libraries may give other pixels.
    libraries = (PIL.__version__, torch.__version__, version("torchvision"))
    how = (libraries, reader.preprocess if decode else None)
    caches, cached = [], []
    for names in groups:
        # Names, sizes and times stand for the files: reading all of them would take minutes.
        stamps = [_stamp(f"{root}/{name}", context.stop) for name in names]
        of = (str(root.resolve()), reader.channels, how, list(names), stamps)
        key = hashlib.sha256(repr(of).encode()).hexdigest()[:32]
        path = context.data_dir / CACHES[0 if decode else 1] / f"{key}.safetensors"
        caches.append(path)
        cached.append(_read_cache(path, len(names)))

    # All other groups are read together, by the same worker processes.
    unknown = [names for names, scan in zip(groups, cached, strict=True) if scan is None]
    fresh = iter(_scan(root, unknown, reader, context, decode=decode) if unknown else ())
    scans, problem = [], None
    for names, path, scan in zip(groups, caches, cached, strict=True):
        if scan is None:
            scan = next(fresh)
            problem = _write_cache(path, scan) or problem
        scans.append(scan if decode else _check_sizes(scan, names, root, reader))
    return scans, problem


def _check_sizes(scan: Scan, names: Sequence[str], root: Path, reader: ImageReader) -> Scan:
    """Compare the sizes that verified images will have, and add those that would be too large.

    Raises:
        DataError: Images have several sizes.
    """
    sizes = scan.rows[:, _DIGEST_BYTES:].numpy().view(_SIZE)
    different, inverse = np.unique(sizes, axis=0, return_inverse=True)
    too_large: dict[str, str] = {}
    for number, (height, width) in enumerate(different.tolist()):
        if height == 0:  # broken
            continue
        alike = np.flatnonzero(inverse.ravel() == number)
        try:
            shape = reader.shape_after((height, width))
        except DataError as error:
            too_large |= {names[index]: str(error.args[0]) for index in alike.tolist()}
        else:
            reader.check_shape(shape, root / names[alike[0]])
    return replace(scan, broken={**scan.broken, **too_large})


def _scan(
    root: Path,
    groups: Sequence[Sequence[str]],
    reader: ImageReader,
    context: LoadContext,
    *,
    decode: bool,
) -> list[Scan]:
    names = [name for group in groups for name in group]
    paths = _paths(root, names)
    row_shape = reader.shape if decode else (_DIGEST_BYTES + 2 * _SIZE.itemsize,)
    rows = np.zeros((len(names), *row_shape), dtype=np.uint8)
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
    return [
        Scan(
            group_rows,
            {name: broken[name] for name in group if name in broken},
            {name: damaged[name] for name in group if name in damaged},
        )
        for group, group_rows in zip(
            groups, torch.from_numpy(rows).split([len(group) for group in groups]), strict=True
        )
    ]


def _stamp(path: str, stop: Stop) -> tuple[int, int, int]:
    """Return size and times of a file; zeros of one that cannot be found, nor then be decoded."""
    if stop():
        raise Stopped("stopped while listing images")
    try:
        stat = os.stat(path)
    except OSError:
        return 0, 0, 0
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


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
            digest, size = verify_image(path, reader.channels, problem.append)
            row = digest + np.array(size, _SIZE).tobytes()
            return np.frombuffer(row, np.uint8), problem[-1]
        image = reader.read(path, problem.append)
    except DataError as error:
        return None, _without_path(error, path)
    reader.check_shape(image.shape, path)
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
