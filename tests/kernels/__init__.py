import pytest
import torch

from resnet_builder.kernels import no_kernels
from resnet_builder.kernels.compiled import library

HAS_KERNELS = no_kernels(torch.device("cpu")) is None
NEEDS_KERNELS = pytest.mark.skipif(not HAS_KERNELS, reason="nothing compiles our own operations")


def has(question: str) -> bool:
    """Tell whether this machine has kernels that answer a question with yes."""
    return HAS_KERNELS and bool(getattr(library(), question)())


NEEDS_GRADIENT = pytest.mark.skipif(
    not has("has_weight_gradient"), reason="the processor multiplies no bf16 numbers"
)
NEEDS_INFERENCE = pytest.mark.skipif(
    not has("has_winograd"), reason="the processor has no vectors of 16 numbers"
)


class Processor:
    """Stands in for compiled kernels: says what the processor has."""

    def __init__(self, *, tiles: bool, vectors: bool) -> None:
        self.has_tiles = lambda: int(tiles)
        self.has_winograd = lambda: int(vectors)
        self.has_weight_gradient = lambda: int(tiles or vectors)
