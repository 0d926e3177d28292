"""The parts of networks; importing this package registers the built-in ones."""

from resnet_builder.blocks import (
    activations,
    attention,
    basic,
    bottleneck,
    filters,
    heads,
    norms,
    preact,
    shortcuts,
    stems,
)
from resnet_builder.blocks.contract import (
    ACTIVATIONS,
    ATTENTIONS,
    BLOCKS,
    DOWNSAMPLE_FILTERS,
    HEADS,
    NORMS,
    SHORTCUTS,
    STEMS,
    Block,
    Stem,
)

__all__ = [
    "ACTIVATIONS",
    "ATTENTIONS",
    "BLOCKS",
    "DOWNSAMPLE_FILTERS",
    "HEADS",
    "NORMS",
    "SHORTCUTS",
    "STEMS",
    "Block",
    "Stem",
    "activations",
    "attention",
    "basic",
    "bottleneck",
    "filters",
    "heads",
    "norms",
    "preact",
    "shortcuts",
    "stems",
]
