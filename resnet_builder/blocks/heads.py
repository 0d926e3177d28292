"""What comes after the last stage."""

from typing import Annotated

from pydantic import Field
from torch import nn

from resnet_builder.blocks.contract import HEADS, Head


@HEADS.register("linear")
def linear_head(
    in_channels: int, num_classes: int, *, dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
) -> Head:
    """Average over all pixels, however many, and classify (He et al. 2015, table 1)."""
    layers: dict[str, nn.Module] = {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(1)}
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    return {**layers, "fc": nn.Linear(in_channels, num_classes)}
