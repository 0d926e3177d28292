"""Listing of image folders: which files are images, and of which split and class.

A file is an image if its ending says so, or else if its first bytes do. Everything else that lies
in the folder is passed over and told, so that nothing vanishes.
"""

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from resnet_builder.data.decode import RAW_ENDINGS
from resnet_builder.data.interfaces import Stop
from resnet_builder.errors import (
    DataError,
    MissingDataError,
    ResnetBuilderError,
    Stopped,
    UsageError,
    counted,
    latin,
)
from resnet_builder.spec.compose import IMAGE_ENDINGS, TABLE_ENDINGS
from resnet_builder.system import file_kind, open_regular

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of each split's folder, in any case; the first is preferred to the others."""

# JPEG, PNG, GIF, WebP, TIFF and BigTIFF, BMP with the size of its second header, PPM and its kin
_IMAGE_START = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP|II[*+]\0|MM\0[*+]"
    rb"|BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0{3}|P[1-6](?:\s|#[^\n]*\n)+\d",
    re.DOTALL,
)
_START_BYTES = 64

CACHES = ("decoded", "verified")
"""Folders in the data folder that hold scans of images."""

_SPLIT_NAMES = frozenset(name for names in SPLITS.values() for name in names)
_WEIGHTS_ENDING = ".safetensors"
_MAX_NAMED = 20

_MAX_IN_NOTICE = 100

Images = Mapping[str, list[str]]
"""Image files of one split by class: paths below the dataset's folder, with ``/``, sorted."""


@dataclass(frozen=True, slots=True)
class ClassFolders:
    """Classes and image files of a dataset.

    Attributes:
        splits: ``train``, and ``val`` and ``test`` if they are there; the classes are sorted, and
            no split has one that ``train`` has not.
        notices: What was passed over, which classes look alike or have no images in a split, and
            what may be meant to be classes, a line each.
    """

    splits: Mapping[str, Images]
    notices: tuple[str, ...]


def find_classes(root: Path, stop: Stop) -> ClassFolders:
    """List the classes and image files of a dataset.

    Args:
        root: Folder that holds ``train``, or the folders of the classes.
        stop: Polled at every folder.

    Raises:
        DataError: A folder is missing, empty or unreadable, or a split has classes of its own.
        Stopped: ``stop`` became true.
    """
    passed_over = _PassedOver(root)
    splits: dict[str, Images] = {}
    notices: list[str] = []
    with _listing_errors(root):
        entries, folders = _find_splits(root)
        if "train" not in folders:
            if not _is_undivided(entries):
                raise _missing_split(root, entries)
            folders = {"train": "."}
        else:
            _pass_over_others(entries, folders, passed_over)
        for split, folder in folders.items():
            images = _list_split(root, folder, passed_over, stop)
            if folder == "." and not any(images.values()):
                raise _missing_split(root, entries, passed_over=passed_over)
            if split == "test" and not images and _pass_over_unlabelled(root, folder, passed_over):
                continue
            classes = images if split == "train" else splits["train"]
            notices += _check_classes(root, folder, images, classes, passed_over)
            splits[split] = {name: paths for name, paths in images.items() if paths}
    training = splits["train"]
    notices += [*look_alike(training), *_too_deep(training, folders["train"])]
    if folders["train"] == "." and len(training) == 1:
        notices += _tables_there(root, entries)
    told = (f"{root}: {notice}" for notice in notices)
    return ClassFolders(splits, (*passed_over.notices(), *told))


