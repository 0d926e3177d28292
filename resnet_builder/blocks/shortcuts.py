"""Shortcuts, the skip paths of blocks: options A, B and C of He et al. 2015, and others."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_builder.blocks.interfaces import SHORTCUTS, NormFactory
from resnet_builder.blocks.layers import conv1x1
from resnet_builder.errors import PartError


def changes_shape(in_channels: int, out_channels: int, stride: int) -> bool:
    """Whether an identity would not fit; this rule is written nowhere else."""
    # The stride counts too: a stage may halve the size and keep the width.
    return stride != 1 or in_channels != out_channels


@SHORTCUTS.register("pad")
def pad(
    in_channels: int,
    out_channels: int,
    stride: int,
    *,
    position: Literal["both", "end"] = "both",
    subsample: Literal["stride", "average"] = "stride",
    replaced_stride: int = 1,
    dilation: int = 1,
) -> nn.Module:
    """Option A: subsampling, then channels of zeros; without parameters.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.
        stride: Stride of the block.
        position: Place of the zeros: on both sides of the channels, or at the end (as in Torch7).
        subsample: Every stride-th pixel, or the average over stride x stride pixels.
        replaced_stride: Stride that is replaced with dilation; ``stride`` is 1 then.
        dilation: Distance between the pixels of an average, where dilation replaces the stride.

    Raises:
        PartError: The output is narrower than the input.
    """
    if out_channels < in_channels:
        raise PartError(f"`pad` cannot narrow {in_channels} channels to {out_channels}")
    if not changes_shape(in_channels, out_channels, stride * replaced_stride):
        return nn.Identity()
    added = out_channels - in_channels
    before = added // 2 if position == "both" else 0
    if subsample == "average":
        pool = average_pool(stride, replaced_stride, dilation)
        return PadShortcut(1, before, added - before, pool)
    return PadShortcut(stride, before, added - before)


@SHORTCUTS.register("projection")
def projection(
    in_channels: int, out_channels: int, stride: int, *, norm: NormFactory, replaced_stride: int = 1
) -> nn.Module:
    """Option B, and torchvision's: a 1x1 convolution where the shape changes."""
    if not changes_shape(in_channels, out_channels, stride * replaced_stride):
        return nn.Identity()
    return projection_all(in_channels, out_channels, stride, norm=norm)


@SHORTCUTS.register("projection_all")
def projection_all(
    in_channels: int, out_channels: int, stride: int, *, norm: NormFactory
) -> nn.Module:
    """Option C: a 1x1 convolution in every block."""
    return nn.Sequential(conv1x1(in_channels, out_channels, stride=stride), norm(out_channels))


@SHORTCUTS.register("average_projection")
def average_projection(
    in_channels: int,
    out_channels: int,
    stride: int,
    *,
    norm: NormFactory,
    replaced_stride: int = 1,
    dilation: int = 1,
) -> nn.Module:
    """ResNet-D's: an average, then a 1x1 convolution (He et al. 2018, figure 2c)."""
    if not changes_shape(in_channels, out_channels, stride * replaced_stride):
        return nn.Identity()
    pool = average_pool(stride, replaced_stride, dilation)
    return nn.Sequential(pool, conv1x1(in_channels, out_channels), norm(out_channels))


@SHORTCUTS.register("none")
def none(in_channels: int, out_channels: int, stride: int) -> None:
    """No shortcut, for the plain networks of He et al. 2015, section 3.3."""


def average_pool(stride: int, replaced_stride: int, dilation: int) -> nn.Module:
    """Average over stride x stride pixels, fewer at the edge; sized as a strided convolution's.

    Args:
        stride: Stride and size of the pool.
        replaced_stride: Stride that is replaced with dilation; one of the two strides is 1.
        dilation: Distance between the pixels of an average, where dilation replaces the stride.

    Shape:
        ``(N, C, H, W)`` to ``(N, C, ceil(H / stride), ceil(W / stride))``.
    """
    if replaced_stride != 1:
        return DilatedAverage(replaced_stride, dilation)
    if stride != 1:
        # An odd side gives as many pixels as a strided convolution, and none outside is averaged.
        return nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
    return nn.Identity()


class DilatedAverage(nn.Module):
    """Average over size x size pixels that lie ``dilation`` apart, fewer at the edge.

    On each grid of every ``dilation``-th pixel, every ``size``-th output is that of plain pooling.

    Args:
        size: Pixels a side.
        dilation: Distance between the pixels.

    Shape:
        ``(N, C, H, W)`` to the same.
    """

    def __init__(self, size: int, dilation: int) -> None:
        super().__init__()
        self.size = size
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer."""
        # The sum of ones counts the pixels inside the image.
        return self._sum(x) / self._sum(torch.ones_like(x[:1, :1]))

    def _sum(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        reach = (self.size - 1) * self.dilation
        padded = F.pad(x, (0, reach, 0, reach))
        shifted = []
        for y in range(0, reach + 1, self.dilation):
            for z in range(0, reach + 1, self.dilation):
                shifted.append(padded[..., y : y + height, z : z + width])
        return torch.stack(shifted).sum(0)

    def extra_repr(self) -> str:
        """Return the options to show when the layer is printed."""
        return f"size={self.size}, dilation={self.dilation}"


class PadShortcut(nn.Module):
    """Subsampling, then channels of zeros before and after the input's.

    Args:
        stride: Stride of the subsampling.
        before: Number of channels of zeros in front.
        after: Number of channels of zeros behind.
        pool: Module that subsamples instead.

    Shape:
        ``(N, C, H, W)`` to ``(N, before + C + after, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, stride: int, before: int, after: int, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.stride = stride
        self.zeros = (before, after)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """Compute the shortcut."""
        if self.pool is not None:
            x = self.pool(x)
        elif self.stride != 1:
            # Not a slice: the gradient of a slice is never channels-last.
            x = F.avg_pool2d(x, 1, self.stride)
        return F.pad(x, (0, 0, 0, 0, *self.zeros))

    def extra_repr(self) -> str:
        """Return the options to show when the layer is printed."""
        before, after = self.zeros
        return f"stride={self.stride}, before={before}, after={after}"
