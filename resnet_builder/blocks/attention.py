"""Channel attention: weights for the channels of a residual, computed from the whole image."""

import math
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from resnet_builder.blocks.interfaces import ATTENTIONS
from resnet_builder.blocks.layers import average
from resnet_builder.errors import PartError


@ATTENTIONS.register("none")
def no_attention(channels: int) -> nn.Module:
    """No attention."""
    return nn.Identity()


@ATTENTIONS.register("se")
def squeeze_excitation(
    channels: int,
    *,
    reduction: Annotated[int, Field(ge=1, le=1_024)] = 16,
    divisor: Annotated[int, Field(ge=1, le=1_024)] = 1,
) -> nn.Module:
    """Squeeze and excitation: two layers over the channels' means (Hu et al. 2018).

    https://arxiv.org/abs/1709.01507

    Args:
        channels: Width of the residual.
        reduction: Ratio of the residual's width to the width between the layers.
        divisor: Number whose multiple the width between the layers is rounded to; timm's is 8.

    Raises:
        PartError: The channels are not a multiple of ``reduction``, and nothing rounds.
    """
    if divisor == 1 and channels % reduction:
        raise PartError(
            f"{channels} channels cannot be reduced {reduction} times; a `divisor` rounds",
            option="reduction",
        )
    rounded = int(channels / reduction + divisor / 2) // divisor * divisor
    return SqueezeExcitation(channels, max(divisor, rounded))


@ATTENTIONS.register("eca")
def efficient_channel_attention(
    channels: int, *, kernel: Annotated[int, Field(ge=1, le=63)] | None = None
) -> nn.Module:
    """Efficient channel attention: a convolution along the means (Wang et al. 2020).

    https://arxiv.org/abs/1910.03151

    Args:
        channels: Width of the residual.
        kernel: Number of channels that a weight is computed from; by default the odd number
            nearest to ``(log2(channels) + 1) / 2``, the paper's equation 12.

    Raises:
        PartError: The kernel is even.
    """
    if kernel is None:
        half = int((math.log2(channels) + 1) / 2)
        kernel = max(3, half + 1 - half % 2)
    if kernel % 2 == 0:
        raise PartError(f"a kernel of {kernel} has no middle", code="out-of-range", option="kernel")
    return EfficientChannelAttention(kernel)


class SqueezeExcitation(nn.Module):
    """Product of each channel and ``sigmoid(fc2(relu(fc1(mean))))``.

    Args:
        channels: Width of the input.
        squeezed: Width between the two layers.

    Shape:
        ``(N, channels, H, W)`` to the same.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)  # timm's names and shapes
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer."""
        return x * self.fc2(self.relu(self.fc1(average(x)))).sigmoid()


class EfficientChannelAttention(nn.Module):
    """Product of each channel and the sigmoid of a convolution over its neighbours' means.

    Args:
        kernel: Number of neighbours, the channel itself included.

    Shape:
        ``(N, C, H, W)`` to the same.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer."""
        means = average(x).flatten(1).unsqueeze(1)
        return x * self.conv(means).sigmoid().transpose(1, 2).unsqueeze(-1)
