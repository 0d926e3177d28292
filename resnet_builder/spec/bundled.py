"""Bundled specs and recipes, and the file of a SPEC argument.

This imports neither pydantic nor a YAML parser, so that ``--help`` and shell completion are fast.
"""

import os
import re
from pathlib import Path

from resnet_builder.errors import Problem, SpecError, nearest

_ENDINGS = (".yaml", ".yml")
_WEIGHTS = (".safetensors", ".pth", ".pt", ".th", ".ckpt", ".bin")


def is_hub_name(source: str) -> bool:
    """Tell whether a source is the name of a repository of the Hugging Face Hub."""
    return source.startswith("hf-hub:")


def bundled_names() -> tuple[str, ...]:
    """Names of the bundled specs, ``resnet20`` before ``resnet110``."""
    return _names_in(_specs_folder())


def recipe_names() -> tuple[str, ...]:
    """Names of the bundled recipes: fragments to extend, or to lay over a spec."""
    return _names_in(_specs_folder() / "recipes")


def bundled_file(name: str) -> Path:
    """File of a bundled spec or recipe; a spec before a recipe of the same name."""
    folder = _specs_folder() if name in bundled_names() else _specs_folder() / "recipes"
    return folder / f"{name}.yaml"


def is_bundled(file: Path) -> bool:
    """Tell whether a file is a bundled spec or recipe."""
    return file.parent in {_specs_folder(), _specs_folder() / "recipes"}


def find_spec(source: str) -> Path:
    """File of a SPEC argument.

    Args:
        source: With a separator or a YAML ending a path, whether or not there is such a file;
            anything else the name of a bundled spec, a run directory, or a file of weights.

    Raises:
        SpecError: No bundled spec is called that.
    """
    names = bundled_names()
    if source in names:
        return bundled_file(source)
    # Of os.path, as a Path raises an error for a name that is too long.
    if os.path.isfile(spec_of_run := os.path.join(source, "spec.yaml")):
        return Path(spec_of_run)
    is_weights = source.lower().endswith(_WEIGHTS) and os.path.isfile(source)
    if is_path(source) or is_weights:
        return Path(source)
    suggestion = nearest(source, names)
    hint = "" if suggestion else "; see: resnet-build list specs"
    if os.path.lexists(source):
        suggestion, hint = None, f"; for the file of that name write ./{source}"
    if os.path.isdir(source):
        hint = f"; to train on the images in a folder: resnet-build train resnet20 --data {source}"
    if source == "-":
        suggestion, hint = None, "; a spec is not read from standard input, but from a file"
    problem = Problem(
        "unknown-name",
        "",
        f"no bundled spec is named '{source}'{hint}",
        file=source,
        suggestion=suggestion,
    )
    raise SpecError([problem])


def is_path(source: str) -> bool:
    """Tell whether a SPEC argument is a path, not a bundled name."""
    separators = {os.sep, os.altsep or os.sep, "/"}
    return source.lower().endswith(_ENDINGS) or any(separator in source for separator in separators)


def _specs_folder() -> Path:
    """Folder of the bundled specs: in a wheel inside the package, else beside it."""
    package = Path(__file__).parents[1]
    inside = package / "specs"
    return inside if inside.is_dir() else package.parent / "specs"


def _names_in(folder: Path) -> tuple[str, ...]:
    return tuple(sorted((file.stem for file in folder.glob("*.yaml")), key=_by_number))


def _by_number(name: str) -> list[str | int]:
    """Sort key that orders names by the numbers in them, not by digits."""
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]
