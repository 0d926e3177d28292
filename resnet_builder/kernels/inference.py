"""Convolutions in fp32 for evaluation, in fewer products or in faster ones."""

from typing import Literal

import torch
from torch import Tensor, nn

from resnet_builder.kernels.compiled import library
from resnet_builder.kernels.rows import fits_rows, shape_of

Operation = Literal["split", "winograd"]
"""By the matrix unit, in bf16 (``splitting.cpp``), or in fewer products (``winograd.cpp``)."""

_MOST_WEIGHTS = 2**16
"""Products of channels up to which what Winograd makes of the weights stays near the processor."""


class InferenceConv2d(nn.Module):
    """``relu(convolution(x) + addend)`` for evaluation, without what there is not.

    The output is that of the layer but for rounding, and does not hang on the number of threads nor
    on the other images of a batch. What needs a gradient, other precisions, and images that are not
    channels-last are computed by the layer itself.

    Args:
        convolution: The layer; its tensors are shared, not copied.
        operation: What :func:`operation_for` tells of it. ``split`` splits numbers in three, each
            of which bf16 can hold; of the nine products that two numbers have then, the six that
            matter in fp32 are summed in fp32. ``winograd`` has 16 products where 36 are usual
            (Lavin and Gray 2015, section 4.1).
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
        if not _takes(x, layer.weight, addend):
            y: Tensor = layer(x)
            if addend is not None:
                y = y + addend
            return torch.relu(y) if self.relu else y
        size, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
        assert isinstance(padding, int), "operation_for() asks for it"
        height, width = ((side + 2 * padding - size) // stride + 1 for side in x.shape[2:])
        shape = (x.shape[0], layer.out_channels, height, width)
        y = torch.empty(shape, memory_format=torch.channels_last)
        weight = layer.weight.contiguous(memory_format=torch.channels_last)
        getattr(library(), f"{self.operation}_convolution")(
            x.data_ptr(),
            weight.data_ptr(),
            None if layer.bias is None else layer.bias.data_ptr(),
            None if addend is None else addend.data_ptr(),
            self.relu,
            y.data_ptr(),
            shape_of(x, y, size, stride, padding),
            torch.get_num_threads(),
        )
        return y

    def extra_repr(self) -> str:
        """Say how it is computed, and whether a ReLU follows."""
        return f"operation={self.operation}, relu={self.relu}"


def operation_for(layer: nn.Module | None) -> Operation | None:
    """Return what computes a layer faster than torch does, if it is a convolution and there is."""
    if not fits_rows(layer):
        return None
    if library().has_tiles():
        return "split"
    small = layer.in_channels * layer.out_channels <= _MOST_WEIGHTS
    if layer.kernel_size == (3, 3) and layer.stride == (1, 1) and small:
        return "winograd" if library().has_winograd() else None
    return None


def _takes(x: Tensor, weight: Tensor, addend: Tensor | None) -> bool:
    """Tell whether the kernels compute a layer for these images."""
    images = (x,) if addend is None else (x, addend)
    return (
        not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (*images, weight))
        and all(t.ndim == 4 for t in images)
        and all(t.is_contiguous(memory_format=torch.channels_last) for t in images)
    )
