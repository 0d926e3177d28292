"""Convolutions in bf16 for training, in fewer products or with a gradient of our own."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from resnet_builder.cpu.gradient_memory import memory_for_gradient
from resnet_builder.cpu.library import library
from resnet_builder.cpu.rows import convolved, fits_rows, fits_winograd, shape_of

_ENOUGH_CHANNELS = 32
"""From which transforming for Winograd's gradient of the weights takes less than it saves."""


@dataclass(frozen=True)
class Operations:
    """What computes a convolution in training; where that is not said, torch does.

    Attributes:
        winograd: Whether Winograd's filtering computes the output and the images' gradient.
        weights: What computes the weights' gradient: from pairs of pixels, in tiles (AMX) or in
            vectors (``gradient.cpp``), or by Winograd's filtering (``winograd_gradient.cpp``).
    """

    winograd: bool
    weights: Literal["paired_gradient", "winograd_gradient"]


class TrainingConv2d(nn.Module):
    """A convolution in bf16 in less time.

    It takes a processor whose instructions multiply pairs of bf16 numbers, in tiles (AMX) or in
    vectors (AVX512-BF16). All is summed in fp32. The weights' gradient stays so; its last bits hang
    on the number of threads. What Winograd's filtering computes has 24 products where 72 are usual,
    or 25 for 36 with a stride of 2 (Lavin and Gray 2015, section 4.1); these are of transformed
    numbers, which bf16 rounds, so that it comes to about three times torch's rounding error, and
    the weights' gradient to four times. In fp32, and for images that are not channels-last, all is
    computed by the layer itself.

    Args:
        convolution: The layer; its weight is shared, not copied.
        operations: What :func:`operations_for` tells of it.

    Shape:
        As the layer's.
    """

    def __init__(self, convolution: nn.Conv2d, operations: Operations) -> None:
        super().__init__()
        self.convolution = convolution
        self.operations = operations

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer."""
        weight, stride = self.convolution.weight, self.convolution.stride[0]
        if not _takes(x, weight):
            return self.convolution(x)
        padding = self.convolution.padding[0]
        assert isinstance(padding, int), "operations_for() asks for it"
        x = x.to(torch.bfloat16)
        return _Convolution.apply(x, weight, self.operations, stride, padding)

    def extra_repr(self) -> str:
        """Say how it is computed."""
        return f"winograd={self.operations.winograd}, weights={self.operations.weights}"


def operations_for(layer: nn.Module | None) -> Operations | None:
    """Return what trains a layer faster than torch does, if it is a convolution and there is.

    ``benchmarks/convolutions.py`` measures by how much.
    """
    if not fits_rows(layer) or layer.bias is not None:
        return None
    if library().has_tiles():
        return Operations(winograd=False, weights="paired_gradient")
    if fits_winograd(layer) and library().has_winograd_bf16():
        enough = min(layer.in_channels, layer.out_channels) >= _ENOUGH_CHANNELS
        return Operations(True, "winograd_gradient" if enough else "paired_gradient")
    if layer.kernel_size > (1, 1) and library().has_paired_gradient():
        return Operations(winograd=False, weights="paired_gradient")
    return None


def _takes(x: Tensor, weight: Tensor) -> bool:
    """Tell whether the kernels compute a layer for these images."""
    return (
        torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and x.device.type == "cpu"
        and x.ndim == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and weight.dtype == torch.float32
    )


class _Convolution(torch.autograd.Function):
    """Calls the kernels, and torch's operations for the rest."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, operations: Operations, stride: int, padding: int
    ) -> Tensor:
        ctx.operations, ctx.stride, ctx.padding = operations, stride, padding
        if operations.winograd:
            weight = weight.contiguous(memory_format=torch.channels_last)
            ctx.save_for_backward(x, weight)
            return convolved("winograd_bf16", x, weight, stride=stride, padding=padding)
        kernel = weight.to(x.dtype)
        ctx.save_for_backward(x, kernel)
        return F.conv2d(x, kernel, stride=stride, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        operations: Operations = ctx.operations
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx, dweight = None, None
        if ctx.needs_input_grad[0] and operations.winograd:
            dx = _images_gradient(x, dy, weight, ctx.stride, ctx.padding)
        elif ctx.needs_input_grad[0]:
            stride, padding = 2 * (ctx.stride,), 2 * (ctx.padding,)
            wanted = (True, False, False)
            dx, _, _ = torch.ops.aten.convolution_backward(
                dy, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1, wanted
            )
        if ctx.needs_input_grad[1]:
            size = weight.shape[2]
            dweight = _weights_gradient(operations.weights, x, dy, size, ctx.stride, ctx.padding)
        return dx, dweight, None, None, None


def _images_gradient(x: Tensor, dy: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Compute the gradient of ``x``, of its shape, which is itself a convolution of ``dy``."""
    dx = torch.empty_like(x)
    library().winograd_images_gradient(
        dy.data_ptr(),
        weight.data_ptr(),
        dx.data_ptr(),
        shape_of(dy, dx, 3, stride, 2 - padding if stride == 1 else 0),
        torch.get_num_threads(),
    )
    return dx


def _weights_gradient(
    operation: str, x: Tensor, dy: Tensor, size: int, stride: int, padding: int
) -> Tensor:
    """Compute the weights' gradient.

    Args:
        operation: What computes it.
        x: ``(N, C_in, H, W)`` bf16, channels-last.
        dy: ``(N, C_out, H', W')``, the same.
        size: Pixels of a kernel's side.
        stride: Pixels from one place of the kernel to the next.
        padding: Pixels of zeros on each side.

    Returns:
        ``(C_out, C_in, size, size)`` fp32, channels-last.
    """
    dweight = memory_for_gradient(dy.shape[1], size, size, x.shape[1])
    getattr(library(), operation)(
        x.data_ptr(),
        dy.data_ptr(),
        dweight.data_ptr(),
        shape_of(x, dy, size, stride, padding),
        torch.get_num_threads(),
    )
    return dweight.permute(0, 3, 1, 2)
