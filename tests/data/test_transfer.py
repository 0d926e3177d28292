"""Copies to a GPU that is made up, in the order of the streams' work."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from resnet_builder.data.transfer import prefetch, to_device

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@dataclass
class FakeTensor:
    name: str
    log: list[str]
    device: torch.device = CPU
    pinned: bool = False

    def pin_memory(self) -> "FakeTensor":
        return FakeTensor(self.name, self.log, pinned=True)

    def to(self, device: torch.device, *, non_blocking: bool) -> "FakeTensor":
        assert non_blocking
        if self.device != device:
            assert self.pinned
            self.log.append(f"send {self.name}")
        return FakeTensor(self.name, self.log, device)

    def record_stream(self, stream: "FakeStream") -> None:
        self.log.append(f"use {self.name} on {stream.name}")


@dataclass
class FakeStream:
    name: str
    log: list[str]
    events: int = 0

    def record_event(self) -> int:
        self.events += 1
        self.log.append(f"event {self.events} on {self.name}")
        return self.events

    def wait_event(self, event: int) -> None:
        self.log.append(f"{self.name} waits for event {event}")


def test_batch_is_sent_while_the_one_before_is_computed_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("aside", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream("main", log))
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    batches: Any = ((FakeTensor(name, log),) for name in ("a", "b"))
    for (tensor,) in prefetch(batches, CUDA):
        assert to_device(tensor, CUDA).device == CUDA  # which sends nothing
        log.append(f"compute {tensor.name}")  # type: ignore[attr-defined]  # a fake
    assert log == [
        "send a",
        "event 1 on aside",
        "send b",
        "event 2 on aside",
        "main waits for event 1",
        "use a on main",
        "compute a",
        "main waits for event 2",
        "use b on main",
        "compute b",
    ]


def test_cpu_gets_its_batches_as_they_are_and_none_ahead() -> None:
    made: list[torch.Tensor] = []

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        for _ in range(3):
            made.append(torch.zeros(1))
            yield (made[-1],)

    (first,) = next(prefetch(batches(), CPU))
    assert len(made) == 1
    assert first is made[0]