def find_split(root: Path, split: str, stop: Stop, *, undivided: bool) -> ClassFolders:
    """List the classes and image files of one split alone, by the rules of :func:`find_classes`.

    Args:
        root: Folder that holds the split's folder, or the folders of the classes.
        split: ``train``, ``val`` or ``test``.
        stop: Polled at every folder.
        undivided: Whether a folder of classes counts as this split.

    Raises:
        DataError: The split is empty or unreadable, or its images have no labels.
        Stopped: ``stop`` became true.
        UsageError: There are other splits, but not this one.
    """
    passed_over = _PassedOver(root)
    with _listing_errors(root):
        entries, folders = _find_splits(root)
        if split not in folders:
            if folders or not _is_undivided(entries):
                raise _missing_split(root, entries, split, folders=folders)
            if not undivided:
                raise UsageError(
                    f"there are no {split} images: {root} is not divided into splits; a training "
                    "takes all of its images, and `evaluate --data` takes them as test images"
                )
            folders = {split: "."}
        else:
            _pass_over_others(entries, folders, passed_over)
        folder = folders[split]
        images = _list_split(root, folder, passed_over, stop)
        if folder == "." and not any(images.values()):
            raise _missing_split(root, entries, split, passed_over=passed_over)
        if not images and _pass_over_unlabelled(root, folder, passed_over):
            raise DataError(
                f"{root / folder} has no folders of classes, so its images have no labels to "
                "compare predictions with; `resnet-build predict` takes such a folder"
            )
        notices = _check_classes(root, folder, images, images, passed_over, may_be_empty=True)
    found = {name: paths for name, paths in images.items() if paths}
    told = (f"{root}: {notice}" for notice in (*notices, *look_alike(found)))
    return ClassFolders({split: found}, (*passed_over.notices(), *told))


def find_images(folder: Path, stop: Stop) -> tuple[list[Path], list[str]]:
    """List the images in a folder and those below it, by the rule of :func:`find_classes`.

    Args:
        folder: Folder to look into.
        stop: Polled at every folder.

    Returns:
        The images' paths, sorted, and notices of what was passed over.

    Raises:
        DataError: A folder cannot be read.
        Stopped: ``stop`` became true.
    """
    names, notices = find_image_names(folder, stop)
    return [folder / name for name in names], notices


def find_image_names(
    folder: Path, stop: Stop, *, besides: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """List images as :func:`find_images` does, by their paths below the folder, with ``/``.

    Args:
        folder: Folder to look into.
        stop: Polled at every folder.
        besides: Other files, which are no news to the user.
    """
    passed_over = _PassedOver(folder)
    with _listing_errors(folder):
        names = _list_images(folder, ".", folder, set(), passed_over, stop)
    for name in besides:
        with suppress(ValueError):
            passed_over.not_images.remove(name)
    return names, list(passed_over.notices())


def shorten(names: Iterable[str], most: int = 20) -> str:
    """Return names for a message, as many as there is room for."""
    listed = list(names)
    more = len(listed) - most
    shown = ", ".join(listed[:most])
    return f"{shown} and {more:,} more" if more > 0 else shown


def tell_apart(names: Iterable[str], among: Collection[str]) -> Iterator[str]:
    """Yield names for a message, with their code points where others of them look alike."""
    looks = Counter(map(_look, among))
    for name in names:
        is_plain = name.isascii() and name == " ".join(name.split())
        yield name if is_plain or looks[_look(name)] == 1 else f"{name} ({name!a})"


@dataclass(frozen=True, slots=True)
class _PassedOver:
    """What lies in a folder and is not read; names are paths below the folder.

    Attributes:
        root: The folder.
        not_images: Files in the folders of classes that are not images.
        outside: Files of a split that are in no class's folder.
        others: What else there is by its name, and what it is.
        unlabelled: Folders of images without labels, and their number of images.
    """

    root: Path
    not_images: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)
    unlabelled: dict[str, int] = field(default_factory=dict)

    def names(self) -> Iterator[str]:
        """Yield all names."""
        yield from (*self.not_images, *self.outside, *self.others)

    def add(self, entry: os.DirEntry[str], name: str) -> None:
        """Add an entry that is not looked into."""
        self.others[name] = _kind(entry)

    def notices(self) -> Iterator[str]:
        where = f"{self.root}: passed over"
        if self.not_images:
            yield f"{where} files that are not images: {_by_ending(self.not_images)}"
        if self.outside:
            yield f"{where} files outside of the classes' folders: {_by_ending(self.outside)}"
        if self.others:
            named = (f"{name} ({what})" for name, what in sorted(self.others.items()))
            yield f"{where} {shorten(named, _MAX_IN_NOTICE)}"
        for name, count in self.unlabelled.items():
            yield (
                f"{where} {name}: its {counted(count, 'image')} lie in no class's folder, so they "
                "have no labels; predict takes them"
            )


