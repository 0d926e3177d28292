"""Layouts: what other codebases call the layers of a network, and whose names a file has."""

from collections.abc import Collection

from resnet_builder.weights.layouts.contract import Layout
from resnet_builder.weights.layouts.hysts import HYSTS
from resnet_builder.weights.layouts.kellerjordan import KELLERJORDAN
from resnet_builder.weights.layouts.kuangliu import AKAMASTER, KUANGLIU
from resnet_builder.weights.layouts.mmpretrain import MMPRETRAIN
from resnet_builder.weights.layouts.pycls import PYCLS
from resnet_builder.weights.layouts.timm import TIMM_RESNETV2
from resnet_builder.weights.layouts.torchvision import TORCHVISION
from resnet_builder.weights.layouts.weiaicunzai import (
    WEIAICUNZAI,
    WEIAICUNZAI_PREACT,
    WEIAICUNZAI_SENET,
)

__all__ = ["LAYOUTS", "Layout", "recognise"]

LAYOUTS = (
    TORCHVISION,
    AKAMASTER,
    KUANGLIU,
    KELLERJORDAN,
    MMPRETRAIN,
    PYCLS,
    HYSTS,
    TIMM_RESNETV2,
    WEIAICUNZAI,
    WEIAICUNZAI_PREACT,
    WEIAICUNZAI_SENET,
)
"""Every layout that is known; of two that fit a file equally well, the first is taken."""


def recognise(layers: Collection[str], network: Collection[str]) -> Layout:
    """Return the layout that finds a place for most of a file's layers.

    Args:
        layers: Their names in the file.
        network: The names of the layers of the network that they are for.
    """
    return max(LAYOUTS, key=lambda layout: _places(layout, layers, network))


def _places(layout: Layout, layers: Collection[str], network: Collection[str]) -> int:
    return sum(layout.translate(layer, network) is not None for layer in layers)
