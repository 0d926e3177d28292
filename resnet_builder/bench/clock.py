"""Timing work on any device, and summing the times up."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast something trained, over several turns.

    Attributes:
        images_per_second: The median turn's.
        low: The lower quartile of the turns.
        high: The upper quartile.
        seconds_per_step: The median turn's.
    """

    images_per_second: float
    low: float
    high: float
    seconds_per_step: float


def rate(seconds_per_step: Sequence[float], images: int) -> Rate:
    """Sum turns up.

    Args:
        seconds_per_step: Of each turn; two at least.
        images: Of a step.
    """
    rates = [images / seconds for seconds in seconds_per_step]
    low, _, high = statistics.quantiles(rates, n=4, method="inclusive")
    return Rate(statistics.median(rates), low, high, statistics.median(seconds_per_step))


def finish(device: torch.device) -> None:
    """Wait until a device has done all that it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a call takes, together with what it tells the device to do."""
    finish(device)
    started = perf_counter()
    work()
    finish(device)
    return perf_counter() - started


def seconds_per_call(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Call again and again for some seconds, at least once; return the mean of a call."""
    calls, spent = 0, 0.0
    while not calls or spent < seconds:
        spent += seconds_of(work, device)
        calls += 1
    return spent / calls
