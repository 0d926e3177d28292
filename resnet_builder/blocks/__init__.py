"""The parts of networks; importing this package registers the built-in ones."""

from resnet_builder.blocks import basic, bottleneck, heads, norms, shortcuts, stems
from resnet_builder.blocks.contract import (
    ACTIVATIONS,
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
    "ATTENTIONS",
    "BLOCKS",
    "HEADS",
    "NORMS",
    "SHORTCUTS",
    "STEMS",
    "Block",
    "Stem",
    "basic",
    "bottleneck",
    "heads",
    "norms",
    "shortcuts",
    "stems",
]
