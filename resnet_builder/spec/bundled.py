"""The specs that come with the package, and how a SPEC argument names one, or a file."""

import os
import re
from pathlib import Path

from resnet_builder.errors import Problem, SpecError, nearest

_ENDINGS = (".yaml", ".yml")


def bundled_names() -> tuple[str, ...]:
    """Return the names of the bundled specs, ``resnet20`` before ``resnet110``."""
    return _names(_directory())


def recipe_names() -> tuple[str, ...]:
    """Return the names of the bundled recipes: fragments to extend, or to lay over a spec."""
    return _names(_directory() / "recipes")


def find_spec(source: str) -> Path:
    """Return the file that a SPEC argument means.

    Args:
        source: With a separator or a YAML ending a path, whether or not there is such a file;
            anything else the name of a bundled spec.

    Raises:
        SpecError: No bundled spec is called that.
    """
    if is_path(source):
        return Path(source)
    if source in bundled_names():
        return bundled_file(source)
    hint = f"; for the file of that name write ./{source}" if os.path.lexists(source) else ""
    problem = Problem(
        "unknown-name",
        "",
        f"no bundled spec is named '{source}'{hint}",
        file=source,
        allowed=bundled_names(),
        suggestion=None if hint else nearest(source, bundled_names()),
    )
    raise SpecError([problem])


def is_path(source: str) -> bool:
    """Tell whether a SPEC argument is a path, not a bundled name."""
    separators = {os.sep, os.altsep or os.sep, "/"}
    return source.endswith(_ENDINGS) or any(separator in source for separator in separators)


def bundled_file(name: str) -> Path:
    """Return the file of a bundled spec or recipe; a spec before a recipe of the same name."""
    folder = _directory() if name in bundled_names() else _directory() / "recipes"
    return folder / f"{name}.yaml"


def _directory() -> Path:
    """Return the folder of the bundled specs: in a wheel inside the package, else beside it."""
    package = Path(__file__).parents[1]
    inside = package / "specs"
    return inside if inside.is_dir() else package.parent / "specs"


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted((file.stem for file in folder.glob("*.yaml")), key=_by_number))


def _by_number(name: str) -> list[str | int]:
    """Order names by the numbers in them, not by digits."""
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]
