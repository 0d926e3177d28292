"""Convolutions whose weights' gradient is a product of two matrices, where that is faster."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

_NARROW = 8
"""Pixels in a row, up to which oneDNN leaves most of AMX idle in the gradient of 3x3 kernels."""


class ProductConv2d(nn.Module):
    """A convolution whose weights' gradient is computed as one product of matrices.

    Of the output's gradient, ``(C_out, N * H * W)``, and the pixels that each kernel sees,
    ``(N * H * W, k * k * C_in)``: on a processor with AMX a product of matrices keeps the tiles
    busy where a convolution does not. The output and the gradient of the images are torch's. What
    is not worth it is computed by the layer itself: fp32, 3x3 kernels on wide images.

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
        if not self._pays(x):
            return self.convolution(x)
        weight = self.convolution.weight
        return _Convolution.apply(x.to(torch.bfloat16), weight, self.convolution.padding)

    def _pays(self, x: Tensor) -> bool:
        """Tell whether the product is faster for these images."""
        return (
            torch.is_autocast_enabled("cpu")
            and x.device.type == "cpu"
            and x.ndim == 4
            and x.is_contiguous(memory_format=torch.channels_last)
            and (self.convolution.kernel_size == (1, 1) or x.shape[3] <= _NARROW)
        )


def has_faster_gradient(layer: nn.Module | None) -> bool:
    """Tell whether a layer is a convolution that :class:`ProductConv2d` can be faster than.

    Measured with oneDNN 3.12 on two cores: 33.8 and 8.0 ms for 512 channels on 128 images of 4x4
    pixels, 10.1 and 7.8 ms for 256 on 8x8; for 128 on 8x8 it makes no difference.
    """
    if type(layer) is not nn.Conv2d or not torch.cpu._is_amx_tile_supported():
        return False
    plain = layer.groups == 1 and layer.stride == layer.dilation == (1, 1) and layer.bias is None
    if not plain or layer.padding_mode != "zeros":
        return False
    shape = (layer.kernel_size, layer.padding)
    fewest = min(layer.in_channels, layer.out_channels)
    return (shape == ((3, 3), (1, 1)) and fewest >= 256) or (
        shape == ((1, 1), (0, 0)) and fewest >= 64
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        kernel = weight.to(x.dtype)
        ctx.save_for_backward(x, kernel)
        ctx.padding, ctx.dtype = padding, weight.dtype
        return F.conv2d(x, kernel, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        dx, dweight = None, None
        if ctx.needs_input_grad[0]:
            dx = conv2d_input(x.shape, kernel, dy, padding=ctx.padding)
        if ctx.needs_input_grad[1]:
            channels, _, size, _ = kernel.shape
            rows = dy.permute(0, 2, 3, 1).reshape(-1, channels)
            product = rows.mT @ _seen(x, size, ctx.padding)
            dweight = product.view(channels, size, size, -1).permute(0, 3, 1, 2).to(ctx.dtype)
        return dx, dweight, None


def _seen(x: Tensor, size: int, padding: tuple[int, int]) -> Tensor:
    """Return the pixels that a kernel of this size sees, at each place that it is put.

    Shape:
        ``(N, C, H, W)`` to ``(N * H * W, size * size * C)``, in the order of a kernel's memory.
    """
    n, c, height, width = x.shape
    if size == 1:
        return x.permute(0, 2, 3, 1).reshape(-1, c)
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    image, _, row, pixel = padded.contiguous(memory_format=torch.channels_last).stride()
    windows = padded.as_strided((n, height, width, size, size * c), (image, row, pixel, row, 1))
    return windows.reshape(n * height * width, size * size * c)
