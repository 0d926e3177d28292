"""The skip paths of residual blocks: He et al. 2015, section 3.3, options A to C, and others."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from resnet_builder.blocks.contract import SHORTCUTS, NormFactory
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
) -> nn.Module:
    """Subsample, then add channels of zeros: option A, without parameters.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.
        stride: Of the block.
        position: Zeros on both sides of the channels, or all at their end (as in Torch7).
        subsample: Take every stride-th pixel, or average over stride x stride pixels.

    Raises:
        PartError: The output is narrower than the input.
    """
    if out_channels < in_channels:
        raise PartError(f"`pad` cannot narrow {in_channels} channels to {out_channels}")
    if not changes_shape(in_channels, out_channels, stride):
        return nn.Identity()
    added = out_channels - in_channels
    before = added // 2 if position == "both" else 0
    return PadShortcut(stride, before, added - before, average=subsample == "average")


@SHORTCUTS.register("projection")
def projection(in_channels: int, out_channels: int, stride: int, *, norm: NormFactory) -> nn.Module:
    """Project by a 1x1 convolution where the shape changes: option B, and torchvision's."""
    if not changes_shape(in_channels, out_channels, stride):
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
    in_channels: int, out_channels: int, stride: int, *, norm: NormFactory
) -> nn.Module:
    """Average, then project where the shape changes: ResNet-D (He et al. 2018, figure 2c)."""
    if not changes_shape(in_channels, out_channels, stride):
        return nn.Identity()
    pool = average_pool(stride) if stride != 1 else nn.Identity()
    return nn.Sequential(pool, conv1x1(in_channels, out_channels), norm(out_channels))


@SHORTCUTS.register("none")
def none(in_channels: int, out_channels: int, stride: int) -> None:
    """Add nothing: the plain networks of He et al. 2015, section 3.3."""


def average_pool(stride: int) -> nn.AvgPool2d:
    """Average over stride x stride pixels, fewer at the edge, as large as a strided convolution.

    Shape:
        ``(N, C, H, W)`` to ``(N, C, ceil(H / stride), ceil(W / stride))``.
    """
    return nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)


class PadShortcut(nn.Module):
    """Subsample, then put channels of zeros before and after the input's.

    Args:
        stride: Of the subsampling.
        before: Channels of zeros in front.
        after: Channels of zeros behind.
        average: Average over the pixels instead of taking the first of each.

    Shape:
        ``(N, C, H, W)`` to ``(N, before + C + after, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, stride: int, before: int, after: int, *, average: bool) -> None:
        super().__init__()
        self.stride = stride
        self.zeros = (before, after)
        self.pool = average_pool(stride) if average and stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the shortcut."""
        if self.pool is not None:
            x = self.pool(x)
        elif self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, *self.zeros))

    def extra_repr(self) -> str:
        """Show what the layer does when it is printed."""
        before, after = self.zeros
        return f"stride={self.stride}, before={before}, after={after}"