def _by_ending(files: Iterable[str]) -> str:
    """Count files by their ending, with an example of each."""
    endings: dict[str, list[str]] = {}
    for name in sorted(files):
        ending = os.path.splitext(name)[1].lower().rstrip(".")
        endings.setdefault(ending or "without an ending", []).append(name)
    most_first = sorted(endings.items(), key=lambda item: (-len(item[1]), item[0]))
    described = (
        f"{len(names):,} {ending} ({'such as ' if len(names) > 1 else ''}{names[0]})"
        for ending, names in most_first
    )
    return shorten(described, _MAX_IN_NOTICE)


def _find_splits(root: Path) -> tuple[dict[str, os.DirEntry[str]], dict[str, str]]:
    """Return what lies in the root, and the folder of each split that is there, train first."""
    entries = {entry.name: entry for entry in _entries(root)} if root.is_dir() else {}
    folders: dict[str, str] = {}
    for split, names in SPLITS.items():
        found = [name for name in entries if name.casefold() in names and _is_dir(entries[name])]
        if split in found or len(found) == 1:
            folders[split] = split if split in found else found[0]
    return entries, folders


def _pass_over_others(
    entries: Mapping[str, os.DirEntry[str]], folders: Mapping[str, str], passed_over: _PassedOver
) -> None:
    for name in sorted(entries.keys() - folders.values()):
        if not _is_cache(entries[name]):
            passed_over.add(entries[name], name)


def _is_undivided(entries: Mapping[str, os.DirEntry[str]]) -> bool:
    """Whether folders can only be classes: nothing is called like a split, here or in one of them.

    ``train`` beside classes, or in one of them, is ambiguous.
    """
    named_like_split = any(name.casefold() in _SPLIT_NAMES for name in entries)
    return bool(entries) and not named_like_split and not _holding_train(entries)


def _holding_train(entries: Mapping[str, os.DirEntry[str]]) -> list[str]:
    return [name for name, entry in entries.items() if os.path.isdir(f"{entry.path}/train")]


def _missing_split(
    root: Path,
    entries: Mapping[str, os.DirEntry[str]],
    split: str = "train",
    *,
    folders: Mapping[str, str] | None = None,
    passed_over: _PassedOver | None = None,
) -> ResnetBuilderError:
    """Error of a split that is not there, with what is there instead."""
    if folders:
        return UsageError(f"there are no {split} images; there are {', '.join(folders)}")
    fault = "is not a folder" if split in entries else "does not exist"
    holding = _holding_train(entries)
    files = {name for name, entry in entries.items() if _is_file(entry) and _is_text(name)}
    others = [f"{name} ({_kind(entry)})" for name, entry in entries.items() if name not in files]
    present = [*others[:_MAX_NAMED], *([_by_ending(files)] if files else [])]
    hint = ""
    if holding:
        hint = f"; {root / holding[0]} has one: add `/{holding[0]}` to the path"
    elif present:
        hint = f"; there are {shorten(present, len(present))}"
        hint += f" and {len(others) - _MAX_NAMED:,} more" if len(others) > _MAX_NAMED else ""
    kind = DataError if root.exists() else MissingDataError
    notices: list[str] = []
    if passed_over is not None:
        passed_over.outside.clear()  # the hint has named them
        notices += passed_over.notices()
    notices += _tables_there(root, entries)
    return kind(
        f"{root / split} {fault}; image_folder needs train/CLASS/... and test/CLASS/..., or "
        f"folders of classes alone{hint}",
        *(f"  {notice}" for notice in notices),
    )


def _tables_there(root: Path, names: Iterable[str]) -> Iterator[str]:
    """Yield a hint of tables that lie beside images and may hold their labels."""
    tables = [root / name for name in sorted(names) if name.lower().endswith(TABLE_ENDINGS)]
    if tables:
        one = "one of " if len(tables) > 1 else ""
        named = shorten(map(str, tables), _MAX_NAMED)
        yield f"for labels from a table, give {one}{named} in place of the folder"


