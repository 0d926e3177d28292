"""Decoded pictures, kept between runs in one file that is verified when it is read."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from resnet_builder.data.memory import fingerprint

_DIGEST = "fingerprint"


def read_decoded(path: Path, counts: Mapping[str, int]) -> dict[str, Tensor] | None:
    """Read what an earlier run decoded, unless it is not there, or not whole.

    Args:
        path: The file.
        counts: How many images each split must have.

    Returns:
        ``(N, C, H, W)`` uint8 by split.
    """
    try:
        with safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get(_DIGEST)
            images = {split: file.get_tensor(split) for split in counts}
    except (OSError, SafetensorError):
        return None
    fits = all(len(images[split]) == count for split, count in counts.items())
    return images if fits and digest == fingerprint(*images.values()) else None


def write_decoded(path: Path, images: dict[str, Tensor]) -> str | None:
    """Keep what was decoded.

    Args:
        path: The file, which is there in whole or not at all.
        images: ``(N, C, H, W)`` uint8 by split.

    Returns:
        Why it could not be kept, if so: the next run then decodes again.
    """
    partial = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(images, partial, {_DIGEST: fingerprint(*images.values())})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        return f"decoded pictures are not kept for the next run: {error}"
    return None
