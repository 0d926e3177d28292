"""What convolutions are computed by operations of our own, and what these are told of them."""

import ctypes
from typing import TypeGuard

from torch import Tensor, nn

_LANES = 16
"""Channels that are computed at once."""


def fits_rows(layer: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Tell whether a layer is a convolution whose images ``rows.h`` can put into a long row.

    Its sides are alike, its numbers of channels are whole vectors, and it is neither grouped nor
    dilated.
    """
    if type(layer) is not nn.Conv2d:
        return False
    square = all(
        isinstance(pair, tuple) and pair[0] == pair[1]
        for pair in (layer.kernel_size, layer.stride, layer.padding)
    )
    channels = (layer.in_channels, layer.out_channels)
    return (
        square
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not any(number % _LANES for number in channels)
    )


def shape_of(
    x: Tensor, y: Tensor, size: int, stride: int, padding: int
) -> "ctypes.Array[ctypes.c_int64]":
    """Return what the kernels are told of a convolution: ``struct Convolution`` of ``rows.h``.

    Args:
        x: ``(N, C_in, H, W)``, what it is given.
        y: ``(N, C_out, H', W')``, of its output's shape.
        size: Pixels of a kernel's side.
        stride: Pixels from one place of the kernel to the next.
        padding: Pixels of zeros on each side.
    """
    images, in_channels, height, width = x.shape
    _, out_channels, out_height, out_width = y.shape
    numbers = (images, height, width, in_channels, out_height, out_width, out_channels)
    return (ctypes.c_int64 * 10)(*numbers, size, stride, padding)
