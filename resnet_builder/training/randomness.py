"""The network's own random numbers (dropout, stochastic depth), decided by seed and step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from resnet_builder.data.random import hash_seed

_MASK = 0xFFFFFFFF


@contextmanager
def private_generators(device: torch.device) -> Iterator[None]:
    """Leave torch's global generators as they were, whatever is drawn from them inside."""
    cuda = [device] if device.type == "cuda" else []
    mps = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        if mps is not None:
            torch.mps.set_rng_state(mps)


def seed_step(seed: int, step: int, device: torch.device, *, rank: int = 0) -> None:
    """Seed the generators that a network draws from, for one step.

    Each process has dropout masks of its own.

    ``torch.manual_seed`` is not used: where CUDA has not been started, every call of it is kept
    for later.
    """
    number = step_seed(seed if rank == 0 else hash_seed(seed, "process", rank), step)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)
    if device.type == "mps":
        torch.mps.manual_seed(number)


def step_seed(seed: int, step: int) -> int:
    """Mix a run's seed and a step into 32 bits, all that torch's CPU generator looks at.

    For one ``seed`` it is a bijection of the step's 32 bits: no two steps of a run share a seed.
    """
    key = hash_seed(seed, "network") & _MASK
    return _scramble(_scramble(step & _MASK) ^ key)


def _scramble(number: int) -> int:
    """Scramble 32 bits reversibly (the finalizer of MurmurHash3)."""
    number ^= number >> 16
    number = number * 0x85EBCA6B & _MASK
    number ^= number >> 13
    number = number * 0xC2B2AE35 & _MASK
    return number ^ (number >> 16)
