"""Devices: which there are, what they are fast in, and how tensors get there."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from resnet_builder import system
from resnet_builder.errors import UsageError

Precision = Literal["fp32", "bf16"]

_AMPERE = 8  # the first CUDA generation whose tensor cores take bf16
_RESIDENT = 0.25  # of the free memory: the rest is for the network and its activations


def has_cuda() -> bool:
    """Return whether there is a CUDA device."""
    return torch.cuda.is_available()


def has_mps() -> bool:
    """Return whether there is an Apple GPU."""
    return torch.backends.mps.is_available()


def pick_device(name: str) -> torch.device:
    """Return the device of a name, if it is there.

    Args:
        name: A torch device, or ``"auto"``: CUDA, then MPS, then CPU.

    Raises:
        UsageError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if has_cuda() else "mps" if has_mps() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"no device is named '{name}'; there is {_present()}") from error
    there = {
        "cpu": True,
        "cuda": has_cuda() and (device.index or 0) < torch.cuda.device_count(),
        "mps": has_mps(),
    }
    if not there.get(device.type, False):
        raise UsageError(f"there is no device '{name}' here; there is {_present()}")
    return device


def _present() -> str:
    names = ["cpu"]
    if has_cuda():
        names += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if has_mps():
        names.append("mps")
    return ", ".join(names)


def fast_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies bf16 matrices faster than fp32 ones."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= _AMPERE
    return device.type == "cpu" and bf16_extension() is not None


def bf16_extension() -> Literal["AMX", "AVX512-BF16"] | None:
    """Return the instruction set for bf16 products of this x86 processor, if it has one."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX512-BF16" if torch.cpu._is_avx512_bf16_supported() else None


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that this process may still take on a device; ``None`` if nothing tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return system.free_memory()


def describe(device: torch.device) -> str:
    """Return the name of the hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU ({platform.machine()})"
    parts = (platform.machine(), torch.backends.cpu.get_cpu_capability(), bf16_extension())
    return f"CPU ({', '.join(filter(None, parts))})"


def fits(size: int, device: torch.device) -> bool:
    """Tell whether a device has memory of its own, enough to hold images for a whole training.

    Args:
        size: Bytes of the images.
        device: Where they would be held.
    """
    return device.type == "cuda" and size <= _RESIDENT * torch.cuda.mem_get_info(device)[0]


@contextmanager
def full_precision() -> Iterator[None]:
    """Let fp32 be computed in full: without TF32, which CUDA has for speed."""
    products = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
