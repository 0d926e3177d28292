import pytest
import torch

from resnet_builder.kernels import no_kernels
from resnet_builder.kernels.compiled import library

HAS_KERNELS = no_kernels(torch.device("cpu")) is None
NEEDS_KERNELS = pytest.mark.skipif(not HAS_KERNELS, reason="nothing compiles our own operations")
NEEDS_TILES = pytest.mark.skipif(
    not (HAS_KERNELS and library().has_tiles()), reason="the processor has no AMX"
)
