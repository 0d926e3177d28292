"""Layers that blocks are made of: convolutions, norms, activations, dropout, pooling."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from resnet_builder.blocks.interfaces import ACTIVATIONS, NORMS
from resnet_builder.errors import PartError

Epsilon = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]


def conv3x3(
    in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    """3x3 convolution, padded so that only the stride changes the size; without a bias.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.
    """
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        stride=stride,
        padding=dilation,
        dilation=dilation,
        groups=groups,
        bias=False,  # the norm after it has one
    )


def conv1x1(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution without a bias.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.
    """
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)


@NORMS.register("batch_norm")
def batch_norm(
    channels: int, *, eps: Epsilon = 1e-5, momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
) -> nn.Module:
    """Batch normalisation: each channel over the batch (Ioffe and Szegedy 2015).

    Args:
        channels: Width of the input.
        eps: Number added to the variance.
        momentum: Weight of each batch in the running statistics.
    """
    return nn.BatchNorm2d(channels, eps=eps, momentum=momentum)


@NORMS.register("frozen_batch_norm")
def frozen_batch_norm(channels: int, *, eps: Epsilon = 1e-5) -> nn.Module:
    """Batch normalisation by fixed statistics and scales, which pretrained weights bring.

    Args:
        channels: Width of the input.
        eps: Number added to the variance.
    """
    from torchvision.ops import FrozenBatchNorm2d  # slow: imports torch's compiler

    return FrozenBatchNorm2d(channels, eps=eps)


@NORMS.register("group_norm")
def group_norm(
    channels: int, *, groups: Annotated[int, Field(ge=1, le=16_384)] = 32, eps: Epsilon = 1e-5
) -> nn.Module:
    """Group normalisation: groups of channels of each image (Wu and He 2018).

    Args:
        channels: Width of the input.
        groups: Number of groups.
        eps: Number added to the variance.

    Raises:
        PartError: The groups do not divide the channels.
    """
    if channels % groups:
        raise PartError(f"{groups} groups do not divide {channels} channels", option="groups")
    return nn.GroupNorm(groups, channels, eps=eps)


@NORMS.register("instance_norm")
def instance_norm(channels: int, *, eps: Epsilon = 1e-5) -> nn.Module:
    """Instance normalisation, with a scale and a shift: each channel of each image (Ulyanov 2016).

    Args:
        channels: Width of the input.
        eps: Number added to the variance.
    """
    return nn.InstanceNorm2d(channels, eps=eps, affine=True)


def zero_scale(norm: nn.Module) -> None:
    """Make a normalisation layer output zero.

    Raises:
        PartError: The layer has no scale.
    """
    scale = getattr(norm, "weight", None)
    if not isinstance(scale, nn.Parameter):
        raise PartError(f"{type(norm).__name__} has no scale that is learnt", code="no-effect")
    nn.init.zeros_(scale)


# Activations work in place where they can: nothing else needs their input, a norm's output.


@ACTIVATIONS.register("relu")
def relu() -> nn.Module:
    """Rectified linear unit (Nair and Hinton 2010)."""
    return nn.ReLU(inplace=True)


@ACTIVATIONS.register("leaky_relu")
def leaky_relu(*, slope: Annotated[float, Field(gt=0, lt=1)] = 0.01) -> nn.Module:
    """Rectified linear unit with a slope below zero (Maas et al. 2013).

    Args:
        slope: Slope below zero.
    """
    return nn.LeakyReLU(slope, inplace=True)


@ACTIVATIONS.register("silu")
def silu() -> nn.Module:
    """Sigmoid linear unit, also called swish (Elfwing et al. 2017)."""
    return nn.SiLU(inplace=True)


@ACTIVATIONS.register("gelu")
def gelu() -> nn.Module:
    """Gaussian error linear unit (Hendrycks and Gimpel 2016)."""
    return nn.GELU()


def dropout_layer(probability: float) -> nn.Module:
    """Dropout layer; an identity where the probability is 0."""
    return nn.Dropout(probability) if probability else nn.Identity()


def drop_path_layer(probability: float) -> nn.Module:
    """Stochastic depth, which zeroes whole images' residuals; an identity for probability 0.

    Huang et al. 2016, https://arxiv.org/abs/1603.09382.
    """
    if not probability:
        return nn.Identity()
    from torchvision.ops import StochasticDepth  # slow: imports torch's compiler

    return StochasticDepth(probability, mode="row")


def average(x: Tensor) -> Tensor:
    """Average over all pixels.

    Shape:
        ``(N, C, H, W)`` to ``(N, C, 1, 1)``.
    """
    # Not `mean`: its backward writes the gradient out in one memory format, whatever the images'
    # format is. The gradient of `sum` is an expanded view, and layers below keep their own format.
    return x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])


class GlobalAverage(nn.Module):
    """Average over all pixels, for images of any size.

    Shape:
        ``(N, C, H, W)`` to ``(N, C, 1, 1)``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer."""
        return average(x)
