"""Common parts of the benchmarks: the machine, the folder of results, a finished run."""

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from resnet_builder.data.splits import DataSplits
from resnet_builder.device import bf16_extension
from resnet_builder.inference import TrainedModel, load_model, load_own_splits
from resnet_builder.training.runtime import set_backend_flags

RESULTS = Path(__file__).parent / "results"

PROCESSORS = {"AMX": "amx", "AVX512-BF16": "avx512_bf16", "AVX512": "avx512"}
"""Folders of results that depend on the processor, by the instructions that multiply bf16."""


def own_results() -> Path:
    """Return the folder of results of this kind of processor, made if it is missing."""
    folder = RESULTS / PROCESSORS[bf16_extension() or "AVX512"]
    folder.mkdir(exist_ok=True)
    return folder


def write(path: Path | None, result: Mapping[str, object]) -> None:
    """Print a result, and write it to a file that is committed."""
    text = json.dumps(result, indent=1) + "\n"
    if path is not None:
        path.write_text(text, encoding="utf-8")
    print(text, flush=True)


def describe_machine() -> dict[str, object]:
    """Return the processor, its cores, and the versions of what computed."""
    git = ["git", "-C", str(RESULTS), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or None,
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


def open_finished_run(description: str | None) -> tuple[TrainedModel, DataSplits]:
    """Read the command line, set the process up as training does, and load a run and its data."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    set_backend_flags(threads=None)
    trained = load_model(given.run)
    return trained, load_own_splits(trained, data_dir=given.data_dir)
