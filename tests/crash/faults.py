"""Faults of a child process, arranged before it calls the program."""

import errno
import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import IO, Any

from resnet_builder import errors
from resnet_builder.runs import files


def apply(name: str, *arguments: Any) -> None:
    """Arrange for one of the faults below."""
    globals()[name](*arguments)


def at_point(name: str, turn: int, *signals: str) -> None:
    """Send this process signals when it passes a failpoint for the ``turn``-th time."""
    passed = 0
    before = files.failpoint_hook

    def hook(point: str) -> None:
        nonlocal passed
        before(point)
        passed += point == name
        if point == name and passed == turn:
            _send(signals)

    files.failpoint_hook = hook


def in_call(target: str, turn: int, *signals: str) -> None:
    """Send this process signals when a function, ``module:name``, is called so often."""
    _before_call(target, turn, lambda: _send(signals))


def _send(signals: Sequence[str]) -> None:
    for each in signals:
        os.kill(os.getpid(), getattr(signal, each))


def removing(path: str, target: str, turn: int) -> None:
    """Remove a directory when a function is called so often."""
    _before_call(target, turn, lambda: shutil.rmtree(path))


def raising(error: str, message: str, target: str, turn: int) -> None:
    """Raise one of the project's errors, or another one, when a function is called so often."""
    kind: type[Exception] = getattr(errors, error, AttributeError)

    def fail() -> None:
        raise kind(message)

    _before_call(target, turn, fail)


def forking(rank: str | None = None, *fault: Any) -> None:
    """Let ``--nproc`` fork its workers: others would import torch again.

    The worker of a rank, or each one, has a fault.
    """
    api: Any = importlib.import_module("torch.distributed.elastic.multiprocessing.api")
    api.get_subprocess_handler = partial(ForkedWorker, rank, fault)


class ForkedWorker:
    """A forked worker in the place of torch's subprocess handler, and of its process."""

    def __init__(
        self,
        rank: str | None,
        fault: Sequence[Any],
        args: tuple[str, ...],
        env: dict[str, str],
        **rest: Any,
    ) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.proc = self
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            from tests.crash.server import finish, heed_signals

            heed_signals()
            os.environ.update(env)
            if fault and rank in {None, env["RANK"]}:
                apply(*fault)
            finish(list(args[3:]))

    def poll(self) -> int | None:
        """Return the exit code, if it has ended."""
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for the end."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(0.01)
        return code

    def close(self, death_sig: int) -> None:
        """Send a signal."""
        os.kill(self.pid, death_sig)


def among(size: str, rank: str, port: str) -> None:
    """Be one of several processes, each on a machine of its own, as ``torchrun`` tells it."""
    os.environ.update(RANK=rank, WORLD_SIZE=size, LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)


def setting(target: str, value: object) -> None:
    """Give a module's name, ``module:name``, another value."""
    module, _, name = target.partition(":")
    setattr(importlib.import_module(module), name, value)


def limit_file_size(size: int) -> None:
    """Let no file grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def failing(call: str, code: str, name: str, first: int, last: int) -> None:
    """Let a call of ``os`` fail from its ``first`` to its ``last`` time, counted from 1.

    ``code`` is a name of ``errno``. Only files are concerned that have ``name`` in their path; of
    ``open``, only calls that make one.
    """
    real = getattr(os, call)
    number = getattr(errno, code)
    count = 0

    def fail(*arguments: Any, **rest: Any) -> Any:
        nonlocal count
        if name in _path(call, arguments):
            count += 1
            if first <= count <= last:
                raise OSError(number, os.strerror(number))
        return real(*arguments, **rest)

    setattr(os, call, fail)


def _path(call: str, arguments: Any) -> str:
    if call == "replace":
        return str(arguments[1])
    if call == "open":
        return str(arguments[0]) if arguments[1] & os.O_CREAT else ""
    return os.readlink(f"/proc/self/fd/{arguments[0]}")


def _before_call(target: str, turn: int, act: Callable[[], None]) -> None:
    """Act before the ``turn``-th call of a function."""
    module, _, name = target.partition(":")
    *owners, last = name.split(".")
    place: Any = importlib.import_module(module)
    for owner in owners:
        place = getattr(place, owner)
    real = getattr(place, last)
    called = 0

    def replacement(*arguments: Any, **rest: Any) -> Any:
        nonlocal called
        called += 1
        if called == turn:
            act()
        return real(*arguments, **rest)

    setattr(place, last, replacement)


def forking_workers() -> None:
    """Train the runs of a group in forks of this process, which has imported all they need."""
    from resnet_builder.launch import workers

    workers.start_process = _ForkedWorker


class _ForkedWorker:
    def __init__(
        self, arguments: Sequence[str], environment: dict[str, str], output: IO[bytes]
    ) -> None:
        from tests.crash import server

        self._code: int | None = None
        self._pid = os.fork()
        if self._pid == 0:
            os.setsid()
            server.heed_signals()
            os.environ.update(environment)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.argv = ["resnet-build", "train", *arguments]
            server.finish(sys.argv[1:])

    def poll(self) -> int | None:
        if self._code is None:
            found, status = os.waitpid(self._pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if found else None
        return self._code

    def terminate(self) -> None:
        if self._code is None:
            os.kill(self._pid, signal.SIGTERM)

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.005)
        return code
