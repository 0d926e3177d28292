"""The two-convolution residual block of ResNet-18/34 and of the CIFAR ResNets."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from resnet_builder.blocks.filters import no_filter, split_stride
from resnet_builder.blocks.interfaces import (
    BLOCKS,
    ActivationFactory,
    AttentionFactory,
    FilterFactory,
    NormFactory,
    ShortcutFactory,
)
from resnet_builder.blocks.layers import (
    conv3x3,
    drop_path_layer,
    dropout_layer,
    zero_scale,
)


@BLOCKS.register("basic")
class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``y = relu(F(x) + shortcut(x))``.

    He et al. 2015, figure 5 (left), https://arxiv.org/abs/1512.03385.

    Args:
        in_channels: Width of the input.
        channels: Width of both convolutions.
        stride: Stride of the first convolution and of the shortcut.
        first_dilation: Dilation of the first convolution.
        dilation: Dilation of the second.
        shortcut: Makes the skip path.
        norm: Makes a normalisation layer.
        activation: Makes an activation.
        attention: Makes an attention layer, which ends the residual path.
        drop_path: Probability that an image's residual is dropped while training.
        antialias: Makes what subsamples in place of the first convolution.
        dropout: Probability that an element is zeroed between the convolutions.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, channels, ceil(H / stride), ceil(W / stride))``.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        shortcut: ShortcutFactory,
        first_dilation: int = 1,
        dilation: int = 1,
        norm: NormFactory = nn.BatchNorm2d,
        activation: ActivationFactory = nn.ReLU,
        attention: AttentionFactory = nn.Identity,
        drop_path: float = 0.0,
        antialias: FilterFactory = no_filter,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        self.out_channels = channels * self.expansion
        first_stride, self.blur = split_stride(antialias, channels, stride)
        self.conv1 = conv3x3(in_channels, channels, stride=first_stride, dilation=first_dilation)
        self.bn1 = norm(channels)
        self.dropout = dropout_layer(dropout)
        self.conv2 = conv3x3(channels, self.out_channels, dilation=dilation)
        self.bn2 = norm(self.out_channels)
        self.se = attention(self.out_channels)
        self.drop_path = drop_path_layer(drop_path)
        self.downsample = shortcut(in_channels, self.out_channels, stride)
        self.relu = activation()

    def zero_residual(self) -> None:
        """Make F output zero, so that the block starts as its shortcut."""
        zero_scale(self.bn2)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        residual = self.dropout(self.blur(self.relu(self.bn1(self.conv1(x)))))
        residual = self.drop_path(self.se(self.bn2(self.conv2(residual))))
        if self.downsample is not None:
            residual += self.downsample(x)
        return self.relu(residual)
