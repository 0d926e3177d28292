"""Convolutions by CPU kernels: implicit GEMM and Winograd's minimal filtering."""

import ctypes
import math
import threading
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from resnet_builder.cpu.library import library

Precision = Literal["fp32", "bf16"]

_LANES = 16
"""Channels that a vector register holds in fp32."""

_MIN_WINOGRAD_CHANNELS = 32
"""Channels from which Winograd's weight gradient saves more than its transforms cost."""

_MAX_WINOGRAD_WEIGHTS = 2**16
"""Input times output channels up to which transformed fp32 weights stay in the caches."""

# A step of ResNet-110 took a third more memory when these small gradients, which live until the
# next step, lay between the large ones of images, which come and go: they left holes that were too
# small for images. So they have blocks of their own.
_GRADIENT_BLOCK = 2**20
_CACHE_LINE = 16  # numbers in fp32


@dataclass(frozen=True)
class Algorithms:
    """Algorithms of a convolution in training; torch computes what they leave out.

    Attributes:
        winograd: Whether minimal filtering computes the output and the input's gradient.
        weight_gradient: Kernel of the weight's gradient: implicit GEMM in AMX tiles or AVX512-BF16
            vectors (``implicit_gemm.cpp``), or minimal filtering (``winograd_gradient.cpp``).
    """

    winograd: bool
    weight_gradient: Literal["gemm_weight_gradient", "winograd_weight_gradient"]


def training_algorithms(layer: nn.Module | None) -> Algorithms | None:
    """Algorithms that train a layer in bf16 faster than torch's, if there are any.

    ``benchmarks/convolutions.py`` measures by how much.
    """
    if not _is_supported(layer) or layer.bias is not None:
        return None
    if library().has_amx():
        # Products in tiles are so fast that the transforms of minimal filtering do not pay.
        return Algorithms(winograd=False, weight_gradient="gemm_weight_gradient")
    if _fits_winograd(layer) and library().has_winograd_bf16():
        enough = min(layer.in_channels, layer.out_channels) >= _MIN_WINOGRAD_CHANNELS
        return Algorithms(True, "winograd_weight_gradient" if enough else "gemm_weight_gradient")
    if layer.kernel_size > (1, 1) and library().has_gemm_weight_gradient():
        return Algorithms(winograd=False, weight_gradient="gemm_weight_gradient")
    return None


def evaluates_by_winograd(layer: nn.Module | None, precision: Precision) -> bool:
    """Whether minimal filtering evaluates a layer faster than torch does."""
    if not _is_supported(layer) or not _fits_winograd(layer) or library().has_amx():
        return False
    if precision == "bf16":
        return bool(library().has_winograd_bf16())
    small = layer.in_channels * layer.out_channels <= _MAX_WINOGRAD_WEIGHTS
    return small and bool(library().has_winograd_fp32())


class TrainingConv2d(nn.Module):
    """A convolution in bf16 for training, by implicit GEMM or by minimal filtering.

    All products are summed in fp32, and the weight's gradient stays in fp32; its last bits depend
    on the number of threads. Minimal filtering has 24 products where 72 are usual, or 25 for 36
    with a stride of 2 (Lavin and Gray 2015, section 4.1). These are of transformed numbers, which
    bf16 rounds: about three times torch's rounding error, and four times for the weight's gradient.
    Without autocast in bf16, and for inputs that are not channels-last, the layer computes itself.

    Args:
        convolution: The layer; its weight is shared, not copied.
        algorithms: What :func:`training_algorithms` returns for it.

    Shape:
        As the layer's.
    """

    def __init__(self, convolution: nn.Conv2d, algorithms: Algorithms) -> None:
        super().__init__()
        self.convolution = convolution
        self.algorithms = algorithms

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer."""
        layer = self.convolution
        if not _trains(x, layer.weight):
            return layer(x)
        stride, padding = layer.stride[0], int(layer.padding[0])
        return _Convolution.apply(
            x.to(torch.bfloat16), layer.weight, self.algorithms, stride, padding
        )


class WinogradConv2d(nn.Module):
    """``relu(convolution(x) + addend)`` in evaluation, by minimal filtering.

    It has 36 products where 144 are usual in fp32, 24 where 72 are in bf16, and 25 for 36 with a
    stride of 2 (Lavin and Gray 2015, section 4.1). The output differs from the layer's by rounding
    only, and depends neither on the number of threads nor on the other images of a batch. What
    needs a gradient, has another precision or is not channels-last, the layer computes itself.

    Args:
        convolution: The layer; its tensors are shared, not copied.
        precision: Precision of its input and output.
        relu: Whether a ReLU follows.

    Shape:
        As the layer's; the addend has the output's.
    """

    def __init__(self, convolution: nn.Conv2d, precision: Precision, *, relu: bool = False) -> None:
        super().__init__()
        self.convolution = convolution
        self.precision = precision
        self.relu = relu

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """Compute the layer, the sum and the ReLU."""
        layer = self.convolution
        if not self._supports(x, addend):
            y: Tensor = layer(x)
            if addend is not None:
                y = y + addend
            return torch.relu(y) if self.relu else y
        return _convolve(
            f"winograd_{self.precision}",
            x,
            layer.weight,
            bias=layer.bias,
            addend=addend,
            relu=self.relu,
            stride=layer.stride[0],
            padding=int(layer.padding[0]),
        )

    def _supports(self, x: Tensor, addend: Tensor | None) -> bool:
        bf16 = self.precision == "bf16"
        dtype = torch.bfloat16 if bf16 else torch.float32
        inputs = (x,) if addend is None else (x, addend)
        return (
            not torch.is_grad_enabled()
            and torch.is_autocast_enabled("cpu") == bf16
            and self.convolution.weight.dtype == torch.float32
            and all(t.device.type == "cpu" and t.dtype == dtype and t.ndim == 4 for t in inputs)
            and all(t.is_contiguous(memory_format=torch.channels_last) for t in inputs)
        )


def gradient_memory(*shape: int) -> Tensor:
    """Uninitialised fp32 memory for the gradient of a parameter.

    It is part of a block that it shares with other gradients. A block is freed once all of its
    tensors are gone and the next block is begun.
    """
    count = math.prod(shape)
    aligned = -(-count // _CACHE_LINE) * _CACHE_LINE
    if aligned > _block.rest.numel():
        _block.rest = torch.empty(max(aligned, _GRADIENT_BLOCK))
    tensor, _block.rest = _block.rest[:count].view(shape), _block.rest[aligned:]
    return tensor


class _Block(threading.local):
    """Rest of the newest block of gradients, of each thread."""

    def __init__(self) -> None:
        self.rest = torch.empty(0)


_block = _Block()


def _is_supported(layer: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a square convolution of whole vectors, not grouped nor dilated."""
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
        and not any(count % _LANES for count in channels)
    )