def _list_split(root: Path, folder: str, passed_over: _PassedOver, stop: Stop) -> Images:
    """Return the images of a split by class; pass over what is in no class's folder."""
    images: dict[str, list[str]] = {}
    entered: set[str] = set()
    for entry in _entries(root / folder):
        name = entry.name if folder == "." else f"{folder}/{entry.name}"
        if _is_cache(entry):
            continue
        if _is_dir(entry) and not _is_foreign(entry):
            images[entry.name] = _list_images(root, name, root / folder, entered, passed_over, stop)
        elif _is_file(entry) and _is_text(entry.name):
            passed_over.outside.append(name)
        else:
            passed_over.add(entry, name)
    if folder == ".":
        for name in [name for name, paths in images.items() if not paths]:
            if _pass_over_outputs(name, passed_over):
                del images[name]
    return images


def _pass_over_outputs(folder: str, passed_over: _PassedOver) -> bool:
    """Pass over runs that lie beside classes: they hold weights."""
    inside = {name for name in passed_over.not_images if name.startswith(f"{folder}/")}
    if not any(name.endswith(_WEIGHTS_ENDING) for name in inside):
        return False
    passed_over.not_images[:] = [name for name in passed_over.not_images if name not in inside]
    passed_over.others[folder] = f"a folder with {_WEIGHTS_ENDING} files and no images"
    return True


def _pass_over_unlabelled(root: Path, folder: str, passed_over: _PassedOver) -> bool:
    """Pass over a split whose images lie in no class's folder, if there are any."""
    images = {f"{folder}/{entry.name}" for entry in _entries(root / folder) if _is_image(entry)}
    passed_over.outside[:] = [name for name in passed_over.outside if name not in images]
    if images:
        passed_over.unlabelled[folder] = len(images)
    return bool(images)


def _list_images(
    root: Path, folder: str, split: Path, entered: set[str], passed_over: _PassedOver, stop: Stop
) -> list[str]:
    """Return the images in a folder and those below it, following links out of the split."""
    images: list[str] = []
    waiting = [folder]
    while waiting:
        if stop():
            raise Stopped(f"stopped while listing {root}")
        here = waiting.pop()
        real = os.path.realpath(root / here)
        if real in entered:  # links may form loops
            passed_over.others[here] = "a link to a folder that is read elsewhere"
            continue
        entered.add(real)
        for entry in _entries(root / here):
            name = entry.name if here == "." else f"{here}/{entry.name}"
            if _is_dir(entry):
                if _is_cache(entry):
                    continue
                if _is_foreign(entry) or _leads_into(entry, split):
                    passed_over.add(entry, name)
                else:
                    waiting.append(name)
            elif _is_image(entry):
                images.append(name)
            elif _is_file(entry) and _is_text(entry.name):
                passed_over.not_images.append(name)
            else:
                passed_over.add(entry, name)
    return sorted(images)


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether a file is an image, broken or not; only regular files are opened."""
    ending = os.path.splitext(entry.name)[1].lower()
    if not _is_text(entry.name) or ending in RAW_ENDINGS:
        return False
    leads_nowhere = entry.is_symlink() and not os.path.exists(entry.path)
    if not (leads_nowhere or _is_file(entry)):
        return False
    # macOS writes hidden files with the endings of those that they describe.
    if ending in IMAGE_ENDINGS and not entry.name.startswith("."):
        return True
    try:
        with open_regular(entry.path) as file:
            return _IMAGE_START.match(file.read(_START_BYTES)) is not None
    except OSError:
        return False


def _is_text(name: str) -> bool:
    """Whether a name is UTF-8: records and messages can hold no other."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


# DirEntry's own methods raise an error for a link that leads to itself.


def _is_dir(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry[str]) -> bool:
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def _is_foreign(folder: os.DirEntry[str]) -> bool:
    """Whether a folder is a program's own (hidden, or macOS's in archives), or its name no text."""
    is_hidden = folder.name.startswith(".") or folder.name == "__MACOSX"
    return is_hidden or not _is_text(folder.name)


