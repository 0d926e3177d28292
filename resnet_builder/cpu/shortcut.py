"""Identity shortcut with zero-padded channels, as one copy."""

import ctypes
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resnet_builder.blocks.shortcuts import PadShortcut
from resnet_builder.cpu.library import library


class CopiedShortcut(nn.Module):
    """A ``PadShortcut`` in one pass over memory each way, to the same bits.

    The layer itself computes inputs that are not channels-last.

    Args:
        shortcut: The layer, for which :func:`is_copyable` is true.

    Shape:
        As the layer's.
    """

    def __init__(self, shortcut: PadShortcut) -> None:
        super().__init__()
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Compute the shortcut."""
        channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        if x.device.type != "cpu" or not channels_last:
            return self.shortcut(x)
        return _Copy.apply(x, self.shortcut.stride, *self.shortcut.zeros)


def is_copyable(layer: nn.Module | None) -> TypeGuard[PadShortcut]:
    """Whether a layer is a shortcut that drops pixels or keeps all, without pooling."""
    return type(layer) is PadShortcut and layer.pool is None


class _Copy(torch.autograd.Function):
    """Calls the kernels, which copy bytes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int, before: int, after: int) -> Tensor:
        images, channels, height, width = ctx.shape = x.shape
        in_bytes = [number * x.element_size() for number in (before, channels, after)]
        ctx.sizes = (ctypes.c_int64 * 7)(images, height, width, stride, *in_bytes)
        size = (-(-height // stride), -(-width // stride))
        y = _empty((images, before + channels + after, *size), like=x)
        library().pad_shortcut_forward(
            x.data_ptr(), y.data_ptr(), ctx.sizes, torch.get_num_threads()
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = _empty(ctx.shape, like=dy)
        library().pad_shortcut_backward(
            dy.data_ptr(), dx.data_ptr(), ctx.sizes, torch.get_num_threads()
        )
        return dx, None, None, None


def _empty(shape: tuple[int, ...], *, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)
