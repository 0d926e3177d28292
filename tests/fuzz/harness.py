"""Damaged inputs by the thousand, always the same ones, and what may come of each.

A reader may take an input or raise one of the project's own errors. It may not raise anything
else, hang, or ask for more memory than a small input can have a use for. Each input is made from
its seed and number alone, so one that did is made again without those before it.
"""

import contextlib
import random
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from resnet_builder.errors import ResnetBuilderError, SpecError

if sys.platform != "win32":
    import resource

SECONDS = 2.0
"""Of processor time that reading one input may take."""

MEMORY = 2**30
"""Bytes of address space that the process may grow by."""

_STATUS = Path("/proc/self/statm")
_SHOWN = 4000

Make = Callable[[random.Random], bytes]
Read = Callable[[bytes, random.Random], None]


class TooSlowError(BaseException):
    """An input takes too long; no ``except Exception`` on the way up may hide it."""


@dataclass
class Tally:
    """Numbers of inputs that were taken, and that one of the project's own errors refused."""

    taken: int = 0
    refused: int = 0


def fuzz(make: Make, read: Read, *, seed: int, count: int, seconds: float = SECONDS) -> Tally:
    """Give damaged inputs to a reader.

    Args:
        make: Makes an input.
        read: Reads one; it is given the input's own random numbers too.
        seed: Seed of this series of inputs.
        count: Number of inputs.
        seconds: Seconds of processor time that one may take.

    Raises:
        AssertionError: Something came of an input that may not; it names the input.
    """
    tally = Tally()
    with limited_memory(MEMORY):
        for number in range(count):
            choose = random.Random(f"{seed}/{number}")
            data = make(choose)
            shown = f"input {seed}/{number}: {data[:_SHOWN]!r} ({len(data)} bytes)"
            try:
                with limited_time(seconds):
                    read(data, choose)
                tally.taken += 1
            except ResnetBuilderError as error:
                text = str(error)
                assert text, shown
                if isinstance(error, SpecError):  # a terminal shows it as it is
                    assert text.replace("\n", "").isprintable(), f"{shown}\n{text!r}"
                tally.refused += 1
            except (Exception, TooSlowError) as error:
                raise AssertionError(f"{shown}\n{type(error).__name__}: {error}") from error
    return tally


@contextlib.contextmanager
def limited_time(seconds: float) -> Iterator[None]:
    """Interrupt what takes more processor time; where there is no such timer, do nothing."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise TooSlowError(f"more than {seconds} s")

    before = signal.signal(signal.SIGPROF, interrupt)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Let the process's address space grow by so many bytes at most, where that can be done."""
    if not _STATUS.exists():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(_STATUS.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
