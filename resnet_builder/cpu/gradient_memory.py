"""Memory for the gradients of parameters, apart from that of images.

Gradients of parameters are small and live on until the next step, while the large ones of images
come and go between them. Side by side, they would leave holes that are too small for images: a
step of ResNet-110 took a third more memory.
"""

import math
import threading

import torch
from torch import Tensor

_BLOCK = 2**20
"""Numbers that memory is asked for at once."""

_ALIGNED = 16
"""Numbers of a line of the cache."""


class _Room(threading.local):
    """What is left of the last block, in each thread."""

    def __init__(self) -> None:
        self.left = torch.empty(0)


_room = _Room()


def memory_for_gradient(*shape: int) -> Tensor:
    """Return an uninitialised tensor of this shape, in fp32, for gradients of parameters.

    It is a part of a block that others have parts of, too. A block is given back once all of its
    tensors are gone and another one is begun.
    """
    numbers = math.prod(shape)
    taken = -(-numbers // _ALIGNED) * _ALIGNED
    if taken > _room.left.numel():
        _room.left = torch.empty(max(taken, _BLOCK))
    tensor, _room.left = _room.left[:numbers].view(shape), _room.left[taken:]
    return tensor
