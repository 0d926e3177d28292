"""Signals that ask the program to end: the first is obeyed when it can be, the second at once."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

# A terminal that hangs up asks for the same as a scheduler that sends SIGTERM.
_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 143}

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
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
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
            _end_at_once(code)
        self.exit_code = code
        if not self._is_polled:
            raise Interrupted(code)


def _end_at_once(code: int) -> None:
    """End without finishing anything; every file is whole or absent at any instant."""
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(2, _SHOW_CURSOR)  # a progress bar may have hidden it
    os._exit(code)
