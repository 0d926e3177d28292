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
from resnet_builder.blocks.interfaces import (
    ACTIVATIONS,
    ANTIALIAS_FILTERS,
    ATTENTIONS,
    BLOCKS,
    HEADS,
    NORMS,
    SHORTCUTS,
    STEMS,
    Block,
    Stem,
)

__all__ = [
    "ACTIVATIONS",
    "ANTIALIAS_FILTERS",
    "ATTENTIONS",
    "BLOCKS",
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
