"""Files of CIFAR's Python version that lie elsewhere than torchvision looks for them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_VERSIONS = {"bin": "binary", "mat": "Matlab"}
_ARCHIVE_ENDINGS = (".tar.gz", ".tgz")


def batches_elsewhere(kind: Any, folder: Path) -> Iterator[tuple[Any, Path]]:
    """Yield complete folders of batches: the data folder itself, and folders up to two below it.

    Args:
        kind: torchvision's class, which compares the MD5 of each file before it unpickles it.
        folder: The data folder.

    Yields:
        A kind that finds the folder, whatever it is called, and the root to open it from.
    """
    for place in _places(folder):
        if all(os.path.isfile(place / name) for name in _batches(kind)):
            found = type(kind.__name__, (kind,), {"base_folder": place.name})
            yield found, place.parent


def archives_elsewhere(kind: Any, folder: Path) -> Iterator[Path]:
    """Yield published archives in the same places, whatever they are called."""
    from torchvision.datasets.utils import check_integrity

    for place in _places(folder):
        for name in _names(place):
            is_named_so = "cifar" in name.casefold() and name.endswith(_ARCHIVE_ENDINGS)
            if is_named_so and check_integrity(place / name, kind.tgz_md5):
                yield place / name


def describe_files(kind: Any, folder: Path) -> Iterator[str]:
    """Yield what lies in the same places and is not what is wanted, a line each."""
    from torchvision.datasets.utils import calculate_md5, check_integrity

    published = _batches(kind)
    prefix = kind.filename.partition("python")[0]  # cifar-10-, or cifar-100-
    for place in _places(folder):
        names = _names(place)
        if any(name in published for name in names):
            lacking = [name for name in published if name not in names]
            altered = [
                name
                for name, md5 in published.items()
                if name in names and not check_integrity(place / name, md5)
            ]
            if lacking:
                yield f"{place} lacks {', '.join(lacking)}"
            if altered:
                yield f"{place} has other files than the published {', '.join(altered)}"
        for name in names:
            if not name.startswith(prefix):
                continue
            version = name.removeprefix(prefix).removeprefix("batches-")[:3]
            if version in _VERSIONS:
                yield f"{place / name} is the {_VERSIONS[version]} version, not the Python version"
            elif name.endswith(_ARCHIVE_ENDINGS) and os.path.isfile(place / name):
                found = calculate_md5(place / name)
                yield f"{place / name} is not the published file: its MD5 is {found}"
            elif os.path.isfile(place / name):
                yield f"{place / name} is no {kind.filename}"


def _batches(kind: Any) -> dict[str, str]:
    """Return the MD5 of each file of the unpacked folder."""
    batches = dict((*kind.train_list, *kind.test_list))
    return {**batches, kind.meta["filename"]: kind.meta["md5"]}


def _places(folder: Path) -> Iterator[Path]:
    folder = folder.absolute()
    yield folder
    inner = _folders(folder)
    yield from inner
    for each in inner:
        yield from _folders(each)


def _folders(folder: Path) -> list[Path]:
    return [folder / name for name in _names(folder) if os.path.isdir(folder / name)]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:  # it is not there, or not for this user
        return []
