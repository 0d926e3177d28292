"""Damaged inputs by the thousand, always the same ones, and what may come of each.

A reader may take an input or raise one of the project's own errors. It may not raise anything
else, hang, or ask for more memory than a small input can have a use for. Each input is made from
its seed and number alone, so one that did is made again without those before it.
"""

import contextlib
import random
import signal
import sys
import time
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
    """What became of the inputs.

    Attributes:
        taken: Those that were as good as undamaged.
        refused: Those that raised one of the project's own errors.
    """

    taken: int = 0
    refused: int = 0


def fuzz(
    make: Make,
    read: Read,
    *,
    seed: int,
    count: int | None = None,
    seconds: float | None = None,
    each: float = SECONDS,
) -> Tally:
    """Give damaged inputs to a reader.

    Args:
        make: Makes an input.
        read: Reads one; it is given the input's own random numbers too.
        seed: Of this series of inputs.
        count: How many; without one, as many as there is time for.
        seconds: When to stop, by the clock.
        each: Seconds of processor time that one may take.

    Raises:
        AssertionError: Something came of an input that may not; it names the input.
    """
    tally = Tally()
    deadline = None if seconds is None else time.monotonic() + seconds
    number = 0
    with limited_memory(MEMORY):
        while number != count and (deadline is None or time.monotonic() < deadline):
            choose = random.Random(f"{seed}/{number}")
            data = make(choose)
            try:
                with limited_time(each):
                    read(data, choose)
                tally.taken += 1
            except ResnetBuilderError as error:
                _check_message(error, f"{seed}/{number}", data)
                tally.refused += 1
            except (Exception, TooSlowError) as error:
                raise AssertionError(_escaped(error, f"{seed}/{number}", data)) from error
            number += 1
    return tally


@contextlib.contextmanager
def limited_time(seconds: float) -> Iterator[None]:
    """Interrupt what takes more processor time; where there is no such timer, do nothing.

    Raises:
        TooSlowError: It did.
    """
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


def _check_message(error: ResnetBuilderError, name: str, data: bytes) -> None:
    """Check that there is a message; one about a spec is shown by a terminal as it is."""
    text = str(error)
    unseen = isinstance(error, SpecError) and not text.replace("\n", "").isprintable()
    if not text or unseen:
        raise AssertionError(f"input {name}: {data[:_SHOWN]!r}\nis told of by {text!r}")


def _escaped(error: BaseException, name: str, data: bytes) -> str:
    what = f"{type(error).__name__}: {error}"
    return f"input {name}: {data[:_SHOWN]!r} ({len(data)} bytes)\nends in {what}"
