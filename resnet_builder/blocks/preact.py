"""Pre-activated residual blocks: norms and activations stand before the convolutions.

He et al. 2016, figure 1b, https://arxiv.org/abs/1603.05027. The output of a block is a bare sum,
so shortcuts have no norm, and the head ``preact_linear`` normalises the last sum. The stem before
these blocks is ``bare``.
"""

from typing import Literal

from torch import Tensor, nn

from resnet_builder.blocks.bottleneck import Amount, Expansion, inner_width
from resnet_builder.blocks.interfaces import (
    BLOCKS,
    ActivationFactory,
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

Shared = Literal["change", "first", "never"]
"""Shortcuts that begin after the first norm and activation, which the residual path has too.

``change``: shortcuts that are not an identity, as in the authors' code and in timm; ``first``: the
shortcut of the first block of each stage, as in hysts; ``never``: none, as in weiaicunzai.
"""


@BLOCKS.register("preact_basic")
class PreactBasicBlock(nn.Module):
    """Two pre-activated 3x3 convolutions and a shortcut: ``y = F(x) + shortcut(x)``.

    He et al. 2016; with ``dropout``, the block of wide ResNets (Zagoruyko and Komodakis 2016,
    figure 1d, https://arxiv.org/abs/1605.07146).

    Args:
        in_channels: Width of the input.
        channels: Width of both convolutions.
        stride: Stride of the first convolution and of the shortcut.
        previous_dilation: Dilation of the first convolution.
        dilation: Dilation of the second convolution.
        begins_stage: Whether this is the first block of its stage.
        shortcut: Maker of the skip path.
        norm: Maker of a normalisation layer.
        activation: Maker of an activation.
        attention: Maker of the attention layer that ends the residual path.
        drop_path: Probability that an image's residual is dropped in training.
        dropout: Probability that an element between the convolutions is zeroed.
        shared: Blocks whose shortcut begins after the first norm and activation: ``change``,
            those where it is not an identity; ``first``, the first of each stage; or ``never``.
        first_activation: Whether an activation follows a first norm that is not shared; Han et
            al. 2017 remove it, https://arxiv.org/abs/1610.02915.
        last_norm: Whether a norm ends the residual path, as in Han et al. 2017.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, channels, ceil(H / stride), ceil(W / stride))``.
    """

    preactivated = True

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        shortcut: ShortcutFactory,
        previous_dilation: int = 1,
        dilation: int = 1,
        begins_stage: bool = False,
        norm: NormFactory = nn.BatchNorm2d,
        activation: ActivationFactory = nn.ReLU,
        attention: AttentionFactory = nn.Identity,
        drop_path: float = 0.0,
        dropout: Probability = 0.0,
        shared: Shared = "change",
        first_activation: bool = True,
        last_norm: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels = channels
        self.bn1 = norm(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride=stride, dilation=previous_dilation)
        self.bn2 = norm(channels)
        self.dropout = dropout_layer(dropout)
        self.conv2 = conv3x3(channels, self.out_channels, dilation=dilation)
        self.bn3 = norm(self.out_channels) if last_norm else nn.Identity()
        self.se = attention(self.out_channels)
        self.drop_path = drop_path_layer(drop_path)
        self.downsample = shortcut(in_channels, self.out_channels, stride)
        self.relu = activation()
        self.is_shared = _is_shared(shared, self.downsample, begins_stage)
        self.first_activation = first_activation or self.is_shared

    def zero_residual(self) -> None:
        """Make F output zero, so that the block starts as its shortcut."""
        _zero_end(self.conv2, self.bn3)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        normed = self.bn1(x)
        if self.first_activation:
            normed = self.relu(normed)
        residual = self.dropout(self.relu(self.bn2(self.conv1(normed))))
        residual = self.drop_path(self.se(self.bn3(self.conv2(residual))))
        if self.downsample is not None:
            residual += self.downsample(normed if self.is_shared else x)
        return residual  # not activated: the next block, or the head, does that


@BLOCKS.register("preact_bottleneck")
class PreactBottleneckBlock(nn.Module):
    """Pre-activated 1x1, 3x3 and 1x1 convolutions and a shortcut: ``y = F(x) + shortcut(x)``.

    He et al. 2016; also the block of ResNetV2-50.

    Args:
        in_channels: Width of the input.
        channels: Inner width; the output is ``expansion`` times as wide.
        stride: Stride of one convolution and of the shortcut.
        previous_dilation: Dilation of the 3x3 convolution if that is the one that strides.
        dilation: Dilation of the 3x3 convolution otherwise.
        begins_stage: Whether this is the first block of its stage.
        shortcut: Maker of the skip path.
        norm: Maker of a normalisation layer.
        activation: Maker of an activation.
        attention: Maker of the attention layer that ends the residual path.
        drop_path: Probability that an image's residual is dropped in training.
        groups: Number of groups of the 3x3 convolution.
        width_per_group: Width of a group where ``channels`` is 64; scales with ``channels``.
        expansion: Ratio of the output's width to ``channels``.
        stride_in: Convolution that strides.
        dropout: Probability that an element before the last convolution is zeroed.
        shared: Blocks whose shortcut begins after the first norm and activation: ``change``,
            those where it is not an identity; ``first``, the first of each stage; or ``never``.
        first_activation: Whether an activation follows a first norm that is not shared.
        last_norm: Whether a norm ends the residual path.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, expansion * channels, ceil(H / stride), ceil(W /
        stride))``.

    Raises:
        PartError: ``channels * width_per_group`` is not a multiple of 64.
    """

    preactivated = True

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        shortcut: ShortcutFactory,
        previous_dilation: int = 1,
        dilation: int = 1,
        begins_stage: bool = False,
        norm: NormFactory = nn.BatchNorm2d,
        activation: ActivationFactory = nn.ReLU,
        attention: AttentionFactory = nn.Identity,
        drop_path: float = 0.0,
        groups: Amount = 1,
        width_per_group: Amount = 64,
        expansion: Expansion = 4,
        stride_in: Literal["conv3x3", "conv1x1"] = "conv3x3",
        dropout: Probability = 0.0,
        shared: Shared = "change",
        first_activation: bool = True,
        last_norm: bool = False,
    ) -> None:
        super().__init__()
        width = inner_width(channels, groups, width_per_group)
        in_conv1 = stride_in == "conv1x1"
        stride1, stride2 = (stride, 1) if in_conv1 else (1, stride)
        dilation2 = dilation if in_conv1 else previous_dilation
        self.out_channels = channels * expansion
        self.bn1 = norm(in_channels)
        self.conv1 = conv1x1(in_channels, width, stride=stride1)
        self.bn2 = norm(width)
        self.conv2 = conv3x3(width, width, stride=stride2, dilation=dilation2, groups=groups)
        self.bn3 = norm(width)
        self.dropout = dropout_layer(dropout)
        self.conv3 = conv1x1(width, self.out_channels)
        self.bn4 = norm(self.out_channels) if last_norm else nn.Identity()
        self.se = attention(self.out_channels)
        self.drop_path = drop_path_layer(drop_path)
        self.downsample = shortcut(in_channels, self.out_channels, stride)
        self.relu = activation()
        self.is_shared = _is_shared(shared, self.downsample, begins_stage)
        self.first_activation = first_activation or self.is_shared

    def zero_residual(self) -> None:
        """Make F output zero, so that the block starts as its shortcut."""
        _zero_end(self.conv3, self.bn4)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        normed = self.bn1(x)
        if self.first_activation:
            normed = self.relu(normed)
        residual = self.relu(self.bn2(self.conv1(normed)))
        residual = self.dropout(self.relu(self.bn3(self.conv2(residual))))
        residual = self.drop_path(self.se(self.bn4(self.conv3(residual))))
        if self.downsample is not None:
            residual += self.downsample(normed if self.is_shared else x)
        return residual  # not activated: the next block, or the head, does that


def _is_shared(shared: Shared, downsample: nn.Module | None, begins_stage: bool) -> bool:
    """Whether a block's shortcut begins after the first norm and activation."""
    if shared == "change":
        # A shortcut that is an identity has to pass the sum on as it is (He et al. 2016, figure 2).
        return not isinstance(downsample, nn.Identity)
    return shared == "first" and begins_stage


def _zero_end(conv: nn.Conv2d, norm: nn.Module) -> None:
    """Zero the last layer of a residual path: the norm, if there is one."""
    if isinstance(norm, nn.Identity):
        nn.init.zeros_(conv.weight)  # it has no bias either
    else:
        zero_scale(norm)
