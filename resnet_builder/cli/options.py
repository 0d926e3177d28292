"""Options that several commands share, and what they stand for: a spec, a device."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from resnet_builder.cli.console import note
from resnet_builder.cli.signals import Signals
from resnet_builder.errors import MissingDataError, SpecError, UsageError, nearest
from resnet_builder.spec.bundled import bundled_names, is_hub_name, is_path, recipe_names
from resnet_builder.spec.keys import FLAGS

if TYPE_CHECKING:
    import torch

    from resnet_builder.builder import CheckedSpec
    from resnet_builder.spec.schema import Spec

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Invocation:
    """One call of the program.

    Attributes:
        signals: Signal handlers of the process.
        arguments: Arguments of the command line.
        debug: Whether tracebacks are shown.
        crash_log: File for the traceback of a bug; ``None`` for a temporary file.
        may_report: Returns whether this process prints why the program ends, given the exit code.
            Only one of several processes does.
        parent: Process id of the process that started this one.
    """

    signals: Signals
    arguments: Sequence[str] = ()
    debug: bool = False
    crash_log: Path | None = None
    may_report: Callable[[int], bool] = lambda exit_code: True
    parent: int = field(default_factory=os.getppid)

    @property
    def is_orphan(self) -> bool:
        """Whether the process that started this one has ended."""
        return os.getppid() != self.parent


pass_invocation = click.make_pass_decorator(Invocation)


class CommandGroup(click.Group):
    """Group of commands that suggests the one that was probably meant; alone, it shows its help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments."""
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of a command line, or name the one that was probably meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            names = self.list_commands(ctx)
            alias = _COMMAND_ALIASES.get(args[0], "")
            is_here = alias.partition(" ")[0] in names
            meant = alias if is_here else nearest(args[0], names)
            hint = f"did you mean: {meant}" if meant else f"there are {', '.join(names)}"
            message = f"no such command '{args[0]}'; {hint}"
            raise click.UsageError(message, ctx) from error


# Names in other programs.
_COMMAND_ALIASES = {
    **dict.fromkeys(("eval", "test", "val"), "evaluate"),
    **dict.fromkeys(("classify", "infer", "inference"), "predict"),
    **dict.fromkeys(("fit", "finetune", "resume"), "train"),
    **dict.fromkeys(("check", "lint"), "validate"),
    **dict.fromkeys(("info", "show"), "summary"),
    **dict.fromkeys(("compare",), "diff"),
    **dict.fromkeys(("convert",), "import"),
    **dict.fromkeys(("create", "new"), "init"),
    **dict.fromkeys(("models", "networks"), "list specs"),
    **dict.fromkeys(("ps", "runs"), "list runs"),
    **dict.fromkeys(("benchmark",), "bench"),
    **dict.fromkeys(("visualize",), "draw"),
    "ls": "list",
}


class SpecSource(click.types.StringParamType):
    """Type of an argument that is a file or the name of a bundled file.

    Args:
        names: Returns the bundled names, for shell completion.
    """

    def __init__(self, names: Callable[[], tuple[str, ...]]) -> None:
        self._names = names

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete names, and files where there is a separator or no name fits."""
        names = [name for name in self._names() if name.startswith(incomplete)]
        if is_path(incomplete) or not names:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(name) for name in names]


FOLDER = click.Path(file_okay=False, path_type=Path)
EXISTING = click.Path(exists=True, path_type=Path)


class _TrainedWeights(click.Path):
    """Type of an argument that is a run, a file or folder of weights, or a name on the Hub."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check that a path exists; a name on the Hub is looked up later."""
        return Path(value) if is_hub_name(str(value)) else super().convert(value, param, ctx)


WEIGHTS = _TrainedWeights(exists=True, path_type=Path)
SPEC = SpecSource(bundled_names)


# The consent to import code, without which no spec imports any.
plugin_option = click.option(
    "plugins",
    "--plugin",
    multiple=True,
    metavar="NAME",
    help="Let the spec import this Python module or file.",
)
data_option = click.option(
    "--data",
    type=click.Path(path_type=Path),
    callback=lambda ctx, param, value: None if value is None else value.expanduser(),
    metavar="PATH",
    help="Your own images in place of the spec's dataset: a folder of images for each class, or a "
    "table of labels (CSV, TSV, Parquet).",
)
data_dir_option = click.option(
    "--data-dir",
    type=FOLDER,
    metavar="DIR",
    help="Folder of the datasets. [default: $RESNET_BUILDER_DATA, else your cache folder]",
)
skip_bad_option = click.option(
    "--skip-bad",
    is_flag=True,
    help="Leave out images that cannot be decoded, and list them. By default they are errors.",
)
json_option = click.option("as_json", "--json", is_flag=True, help="Print one JSON document.")
debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=lambda ctx, _, value: setattr(ctx.ensure_object(Invocation), "debug", value),
    help="Show tracebacks.",
)
_fragment_option = click.option(
    "fragments",
    "--with",
    type=SpecSource(lambda: (*recipe_names(), *bundled_names())),
    multiple=True,
    metavar="FRAGMENT",
    help="Merge a file, or a bundled recipe, into the spec.",
)
_override_option = click.option(
    "overrides",
    "--set",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set one value of the spec, as in model.stages.0.blocks=3.",
)


