"""The program ``resnet-build``: its commands, and what becomes of whatever goes wrong in them."""

import atexit
import gc
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click
from click.shell_completion import shell_complete

import resnet_builder
from resnet_builder.cli.bench import bench
from resnet_builder.cli.diff import diff
from resnet_builder.cli.evaluate import evaluate
from resnet_builder.cli.export import export
from resnet_builder.cli.import_ import import_
from resnet_builder.cli.init import init
from resnet_builder.cli.invocation import Invocation
from resnet_builder.cli.list import list_
from resnet_builder.cli.messages import examples, note, show, show_error
from resnet_builder.cli.predict import predict
from resnet_builder.cli.schema import schema
from resnet_builder.cli.signals import INTERRUPTED, Interrupted, Signals
from resnet_builder.cli.summary import summary
from resnet_builder.cli.train import train
from resnet_builder.cli.validate import validate
from resnet_builder.errors import ResnetBuilderError, Stopped, StorageError
from resnet_builder.runs.files import write_atomically
from resnet_builder.system import is_out_of_memory

PROGRAM = "resnet-build"
COMPLETE = "_RESNET_BUILD_COMPLETE"

BUG, MEMORY, STORAGE = 1, 6, 7

OBJECTS_UNCOLLECTED = 100_000
"""New objects before Python looks for garbage: those that importing torch makes stay anyway."""


class Program(click.Group):
    """A group of commands whose every end is one of this project's exit codes."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run a command line and exit; only ``args`` is heeded."""
        gc.set_threshold(OBJECTS_UNCOLLECTED)
        atexit.register(gc.freeze)  # the last look, at exit, is spared too
        with Signals() as signals:
            invocation = Invocation(signals, arguments=sys.argv[1:] if args is None else args)
            code = self._run(invocation)
        sys.exit(code)

    def _run(self, invocation: Invocation) -> int:
        """Run a command line and return the exit code."""
        try:
            invocation.signals.let_through()
            _make_streams_tolerant()
            if instruction := os.environ.get(COMPLETE):
                return shell_complete(self, {}, PROGRAM, COMPLETE, instruction)
            args = list(invocation.arguments) or ["--help"]
            with self.make_context(PROGRAM, args, obj=invocation) as context:
                self.invoke(context)
            _flush()
        except click.exceptions.Exit as error:
            return error.exit_code
        except BrokenPipeError:
            _drop_output()  # whoever read it has seen enough
        except SystemExit:
            raise
        except BaseException as error:
            return _explain(error, invocation)
        return 0


def _explain(error: BaseException, invocation: Invocation) -> int:
    """Tell the user why the program ends, and return the exit code."""
    if isinstance(error, Interrupted):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return INTERRUPTED
    code = _exit_code(error, invocation)
    if invocation.may_report(code):
        _tell(error, invocation)
    return code


def _exit_code(error: BaseException, invocation: Invocation) -> int:
    if isinstance(error, Stopped) and invocation.signals.exit_code is not None:
        return invocation.signals.exit_code
    if isinstance(error, click.ClickException | ResnetBuilderError):
        return error.exit_code
    if is_out_of_memory(error):
        return MEMORY
    return STORAGE if isinstance(error, OSError) else BUG


def _tell(error: BaseException, invocation: Invocation) -> None:
    if isinstance(error, click.ClickException):
        with suppress(OSError):
            error.show()
        return
    if invocation.debug:
        note("".join(traceback.format_exception(error)))
    if isinstance(error, ResnetBuilderError | OSError):
        show_error(error)
    elif isinstance(error, MemoryError):
        note("error: out of memory")
    else:
        log = _write_crash_log(error, invocation.crash_log)
        note(
            f"internal error: {type(error).__name__}: {error}; this is a fault of {PROGRAM}, "
            f"please report it with {log}"
        )


def _write_crash_log(error: BaseException, path: Path | None) -> Path:
    """Write down a bug's traceback, in a temporary file if it cannot be in the run directory."""
    text = "".join([f"{' '.join(sys.argv)}\n\n", *traceback.format_exception(error)])
    if path is not None:
        with suppress(StorageError):
            write_atomically(path, [text.encode(errors="backslashreplace")])
            return path
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", prefix=f"{PROGRAM}-", suffix=".log", delete=False
    ) as file:
        file.write(text)
    return Path(file.name)


def _make_streams_tolerant() -> None:
    """Let a terminal that lacks a character see its number instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _drop_output() -> None:
    """Send the rest of the output nowhere, so that Python does not fail to flush it at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(nowhere, sys.stdout.fileno())


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        show(f"{PROGRAM} {resnet_builder.__version__}")
        ctx.exit()


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
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version.",
)
def main() -> None:
    """Build, train and compare ResNets that are described by one YAML file each.

    A SPEC is such a file, or the name of a bundled one.
    """


for _command in (
    validate,
    summary,
    diff,
    bench,
    train,
    evaluate,
    predict,
    import_,
    export,
    list_,
    schema,
    init,
):
    main.add_command(_command)
