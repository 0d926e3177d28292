"""Finding the pictures of ``train/CLASS/...``, ``test/CLASS/...`` and maybe ``val/CLASS/...``."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from resnet_builder.data.interfaces import Stop
from resnet_builder.data.pictures import ENDINGS
from resnet_builder.errors import DataError, Stopped

_SPLITS = ("train", "val", "test")
_JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini"}
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Files:
    """The pictures of one split.

    Attributes:
        names: Paths below the data set's folder, with ``/``, in the order of classes and names.
        labels: The class of each.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """The pictures of a data set.

    Attributes:
        classes: Names of the training split's folders, sorted; every split has the same.
        splits: ``train``, and ``val`` and ``test`` if they are there.
        ignored: How many entries were passed over: hidden ones, files that are no pictures,
            folders and pipes named like pictures, and links back into the split.
    """

    classes: tuple[str, ...]
    splits: dict[str, Files]
    ignored: int

    def without(self, skipped: Collection[str]) -> "Listing":
        """Return the listing without some of its pictures.

        Raises:
            DataError: A class has no other pictures in a split.
        """
        splits = {name: _others(files, skipped) for name, files in self.splits.items()}
        for split, files in splits.items():
            if empty := {*self.splits[split].labels} - {*files.labels}:
                names = {self.classes[label] for label in empty}
                raise DataError(f"no picture in {split} can be decoded of {_several(names)}")
        return replace(self, splits=splits)


def list_pictures(root: Path, stop: Stop) -> Listing:
    """List a data set's pictures.

    Args:
        root: The folder that holds ``train``.
        stop: Polled at every folder.

    Raises:
        DataError: A folder is missing, empty or unreadable, or classes differ between splits.
        Stopped: ``stop`` became true.
    """
    if not (root / "train").is_dir():
        raise DataError(
            f"{root / 'train'} is no folder; image_folder needs train/CLASS/... and "
            "test/CLASS/... under data.dataset.path, which is relative to --data-dir"
        )
    try:
        walks = {name: _walked(root / name, stop) for name in _SPLITS if (root / name).is_dir()}
    except OSError as error:
        raise DataError(f"{error.filename or root}: {error.strerror or error}") from error
    classes = tuple(sorted(walks["train"].folders))
    for walk in walks.values():
        _refuse_other_classes(walk, classes)
    return Listing(
        classes=classes,
        splits={name: _files(walk, classes, root) for name, walk in walks.items()},
        ignored=sum(walk.ignored for walk in walks.values()),
    )


@dataclass(slots=True)
class _Walk:
    """A walk through a split's folder: what was found, and where it has been.

    Attributes:
        split: The split's folder.
        folders: Pictures by class.
        ignored: How many entries were passed over.
        entered: Real paths of the folders below classes, each of which is entered once.
    """

    split: Path
    folders: dict[str, list[Path]] = field(default_factory=dict)
    ignored: int = 0
    entered: set[str] = field(default_factory=set)


def _walked(split: Path, stop: Stop) -> _Walk:
    walk = _Walk(split)
    for entry in _entries(split):
        if _is_junk(entry.name) or not entry.is_dir():
            walk.ignored += 1
        else:
            walk.folders[entry.name] = list(_pictures(Path(entry.path), walk, stop))
    return walk


def _pictures(folder: Path, walk: _Walk, stop: Stop) -> Iterator[Path]:
    """Yield the pictures in a class's folder and those below it, following links out of it."""
    waiting = [folder]
    while waiting:
        if stop():
            raise Stopped(f"stopped while listing {folder}")
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in walk.entered:
            continue
        walk.entered.add(real)
        for entry in _entries(here):
            if _is_junk(entry.name):
                walk.ignored += 1
            elif _is_picture(entry.name) and _is_file(entry):
                yield Path(entry.path)
            elif _is_to_be_entered(entry, walk.split):
                waiting.append(Path(entry.path))
            else:
                walk.ignored += 1


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Tell files, and links that lead nowhere, from folders, pipes and devices."""
    return entry.is_file() or not os.path.exists(entry.path)


def _is_to_be_entered(entry: os.DirEntry[str], split: Path) -> bool:
    """Tell folders, but for links back into the split: pictures there have a class already."""
    if not entry.is_dir() or _is_picture(entry.name):
        return False
    target, home = (Path(os.path.realpath(path)) for path in (entry.path, split))
    return not (entry.is_symlink() and target.is_relative_to(home))


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name in _JUNK


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in ENDINGS


def _refuse_other_classes(walk: _Walk, classes: tuple[str, ...]) -> None:
    found = set(walk.folders)
    for what, names in (
        ("has no folder for", set(classes) - found),
        ("has folders that train has not:", found - set(classes)),
        ("has no pictures in", {name for name in found if not walk.folders[name]}),
    ):
        if names:
            raise DataError(f"{walk.split} {what} {_several(names)}")
    if not found:
        raise DataError(f"{walk.split} has no folders; there must be one for each class")


def _several(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _others(files: Files, skipped: Collection[str]) -> Files:
    """Return all files but some."""
    pairs = zip(files.names, files.labels, strict=True)
    kept = [(name, label) for name, label in pairs if name not in skipped]
    return Files(tuple(name for name, _ in kept), tuple(label for _, label in kept))


def _files(walk: _Walk, classes: tuple[str, ...], root: Path) -> Files:
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        pictures = sorted(path.relative_to(root).as_posix() for path in walk.folders[name])
        names += pictures
        labels += [label] * len(pictures)
    return Files(tuple(names), tuple(labels))
