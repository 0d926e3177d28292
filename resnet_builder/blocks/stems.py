"""Stems: layers before the first stage."""

from typing import Annotated

from pydantic import Field
from torch import nn

from resnet_builder.blocks.antialias import no_filter, split_stride
from resnet_builder.blocks.interfaces import (
    STEMS,
    ActivationFactory,
    AntialiasFactory,
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
    """3x3 convolution that keeps the size, for small images (He et al. 2015, section 4.2).

    Args:
        in_channels: Channels of an image.
        channels: Width of the convolution.
        bare: Whether norm and activation are left out, for pre-activated blocks (He et al.
            2016).
        norm: Maker of a normalisation layer.
        activation: Maker of an activation.
    """
    layers = _stem_layers(conv3x3(in_channels, channels), channels, norm, activation, bare=bare)
    return Stem(layers, out_channels=channels, stride=1)


@STEMS.register("conv1x1")
def conv1x1_stem(
    in_channels: int, *, channels: Width, norm: NormFactory, activation: ActivationFactory
) -> Stem:
    """1x1 convolution, as in kuangliu's ResNeXt; the paper's stem is 3x3.

    Args:
        in_channels: Channels of an image.
        channels: Width of the convolution.
        norm: Maker of a normalisation layer.
        activation: Maker of an activation.
    """
    layers = _stem_layers(conv1x1(in_channels, channels), channels, norm, activation)
    return Stem(layers, out_channels=channels, stride=1)


@STEMS.register("conv7x7_maxpool")
def conv7x7_maxpool_stem(
    in_channels: int,
    *,
    channels: Width = 64,
    bare: bool = False,
    norm: NormFactory,
    activation: ActivationFactory,
    antialias: AntialiasFactory = no_filter,
) -> Stem:
    """Strided 7x7 convolution and strided max pooling (He et al. 2015, table 1).

    Args:
        in_channels: Channels of an image.
        channels: Width of the convolution.
        bare: Whether norm and activation are left out, for pre-activated blocks (He et al.
            2016).
        norm: Maker of a normalisation layer.
        activation: Maker of an activation.
        antialias: Maker of the filter that subsamples after the max pooling.
    """
    conv = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
    layers = _stem_layers(conv, channels, norm, activation, bare=bare)
    layers["maxpool"] = _max_pool(channels, antialias)
    return Stem(layers, out_channels=channels, stride=4)


@STEMS.register("deep")
def deep_stem(
    in_channels: int,
    *,
    channels: Width = 64,
    width: Width = 32,
    norm: NormFactory,
    activation: ActivationFactory,
    antialias: AntialiasFactory = no_filter,
) -> Stem:
    """Three 3x3 convolutions, the first strided, and strided max pooling: ResNet-C and -D.

    He et al. 2018, figure 2b, https://arxiv.org/abs/1812.01187.

    Args:
        in_channels: Channels of an image.
        channels: Width of the last convolution.
        width: Width of the first two convolutions.
        norm: Maker of a normalisation layer.
        activation: Maker of an activation.
        antialias: Maker of the filter that subsamples after the max pooling.
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
    layers = _stem_layers(convolutions, channels, norm, activation)
    layers["maxpool"] = _max_pool(channels, antialias)
    return Stem(layers, out_channels=channels, stride=4)


def _stem_layers(
    conv: nn.Module,
    channels: int,
    norm: NormFactory,
    activation: ActivationFactory,
    *,
    bare: bool = False,
) -> dict[str, nn.Module]:
    # The keys are torchvision's, so that its state dicts load.
    if bare:
        return {"conv1": conv}
    return {"conv1": conv, "bn1": norm(channels), "relu": activation()}


def _max_pool(channels: int, antialias: AntialiasFactory) -> nn.Module:
    # With a blur, the pooling is dense and the blur strides, as in timm.
    stride, blur = split_stride(antialias, channels, 2)
    pool = nn.MaxPool2d(3, stride=stride, padding=1)
    return pool if stride == 2 else nn.Sequential(pool, blur)