def _fits_winograd(layer: nn.Conv2d) -> bool:
    strided = layer.stride == (2, 2) and layer.padding == (1, 1)
    return layer.kernel_size == (3, 3) and (layer.stride == (1, 1) or strided)


def _trains(x: Tensor, weight: Tensor) -> bool:
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
        ctx: Any, x: Tensor, weight: Tensor, algorithms: Algorithms, stride: int, padding: int
    ) -> Tensor:
        ctx.algorithms, ctx.stride, ctx.padding = algorithms, stride, padding
        if algorithms.winograd:
            weight = weight.contiguous(memory_format=torch.channels_last)
            ctx.save_for_backward(x, weight)
            return _convolve("winograd_bf16", x, weight, stride=stride, padding=padding)
        rounded = weight.to(x.dtype)
        ctx.save_for_backward(x, rounded)
        return F.conv2d(x, rounded, stride=stride, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        algorithms: Algorithms = ctx.algorithms
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx, dweight = None, None
        if ctx.needs_input_grad[0] and algorithms.winograd:
            dx = _input_gradient(x, dy, weight, ctx.stride, ctx.padding)
        elif ctx.needs_input_grad[0]:
            stride, padding = 2 * (ctx.stride,), 2 * (ctx.padding,)
            wanted = (True, False, False)
            dx, _, _ = torch.ops.aten.convolution_backward(
                dy, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1, wanted
            )
        if ctx.needs_input_grad[1]:
            kernel, size = algorithms.weight_gradient, weight.shape[2]
            dweight = _weight_gradient(kernel, x, dy, size, ctx.stride, ctx.padding)
        return dx, dweight, None, None, None


def _convolve(
    kernel: str,
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    relu: bool = False,
    stride: int,
    padding: int,
) -> Tensor:
    """Return ``relu(convolution(x) + bias + addend)``; all but ``weight`` and ``bias`` as ``x``."""
    weight = weight.contiguous(memory_format=torch.channels_last)
    channels, size = weight.shape[0], weight.shape[2]
    height, width = ((side + 2 * padding - size) // stride + 1 for side in x.shape[2:])
    shape = (x.shape[0], channels, height, width)
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    getattr(library(), kernel)(
        x.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        None if addend is None else addend.data_ptr(),
        relu,
        y.data_ptr(),
        _geometry(x, y, size, stride, padding),
        torch.get_num_threads(),
    )
    return y


def _input_gradient(x: Tensor, dy: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Return the gradient of ``x``, which is itself a convolution of ``dy``."""
    dx = torch.empty_like(x)
    library().winograd_input_gradient(
        dy.data_ptr(),
        weight.data_ptr(),
        dx.data_ptr(),
        _geometry(dy, dx, 3, stride, 2 - padding if stride == 1 else 0),
        torch.get_num_threads(),
    )
    return dx


def _weight_gradient(
    kernel: str, x: Tensor, dy: Tensor, size: int, stride: int, padding: int
) -> Tensor:
    """Return the weight's gradient, ``(C_out, C_in, size, size)`` in fp32, channels-last."""
    dweight = gradient_memory(dy.shape[1], size, size, x.shape[1])
    getattr(library(), kernel)(
        x.data_ptr(),
        dy.data_ptr(),
        dweight.data_ptr(),
        _geometry(x, dy, size, stride, padding),
        torch.get_num_threads(),
    )
    return dweight.permute(0, 3, 1, 2)


def _geometry(
    x: Tensor, y: Tensor, size: int, stride: int, padding: int
) -> "ctypes.Array[ctypes.c_int64]":
    """Return shapes as ``Convolution`` of ``convolution.h`` has them."""
    images, in_channels, height, width = x.shape
    _, out_channels, out_height, out_width = y.shape
    sizes = (images, height, width, in_channels, out_height, out_width, out_channels)
    return (ctypes.c_int64 * 10)(*sizes, size, stride, padding)
