"""What convolutions are computed by operations of our own, and what these are told of them."""

import ctypes
from typing import TypeGuard

import torch
from torch import Tensor, nn

from resnet_builder.cpu.library import library

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


def fits_winograd(layer: nn.Conv2d) -> bool:
    """Tell whether ``winograd.cpp`` computes a convolution that :func:`fits_rows`."""
    strided = layer.stride == (2, 2) and layer.padding == (1, 1)
    return layer.kernel_size == (3, 3) and (layer.stride == (1, 1) or strided)


def convolved(
    operation: str,
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    relu: bool = False,
    stride: int = 1,
    padding: int,
) -> Tensor:
    """Return ``relu(convolution(x) + bias + addend)``, without what there is not.

    Args:
        operation: The function of the kernels that computes it.
        x: ``(N, C_in, H, W)`` images, channels-last.
        weight: ``(C_out, C_in, size, size)`` fp32.
        bias: ``(C_out,)`` fp32.
        addend: Like the output: ``(N, C_out, H', W')``, in the images' precision.
        relu: Whether a ReLU follows.
        stride: Pixels from one place of the kernel to the next.
        padding: Pixels of zeros on each side.
    """
    weight = weight.contiguous(memory_format=torch.channels_last)
    channels, size = weight.shape[0], weight.shape[2]
    height, width = ((side + 2 * padding - size) // stride + 1 for side in x.shape[2:])
    shape = (x.shape[0], channels, height, width)
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    getattr(library(), operation)(
        x.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        None if addend is None else addend.data_ptr(),
        relu,
        y.data_ptr(),
        shape_of(x, y, size, stride, padding),
        torch.get_num_threads(),
    )
    return y


def shape_of(
    x: Tensor, y: Tensor, size: int, stride: int, padding: int
) -> "ctypes.Array[ctypes.c_int64]":
    """Return what the kernels are told of a convolution: what ``convolution.h`` calls so.

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
