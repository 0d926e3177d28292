"""Parts of networks, and their registries; importing this package registers the built-in parts."""

from resnet_builder.blocks import (  # noqa: F401
    antialias,
    attention,
    basic,
    bottleneck,
    heads,
    layers,
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
]
