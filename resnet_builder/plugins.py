"""Parts from outside the package: imported only if the user, not a file, says so."""

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

from resnet_builder.errors import Problem, SpecError
from resnet_builder.spec.positions import Positions

CONSENT_VARIABLE = "RESNET_BUILDER_PLUGINS"


def consented_plugins(named: Iterable[str]) -> frozenset[str]:
    """Return the plugins the user agreed to: those named, and those in the environment.

    ``RESNET_BUILDER_PLUGINS`` holds names separated by commas.
    """
    environment = os.environ.get(CONSENT_VARIABLE, "").split(",")
    return frozenset({*named, *(name.strip() for name in environment if name.strip())})


def import_plugins(
    declared: tuple[str, ...], named: Collection[str], positions: Positions
) -> tuple[str, ...]:
    """Import the plugins a spec declares and those the user names.

    Args:
        declared: The spec's ``plugins``: modules, or paths relative to the file that names them.
        named: What the user agreed to, beside the environment's; imported, declared or not.
        positions: Where the spec's values stand.

    Returns:
        Every plugin now imported, paths made absolute.

    Raises:
        SpecError: A declared plugin is not consented to (nothing is imported then), or a plugin
            cannot be found or fails while it is imported.
    """
    paths = [_located(name, positions.base_dir(("plugins", i))) for i, name in enumerate(declared)]
    undeclared = [name for name in named if name not in declared]
    added = [_located(name, Path.cwd()) for name in undeclared]
    consent = {*consented_plugins(named), *added}
    refused = [
        positions.problem(
            "plugin",
            ("plugins", number),
            f"'{name}' is code that this spec asks to run; if you trust it, add --plugin {name}",
        )
        for number, (name, path) in enumerate(zip(declared, paths, strict=True))
        if name not in consent and path not in consent
    ]
    if refused:
        raise SpecError(refused)
    wanted = dict.fromkeys([*paths, *added])
    for plugin in wanted:
        number = paths.index(plugin) if plugin in paths else None
        _import(plugin, positions, number)
    return tuple(wanted)


def _located(name: str, base: Path) -> str:
    """Make a plugin's path absolute; leave a module's name as it is."""
    is_path = name.endswith(".py") or "/" in name or os.sep in name
    return str((base / name).resolve()) if is_path else name


def _import(plugin: str, positions: Positions, number: int | None) -> None:
    try:
        if plugin.endswith(".py"):
            _import_file(Path(plugin))
        else:
            importlib.import_module(plugin)
    except Exception as error:
        what = f"cannot import '{plugin}': {type(error).__name__}: {error}"
        problem = (
            Problem("plugin", "", what, file="--plugin")
            if number is None
            else positions.problem("plugin", ("plugins", number), what)
        )
        raise SpecError([problem]) from error


def _import_file(path: Path) -> None:
    """Import a file once, under a name of its own, so that what it defines can be pickled."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"resnet_builder_plugin_{path.stem}_{digest}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
