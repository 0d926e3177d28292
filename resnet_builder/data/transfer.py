"""Host-to-device copies of tensors, overlapped with computation on CUDA."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

_InFlight = tuple[tuple[Tensor, ...], torch.cuda.Event]
"""A batch on its way, and the event of its arrival."""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, if it is not there; the host does not wait for CUDA."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # copies from pageable memory block the host
    return tensor.to(device, non_blocking=True)


def prefetch(
    batches: Iterable[tuple[Tensor, ...]], device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """Yield batches on a device; CUDA receives each while it computes with the one before.

    Args:
        batches: Tensors on the CPU, or on the device already.
        device: Target device.
    """
    if device.type != "cuda":
        for batch in batches:
            yield tuple(to_device(tensor, device) for tensor in batch)
        return
    stream = torch.cuda.Stream(device)
    following: _InFlight | None = None
    for batch in batches:
        current, following = following, _start_copy(batch, device, stream)
        if current is not None:
            yield _wait_for(*current, device)
    if following is not None:
        yield _wait_for(*following, device)


def _start_copy(
    batch: tuple[Tensor, ...], device: torch.device, stream: torch.cuda.Stream
) -> _InFlight:
    with torch.cuda.stream(stream):
        return tuple(to_device(tensor, device) for tensor in batch), stream.record_event()


def _wait_for(
    batch: tuple[Tensor, ...], event: torch.cuda.Event, device: torch.device
) -> tuple[Tensor, ...]:
    """Let the computing stream, not the host, wait for a batch."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(event)
    for tensor in batch:
        # The allocator must not reuse this memory before the computing stream is done with it.
        tensor.record_stream(stream)
    return batch
