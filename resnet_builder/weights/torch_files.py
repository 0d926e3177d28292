"""Files of ``torch.save``, read without running anything in them."""

from pathlib import Path
from typing import Any

import torch


def read_torch_file(path: Path) -> Any:
    """Read what ``torch.save`` wrote."""
    return torch.load(path, map_location="cpu", weights_only=True)
