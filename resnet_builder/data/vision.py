"""torchvision's functions of image tensors, imported when they are first called.

Importing them takes longer than importing torch, and no spec needs them to be checked.
"""

from typing import Any


def functional() -> Any:
    """Return ``torchvision.transforms.v2.functional``."""
    from torchvision.transforms.v2 import functional

    return functional
