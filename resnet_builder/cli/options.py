"""Arguments and flags that several commands have, and how a shell completes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from resnet_builder.cli.invocation import Invocation
from resnet_builder.spec.bundled import bundled_names, is_path, recipe_names

F = TypeVar("F", bound=Callable[..., Any])


class SpecSource(click.types.StringParamType):
    """A file, or the name of something bundled.

    Args:
        names: What is bundled, for completion.
    """

    def __init__(self, names: Callable[[], tuple[str, ...]]) -> None:
        self._names = names

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete names, and files once there is a separator or no name fits."""
        names = [name for name in self._names() if name.startswith(incomplete)]
        if is_path(incomplete) or not names:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(name) for name in names]


FOLDER = click.Path(file_okay=False, path_type=Path)
EXISTING = click.Path(exists=True, path_type=Path)
SPEC = SpecSource(bundled_names)


def layer_options(command: F) -> F:
    """Add the flags that change a spec: ``--set``, ``--with`` and ``--plugin``."""
    for decorate in (
        plugin_option,
        click.option(
            "fragments",
            "--with",
            type=SpecSource(lambda: (*recipe_names(), *bundled_names())),
            multiple=True,
            metavar="FRAGMENT",
            help="Lay a file, or a bundled recipe, over the spec.",
        ),
        click.option(
            "overrides",
            "--set",
            multiple=True,
            metavar="KEY=VALUE",
            help="Set one value, as in model.stages.0.blocks=3.",
        ),
    ):
        command = decorate(command)
    return command


def plugin_option(command: F) -> F:
    """Add ``--plugin``: consent to importing code."""
    return click.option(
        "plugins",
        "--plugin",
        multiple=True,
        metavar="NAME",
        help="Import this module or file, which a spec may need.",
    )(command)


def data_dir_option(command: F) -> F:
    """Add ``--data-dir``."""
    return click.option(
        "--data-dir",
        type=FOLDER,
        metavar="DIR",
        help="Where data sets live. [default: $RESNET_BUILDER_DATA, else your cache folder]",
    )(command)


def skip_bad_option(command: F) -> F:
    """Add ``--skip-bad``."""
    return click.option(
        "--skip-bad",
        is_flag=True,
        help="Leave out pictures that cannot be decoded, and name them, instead of refusing all.",
    )(command)


def ignore_memory_option(command: F) -> F:
    """Add ``--ignore-memory-estimate``."""
    return click.option(
        "--ignore-memory-estimate",
        is_flag=True,
        help="Go on although training is not expected to fit into memory.",
    )(command)


def json_option(command: F) -> F:
    """Add ``--json``."""
    return click.option("as_json", "--json", is_flag=True, help="Print one JSON document.")(command)


def debug_option(command: F) -> F:
    """Add ``--debug``."""

    def remember(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(Invocation).debug = True

    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=remember,
        help="Show tracebacks.",
    )(command)
