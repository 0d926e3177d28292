"""Plugins: parts from outside the package, imported only if the user, not a file, says so."""

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Collection
from pathlib import Path

from resnet_builder.errors import Problem, SpecError
from resnet_builder.spec.diagnostics import Positions
from resnet_builder.spec.yaml_source import document_of

CONSENT_VARIABLE = "RESNET_BUILDER_PLUGINS"
"""Environment variable with the names of trusted plugins, separated by commas."""


def import_plugins(
    declared: tuple[str, ...], named: Collection[str], positions: Positions
) -> tuple[str, ...]:
    """Import the plugins that a spec declares and those that the user names.

    Args:
        declared: The spec's ``plugins``: modules, or paths relative to the file that names them.
        named: Plugins that the user trusts, beside those of the environment; each is imported,
            declared or not.
        positions: Places of the spec's values.

    Returns:
        All plugins that are imported now, paths made absolute.

    Raises:
        SpecError: The user does not trust a declared plugin (nothing is imported then), or a
            plugin cannot be found or fails while it is imported.
    """
    paths = [_located(name, positions.base_dir(("plugins", i))) for i, name in enumerate(declared)]
    added = [_located(name, Path.cwd()) for name in named if name not in declared]
    environment = os.environ.get(CONSENT_VARIABLE, "").split(",")
    trusted = {*named, *added, *(name.strip() for name in environment if name.strip())}
    refused = [
        positions.problem(
            "plugin",
            ("plugins", number),
            f"'{name}' is code that this spec asks to run; if you trust it, add --plugin {name}",
        )
        for number, (name, path) in enumerate(zip(declared, paths, strict=True))
        if name not in trusted and path not in trusted
    ]
    if refused:
        raise SpecError(refused)
    wanted = tuple(dict.fromkeys([*paths, *added]))
    for plugin in wanted:
        try:
            _import(plugin)
        except Exception as error:
            message = f"cannot import '{plugin}': {type(error).__name__}: {error}"
            problem = (
                positions.problem("plugin", ("plugins", paths.index(plugin)), message)
                if plugin in paths
                else Problem("plugin", "", message, file="--plugin")
            )
            raise SpecError([problem]) from error
    return wanted


def import_named_plugins(named: Collection[str]) -> tuple[str, ...]:
    """Import the plugins that the user names, without a spec.

    Raises:
        SpecError: A plugin cannot be found or fails while it is imported.
    """
    return import_plugins((), named, Positions(document_of({}).root))


def _located(name: str, base: Path) -> str:
    """Make a plugin's path absolute; leave a module's name as it is."""
    is_path = name.endswith(".py") or "/" in name or os.sep in name
    return str((base / name).resolve()) if is_path else name


def _import(plugin: str) -> None:
    """Import a module, or a file under a name of its own, so that its classes can be pickled."""
    if not plugin.endswith(".py"):
        importlib.import_module(plugin)
        return
    path = Path(plugin)
    digest = hashlib.sha256(plugin.encode()).hexdigest()[:8]
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
