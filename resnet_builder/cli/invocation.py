"""What one call of the program carries from its entry to its commands."""

from dataclasses import dataclass
from pathlib import Path

import click

from resnet_builder.cli.signals import Signals


@dataclass
class Invocation:
    """One call of the program.

    Attributes:
        signals: Asks it to end.
        debug: Whether tracebacks are shown.
        crash_log: Where the traceback of a bug goes; a temporary file if it is ``None``.
    """

    signals: Signals
    debug: bool = False
    crash_log: Path | None = None


pass_invocation = click.make_pass_decorator(Invocation)
