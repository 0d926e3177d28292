"""Bottleneck block: the three-convolution residual block of ResNet-50/101/152 and ResNeXt."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from resnet_builder.blocks.antialias import no_filter, split_stride
from resnet_builder.blocks.interfaces import (
    BLOCKS,
    ActivationFactory,
    AntialiasFactory,
    AttentionFactory,
    NormFactory,
    ShortcutFactory,
)
from resnet_builder.blocks.layers import (
    Probability,
    conv1x1,
    conv3x3,
    drop_path_layer,
    dropout_layer,
    zero_scale,
)
from resnet_builder.errors import PartError

Amount = Annotated[int, Field(ge=1, le=16_384)]
Expansion = Annotated[int, Field(ge=1, le=16)]


@BLOCKS.register("bottleneck")
class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: ``y = relu(F(x) + shortcut(x))``.

    He et al. 2015, figure 5 (right), https://arxiv.org/abs/1512.03385; grouped as in Xie et al.
    2016, figure 3 (c), https://arxiv.org/abs/1611.05431.

    Args:
        in_channels: Width of the input.
        channels: Inner width; the output is ``expansion`` times as wide.
        stride: Stride of one convolution and of the shortcut.
        previous_dilation: Dilation of the 3x3 convolution if that is the one that strides.
        dilation: Dilation of the 3x3 convolution otherwise.
        shortcut: Maker of the skip path.
        norm: Maker of a normalisation layer.
        activation: Maker of an activation.
        attention: Maker of the attention layer that ends the residual path.
        drop_path: Probability that an image's residual is dropped in training.
        antialias: Maker of the filter that subsamples in place of the strided convolution.
        groups: Number of groups of the 3x3 convolution (ResNeXt's cardinality).
        width_per_group: Width of a group where ``channels`` is 64; scales with ``channels``.
        expansion: Ratio of the output's width to ``channels``.
        stride_in: Convolution that strides: the 3x3 ("v1.5": torchvision, timm), or the first
            1x1 as in the paper.
        dropout: Probability that an element before the last convolution is zeroed.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, expansion * channels, ceil(H / stride), ceil(W /
        stride))``.

    Raises:
        PartError: ``channels * width_per_group`` is not a multiple of 64.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        shortcut: ShortcutFactory,
        previous_dilation: int = 1,
        dilation: int = 1,
        norm: NormFactory = nn.BatchNorm2d,
        activation: ActivationFactory = nn.ReLU,
        attention: AttentionFactory = nn.Identity,
        drop_path: float = 0.0,
        antialias: AntialiasFactory = no_filter,
        groups: Amount = 1,
        width_per_group: Amount = 64,
        expansion: Expansion = 4,
        stride_in: Literal["conv3x3", "conv1x1"] = "conv3x3",
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        width = inner_width(channels, groups, width_per_group)
        in_conv1 = stride_in == "conv1x1"
        stride1, self.blur1 = split_stride(antialias, width, stride if in_conv1 else 1)
        stride2, self.blur2 = split_stride(antialias, width, 1 if in_conv1 else stride)
        # Dilation spreads the convolutions after the stride that it replaces.
        dilation2 = dilation if in_conv1 else previous_dilation
        self.out_channels = channels * expansion
        self.conv1 = conv1x1(in_channels, width, stride=stride1)
        self.bn1 = norm(width)
        self.conv2 = conv3x3(width, width, stride=stride2, dilation=dilation2, groups=groups)
        self.bn2 = norm(width)
        self.dropout = dropout_layer(dropout)
        self.conv3 = conv1x1(width, self.out_channels)
        self.bn3 = norm(self.out_channels)
        self.se = attention(self.out_channels)
        self.drop_path = drop_path_layer(drop_path)
        self.downsample = shortcut(in_channels, self.out_channels, stride)
        self.relu = activation()

    def zero_residual(self) -> None:
        """Make F output zero, so that the block starts as its shortcut."""
        zero_scale(self.bn3)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        residual = self.blur1(self.relu(self.bn1(self.conv1(x))))
        residual = self.dropout(self.blur2(self.relu(self.bn2(self.conv2(residual)))))
        residual = self.drop_path(self.se(self.bn3(self.conv3(residual))))
        if self.downsample is not None:
            residual += self.downsample(x)  # in place: one tensor less is kept for backward
        return self.relu(residual)


def inner_width(channels: int, groups: int, width_per_group: int) -> int:
    """Width of the 3x3 convolution (Xie et al. 2016, table 1).

    Raises:
        PartError: The width is not a whole number.
    """
    if channels * width_per_group % 64:
        raise PartError(
            f"{channels} channels at {width_per_group} per 64 are not a whole number",
            option="width_per_group",
        )
    return channels * width_per_group // 64 * groups
