"""Every error a user can meet, and the exit code that the command line ends with.

ResnetBuilderError            1
├── ExportError               1  an exported file that is not its network
├── UsageError                2  a command or call that cannot be meant
├── SpecError                 2  a spec; lists every problem with its place
├── RegistryError             2  a part that is unknown or registered twice
├── PartError                 2  options or shapes that do not go together
├── DataError                 3  a data set that is missing, broken or unusable
├── CheckpointError           4  no checkpoint that can be trusted
├── NonFiniteError            5  a loss or gradient that is not a number
├── ResourceError             6  more memory than there is
├── StorageError              7  a disk that is full, read-only or failing
├── BusyError                 8  a run directory that another process is using
├── ProcessLostError          9  a process of a distributed training is gone
└── Stopped             130/143  a signal asked the program to stop
"""

from collections.abc import Sequence
from typing import ClassVar

from resnet_builder.problems import CODES, Problem, render


class ResnetBuilderError(Exception):
    """Base of this package's errors."""

    exit_code: ClassVar[int] = 1


class ExportError(ResnetBuilderError):
    """A network that cannot be exported, or an exported file that computes something else."""


class UsageError(ResnetBuilderError):
    """A command line or a call that asks for something that cannot be meant."""

    exit_code = 2


class SpecError(ResnetBuilderError):
    """A spec that cannot be used.

    Attributes:
        errors: Every problem found, in file order.
    """

    exit_code = 2

    def __init__(self, errors: Sequence[Problem]) -> None:
        super().__init__(errors)
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return render(self.errors)


class RegistryError(ResnetBuilderError):
    """A part that is not registered, or that is registered twice.

    Attributes:
        allowed: The names that are registered.
        suggestion: The registered name nearest to the one asked for.
    """

    exit_code = 2

    def __init__(
        self, message: str, *, allowed: Sequence[str] = (), suggestion: str | None = None
    ) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)
        self.suggestion = suggestion


class PartError(ResnetBuilderError):
    """Raised by a part whose options or shapes do not go together; the builder adds the place.

    Attributes:
        code: One of :data:`resnet_builder.problems.CODES`.
        option: The option to point at, if there is one.

    Raises:
        ValueError: There is no such code.
    """

    exit_code = 2

    def __init__(self, message: str, *, code: str = "shape", option: str | None = None) -> None:
        super().__init__(message)
        if code not in CODES:
            raise ValueError(f"no problem has the code '{code}': one of {', '.join(CODES)}")
        self.code = code
        self.option = option


class DataError(ResnetBuilderError):
    """A data set that is missing, broken or unusable."""

    exit_code = 3


class CheckpointError(ResnetBuilderError):
    """No checkpoint that can be trusted."""

    exit_code = 4


class NonFiniteError(ResnetBuilderError):
    """A loss or a gradient that is infinite or not a number."""

    exit_code = 5


class ResourceError(ResnetBuilderError):
    """More memory is needed than there is."""

    exit_code = 6


class StorageError(ResnetBuilderError):
    """A disk that is full, read-only or failing."""

    exit_code = 7


class BusyError(ResnetBuilderError):
    """A run directory that another process is using."""

    exit_code = 8


class ProcessLostError(ResnetBuilderError):
    """Another process of a distributed training is gone, or does not answer."""

    exit_code = 9


class Stopped(ResnetBuilderError):
    """Raised where ``stop()`` was seen to be true: a signal asked the program to end.

    Whoever asked for the stop knows the signal, and so the exit code: 130 or 143.
    """

    exit_code = 130
