import pytest
import torch

from resnet_builder.kernels import no_kernels

HAS_KERNELS = no_kernels(torch.device("cpu")) is None
NEEDS_KERNELS = pytest.mark.skipif(not HAS_KERNELS, reason="nothing compiles our own operations")
