"""Convolutions in fp32 that the processor's matrix unit computes, which only knows bf16."""

import torch
from torch import Tensor, nn

from resnet_builder.kernels.compiled import library
from resnet_builder.kernels.tiles import shape_of


class SplitConv2d(nn.Module):
    """``relu(convolution(x) + addend)`` for evaluation, without what there is not.

    Numbers are split in three, each of which bf16 can hold. Of the nine products that two numbers
    have then, the six that matter in fp32 are summed in fp32: the output is that of the layer but
    for rounding, and does not hang on the number of threads nor on the other images of a batch.
    What needs a gradient, other precisions, and images that are not channels-last are computed by
    the layer itself.

    Args:
        convolution: The layer, of a kind that :func:`~.tiles.fits_tiles` takes; its tensors are
            shared, not copied.
        relu: Whether a ReLU follows.

    Shape:
        As the layer's; the addend's is that of the output.
    """

    def __init__(self, convolution: nn.Conv2d, *, relu: bool = False) -> None:
        super().__init__()
        self.convolution = convolution
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
        assert isinstance(padding, int), "fits_tiles() asks for it"
        height, width = ((side + 2 * padding - size) // stride + 1 for side in x.shape[2:])
        shape = (x.shape[0], layer.out_channels, height, width)
        y = torch.empty(shape, memory_format=torch.channels_last)
        weight = layer.weight.contiguous(memory_format=torch.channels_last)
        library().split_convolution(
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
        """Say whether a ReLU follows."""
        return f"relu={self.relu}"


def _takes(x: Tensor, weight: Tensor, addend: Tensor | None) -> bool:
    """Tell whether the kernels compute a layer for these images."""
    images = (x,) if addend is None else (x, addend)
    return (
        not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (*images, weight))
        and all(t.ndim == 4 for t in images)
        and all(t.is_contiguous(memory_format=torch.channels_last) for t in images)
        and bool(library().has_tiles())
    )
