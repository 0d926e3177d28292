"""What comes before the first stage."""

from typing import Annotated

from pydantic import Field
from torch import nn

from resnet_builder.blocks.contract import STEMS, ActivationFactory, NormFactory, Stem
from resnet_builder.blocks.layers import conv3x3

Width = Annotated[int, Field(ge=1, le=16_384)]


@STEMS.register("conv3x3")
def conv3x3_stem(
    in_channels: int, *, channels: Width, norm: NormFactory, activation: ActivationFactory
) -> Stem:
    """Make one 3x3 convolution that keeps the size, for small images (He et al. 2015, 4.2)."""
    layers = {
        "conv1": conv3x3(in_channels, channels),
        "bn1": norm(channels),
        "relu": activation(),
    }
    return Stem(layers, out_channels=channels, stride=1)


@STEMS.register("conv7x7_maxpool")
def conv7x7_maxpool_stem(
    in_channels: int, *, channels: Width = 64, norm: NormFactory, activation: ActivationFactory
) -> Stem:
    """Make a strided 7x7 convolution and a strided maximum (He et al. 2015, table 1)."""
    layers = {
        "conv1": nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False),
        "bn1": norm(channels),
        "relu": activation(),
        "maxpool": nn.MaxPool2d(3, stride=2, padding=1),
    }
    return Stem(layers, out_channels=channels, stride=4)
