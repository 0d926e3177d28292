"""A process that has imported the program, and forks a child for each call of it.

Importing torch takes seconds, and a child has it at once. No thread is started here, so that
nothing can be missing or locked in a child. Requests and answers are lines of JSON.
"""

import atexit
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from typing import Any, NoReturn

from resnet_builder.cli.main import main
from tests.crash import faults

IMPORTED_BY_TRAIN = (
    "resnet_builder.builder",
    "resnet_builder.cli.progress",
    "resnet_builder.cli.options",
    "resnet_builder.training.runtime",
    "resnet_builder.training.session",
    "torch._dynamo",  # by DistributedDataParallel
)


def serve() -> dict[str, Any]:
    """Answer requests; return what to call, in a forked child."""
    children: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "call" in request:
            pid = os.fork()
            if pid == 0:
                call: dict[str, Any] = request["call"]
                return call
            children.add(pid)
            answer(pid)
        else:
            code = wait(request["wait"], request["seconds"])
            if code is not None:
                children.remove(request["wait"])
            answer(code)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)  # without the seconds that torch takes to go


def finish(arguments: list[str]) -> NoReturn:
    """Call the program and end, without the second that tearing torch down in a fork takes."""
    code: Any = 1
    try:
        main(arguments)
    except SystemExit as error:
        code = error.code
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def answer(value: object) -> None:
    print(json.dumps(value), flush=True)


def wait(pid: int, seconds: float) -> int | None:
    """Return the exit code of a child, or a negative signal, if it ends in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def prepare(call: dict[str, Any]) -> None:
    """Make this child what a process of its own would be, started from a terminal."""
    os.setsid()
    heed_signals()
    os.chdir(call["folder"])
    descriptors = [os.open(path, flags, 0o600) for path, flags in call["streams"]]
    for stream, descriptor in enumerate(descriptors):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.argv = ["resnet-build", *call["arguments"]]
    for fault in call["faults"]:
        faults.apply(*fault)
    time.sleep(max(0.0, call["at"] - time.monotonic()))


def heed_signals() -> None:
    """Undo what tests inherit that were started by ``nohup`` or in the background of a script."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    for module in IMPORTED_BY_TRAIN:
        importlib.import_module(module)
    gc.freeze()  # or the first collection in every child would copy all there is
    answer("ready")
    called = serve()
    prepare(called)
    finish(called["arguments"])
