"""Console output: results on stdout; errors and notes on stderr.

All that the program prints goes through here, and through :mod:`resnet_builder.cli.progress`. Names
come from files of others, so every line is escaped.
"""

import json
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress

import click

from resnet_builder.errors import (
    ResnetBuilderError,
    SpecError,
    Stopped,
    columns,
    nearest,
    printable,
)


def show(*lines: str) -> None:
    """Print lines of a result. What stands in a line cannot begin another one."""
    click.echo("\n".join(map(printable, lines)))


def show_json(result: object) -> None:
    """Print a result for programs: one JSON document (:func:`json_text`)."""
    click.echo(json_text(result))


def json_text(result: object) -> str:
    """Result for programs: one JSON document, without fields that are ``None``.

    Args:
        result: Dataclass or pydantic model; its fields are the keys. NaN and infinity become null.
    """
    from pydantic import TypeAdapter

    # Not by pydantic's JSON, which has no place for file names that are not UTF-8.
    found = TypeAdapter(type(result)).dump_python(
        result, mode="json", by_alias=True, exclude_none=True
    )
    finite = json.loads(json.dumps(found), parse_constant=lambda _: None)
    text = json.dumps({"schema": 1, **finite}, indent=2)  # in ASCII
    return _rows_on_lines(text.replace("\x7f", "\\u007f"))


def _rows_on_lines(text: str) -> str:
    """Join the lines of each list of whole numbers, such as the rows of a confusion matrix."""
    rows = r"\[\s+(-?\d+(?:,\s+-?\d+)*)\s+\]"
    return re.sub(rows, lambda row: f"[{' '.join(row[1].split())}]", text)


def note(*lines: str) -> None:
    """Print lines on stderr. A closed stderr is no error."""
    with suppress(OSError):
        click.echo("\n".join(map(printable, lines)), err=True)


def show_error(error: Exception) -> None:
    """Print why the program ends."""
    # The text of our errors is escaped already, line by line. Problems of a spec have their own
    # form, and a stop is no error.
    lines = str(error).split("\n") if isinstance(error, ResnetBuilderError) else [str(error)]
    prefix = "" if isinstance(error, SpecError | Stopped) else "error: "
    note(f"{prefix}{lines[0]}", *lines[1:])


def show_usage_error(error: click.ClickException) -> None:
    """Print what is wrong with the command line, and how it is used."""
    lines = [f"error: {error.format_message()}"]
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        if isinstance(error, click.NoSuchOption):
            meant = _meant_option(error.option_name, context)
            lines = [f"error: no such option '{error.option_name}'"]
            lines += [f"did you mean: {meant}"] if meant else []
        elif given := _EXTRA_ARGUMENT.search(lines[0]):
            # What is left over is often a folder of images.
            is_data = "data" in _flags(context) and os.path.exists(given[1])
            lines += [f"did you mean: --data {shlex.quote(given[1])}"] if is_data else []
        help_line = f"Try '{context.command_path} --help' for help."
        lines = [*context.get_usage().split("\n"), help_line, "", *lines]
    note(*lines)


def _meant_option(name: str, context: click.Context) -> str | None:
    """Option that was probably meant: one of the command's, or a key of the spec."""
    from resnet_builder.spec.keys import FLAGS, key_paths

    options = _flags(context)
    keys = {}
    if "set" in options:
        flags = {FLAGS[flag]: options[flag] for flag in FLAGS.keys() & options.keys()}
        keys = {key: flags.get(path, f"--set {path}=...") for key, path in key_paths().items()}
    others = {
        other: options[flag]
        for flag, names in _OPTION_ALIASES.items()
        for other in names
        if flag in options
    }
    meant = {**keys, **others, **options}
    found = nearest(_plain(name), meant)
    return found and meant[found]


def _flags(context: click.Context) -> dict[str, str]:
    """Options of a command by their plain names."""
    params = context.command.get_params(context)
    return {_plain(flag): flag for param in params for flag in param.opts}


_EXTRA_ARGUMENT = re.compile(r"unexpected extra argument \((.+)\)$")

# Names in other programs.
_OPTION_ALIASES = {
    "data": ("data_path", "data_root", "dataset", "image_folder", "images", "train_dir"),
    "nproc": ("devices", "gpus", "n_gpus", "nproc_per_node", "num_gpus", "num_processes"),
    "out": ("log_dir", "output", "output_dir", "save_dir", "work_dir"),
    "plugin": ("import", "user_dir"),
    "with": ("recipe",),
}


def _plain(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> list[str]:
    """Format rows as the lines of a table.

    Args:
        header: Names of the columns.
        rows: One text for each column.
        left: Number of columns that are aligned to the left. The others hold numbers, and are
            aligned to the right.
    """
    lines = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(columns(line[number]) for line in lines) for number in range(len(header))]
    return [
        "  ".join(
            f"{cell}{' ' * (width - columns(cell))}" if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def examples(*lines: str) -> str:
    """Format the examples below the help of a command."""
    # click wraps the lines of a paragraph unless it begins with \b.
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
