"""Basic block: the two-convolution residual block of ResNet-18/34 and of the CIFAR ResNets."""

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
        shortcut: Maker of the skip path.
        previous_dilation: Dilation of the first convolution.
        dilation: Dilation of the second convolution.
        norm: Maker of a normalisation layer.
        activation: Maker of an activation.
        attention: Maker of the attention layer that ends the residual path.
        drop_path: Probability that an image's residual is dropped in training.
        antialias: Maker of the filter that subsamples in place of the first convolution.
        dropout: Probability that an element between the convolutions is zeroed.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, channels, ceil(H / stride), ceil(W / stride))``.
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
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        self.out_channels = channels
        conv_stride, self.blur = split_stride(antialias, channels, stride)
        self.conv1 = conv3x3(in_channels, channels, stride=conv_stride, dilation=previous_dilation)
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
            residual += self.downsample(x)  # in place: one tensor less is kept for backward
        return self.relu(residual)
