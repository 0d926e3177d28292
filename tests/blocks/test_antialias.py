"""Blurring before subsampling (Zhang 2019)."""

import math

import pytest
import torch

from resnet_builder.blocks.antialias import Blur, blur
from tests.networks import built, cifar_spec


@pytest.mark.parametrize("size", range(2, 8))
def test_filter_is_binomial(size: int) -> None:
    row = torch.tensor([float(math.comb(size - 1, k)) for k in range(size)]) / 2 ** (size - 1)
    assert torch.equal(Blur(2, 2, size).filter, torch.outer(row, row).expand(2, 1, size, size))


@pytest.mark.parametrize("size", range(2, 8))
@pytest.mark.parametrize("shape", [(9, 8), (4, 3), (1, 1), (2, 1)])
def test_blur_leaves_what_is_even_and_the_size_of_a_strided_convolution(
    size: int, shape: tuple[int, int]
) -> None:
    output = blur(2, 2, size=size)(torch.full((1, 2, *shape), 3.0))
    wanted = (1, 2, *(math.ceil(side / 2) for side in shape))
    torch.testing.assert_close(output, torch.full(wanted, 3.0))


def test_filter_survives_a_build_and_is_in_no_state_dict() -> None:
    network = built(cifar_spec(1, antialias="blur"))
    assert torch.equal(network.layer2[0].blur.filter, Blur(32, 2, 3).filter)
    assert not [key for key in network.state_dict() if "blur" in key]
