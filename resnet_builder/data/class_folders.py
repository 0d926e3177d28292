"""Listing of image folders: the classes and image files of each split."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from resnet_builder.data.decode import IMAGE_EXTENSIONS
from resnet_builder.data.interfaces import Stop
from resnet_builder.errors import DataError, Stopped

SPLITS = ("train", "val", "test")

_SYSTEM_FILES = {"__MACOSX", "Thumbs.db", "desktop.ini"}
_MAX_NAMED = 20

Images = Mapping[str, list[str]]
"""Image files of one split by class: paths below the data set's folder, with ``/``, sorted."""


@dataclass(frozen=True, slots=True)
class ClassFolders:
    """Classes and image files of a data set.

    Attributes:
        splits: ``train``, and ``val`` and ``test`` if they are there; the classes are sorted, and
            every split has the same.
        ignored: Number of entries that were passed over: hidden ones, files that are not images,
            folders and pipes named like images, and links back into the split.
    """

    splits: Mapping[str, Images]
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
    splits: dict[str, Images] = {}
    ignored = 0
    try:
        for split in SPLITS:
            if (root / split).is_dir():
                images, passed_over = _list_split(root, split, stop)
                _check_classes(root / split, images, splits.get("train", images))
                splits[split] = images
                ignored += passed_over
    except OSError as error:
        raise DataError(f"{error.filename or root}: {error.strerror or error}") from error
    return ClassFolders(splits, ignored)


def _list_split(root: Path, split: str, stop: Stop) -> tuple[Images, int]:
    """Return the image files of a split, and the number of entries that are passed over."""
    images: dict[str, list[str]] = {}
    ignored = 0
    entered: set[str] = set()
    for entry in _entries(root / split):
        if _is_hidden(entry.name) or not entry.is_dir():
            ignored += 1
        else:
            paths, passed_over = _list_class(entry.path, root / split, entered, stop)
            images[entry.name] = sorted(Path(path).relative_to(root).as_posix() for path in paths)
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


def _check_classes(split: Path, images: Images, training: Images) -> None:
    for problem, names in (
        ("has no folder for", training.keys() - images.keys()),
        ("has folders that train has not:", images.keys() - training.keys()),
        ("has no images in", [name for name, paths in images.items() if not paths]),
    ):
        if names:
            raise DataError(f"{split} {problem} {shorten(names)}")
    if not images:
        raise DataError(f"{split} has no folders; there must be one for each class")


def shorten(names: Collection[str]) -> str:
    """Return names for a message, as many as there is room for."""
    shown = ", ".join(sorted(names)[:_MAX_NAMED])
    more = len(names) - _MAX_NAMED
    return f"{shown} and {more} more" if more > 0 else shown
