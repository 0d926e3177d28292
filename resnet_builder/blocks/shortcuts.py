"""The skip paths of residual blocks: He et al. 2015, section 3.3, options A to C, and others."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_builder.blocks.interfaces import SHORTCUTS, NormFactory
from resnet_builder.blocks.layers import conv1x1
from resnet_builder.errors import PartError


def changes_shape(in_channels: int, out_channels: int, stride: int) -> bool:
    """Tell whether an identity would not fit: the one place where this rule stands."""
    return stride != 1 or in_channels != out_channels


@SHORTCUTS.register("pad")
def pad(
    in_channels: int,
    out_channels: int,
    stride: int,
    *,
    position: Literal["both", "end"] = "both",
    subsample: Literal["stride", "average"] = "stride",
    undone_stride: int = 1,
    dilation: int = 1,
) -> nn.Module:
    """Subsample, then add channels of zeros: option A, without parameters.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.
        stride: Of the block.
        position: Zeros on both sides of the channels, or all at their end (as in Torch7).
        subsample: Take every stride-th pixel, or average over stride x stride pixels.
        undone_stride: The stride that dilation stands in for.
        dilation: Distance between the pixels to average over.

    Raises:
        PartError: The output is narrower than the input.
    """
    if out_channels < in_channels:
        raise PartError(f"`pad` cannot narrow {in_channels} channels to {out_channels}")
    if not changes_shape(in_channels, out_channels, stride * undone_stride):
        return nn.Identity()
    added = out_channels - in_channels
    before = added // 2 if position == "both" else 0
    if subsample == "average":
        pool = average_pool(stride, undone_stride, dilation)
        return PadShortcut(1, before, added - before, pool)
    return PadShortcut(stride, before, added - before)


@SHORTCUTS.register("projection")
def projection(
    in_channels: int, out_channels: int, stride: int, *, norm: NormFactory, undone_stride: int = 1
) -> nn.Module:
    """Project by a 1x1 convolution where the shape changes: option B, and torchvision's."""
    if not changes_shape(in_channels, out_channels, stride * undone_stride):
        return nn.Identity()
    return projection_all(in_channels, out_channels, stride, norm=norm)


@SHORTCUTS.register("projection_all")
def projection_all(
    in_channels: int, out_channels: int, stride: int, *, norm: NormFactory
) -> nn.Module:
    """Project by a 1x1 convolution in every block: option C."""
    return nn.Sequential(conv1x1(in_channels, out_channels, stride=stride), norm(out_channels))


@SHORTCUTS.register("average_projection")
def average_projection(
    in_channels: int,
    out_channels: int,
    stride: int,
    *,
    norm: NormFactory,
    undone_stride: int = 1,
    dilation: int = 1,
) -> nn.Module:
    """Average, then project where the shape changes: ResNet-D (He et al. 2018, figure 2c)."""
    if not changes_shape(in_channels, out_channels, stride * undone_stride):
        return nn.Identity()
    pool = average_pool(stride, undone_stride, dilation)
    return nn.Sequential(pool, conv1x1(in_channels, out_channels), norm(out_channels))


@SHORTCUTS.register("none")
def none(in_channels: int, out_channels: int, stride: int) -> None:
    """Add nothing: the plain networks of He et al. 2015, section 3.3."""


def average_pool(stride: int, undone_stride: int, dilation: int) -> nn.Module:
    """Average over stride x stride pixels, fewer at the edge, as large as a strided convolution.

    Args:
        stride: Of the pool, and its size.
        undone_stride: The stride that dilation stands in for; only one of the two is not 1.
        dilation: Distance between the pixels to average over, if it does.

    Shape:
        ``(N, C, H, W)`` to ``(N, C, ceil(H / stride), ceil(W / stride))``.
    """
    if undone_stride != 1:
        return DilatedAverage(undone_stride, dilation)
    if stride != 1:
        return nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
    return nn.Identity()


class DilatedAverage(nn.Module):
    """Average over size x size pixels that lie ``dilation`` apart, fewer at the edge.

    Every ``size``-th pixel of every ``dilation``-th is what pooling gives on those.

    Args:
        size: Pixels a side.
        dilation: Their distance.

    Shape:
        ``(N, C, H, W)`` to the same.
    """

    def __init__(self, size: int, dilation: int) -> None:
        super().__init__()
        self.size = size
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer."""
        return self._sum(x) / self._sum(torch.ones_like(x[:1, :1]))

    def _sum(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        reach = (self.size - 1) * self.dilation
        padded = F.pad(x, (0, reach, 0, reach))
        starts = range(0, reach + 1, self.dilation)
        return torch.stack(
            [padded[..., y : y + height, z : z + width] for y in starts for z in starts]
        ).sum(0)

    def extra_repr(self) -> str:
        """Show what the layer does when it is printed."""
        return f"size={self.size}, dilation={self.dilation}"


class PadShortcut(nn.Module):
    """Subsample, then put channels of zeros before and after the input's.

    Args:
        stride: Take every stride-th pixel.
        before: Channels of zeros in front.
        after: Channels of zeros behind.
        pool: What subsamples instead.

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
            x = F.avg_pool2d(x, 1, self.stride)  # a slice's gradient is never channels-last
        return F.pad(x, (0, 0, 0, 0, *self.zeros))

    def extra_repr(self) -> str:
        """Show what the layer does when it is printed."""
        before, after = self.zeros
        return f"stride={self.stride}, before={before}, after={after}"
