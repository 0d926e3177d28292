"""Heads: layers after the last stage."""

from torch import nn

from resnet_builder.blocks.interfaces import HEADS, ActivationFactory, Head, NormFactory
from resnet_builder.blocks.layers import GlobalAverage, Probability


@HEADS.register("linear")
def linear_head(in_channels: int, num_classes: int, *, dropout: Probability = 0.0) -> Head:
    """Average over all pixels and a linear classifier (He et al. 2015, table 1).

    Args:
        in_channels: Width of the last stage.
        num_classes: Number of logits.
        dropout: Probability that an average is zeroed in training.
    """
    layers: dict[str, nn.Module] = {"avgpool": GlobalAverage(), "flatten": nn.Flatten(1)}
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    return {**layers, "fc": nn.Linear(in_channels, num_classes)}


@HEADS.register("preact_linear")
def preact_linear_head(
    in_channels: int,
    num_classes: int,
    *,
    dropout: Probability = 0.0,
    norm: NormFactory,
    activation: ActivationFactory,
) -> Head:
    """Norm and activation of the last sum, then ``linear`` (He et al. 2016, appendix).

    Args:
        in_channels: Width of the last stage.
        num_classes: Number of logits.
        dropout: Probability that an average is zeroed in training.
        norm: Maker of a normalisation layer.
        activation: Maker of an activation.
    """
    return {
        "norm": norm(in_channels),  # timm's name for it
        "norm_relu": activation(),  # `relu` is the stem's
        **linear_head(in_channels, num_classes, dropout=dropout),
    }
