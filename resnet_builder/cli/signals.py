"""Signals that ask the program to end: the first is obeyed when it can be, the second at once."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

INTERRUPTED, TERMINATED = 130, 143

# A terminal that hangs up asks for the same as a scheduler that sends SIGTERM.
_CODES = {"SIGINT": INTERRUPTED, "SIGTERM": TERMINATED, "SIGHUP": TERMINATED}

_SHOW_CURSOR = b"\x1b[?25h"


class Interrupted(BaseException):
    """A signal came where nothing has to be finished first.

    Attributes:
        exit_code: What the program ends with.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Signals:
    """Handles the signals while it is entered, and puts the handlers before it back afterwards.

    A signal that is ignored, as ``nohup`` has it, stays ignored. Outside the main thread nothing
    is handled.

    Attributes:
        exit_code: What the program ends with, once a signal came.
        number: Of the signal that came first.
        is_patient: Whether further signals ask for no more than the first: one of several
            processes is sent the same one by the terminal and by who started it.
        last_act: What is done before a second signal is obeyed.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self.number: int | None = None
        self.is_patient = False
        self.last_act: Callable[[], None] = _do_nothing
        self._is_polled = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in _CODES:
                number = getattr(signal, name, None)  # Windows has no SIGHUP
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

    def let_through(self) -> None:
        """Let signals through that were held back when this process was started."""
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)

    @contextmanager
    def polled(self) -> Iterator[Callable[[], bool]]:
        """Let the first signal be noticed by polling, so that what is begun can be finished.

        Yields:
            Whether a signal came, to be asked in every loop.
        """
        self._is_polled = True
        try:
            yield lambda: self.exit_code is not None
        finally:
            self._is_polled = False

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        code = _CODES[signal.Signals(number).name]
        if self.exit_code is not None:
            if not self.is_patient:
                self.last_act()
                _end_at_once(code)
            return
        self.exit_code, self.number = code, number
        if not self._is_polled:
            raise Interrupted(code)


@contextmanager
def held_back() -> Iterator[None]:
    """Let processes that are started meanwhile begin with signals held back.

    They are given them once they handle signals; before, Python would end with a traceback.
    """
    numbers = {getattr(signal, name) for name in _CODES if hasattr(signal, name)}
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def show_cursor() -> None:
    """Show the terminal's cursor, which a progress bar may have hidden."""
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(2, _SHOW_CURSOR)


def _do_nothing() -> None:
    pass


def _end_at_once(code: int) -> None:
    """End without finishing anything; every file is whole or absent at any instant."""
    show_cursor()
    os._exit(code)
