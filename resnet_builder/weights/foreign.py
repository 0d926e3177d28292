"""Weights from other programs' files: what torch.save and safetensors wrote, made plain."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from resnet_builder.weights.torch_files import read_torch_file
from resnet_builder.weights.unwrapping import unwrap


@dataclass(frozen=True, slots=True, eq=False)
class ForeignWeights:
    """A state dict, and what was done to get at it.

    Attributes:
        tensors: On the CPU, by name without any wrapper's prefix, in the file's order.
        wrappers: What was taken off, outermost first: ``("state_dict", "module.")``.
        averaged: Whether they are averaged weights.
        ignored: The file's other entries, by name.
    """

    tensors: dict[str, Tensor]
    wrappers: tuple[str, ...]
    averaged: bool
    ignored: tuple[str, ...]


def read_foreign(path: Path, *, ema: bool = False) -> ForeignWeights:
    """Read weights that another program wrote; nothing in the file is run.

    Args:
        path: The file; its ending does not matter.
        ema: Take the averaged weights beside the trained ones.

    Raises:
        CheckpointError: The file is missing, damaged, or holds no weights that can be read safely.
        StorageError: The disk is failing, or the file may not be read.
    """
    content = read_torch_file(path)
    unwrapped = unwrap(content, ema=ema)
    return ForeignWeights(
        unwrapped.tensors, unwrapped.wrappers, unwrapped.averaged, unwrapped.ignored
    )
