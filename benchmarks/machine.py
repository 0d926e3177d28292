"""What a figure was measured on, to be written beside it."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from resnet_builder.device import bf16_extension

RESULTS = Path(__file__).parent / "results"

KINDS = {"AMX": "amx", "AVX512-BF16": "avx512_bf16", "neither": "neither"}
"""Folders of what was measured on a kind of processor, by what multiplies bf16 there."""


def own_results() -> Path:
    """Return the folder of what is measured on this kind of processor, made if it is missing."""
    folder = RESULTS / KINDS[bf16_extension() or "neither"]
    folder.mkdir(exist_ok=True)
    return folder


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
