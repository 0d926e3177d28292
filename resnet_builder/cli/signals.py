"""Signals that ask the program to end: the first at the next checkpoint, the second at once."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

INTERRUPTED, TERMINATED = 130, 143

# A terminal that hangs up asks for the same as a scheduler that sends SIGTERM, or SIGUSR1, which is
# Slurm's usual warning before the time limit and would end a process without a handler.
_CODES = {
    "SIGINT": INTERRUPTED,
    "SIGTERM": TERMINATED,
    "SIGHUP": TERMINATED,
    "SIGUSR1": TERMINATED,
}

_SHOW_CURSOR = b"\x1b[?25h"


class Interrupted(BaseException):
    """Raised by a signal where nothing has to be finished.

    Attributes:
        exit_code: Exit code of the program.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Signals:
    """Context with the program's signal handlers; leaving it restores the handlers before it.

    A signal that is ignored, as under ``nohup``, stays ignored. Outside the main thread no handler
    is installed.

    Attributes:
        exit_code: Exit code of the program, once a signal came.
        is_polled: Whether signals only set ``exit_code``, and further ones do nothing. One of
            several processes may be sent the same signal twice: by the terminal and by its
            launcher.
        repeat_seconds: Time in which a second signal is taken for the first one again, as when a
            scheduler signals all processes of a job, and one of them passes it on.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self.is_polled = False
        self.repeat_seconds = 0.0
        self._came_at = 0.0
        self._polls = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in _CODES:
                number = getattr(signal, name, None)  # Windows lacks two
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the signals that are handled."""
        return tuple(signal.Signals(number).name for number in self._before)

    def came(self) -> bool:
        """Whether a signal came."""
        return self.exit_code is not None

    @contextmanager
    def polled(self) -> Iterator[Callable[[], bool]]:
        """Context in which the first signal only sets a flag; the second ends the program.

        Yields:
            A function that returns whether a signal came.
        """
        self._polls = True
        try:
            yield self.came
        finally:
            self._polls = False

    @contextmanager
    def not_handled(self) -> Iterator[None]:
        """Context in which a signal ends the program at once, even in a wait of other code."""
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)
        try:
            yield
        finally:
            for number in self._before:
                signal.signal(number, self._handle)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Context in which other code may install handlers; afterwards ours are back."""
        try:
            yield
        finally:
            for number in self._before:
                signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        code = _CODES[signal.Signals(number).name]
        is_first = self.exit_code is None
        if is_first:
            self.exit_code, self._came_at = code, time.monotonic()
        if self.is_polled:
            return
        if not is_first and time.monotonic() - self._came_at < self.repeat_seconds:
            return
        if not is_first:
            _end_at_once(code)
        elif not self._polls:
            raise Interrupted(code)


def exit_code_of(number: int) -> int:
    """Exit code for a signal."""
    return _CODES.get(signal.Signals(number).name, TERMINATED)


def _end_at_once(code: int) -> None:
    """End without finishing anything. Every file is whole or absent at any instant."""
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(2, _SHOW_CURSOR)  # a progress bar hides the cursor
    os._exit(code)
