from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch

from resnet_builder.cpu import kernel_support
from resnet_builder.cpu.library import library

HAS_KERNELS = kernel_support(torch.device("cpu")).instructions is not None
NEEDS_KERNELS = pytest.mark.skipif(not HAS_KERNELS, reason="nothing compiles CPU kernels")


def has(question: str) -> bool:
    """Tell whether this machine has kernels that answer a question with yes."""
    return HAS_KERNELS and bool(getattr(library(), question)())


NEEDS_BF16 = pytest.mark.skipif(
    not has("has_gemm_weight_gradient"), reason="the processor multiplies no bf16 numbers"
)
NEEDS_WINOGRAD_BF16 = pytest.mark.skipif(
    not has("has_winograd_bf16"), reason="the processor multiplies no vectors of bf16 numbers"
)
NEEDS_WINOGRAD_FP32 = pytest.mark.skipif(
    not has("has_winograd_fp32") or has("has_amx"), reason="convolutions are torch's here"
)


def processor(*parts: Literal["AVX512", "AVX512-BF16", "AMX"]) -> Any:
    """Return a stand-in for the compiled kernels of a processor that has these instructions."""
    return SimpleNamespace(
        has_amx=lambda: "AMX" in parts,
        has_winograd_fp32=lambda: "AVX512" in parts,
        has_winograd_bf16=lambda: "AVX512-BF16" in parts,
        has_gemm_weight_gradient=lambda: "AVX512-BF16" in parts or "AMX" in parts,
    )
