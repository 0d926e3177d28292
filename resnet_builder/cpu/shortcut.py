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
    """Calls the kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int, before: int, after: int) -> Tensor:
        images, channels, height, width = x.shape
        ctx.shape = x.shape
        ctx.sizes = (images, height, width, stride, *_bytes(x, before, channels, after))
        size = (-(-height // stride), -(-width // stride))
        y = _empty((images, before + channels + after, *size), like=x)
        _call("forward", x, y, ctx.sizes)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = _empty(ctx.shape, like=dy)
        _call("backward", dy, dx, ctx.sizes)
        return dx, None, None, None


def _bytes(x: Tensor, *channels: int) -> tuple[int, ...]:
    return tuple(number * x.element_size() for number in channels)


def _empty(shape: tuple[int, ...], *, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)


def _call(direction: str, source: Tensor, target: Tensor, sizes: tuple[int, ...]) -> None:
    getattr(library(), f"pad_shortcut_{direction}")(
        source.data_ptr(),
        target.data_ptr(),
        (ctypes.c_int64 * len(sizes))(*sizes),
        torch.get_num_threads(),
    )
