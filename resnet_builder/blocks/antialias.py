"""Antialiasing: blurred subsampling in place of strided convolutions."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_builder.blocks.interfaces import ANTIALIAS_FILTERS, AntialiasFactory


@ANTIALIAS_FILTERS.register("none")
def no_filter(channels: int, stride: int) -> None:
    """No filter: convolutions stride."""


@ANTIALIAS_FILTERS.register("blur")
def blur(channels: int, stride: int, *, size: Annotated[int, Field(ge=2, le=7)] = 3) -> nn.Module:
    """Blur and subsample after a dense convolution (Zhang 2019, https://arxiv.org/abs/1904.11486).

    Args:
        channels: Width of the input.
        stride: Stride of the subsampling.
        size: Side of the binomial filter.
    """
    return Blur(channels, stride, size)


def split_stride(antialias: AntialiasFactory, channels: int, stride: int) -> tuple[int, nn.Module]:
    """Division of a stride between a convolution and the filter after its activation.

    Args:
        antialias: Maker of the filter.
        channels: Width of the convolution's output.
        stride: Stride of both together.

    Returns:
        Stride of the convolution, and the module that subsamples by the rest.
    """
    after = antialias(channels, stride) if stride != 1 else None
    return (stride, nn.Identity()) if after is None else (1, after)


class Blur(nn.Module):
    """Binomial blur of each channel, mirrored at the edges, and subsampling.

    Args:
        channels: Width of the input.
        stride: Stride of the subsampling.
        size: Side of the filter.

    Shape:
        ``(N, channels, H, W)`` to ``(N, channels, ceil(H / stride), ceil(W / stride))``.
    """

    filter: Tensor

    def __init__(self, channels: int, stride: int, size: int) -> None:
        super().__init__()
        self.kernel_size = size
        self.stride = stride
        row = torch.ones(1)
        for _ in range(size - 1):  # rows of Pascal's triangle
            row = F.pad(row, (1, 0)) + F.pad(row, (0, 1))
        row = row / row.sum()
        square = torch.outer(row, row).repeat(channels, 1, 1, 1)
        # It is computed from the options, so state dicts do not hold it; neither do timm's.
        self.register_buffer("filter", square, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer."""
        before, after = (self.kernel_size - 1) // 2, self.kernel_size // 2
        mirrored = min(x.shape[-2:]) > after  # one pixel has nothing to mirror
        mode = "reflect" if mirrored else "replicate"
        x = F.pad(x, (before, after, before, after), mode=mode)
        return F.conv2d(x, self.filter.to(x.dtype), stride=self.stride, groups=x.shape[1])

    def extra_repr(self) -> str:
        """Return the options to show when the layer is printed."""
        return f"size={self.kernel_size}, stride={self.stride}"
