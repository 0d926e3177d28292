"""Convolutions for evaluation, in fewer products or in faster ones."""

from typing import Literal

import torch
from torch import Tensor, nn

from resnet_builder.cpu.library import library
from resnet_builder.cpu.rows import convolved, fits_rows, fits_winograd

Operation = Literal["split_fp32", "winograd_fp32", "winograd_bf16"]
"""In fp32 by the matrix unit (``splitting.cpp``), or in fewer products (``winograd.cpp``)."""

_IMAGES_A_THREAD = {"fp32": 32, "bf16": 64}
"""Images of CIFAR whose layers stay in a core's caches."""

_MOST_WEIGHTS = 2**16
"""Products of channels up to which what Winograd makes of fp32 weights stays near the processor."""


class InParts(nn.Module):
    """A network that computes a batch in parts, which stay near the processor.

    Args:
        network: Whose output for an image does not hang on the others of a batch.
        bf16: Whether it is computed in bf16, and not in fp32.

    Shape:
        As the network's.
    """

    def __init__(self, network: nn.Module, *, bf16: bool) -> None:
        super().__init__()
        self.network = network
        self._images = _IMAGES_A_THREAD["bf16" if bf16 else "fp32"]

    def forward(self, x: Tensor) -> Tensor:
        """Compute all parts."""
        parts = x.split(self._images * torch.get_num_threads())
        return torch.cat([self.network(part) for part in parts])


class InferenceConv2d(nn.Module):
    """``relu(convolution(x) + addend)`` for evaluation, without what there is not.

    The output is that of the layer but for rounding, and does not hang on the number of threads nor
    on the other images of a batch. What needs a gradient, other precisions than the operation's,
    and images that are not channels-last are computed by the layer itself.

    Args:
        convolution: The layer; its tensors are shared, not copied.
        operation: What :func:`operation_for` tells of it. ``split_fp32`` splits numbers in
            three, each of which bf16 can hold; of the nine products that two numbers have then, the
            six that matter in fp32 are summed in fp32. ``winograd_`` has fewer products of
            transformed numbers (Lavin and Gray 2015, section 4.1): in fp32 36 where 144 are usual,
            or, in bf16, which rounds what is multiplied, 16 where 36 are; with a stride of 2, 25.
        relu: Whether a ReLU follows.

    Shape:
        As the layer's; the addend's is that of the output.
    """

    def __init__(self, convolution: nn.Conv2d, operation: Operation, *, relu: bool = False) -> None:
        super().__init__()
        self.convolution = convolution
        self.operation = operation
        self.relu = relu

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """Compute the layer."""
        layer = self.convolution
        if not self._takes(x, addend):
            y: Tensor = layer(x)
            if addend is not None:
                y = y + addend
            return torch.relu(y) if self.relu else y
        padding = layer.padding[0]
        assert isinstance(padding, int), "operation_for() asks for it"
        return convolved(
            self.operation,
            x,
            layer.weight,
            bias=layer.bias,
            addend=addend,
            relu=self.relu,
            stride=layer.stride[0],
            padding=padding,
        )

    def _takes(self, x: Tensor, addend: Tensor | None) -> bool:
        """Tell whether the operation computes the layer for these images."""
        bf16 = self.operation == "winograd_bf16"
        dtype = torch.bfloat16 if bf16 else torch.float32
        layer, images = self.convolution, (x,) if addend is None else (x, addend)
        return (
            not torch.is_grad_enabled()
            and torch.is_autocast_enabled("cpu") == bf16
            and layer.weight.dtype == torch.float32
            and all(t.device.type == "cpu" and t.dtype == dtype and t.ndim == 4 for t in images)
            and all(t.is_contiguous(memory_format=torch.channels_last) for t in images)
        )

    def extra_repr(self) -> str:
        """Say how it is computed, and whether a ReLU follows."""
        return f"operation={self.operation}, relu={self.relu}"


def operation_for(layer: nn.Module | None, *, bf16: bool = False) -> Operation | None:
    """Return what computes a layer faster than torch does, if it is a convolution and there is.

    Args:
        layer: The layer, if there is one.
        bf16: Whether it is to be computed in bf16, and not in fp32.
    """
    if not fits_rows(layer):
        return None
    has = library()
    if has.has_tiles():
        return None if bf16 else "split_fp32"
    if not fits_winograd(layer):
        return None
    if bf16:
        return "winograd_bf16" if has.has_winograd_bf16() else None
    small = layer.in_channels * layer.out_channels <= _MOST_WEIGHTS
    return "winograd_fp32" if small and has.has_winograd_fp32() else None
