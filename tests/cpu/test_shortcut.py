"""Zero-padded shortcuts as one copy: the bits of torch's operations."""

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.blocks.shortcuts import PadShortcut
from resnet_builder.cpu.shortcut import CopiedShortcut, is_copyable


def learnt(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return output and gradient."""
    x = x.detach().requires_grad_()
    y = layer(x)
    numbers = torch.arange(y.numel(), dtype=torch.float32).reshape(y.shape).to(y.dtype)
    (dx,) = torch.autograd.grad(y, x, numbers)
    return y.detach(), dx


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (PadShortcut(2, 8, 8), (8, 8)),
        (PadShortcut(2, 8, 8), (7, 9)),
        (PadShortcut(2, 0, 3), (1, 1)),
        (PadShortcut(1, 5, 4), (5, 6)),
        (PadShortcut(3, 4, 0), (7, 8)),
    ],
    ids=str,
)
def test_bits_are_those_of_the_layer(
    layer: PadShortcut, size: tuple[int, int], dtype: torch.dtype
) -> None:
    assert is_copyable(layer)
    x = torch.randn(3, 16, *size).to(dtype)
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        found, wanted = learnt(CopiedShortcut(layer), images), learnt(layer, images)
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert found[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layer", [PadShortcut(1, 8, 8, nn.AvgPool2d(2)), nn.Identity(), None])
def test_other_layers_are_left_alone(layer: nn.Module | None) -> None:
    assert not is_copyable(layer)
