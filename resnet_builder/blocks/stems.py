"""What comes before the first stage."""

from typing import Annotated

from pydantic import Field
from torch import nn

from resnet_builder.blocks.filters import no_filter, split_stride
from resnet_builder.blocks.interfaces import (
    STEMS,
    ActivationFactory,
    FilterFactory,
    NormFactory,
    Stem,
)
from resnet_builder.blocks.layers import conv1x1, conv3x3

Width = Annotated[int, Field(ge=1, le=16_384)]


@STEMS.register("conv3x3")
def conv3x3_stem(
    in_channels: int,
    *,
    channels: Width,
    bare: bool = False,
    norm: NormFactory,
    activation: ActivationFactory,
) -> Stem:
    """Make one 3x3 convolution that keeps the size, for small images (He et al. 2015, 4.2).

    Args:
        in_channels: Channels of an image.
        channels: Width of the convolution.
        bare: Without norm and activation, for pre-activated blocks (He et al. 2016).
        norm: Makes a normalisation layer.
        activation: Makes an activation.
    """
    layers = _normed(conv3x3(in_channels, channels), channels, norm, activation, bare=bare)
    return Stem(layers, out_channels=channels, stride=1)


@STEMS.register("conv1x1")
def conv1x1_stem(
    in_channels: int, *, channels: Width, norm: NormFactory, activation: ActivationFactory
) -> Stem:
    """Make one 1x1 convolution, as kuangliu's ResNeXt has; the paper's is 3x3.

    Args:
        in_channels: Channels of an image.
        channels: Width of the convolution.
        norm: Makes a normalisation layer.
        activation: Makes an activation.
    """
    layers = _normed(conv1x1(in_channels, channels), channels, norm, activation)
    return Stem(layers, out_channels=channels, stride=1)


@STEMS.register("conv7x7_maxpool")
def conv7x7_maxpool_stem(
    in_channels: int,
    *,
    channels: Width = 64,
    bare: bool = False,
    norm: NormFactory,
    activation: ActivationFactory,
    antialias: FilterFactory = no_filter,
) -> Stem:
    """Make a strided 7x7 convolution and a strided maximum (He et al. 2015, table 1).

    Args:
        in_channels: Channels of an image.
        channels: Width of the convolution.
        bare: Without norm and activation, for pre-activated blocks (He et al. 2016).
        norm: Makes a normalisation layer.
        activation: Makes an activation.
        antialias: Makes what subsamples after the maximum.
    """
    conv = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
    layers = _normed(conv, channels, norm, activation, bare=bare)
    layers["maxpool"] = _maximum(channels, antialias)
    return Stem(layers, out_channels=channels, stride=4)


@STEMS.register("deep")
def deep_stem(
    in_channels: int,
    *,
    channels: Width = 64,
    width: Width = 32,
    norm: NormFactory,
    activation: ActivationFactory,
    antialias: FilterFactory = no_filter,
) -> Stem:
    """Make three 3x3 convolutions, the first strided, and a strided maximum: ResNet-C and -D.

    He et al. 2018, figure 2b, https://arxiv.org/abs/1812.01187.

    Args:
        in_channels: Channels of an image.
        channels: Width of the last convolution.
        width: Of the first two.
        norm: Makes a normalisation layer.
        activation: Makes an activation.
        antialias: Makes what subsamples after the maximum.
    """
    convolutions = nn.Sequential(
        conv3x3(in_channels, width, stride=2),
        norm(width),
        activation(),
        conv3x3(width, width),
        norm(width),
        activation(),
        conv3x3(width, channels),
    )
    layers = _normed(convolutions, channels, norm, activation)
    layers["maxpool"] = _maximum(channels, antialias)
    return Stem(layers, out_channels=channels, stride=4)


def _normed(
    conv: nn.Module,
    channels: int,
    norm: NormFactory,
    activation: ActivationFactory,
    *,
    bare: bool = False,
) -> dict[str, nn.Module]:
    if bare:
        return {"conv1": conv}
    return {"conv1": conv, "bn1": norm(channels), "relu": activation()}


def _maximum(channels: int, antialias: FilterFactory) -> nn.Module:
    stride, blur = split_stride(antialias, channels, 2)
    maximum = nn.MaxPool2d(3, stride=stride, padding=1)
    return maximum if stride == 2 else nn.Sequential(maximum, blur)
