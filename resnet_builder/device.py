"""Devices: selection, bf16 support, memory format, free memory, fp32 precision."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from resnet_builder import system
from resnet_builder.errors import UsageError

Precision = Literal["fp32", "bf16"]
MemoryFormat = Literal["channels_last", "contiguous"]

MEMORY_FORMATS = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}

_AMPERE = 8  # the first CUDA generation whose tensor cores take bf16
_RESIDENT = 0.25  # of the free memory: the rest is for the network and its activations


def pick_device(name: str) -> torch.device:
    """Torch device of a name.

    Args:
        name: A torch device, or ``"auto"``: CUDA, then MPS, then CPU.

    Raises:
        UsageError: There is no such device.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if cuda else []
    present = ["cpu", *gpus, *(["mps"] if mps else [])]
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"no device is named '{name}'; there is {', '.join(present)}") from error
    wanted = f"cuda:{device.index or 0}" if device.type == "cuda" else device.type
    if wanted not in present:
        raise UsageError(f"there is no device '{name}' here; there is {', '.join(present)}")
    return device


def fast_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 matrices faster than fp32 ones."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= _AMPERE
    return device.type == "cpu" and bf16_extension() is not None


def memory_format(device: torch.device) -> MemoryFormat:
    """Memory format in which convolutions are fastest on a device."""
    return "contiguous" if device.type == "mps" else "channels_last"


def bf16_extension() -> Literal["AMX", "AVX512-BF16"] | None:
    """Instruction set for bf16 products of this x86 processor, if it has one."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX512-BF16" if torch.cpu._is_avx512_bf16_supported() else None


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take on a device; ``None`` if they are not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return system.free_memory()


def peak_memory(device: torch.device) -> int | None:
    """Most bytes that this process held on a device; on the CPU, all of its memory.

    ``None`` where nobody counts it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return system.peak_memory() if device.type == "cpu" else None


def describe(device: torch.device) -> str:
    """Name of the hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU ({platform.machine()})"
    parts = (platform.machine(), torch.backends.cpu.get_cpu_capability(), bf16_extension())
    return f"CPU ({', '.join(filter(None, parts))})"


def fits(size: int, device: torch.device) -> bool:
    """Whether a device has memory of its own, enough for the images of a whole training.

    Args:
        size: Bytes of the images.
        device: Device for the images.
    """
    return device.type == "cuda" and size <= _RESIDENT * torch.cuda.mem_get_info(device)[0]


@contextmanager
def full_precision() -> Iterator[None]:
    """Context in which fp32 is computed in full: without TF32, which CUDA has for speed."""
    products = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
