"""Where results lie, and how they are written."""

import json
from collections.abc import Mapping
from pathlib import Path

from resnet_builder.device import bf16_extension

RESULTS = Path(__file__).parent / "results"

KINDS = {"AMX": "amx", "AVX512-BF16": "avx512_bf16", "neither": "neither"}
"""Folders of what was measured on a kind of processor, by what multiplies bf16 there."""


def own_results() -> Path:
    """Return the folder of what is measured on this kind of processor, made if it is missing."""
    folder = RESULTS / KINDS[bf16_extension() or "neither"]
    folder.mkdir(exist_ok=True)
    return folder


def write(path: Path, result: Mapping[str, object]) -> None:
    """Write a result, to be committed, and print it."""
    text = json.dumps(result, indent=1) + "\n"
    path.write_text(text, encoding="utf-8")
    print(text, flush=True)
