"""Stand-in for the processes of a group, which trains in this one."""

from collections.abc import Callable, Sequence
from typing import IO

import pytest

from tests.cli.experiments import call


class InProcess:
    """Worker that is done when it is started."""

    started: list[list[str]]
    before: Callable[[Sequence[str]], int | None]

    def __init__(
        self, arguments: Sequence[str], environment: dict[str, str], output: IO[bytes]
    ) -> None:
        self.started.append([*arguments])
        code = self.before(arguments)
        if code is None:
            result = call("train", *arguments)
            output.write(result.output.encode())
            code = result.exit_code
        self.code = code

    def poll(self) -> int:
        return self.code

    def wait(self) -> int:
        return self.code

    def terminate(self) -> None:
        pass


def train_in_process(
    monkeypatch: pytest.MonkeyPatch,
    before: Callable[[Sequence[str]], int | None] = lambda arguments: None,
) -> list[list[str]]:
    """Let groups train in this process; return the arguments of each start, as they come.

    Args:
        monkeypatch: Undoes it.
        before: Called before each start; a code that it returns stands for the training.
    """
    started: list[list[str]] = []
    fields = {"started": started, "before": staticmethod(before)}
    stand_in = type("StandIn", (InProcess,), fields)
    monkeypatch.setattr("resnet_builder.launch.workers.start_process", stand_in)
    monkeypatch.setattr("resnet_builder.launch.workers.POLL_SECONDS", 0.0)
    return started
