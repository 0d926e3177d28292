"""Plugins: parts from outside the package, imported only if the user, not a file, says so."""

import os
import shlex
import traceback
from collections.abc import Collection
from pathlib import Path

from resnet_builder.errors import Problem, SpecError
from resnet_builder.registry import described, import_plugin
from resnet_builder.spec.diagnostics import Positions
from resnet_builder.spec.yaml_source import document_of

CONSENT_VARIABLE = "RESNET_BUILDER_PLUGINS"
"""Environment variable with the names of trusted plugins, separated by commas."""


def import_plugins(
    declared: tuple[str, ...], named: Collection[str], positions: Positions
) -> tuple[str, ...]:
    """Import the plugins that a spec declares and those that the user names.

    Consent is to a module, or to one file: paths that the user names count from the working
    directory, and are compared with declared ones as real paths.

    Args:
        declared: The spec's ``plugins``: modules, or paths relative to the file that names them.
        named: Plugins that the user trusts, beside those of the environment; each is imported,
            declared or not.
        positions: Places of the spec's values.

    Returns:
        All plugins that are imported now: modules, and real paths.

    Raises:
        SpecError: The user does not trust a declared plugin (nothing is imported then), or a
            plugin cannot be found or fails while it is imported.
    """
    here = Path.cwd()
    added = [_located(name, here) for name in named]
    asked = [
        _moved(_located(name, positions.base_dir(("plugins", number))), added)
        for number, name in enumerate(declared)
    ]
    environment = os.environ.get(CONSENT_VARIABLE, "").split(",")
    trusted = {*added, *(_located(name.strip(), here) for name in environment if name.strip())}
    refused = [
        positions.problem("plugin", ("plugins", number), _request(declared[number], plugin, here))
        for number, plugin in enumerate(asked)
        if plugin not in trusted
    ]
    if refused:
        raise SpecError(refused)
    wanted = tuple(dict.fromkeys([*asked, *added]))
    for plugin in wanted:
        try:
            import_plugin(plugin)
        except (Exception, SystemExit) as error:
            frames = traceback.extract_tb(error.__traceback__)
            lines = [f", line {each.lineno}" for each in frames if each.filename == plugin]
            place = f"'{plugin}'{lines[-1] if lines else ''}"
            message = f"cannot import {place}: {described(error)}"
            problem = (
                positions.problem("plugin", ("plugins", asked.index(plugin)), message)
                if plugin in asked
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
    """Return the real path of a file; leave the name of a module as it is."""
    is_path = name.endswith(".py") or "/" in name or os.sep in name
    return os.path.realpath(base / name) if is_path and "\0" not in name else name


def _moved(plugin: str, named: Collection[str]) -> str:
    """Return the named file of the same name for one that is not there any more.

    A run and its weights hold the whole paths of their plugins, and may have been moved. What the
    user names is what is imported, so that this gives consent to nothing else.
    """
    if not os.path.isabs(plugin) or os.path.exists(plugin):
        return plugin
    same = [one for one in named if os.path.basename(one) == os.path.basename(plugin)]
    return same[0] if len(same) == 1 else plugin


def _request(declared: str, plugin: str, here: Path) -> str:
    """Return the message for a plugin without consent, with the flag as the user would type it."""
    path = Path(plugin)
    shown = str(path.relative_to(here)) if path.is_relative_to(here) else plugin
    return (
        f"'{declared}' is code that this spec asks to run; if you trust it, add "
        f"--plugin {shlex.quote(shown)}"
    )