_FLAGS = {
    "epochs": ("N", "Train for N epochs: all lengths of the recipe are scaled, and printed."),
    "steps": ("N", "Train for N steps: all lengths of the recipe are scaled, and printed."),
    "lr": ("RATE", "Learning rate."),
    "batch_size": ("N", "Images per step, over all processes."),
    "seed": ("N", "Seed of weights, order, augmentation and dropout."),
    "device": ("NAME", "Device: cpu, cuda, cuda:N or mps."),
}
_LOG = {"log": ("NAME,...", "Log metrics to csv, tensorboard, wandb or mlflow, too.")}


def recipe_options(command: F) -> F:
    """Add :func:`spec_options` and the flags of single keys, which come with ``overrides``."""
    return _flag_options(command, _FLAGS)


def training_options(command: F) -> F:
    """Add :func:`recipe_options`, and ``--log``."""
    return _flag_options(command, {**_FLAGS, **_LOG})


def _flag_options(command: F, flags: Mapping[str, tuple[str, str]]) -> F:
    @wraps(spec_options(command))
    def with_flags(*args: Any, overrides: tuple[str, ...], **options: Any) -> Any:
        values = {name: options.pop(name) for name in flags}
        given = (
            f"--{name.replace('_', '-')} {value}"
            for name, value in values.items()
            if value is not None
        )
        return command(*args, overrides=(*overrides, *given), **options)

    decorated: Any = with_flags
    for name, (metavar, what) in reversed(list(flags.items())):
        option = f"--{name.replace('_', '-')}"
        decorated = click.option(option, metavar=metavar, help=f"{what} [{FLAGS[name]}]")(decorated)
    return cast(F, decorated)


def spec_options(command: F) -> F:
    """Add the options that change a spec: ``--set``, ``--with`` and ``--plugin``."""
    return _override_option(_fragment_option(plugin_option(command)))


def read_spec(
    source: str | Path,
    *,
    overrides: tuple[str, ...],
    fragments: tuple[str, ...],
    plugins: tuple[str, ...],
    data: Path | None = None,
    without_data: bool = False,
) -> "Spec":
    """Read a spec, print its notices, check it in full, and resolve its defaults.

    Args:
        source: Path, or name of a bundled spec.
        overrides: Values of ``--set``.
        fragments: Values of ``--with``.
        plugins: Values of ``--plugin``.
        data: Value of ``--data``.
        without_data: Whether a number of classes is assumed, with a notice, where only the data
            tell it, and they are not there.

    Raises:
        DataError: Only the data tell the number of classes, and they are missing or unusable.
        SpecError: Everything that is wrong with the spec.
        StorageError: A file cannot be read.
    """
    from resnet_builder.spec.load import read_draft

    draft = read_draft(source, overrides=overrides, fragments=fragments, data=data)
    for notice in draft.notices:
        note(notice)

    # Torch is imported only now, as it takes seconds: what is no YAML is refused at once.
    from resnet_builder import builder

    if not without_data:
        return builder.read_spec(draft, plugins=plugins)
    checked = builder.check_source(draft, plugins=plugins)
    if checked.spec is None:
        raise SpecError(checked.problems)
    note_assumptions(checked)
    return checked.spec


def note_assumptions(checked: "CheckedSpec") -> None:
    """Print what was assumed of data that are not there.

    Raises:
        DataError: The data are there, and unusable.
    """
    if checked.data_error is not None and not isinstance(checked.data_error, MissingDataError):
        raise checked.data_error
    for notice in checked.notices:
        note(notice)


def write_new(file: Path, text: str) -> None:
    """Write the file that ``-o`` names, unless it is there already.

    Raises:
        StorageError: It cannot be written.
        UsageError: It is there already.
    """
    from resnet_builder.runs.files import refuse_existing, write_atomically

    refuse_existing(file)
    write_atomically(file, [text.encode()])


def device_for(spec: "Spec") -> "torch.device":
    """Device that a spec of trained weights names, or else the best one here, with a note."""
    from resnet_builder.device import pick_device

    try:
        return pick_device(spec.run.device)
    except UsageError as error:
        device = pick_device("auto")
        note(f"{error}; computing on {device}")
        return device
