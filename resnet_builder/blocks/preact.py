"""Pre-activated residual blocks: norms and activations stand before the convolutions.

He et al. 2016, figure 1b, https://arxiv.org/abs/1603.05027. What a block gives is a bare sum, so
shortcuts have no norm, and the head ``preact_linear`` normalises the last one. A stem for these
blocks is ``bare``.
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from resnet_builder.blocks.bottleneck import Amount, inner_width
from resnet_builder.blocks.interfaces import (
    BLOCKS,
    ActivationFactory,
    AttentionFactory,
    NormFactory,
    ShortcutFactory,
)
from resnet_builder.blocks.layers import (
    conv1x1,
    conv3x3,
    drop_path_layer,
    dropout_layer,
    zero_scale,
)

Dropout = Annotated[float, Field(ge=0, lt=1)]

Shared = Literal["change", "first", "never"]
"""Which shortcuts begin after the first norm and activation, which they share with the residual.

``change``: those that are no identity, as the authors' code and timm have it; ``first``: that of
the first block of each stage, as hysts; ``never``: none, as weiaicunzai.
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
        first_dilation: Dilation of the first convolution.
        dilation: Dilation of the second.
        begins_stage: Whether this is the first block of its stage.
        shortcut: Makes the skip path.
        norm: Makes a normalisation layer.
        activation: Makes an activation.
        attention: Makes an attention layer, which ends the residual path.
        drop_path: Probability that an image's residual is dropped while training.
        dropout: Probability that an element is zeroed between the convolutions.
        shared: Which blocks' shortcuts begin after the first norm and activation: those that
            are no identity, the first of each stage, or none.
        first_activation: Whether an activation follows the first norm where it is not shared;
            Han et al. 2017 remove it, https://arxiv.org/abs/1610.02915.
        last_norm: Whether a norm ends the residual path, as theirs.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, channels, ceil(H / stride), ceil(W / stride))``.
    """

    expansion = 1
    preactivated = True

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        shortcut: ShortcutFactory,
        first_dilation: int = 1,
        dilation: int = 1,
        begins_stage: bool = False,
        norm: NormFactory = nn.BatchNorm2d,
        activation: ActivationFactory = nn.ReLU,
        attention: AttentionFactory = nn.Identity,
        drop_path: float = 0.0,
        dropout: Dropout = 0.0,
        shared: Shared = "change",
        first_activation: bool = True,
        last_norm: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels = channels * self.expansion
        self.bn1 = norm(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride=stride, dilation=first_dilation)
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
        return residual


@BLOCKS.register("preact_bottleneck")
class PreactBottleneckBlock(nn.Module):
    """Pre-activated 1x1, 3x3 and 1x1 convolutions and a shortcut: ``y = F(x) + shortcut(x)``.

    He et al. 2016; also the block of ResNetV2-50.

    Args:
        in_channels: Width of the input.
        channels: Inner width; the output is four times as wide.
        stride: Stride of one convolution and of the shortcut.
        first_dilation: Dilation of the 3x3 convolution if it is the one that strides.
        dilation: Its dilation otherwise.
        begins_stage: Whether this is the first block of its stage.
        shortcut: Makes the skip path.
        norm: Makes a normalisation layer.
        activation: Makes an activation.
        attention: Makes an attention layer, which ends the residual path.
        drop_path: Probability that an image's residual is dropped while training.
        groups: Groups of the 3x3 convolution.
        width_per_group: Width of a group where ``channels`` is 64; scales with ``channels``.
        stride_in: The convolution that strides.
        dropout: Probability that an element is zeroed before the last convolution.
        shared: Which blocks' shortcuts begin after the first norm and activation: those that
            are no identity, the first of each stage, or none.
        first_activation: Whether an activation follows the first norm where it is not shared.
        last_norm: Whether a norm ends the residual path.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, 4 * channels, ceil(H / stride), ceil(W / stride))``.

    Raises:
        PartError: ``channels * width_per_group`` is not a multiple of 64.
    """

    expansion = 4
    preactivated = True

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        shortcut: ShortcutFactory,
        first_dilation: int = 1,
        dilation: int = 1,
        begins_stage: bool = False,
        norm: NormFactory = nn.BatchNorm2d,
        activation: ActivationFactory = nn.ReLU,
        attention: AttentionFactory = nn.Identity,
        drop_path: float = 0.0,
        groups: Amount = 1,
        width_per_group: Amount = 64,
        stride_in: Literal["conv3x3", "conv1x1"] = "conv3x3",
        dropout: Dropout = 0.0,
        shared: Shared = "change",
        first_activation: bool = True,
        last_norm: bool = False,
    ) -> None:
        super().__init__()
        width = inner_width(channels, groups, width_per_group)
        in_conv1 = stride_in == "conv1x1"
        stride1, stride2 = (stride, 1) if in_conv1 else (1, stride)
        dilation2 = dilation if in_conv1 else first_dilation
        self.out_channels = channels * self.expansion
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
        return residual


def _is_shared(shared: Shared, downsample: nn.Module | None, begins_stage: bool) -> bool:
    """Tell whether a block's shortcut begins after the first norm and activation."""
    if shared == "change":
        return not isinstance(downsample, nn.Identity)
    return shared == "first" and begins_stage


def _zero_end(conv: nn.Conv2d, norm: nn.Module) -> None:
    """Zero the last layer of a residual path: its norm, if there is one."""
    if isinstance(norm, nn.Identity):
        nn.init.zeros_(conv.weight)
    else:
        zero_scale(norm)
