"""Every question that is asked of the hardware, so that tests can answer for it."""

import platform
from typing import Literal

import torch

from resnet_builder import host
from resnet_builder.errors import UsageError

Precision = Literal["fp32", "bf16"]
MemoryFormat = Literal["channels_last", "contiguous"]

_AMPERE = 8  # the first CUDA generation whose tensor cores take bf16


def has_cuda() -> bool:
    """Tell whether there is a CUDA device."""
    return torch.cuda.is_available()


def has_mps() -> bool:
    """Tell whether there is an Apple GPU."""
    return torch.backends.mps.is_available()


def pick_device(name: str) -> torch.device:
    """Turn a name into a device that is there.

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
    """Tell whether the hardware multiplies bf16 matrices faster than fp32 ones."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= _AMPERE
    return device.type == "cpu" and _cpu_multiplies_bf16()


def _cpu_multiplies_bf16() -> bool:
    """Ask torch for the two x86 extensions that do: AMX and AVX512-BF16."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def pick_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """Choose what training computes in; ``"auto"`` is bf16 where that is fast."""
    if wanted != "auto":
        return wanted
    return "bf16" if fast_bf16(device) else "fp32"


def memory_format(device: torch.device) -> MemoryFormat:
    """Choose the layout of images that convolutions are fastest in."""
    return "contiguous" if device.type == "mps" else "channels_last"


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that this process may still take on a device; ``None`` if nothing tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return host.free_memory()


def describe(device: torch.device) -> str:
    """Name the hardware, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU ({platform.machine()})"
    return f"CPU ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"
