"""What a known bug is: a check that finds it, our own code, and the bug planted again.

The programs, at the commits that were read:

- ``kellerjordan``: https://github.com/KellerJordan/ResNet-PyTorch-CIFAR10, 204803c
- ``akamaster``: https://github.com/akamaster/pytorch_resnet_cifar10, d5489e8
- ``kuangliu``: https://github.com/kuangliu/pytorch-cifar, 49b7aa9
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from resnet_builder.errors import ResnetBuilderError

T = TypeVar("T")
Check = TypeVar("Check", bound=Callable[[Any], None])


@dataclass(frozen=True)
class Bug:
    """A bug of an earlier program.

    Attributes:
        id: The program and the bug's number; a letter behind it if it is several in one.
        what: What was wrong.
        check: Raises :class:`AssertionError` for a thing that has the bug.
        ours: The thing of ours that might have it.
        planted: A thing in its place that does.
    """

    id: str
    what: str
    check: Callable[[Any], None]
    ours: Any
    planted: Any


BUGS: list[Bug] = []


def bug(id: str, what: str, *, ours: Any, planted: Any) -> Callable[[Check], Check]:
    """Add the decorated check to the bugs."""

    def add(check: Check) -> Check:
        BUGS.append(Bug(id, what, check, ours, planted))
        return check

    return add


def works(call: Callable[[], T]) -> T:
    """Return what a call returns; that it does is what is asserted."""
    try:
        return call()
    except Exception as error:
        raise AssertionError(f"it failed: {type(error).__name__}: {error}") from error


def refused(call: Callable[[], object]) -> ResnetBuilderError:
    """Return the error of ours that a call ends with; that it does is what is asserted."""
    try:
        call()
    except ResnetBuilderError as error:
        return error
    raise AssertionError("it was not refused")
