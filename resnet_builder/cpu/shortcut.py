"""The identity shortcut to more channels and fewer pixels, as one copy."""

import ctypes
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resnet_builder.blocks.shortcuts import PadShortcut
from resnet_builder.cpu.library import library


class CopiedShortcut(nn.Module):
    """A shortcut that pads channels, in one pass over memory each way; it agrees to the bit.

    Images that are not channels-last are computed by the layer itself.

    Args:
        shortcut: The layer; :func:`copies` tells which are taken.

    Shape:
        As the layer's.
    """

    def __init__(self, shortcut: PadShortcut) -> None:
        super().__init__()
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Compute the shortcut."""
        if not _takes(x):
            return self.shortcut(x)
        return _Copy.apply(x, self.shortcut.stride, *self.shortcut.zeros)


def copies(layer: nn.Module | None) -> TypeGuard[PadShortcut]:
    """Tell whether a layer is a shortcut that leaves pixels as they are, or leaves them out."""
    return type(layer) is PadShortcut and layer.pool is None


def _takes(x: Tensor) -> bool:
    """Tell whether the kernels copy these images."""
    return (
        x.device.type == "cpu"
        and x.ndim == 4
        and x.is_contiguous(memory_format=torch.channels_last)
    )


class _Copy(torch.autograd.Function):
    """Calls the kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int, before: int, after: int) -> Tensor:
        images, channels, height, width = x.shape
        ctx.shape = x.shape
        ctx.numbers = (images, height, width, stride, *_bytes(x, before, channels, after))
        size = (-(-height // stride), -(-width // stride))
        y = _empty((images, before + channels + after, *size), like=x)
        _call("forward", x, y, ctx.numbers)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = _empty(ctx.shape, like=dy)
        _call("backward", dy, dx, ctx.numbers)
        return dx, None, None, None


def _bytes(x: Tensor, *channels: int) -> tuple[int, ...]:
    return tuple(number * x.element_size() for number in channels)


def _empty(shape: tuple[int, ...], *, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)


def _call(direction: str, source: Tensor, target: Tensor, numbers: tuple[int, ...]) -> None:
    getattr(library(), f"shortcut_{direction}")(
        source.data_ptr(),
        target.data_ptr(),
        (ctypes.c_int64 * len(numbers))(*numbers),
        torch.get_num_threads(),
    )
