"""What a figure was measured on, to be written beside it."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def describe() -> dict[str, object]:
    """Name the processor, its cores, and the versions of what computed."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "resnet-builder")},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                return f"{name} ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"
    return platform.processor() or platform.machine()
