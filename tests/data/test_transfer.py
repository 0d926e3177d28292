"""Copies to a GPU that is made up, in the order of the streams' work."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
        assert self.pinned or self.device == device or device.type != "cuda"
        if self.device != device:
            self.log.append(f"send {self.name}")
        return FakeTensor(self.name, self.log, device)

    def record_stream(self, stream: object) -> None:
        assert isinstance(stream, FakeStream)
        self.log.append(f"use {self.name} on {stream.name}")


@dataclass
class FakeStream:
    name: str
    log: list[str] = field(default_factory=list)
    events: int = 0

    def record_event(self) -> int:
        self.events += 1
        self.log.append(f"event {self.events} on {self.name}")
        return self.events

    def wait_event(self, event: int) -> None:
        self.log.append(f"{self.name} waits for event {event}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the log of the streams and tensors of a made-up GPU."""
    written: list[str] = []
    main, aside = FakeStream("main", written), FakeStream("aside", written)

    @contextmanager
    def stream(chosen: FakeStream) -> Iterator[None]:
        assert chosen is aside
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: aside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    return written


def test_batch_is_sent_while_the_one_before_is_computed_with(log: list[str]) -> None:
    batches: Any = ((FakeTensor(name, log),) for name in ("a", "b"))
    for (tensor,) in prefetch(batches, CUDA):
        assert tensor.device == CUDA
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


def test_tensor_on_the_gpu_is_not_sent_again(log: list[str]) -> None:
    there: Any = FakeTensor("a", log, CUDA)
    assert to_device(there, CUDA).device == CUDA
    assert log == []


def test_cpu_gets_its_batches_as_they_are_and_none_ahead() -> None:
    made: list[torch.Tensor] = []

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        for _ in range(3):
            made.append(torch.zeros(1))
            yield (made[-1],)

    (first,) = next(prefetch(batches(), CPU))
    assert len(made) == 1
    assert first is made[0]
