from typing import Literal

import pytest
import torch

from resnet_builder.cpu import kernel_support
from resnet_builder.cpu.library import library

HAS_KERNELS = kernel_support(torch.device("cpu")).instructions is not None
NEEDS_KERNELS = pytest.mark.skipif(not HAS_KERNELS, reason="nothing compiles our own operations")


def has(question: str) -> bool:
    """Tell whether this machine has kernels that answer a question with yes."""
    return HAS_KERNELS and bool(getattr(library(), question)())


NEEDS_GRADIENT = pytest.mark.skipif(
    not has("has_paired_gradient"), reason="the processor multiplies no bf16 numbers"
)
NEEDS_WINOGRAD = pytest.mark.skipif(
    not has("has_winograd_bf16"), reason="the processor multiplies no vectors of bf16 numbers"
)
NEEDS_INFERENCE = pytest.mark.skipif(
    not has("has_winograd_fp32"), reason="the processor has no vectors of 16 numbers"
)


class Processor:
    """Stands in for compiled kernels: says what the processor has.

    Args:
        parts: Of ``vectors`` of 16 numbers, ``pairs`` of bf16 numbers in such vectors, and
            ``tiles`` of them.
    """

    def __init__(self, *parts: Literal["vectors", "pairs", "tiles"]) -> None:
        self.has_tiles = lambda: int("tiles" in parts)
        self.has_winograd_fp32 = lambda: int("vectors" in parts)
        self.has_winograd_bf16 = lambda: int("pairs" in parts)
        self.has_paired_gradient = lambda: int("pairs" in parts or "tiles" in parts)