def _is_cache(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a cache of scans and holds nothing else: it is no news to the user."""
    if entry.name not in CACHES or not _is_dir(entry):
        return False
    names = [each.name for each in _entries(Path(entry.path))]
    return all(name in {".lock", ".partial"} or name.endswith(_WEIGHTS_ENDING) for name in names)


def _leads_into(entry: os.DirEntry[str], split: Path) -> bool:
    """Whether an entry is a link back into the split, where images have a class already."""
    target = Path(os.path.realpath(entry.path))
    return entry.is_symlink() and target.is_relative_to(os.path.realpath(split))


def _kind(entry: os.DirEntry[str]) -> str:
    if not os.path.exists(entry.path):
        return "a link that leads nowhere"
    if not _is_text(entry.name):
        return "a name that is not UTF-8"
    mode = entry.stat().st_mode
    if stat.S_ISDIR(mode):
        return "a link to a folder" if entry.is_symlink() else "a folder"
    if stat.S_ISREG(mode):
        return "a file"
    return file_kind(mode)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


@contextmanager
def _listing_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise DataError(f"{where}: {error.strerror or error}") from error


def _check_classes(
    root: Path,
    folder: str,
    images: Images,
    training: Images,
    passed_over: _PassedOver,
    *,
    may_be_empty: bool = False,
) -> list[str]:
    """Compare a split's classes with those of training, and look for empty ones.

    Returns:
        Notices of classes without images.

    Raises:
        DataError: The split has no images, or other classes; or files of a class are no images.
    """
    where = root / folder
    if not images:
        files = [*os.listdir(root), *passed_over.outside]
        notices = (*passed_over.notices(), *_tables_there(root, files))
        raise DataError(
            f"{where} has no folders; there must be one for each class",
            *(f"  {notice}" for notice in notices),
        )
    if foreign := images.keys() - training.keys():
        names = {*images, *training}
        theirs, ours = (
            shorten(tell_apart(some, names)) for some in (sorted(foreign), sorted(training.keys()))
        )
        hint = "; predict takes images without labels" if not images.keys() & training else ""
        raise DataError(f"{where} has folders that train has not: {theirs}; train has {ours}{hint}")
    empty = [name for name, paths in images.items() if not paths]
    prefix = "" if folder == "." else f"{folder}/"
    # Other files in the place of images may be images that cannot be read.
    spoilt = [
        name
        for name in empty
        if any(other.startswith(f"{prefix}{name}/") for other in passed_over.names())
    ]
    is_lenient = may_be_empty or images is not training
    if empty and (spoilt or not is_lenient or len(empty) == len(images)):
        undivided = "; each folder counts as a class here: move others away, or classes to train/"
        raise DataError(
            f"{where} has no images in {shorten(spoilt or empty)}"
            + (undivided if folder == "." else ""),
            *(f"  {notice}" for notice in passed_over.notices()),
        )
    missing = [name for name in training if not images.get(name)]
    what = "it" if folder == "." else folder
    return [f"{what} has no images of {shorten(tell_apart(missing, training))}"] * bool(missing)


def _too_deep(images: Images, folder: str) -> Iterator[str]:
    """Yield a notice of folders that may be meant to be classes, where there is one class."""
    if len(images) != 1:
        return
    folders = {os.path.dirname(path) for paths in images.values() for path in paths}
    common = os.path.commonpath(folders).split("/")
    deeper = {path.split("/")[len(common)] for path in folders if path != "/".join(common)}
    if len(deeper) > 1:
        shown = shorten("/".join([*common, name]) for name in sorted(deeper))
        up = counted(len(common) - 1, "folder")
        advice = (
            f"add `/{'/'.join(common)}` to the path"
            if folder == "."
            else f"move them {up} up, into {folder}"
        )
        yield f"if {shown} are the classes, {advice}"


def look_alike(names: Collection[str]) -> Iterator[str]:
    """Yield a notice of each group of classes whose names look alike."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_look(name), []).append(name)
    for group in groups.values():
        if len(group) > 1:
            yield f"classes that look alike: {shorten(tell_apart(group, group))}"


def _look(name: str) -> str:
    """Return what a reader sees of a name: accents composed, one case, spaces joined."""
    return " ".join(latin(unicodedata.normalize("NFKC", name)).casefold().split())
