"""What subsamples instead of a strided convolution, so that small shifts change little."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_builder.blocks.interfaces import ANTIALIAS_FILTERS, FilterFactory


@ANTIALIAS_FILTERS.register("none")
def no_filter(channels: int, stride: int) -> None:
    """Leave subsampling to the convolutions."""


@ANTIALIAS_FILTERS.register("blur")
def blur(channels: int, stride: int, *, size: Annotated[int, Field(ge=2, le=7)] = 3) -> nn.Module:
    """Convolve densely, then blur and subsample (Zhang 2019, https://arxiv.org/abs/1904.11486).

    Args:
        channels: Of the input and of the output.
        stride: Of the subsampling.
        size: Side of the binomial filter.
    """
    return Blur(channels, stride, size)


def split_stride(make_filter: FilterFactory, channels: int, stride: int) -> tuple[int, nn.Module]:
    """Shard a stride between a convolution and what follows its activation.

    Args:
        make_filter: Makes what subsamples.
        channels: Width of the convolution.
        stride: Of both together.

    Returns:
        The convolution's stride, and the module that does the rest.
    """
    after = make_filter(channels, stride) if stride != 1 else None
    return (stride, nn.Identity()) if after is None else (1, after)


class Blur(nn.Module):
    """Blur each channel by a binomial filter, mirrored at the edges, and subsample.

    Args:
        channels: Of the input.
        stride: Of the subsampling.
        size: Side of the filter.

    Shape:
        ``(N, channels, H, W)`` to ``(N, channels, ceil(H / stride), ceil(W / stride))``.
    """

    filter: Tensor

    def __init__(self, channels: int, stride: int, size: int) -> None:
        super().__init__()
        self.kernel_size = size
        self.stride = stride
        empty = torch.empty(channels, 1, size, size)
        self.register_buffer("filter", empty, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Compute the filter, which no state dict holds."""
        row = torch.ones(1)
        for _ in range(self.kernel_size - 1):
            row = F.pad(row, (1, 0)) + F.pad(row, (0, 1))
        row = row / row.sum()
        with torch.no_grad():
            self.filter.copy_(torch.outer(row, row))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer."""
        before, after = (self.kernel_size - 1) // 2, self.kernel_size // 2
        mirrored = min(x.shape[-2:]) > after  # one pixel has nothing to mirror
        mode = "reflect" if mirrored else "replicate"
        x = F.pad(x, (before, after, before, after), mode=mode)
        return F.conv2d(x, self.filter.to(x.dtype), stride=self.stride, groups=x.shape[1])

    def extra_repr(self) -> str:
        """Show what the layer does when it is printed."""
        return f"size={self.kernel_size}, stride={self.stride}"
