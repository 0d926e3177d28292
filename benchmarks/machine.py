"""What a figure was measured on, to be written beside it."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"

KINDS = {"amx": "AMX", "avx512_bf16": "AVX512-BF16", "other": "other"}
"""What kinds of processors are called in files and in tables, by what multiplies bf16 there."""


def own_results() -> Path:
    """Return the folder of what was measured on this kind of processor, made if it is missing."""
    if torch.cpu._is_amx_tile_supported():
        kind = "amx"
    elif torch.cpu._is_avx512_bf16_supported():
        kind = "avx512_bf16"
    else:
        kind = "other"
    folder = RESULTS / kind
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
