"""Convolutions whose weights' gradient is computed by an operation of our own."""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from resnet_builder.kernels.compiled import library
from resnet_builder.kernels.rows import fits_rows, shape_of

_MOST_CHANNELS = 64
"""Up to which torch's gradients take longer than ours in vectors, for kernels of several pixels."""


class PairedConv2d(nn.Module):
    """A convolution whose weights' gradient in bf16 is computed from pairs of pixels.

    It takes a processor whose instructions multiply such pairs, in tiles (AMX) or in vectors
    (AVX512-BF16). The gradient is summed in fp32 and stays so; its last bits hang on the number of
    threads. The output and the gradient of the images are torch's. In fp32, and for images that are
    not channels-last, all is computed by the layer itself.

    Args:
        convolution: The layer; its weight is shared, not copied.

    Shape:
        As the layer's.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer."""
        if not _takes(x):
            return self.convolution(x)
        weight, stride = self.convolution.weight, self.convolution.stride[0]
        padding = self.convolution.padding[0]
        assert isinstance(padding, int), "has_faster_gradient() asks for it"
        return _Convolution.apply(x.to(torch.bfloat16), weight, stride, padding)


def has_faster_gradient(layer: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Tell whether a layer is a convolution that :class:`PairedConv2d` can be faster than.

    ``benchmarks/gradients.py`` measures by how much.
    """
    if not fits_rows(layer) or layer.bias is not None:
        return False
    if library().has_tiles():
        return True
    has_few = max(layer.in_channels, layer.out_channels) <= _MOST_CHANNELS
    return has_few and layer.kernel_size > (1, 1) and bool(library().has_weight_gradient())


def _takes(x: Tensor) -> bool:
    """Tell whether the kernels compute a layer's gradient for these images."""
    return (
        torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and x.device.type == "cpu"
        and x.ndim == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and bool(library().has_weight_gradient())
    )


class _Convolution(torch.autograd.Function):
    """Calls torch's operations, and the kernels for the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        kernel = weight.to(x.dtype)
        ctx.save_for_backward(x, kernel)
        ctx.stride, ctx.padding, ctx.dtype = stride, padding, weight.dtype
        return F.conv2d(x, kernel, stride=stride, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        dx, dweight = None, None
        if ctx.needs_input_grad[0]:
            dx = conv2d_input(x.shape, kernel, dy, stride=ctx.stride, padding=ctx.padding)
        if ctx.needs_input_grad[1]:
            dy = dy.contiguous(memory_format=torch.channels_last)
            dweight = _gradient(x, dy, kernel.shape[2], ctx.stride, ctx.padding).to(ctx.dtype)
        return dx, dweight, None, None


def _gradient(x: Tensor, dy: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """Compute the weights' gradient.

    Args:
        x: ``(N, C_in, H, W)`` bf16, channels-last.
        dy: ``(N, C_out, H', W')``, the same.
        size: Pixels of a kernel's side.
        stride: Pixels from one place of the kernel to the next.
        padding: Pixels of zeros on each side.

    Returns:
        ``(C_out, C_in, size, size)`` fp32, channels-last.
    """
    dweight = torch.empty(dy.shape[1], size, size, x.shape[1])
    library().weight_gradient(
        x.data_ptr(),
        dy.data_ptr(),
        dweight.data_ptr(),
        shape_of(x, dy, size, stride, padding),
        torch.get_num_threads(),
    )
    return dweight.permute(0, 3, 1, 2)
