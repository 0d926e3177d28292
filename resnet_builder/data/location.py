"""Location of datasets: the data folder, and the files that a spec names."""

import os
from collections.abc import Iterator
from pathlib import Path

from resnet_builder.errors import DataError, MissingDataError, nearest
from resnet_builder.spec.schema import DataSpec
from resnet_builder.spec.section import Part
from resnet_builder.system import cache_dir

DATA_VARIABLE = "RESNET_BUILDER_DATA"

_MAX_NAMED = 10


def default_data_dir() -> Path:
    """Return ``$RESNET_BUILDER_DATA``, else this program's folder in the user's cache."""
    return Path(os.environ.get(DATA_VARIABLE) or cache_dir())


def locate_data(data: DataSpec, data_dir: Path | None) -> DataSpec:
    """Make the dataset's ``path`` that of the files that are there.

    A path counts from the file that names it, as ``spec.load`` has made it absolute. If nothing is
    there, its last parts are looked up in the data folder, as the data may have been moved, or are
    on another machine than the spec.

    Args:
        data: Section ``data``.
        data_dir: Data folder that the user gave; ``None`` for ``$RESNET_BUILDER_DATA``, if any.

    Returns:
        The section, unchanged if the dataset has no ``path`` or nothing is there.
    """
    found = next(filter(os.path.exists, _places(data, data_dir)), None)
    if found is None or found == data.dataset.options["path"] or not _is_text(found):
        return data
    dataset = Part.model_validate(
        {"type": data.dataset.type, **data.dataset.options, "path": found}
    )
    return data.model_copy(update={"dataset": dataset})


def find_data(data: DataSpec, data_dir: Path | None) -> DataSpec:
    """Make the dataset's ``path`` that of the files that are there, as :func:`locate_data` does.

    Raises:
        DataError: The path is not UTF-8, which no spec can hold.
        MissingDataError: Nothing is there; the message names all places.
    """
    located = locate_data(data, data_dir)
    path = located.dataset.options.get("path")
    if not isinstance(path, str) or (os.path.isabs(path) and os.path.exists(path)):
        return located
    places = list(_places(data, data_dir))
    if not places:  # a URL
        return located
    if any(map(os.path.exists, places)):
        raise DataError(f"{places[0]}: its name is not UTF-8; rename it")
    raise MissingDataError(*_missing(places, path))


def unused_place(data: DataSpec, data_dir: Path | None) -> Iterator[str]:
    """Yield a notice if ``--data-dir`` has files of the dataset's name that are not used.

    Args:
        data: Section ``data``, with the path of the files that are used.
        data_dir: Data folder that the user gave.
    """
    places = [] if data_dir is None else list(_places(data, data_dir))
    for other in filter(os.path.exists, places[1:]):
        if not (os.path.exists(used := places[0]) and os.path.samefile(used, other)):
            yield f"the images are those in {used}; for those in {other}, add --data {other}"
            return


def _places(data: DataSpec, data_dir: Path | None) -> Iterator[str]:
    """Yield the places where a dataset may be, the best first."""
    path = data.dataset.options.get("path")
    if not isinstance(path, str) or "://" in path or "\0" in path:
        return
    path = os.path.realpath(path)
    yield path
    given = data_dir or os.environ.get(DATA_VARIABLE)
    if given:
        _, *parts = Path(path).parts
        for first in range(len(parts)):
            yield os.path.realpath(Path(given, *parts[first:]))


def _missing(places: list[str], path: str) -> Iterator[str]:
    """Yield the lines of the message that a dataset is not there."""
    first, *others = places
    # The shortest way into the data folder is what a user would look for there.
    nor = f", nor {others[-1]}" if others and others[-1] != first else ""
    yield f"data.dataset.path: there is no {first}{nor}"
    if "~" in Path(path).parts or "$" in path:
        yield "  `~` and variables are not expanded in a spec: write the path in full"
    here = Path(first)
    while not here.is_dir():
        missing, here = here.name, here.parent
    try:
        names = sorted(e.name for e in os.scandir(here) if e.is_dir() and e.name[0] != ".")
    except OSError as error:
        yield f"  {here}: {error.strerror or error}"
        return
    if (meant := nearest(missing, names)) is not None:
        yield f"did you mean: {here / meant}"
    elif names:
        more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
        yield f"  the folders in {here} are {', '.join(names[:_MAX_NAMED])}{more}"
    else:
        yield f"  there are no folders in {here}"


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
