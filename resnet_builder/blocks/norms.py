"""Normalisation layers by name."""

from typing import Annotated

from pydantic import Field
from torch import nn

from resnet_builder.blocks.interfaces import NORMS
from resnet_builder.errors import PartError

Epsilon = Annotated[float, Field(gt=0)]


@NORMS.register("batch_norm")
def batch_norm(
    channels: int, *, eps: Epsilon = 1e-5, momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
) -> nn.Module:
    """Normalise each channel over the batch (Ioffe and Szegedy 2015).

    Args:
        channels: Width of the input.
        eps: Added to the variance.
        momentum: Shard of each batch in the running statistics.
    """
    return nn.BatchNorm2d(channels, eps=eps, momentum=momentum)


@NORMS.register("frozen_batch_norm")
def frozen_batch_norm(channels: int, *, eps: Epsilon = 1e-5) -> nn.Module:
    """Normalise by the statistics and scales that weights bring, and never change them.

    Args:
        channels: Width of the input.
        eps: Added to the variance.
    """
    from torchvision.ops import FrozenBatchNorm2d  # slow: brings torch's compiler

    return FrozenBatchNorm2d(channels, eps=eps)


@NORMS.register("group_norm")
def group_norm(
    channels: int, *, groups: Annotated[int, Field(ge=1, le=16_384)] = 32, eps: Epsilon = 1e-5
) -> nn.Module:
    """Normalise groups of channels of each image (Wu and He 2018).

    Args:
        channels: Width of the input.
        groups: Their number.
        eps: Added to the variance.

    Raises:
        PartError: The groups do not divide the channels.
    """
    if channels % groups:
        raise PartError(f"{groups} groups do not divide {channels} channels", option="groups")
    return nn.GroupNorm(groups, channels, eps=eps)


@NORMS.register("instance_norm")
def instance_norm(channels: int, *, eps: Epsilon = 1e-5) -> nn.Module:
    """Normalise each channel of each image (Ulyanov et al. 2016), with a scale and a shift.

    Args:
        channels: Width of the input.
        eps: Added to the variance.
    """
    return nn.InstanceNorm2d(channels, eps=eps, affine=True)
