"""What one call of the program carries from its entry to its commands."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from resnet_builder.cli.signals import Signals


def always(exit_code: int) -> bool:
    """Say why the program ends, whatever it ends with."""
    return True


@dataclass
class Invocation:
    """One call of the program.

    Attributes:
        signals: Asks it to end.
        debug: Whether tracebacks are shown.
        crash_log: Where the traceback of a bug goes; a temporary file if it is ``None``.
        arguments: What the program was called with.
        may_report: Whether to say why it ends, asked with the exit code; of several processes
            one does.
    """

    signals: Signals
    debug: bool = False
    crash_log: Path | None = None
    arguments: Sequence[str] = ()
    may_report: Callable[[int], bool] = always


pass_invocation = click.make_pass_decorator(Invocation)
