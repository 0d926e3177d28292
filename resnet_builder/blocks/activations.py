"""Activations by name; in place where they can be: what feeds them is needed by nobody else."""

from typing import Annotated

from pydantic import Field
from torch import nn

from resnet_builder.blocks.interfaces import ACTIVATIONS


@ACTIVATIONS.register("relu")
def relu() -> nn.Module:
    """Rectify (Nair and Hinton 2010)."""
    return nn.ReLU(inplace=True)


@ACTIVATIONS.register("leaky_relu")
def leaky_relu(*, slope: Annotated[float, Field(gt=0, lt=1)] = 0.01) -> nn.Module:
    """Rectify, with a slope below zero (Maas et al. 2013).

    Args:
        slope: Below zero.
    """
    return nn.LeakyReLU(slope, inplace=True)


@ACTIVATIONS.register("silu")
def silu() -> nn.Module:
    """Multiply by the sigmoid (Elfwing et al. 2017)."""
    return nn.SiLU(inplace=True)


@ACTIVATIONS.register("gelu")
def gelu() -> nn.Module:
    """Multiply by the normal distribution function (Hendrycks and Gimpel 2016)."""
    return nn.GELU()
