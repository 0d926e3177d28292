"""The program ``resnet-build``: its commands, and the exit code of whatever goes wrong in them."""

import atexit
import gc
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click
from click.shell_completion import shell_complete

import resnet_builder
from resnet_builder.cli.console import examples, note, show_error, show_usage_error
from resnet_builder.cli.options import CommandGroup, Invocation
from resnet_builder.cli.signals import INTERRUPTED, TERMINATED, Interrupted, Signals
from resnet_builder.errors import ResnetBuilderError, Stopped, StorageError, UsageError, printable
from resnet_builder.runs.files import storage_errors, write_atomically
from resnet_builder.system import end_with_parent, is_out_of_memory, safe_path

PROGRAM = "resnet-build"
COMPLETE = "_RESNET_BUILD_COMPLETE"

COMMANDS = {
    name: f"resnet_builder.cli.{name}"
    for name in (
        *("bench", "diff", "draw", "evaluate", "export", "init", "list"),
        *("plot", "predict", "publish", "report", "schema", "summary", "sweep", "train"),
        "validate",
    )
} | {"import": "resnet_builder.cli.import_"}
"""Modules of the commands. Each is imported when its command is called, or for ``--help``."""

BUG, MEMORY, STORAGE = 1, 6, 7

_REPEAT_SECONDS = 5.0
"""Time in which a run of a group takes a second signal for the first one, passed on."""

_GC_THRESHOLD = 100_000
"""New objects before a garbage collection: those that importing torch makes stay anyway."""


class Program(CommandGroup):
    """Command group that ends with one of this project's exit codes, whatever happens."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(COMMANDS[cmd_name])
        # `import` is a keyword, and `list` a builtin: their functions have an underscore.
        command: click.Command = getattr(module, cmd_name, None) or getattr(module, f"{cmd_name}_")
        return command

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run a command line and exit. Only ``args`` is used."""
        gc.set_threshold(_GC_THRESHOLD)
        atexit.register(gc.freeze)  # spares the last collection, at exit
        with Signals() as signals, safe_path(), _log_as_warnings():
            signals.repeat_seconds = _REPEAT_SECONDS if end_with_parent() else 0.0
            invocation = Invocation(signals, sys.argv[1:] if args is None else args)
            code = self._run(invocation)
        sys.exit(code)

    def _run(self, invocation: Invocation) -> int:
        """Run a command line and return the exit code."""
        try:
            _make_streams_tolerant()
            if instruction := os.environ.get(COMPLETE):
                return shell_complete(self, {}, PROGRAM, COMPLETE, instruction)
            args = list(invocation.arguments)
            with self.make_context(PROGRAM, args, obj=invocation) as context:
                _check_paths(args)
                self.invoke(context)
            _flush()
        except click.exceptions.Exit as error:
            return error.exit_code
        except Interrupted as error:
            return error.exit_code
        except (KeyboardInterrupt, click.Abort):
            return INTERRUPTED
        except BaseException as error:  # a plugin may raise SystemExit, which is no success
            if _is_output_closed(error):
                _drop_output()  # as in `resnet-build list specs | head`
                return 0
            code = _exit_code(error, invocation)
            if invocation.may_report(code):
                _report(error, invocation)
            return code
        return 0


@contextmanager
def _log_as_warnings() -> Iterator[None]:
    """Context in which what the package logs is printed, by one of several processes."""
    log, handler = logging.getLogger(resnet_builder.__name__), logging.Handler(logging.WARNING)
    handler.emit = lambda record: note(f"warning: {record.getMessage()}")  # type: ignore[method-assign]
    handler.addFilter(lambda _: os.environ.get("RANK", "0") == "0")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _check_paths(arguments: Sequence[str]) -> None:
    """Refuse names that torch and other libraries cannot open, and would blame the files for.

    Raises:
        StorageError: The current folder was removed.
        UsageError: The name of a file is not UTF-8.
    """
    with storage_errors("find", Path("the current folder")):
        os.getcwd()
    for argument in arguments:
        if any("\udc80" <= character <= "\udcff" for character in argument):
            raise UsageError(f"'{argument}' is not UTF-8: give the file or folder another name")


def _exit_code(error: BaseException, invocation: Invocation) -> int:
    if isinstance(error, Stopped):
        if invocation.signals.exit_code is not None:
            return invocation.signals.exit_code
        # Of several processes, another one was sent the signal: no terminal does that.
        return TERMINATED if invocation.signals.is_polled else INTERRUPTED
    if isinstance(error, click.ClickException | ResnetBuilderError):
        return error.exit_code
    if is_out_of_memory(error):
        return MEMORY
    if _plugin_error(error) is not None:
        return UsageError.exit_code
    return STORAGE if isinstance(error, OSError) else BUG


def _report(error: BaseException, invocation: Invocation) -> None:
    """Print why the program ends."""
    if isinstance(error, click.ClickException):
        show_usage_error(error)
        return
    if invocation.debug:
        lines = "".join(traceback.format_exception(error)).rstrip().split("\n")
        note(*(f"  {line}" for line in lines))
    if is_out_of_memory(error):
        note("error: out of memory")
    elif isinstance(error, ResnetBuilderError):
        show_error(error)
    elif found := _plugin_error(error):
        note(f"error: a plugin fails in {found}; --debug shows the traceback")
    elif isinstance(error, OSError):
        show_error(error)
    else:
        from resnet_builder.registry import described

        try:
            log = str(_write_crash_log(error, invocation.crash_log))
        except OSError as full:
            log = f"what --debug shows; no log could be written: {full.strerror or full}"
        note(
            f"internal error: {described(error)}; this is a bug of {PROGRAM}, "
            f"please report it with {log}"
        )


def _plugin_error(error: BaseException) -> str | None:
    """Error that was raised in a plugin, with its place there."""
    from resnet_builder.registry import outside_error

    return outside_error(error)


def _write_crash_log(error: BaseException, path: Path | None) -> Path:
    """Write the traceback of a bug into the run directory, or else into a temporary file."""
    text = "".join([f"{' '.join(sys.argv)}\n\n", *traceback.format_exception(error)])
    text = "\n".join(map(printable, text.split("\n")))
    if path is not None:
        with suppress(StorageError):
            write_atomically(path, [text.encode()])
            return path
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", prefix=f"{PROGRAM}-", suffix=".log", delete=False
    ) as file:
        file.write(text)
    return Path(file.name)


def _make_streams_tolerant() -> None:
    """Print the number of a character that the terminal lacks, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _is_output_closed(error: BaseException) -> bool:
    """Whether an error says that nobody reads the output; a plugin's pipe may have broken, too."""
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    is_of_output = frames[-1] in {click.echo.__code__, _flush.__code__}
    return isinstance(error, BrokenPipeError) and is_of_output


def _drop_output() -> None:
    """Send the rest of the output nowhere, or Python would fail to flush it at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(nowhere, sys.stdout.fileno())


@click.group(
    PROGRAM,
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        f"{PROGRAM} list specs",
        f"{PROGRAM} summary resnet32",
        f"{PROGRAM} train resnet20_digits",
    ),
)
@click.version_option(  # by its name: looking up the version takes time, at every start
    package_name="resnet-builder", message="%(prog)s %(version)s", help="Show the version."
)
def main() -> None:
    """Build, train and compare ResNets. One YAML file, the spec, describes each experiment.

    A SPEC is the path of such a file, or the name of a bundled one.
    """
