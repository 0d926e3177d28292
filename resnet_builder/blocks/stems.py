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
from resnet_builder.blocks.layers import conv3x3
from resnet_builder.errors import PartError

Width = Annotated[int, Field(ge=1, le=16_384)]


@STEMS.register("conv")
def conv_stem(
    in_channels: int,
    *,
    channels: Width,
    kernel_size: Annotated[int, Field(ge=1, le=31)],
    stride: Annotated[int, Field(ge=1, le=8)] = 1,
    max_pool: bool = False,
    bare: bool = False,
    norm: NormFactory,
    activation: ActivationFactory,
    antialias: AntialiasFactory = no_filter,
) -> Stem:
    """Convolution of any kernel and stride, with strided max pooling or without.

    An odd kernel is padded, so that only the stride changes the size. An even kernel is as large
    as the stride: it divides the image into patches, and a rest at the edge is left out.

    Args:
        in_channels: Channels of an image.
        channels: Width of the convolution.
        kernel_size: Side of the kernel: odd, or the stride.
        stride: Stride of the convolution.
        max_pool: Whether 3x3 max pooling of stride 2 follows.
        bare: Whether norm and activation are left out, for pre-activated blocks (He et al.
            2016).
        norm: Maker of a normalisation layer.
        activation: Maker of an activation.
        antialias: Maker of the filter that subsamples after the max pooling; without pooling, in
            place of the convolution.

    Raises:
        PartError: The kernel is even, and not the stride.
    """
    if kernel_size % 2 == 0 and kernel_size != stride:
        raise PartError(
            f"a kernel of {kernel_size} must have a stride of {kernel_size}, for patches; kernels "
            "of other strides are odd",
            code="out-of-range",
            option="kernel_size",
        )
    # One filter is enough: Zhang 2019 and timm leave the convolution before a pooling as it is.
    conv_stride, blur = split_stride(no_filter if max_pool else antialias, channels, stride)
    conv = nn.Conv2d(
        in_channels,
        channels,
        kernel_size,
        stride=conv_stride,
        padding=kernel_size // 2 if kernel_size % 2 else 0,
        bias=False,
    )
    layers = _stem_layers(conv, channels, norm, activation, bare=bare)
    if max_pool:
        layers["maxpool"] = _max_pool(channels, antialias)
    elif conv_stride != stride:
        layers["blur"] = blur
    return Stem(layers, out_channels=channels, stride=stride * 2 if max_pool else stride)


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
    return conv_stem(
        in_channels, channels=channels, kernel_size=3, bare=bare, norm=norm, activation=activation
    )


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
    return conv_stem(
        in_channels, channels=channels, kernel_size=1, norm=norm, activation=activation
    )


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
    return conv_stem(
        in_channels,
        channels=channels,
        kernel_size=7,
        stride=2,
        max_pool=True,
        bare=bare,
        norm=norm,
        activation=activation,
        antialias=antialias,
    )


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
