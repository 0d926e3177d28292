"""Convolutions in fp32 that the processor's matrix unit computes, which only knows bf16."""

import torch
from torch import Tensor, nn

from resnet_builder.kernels.compiled import library
from resnet_builder.kernels.tiles import fits_tiles, shape_of


class SplitConv2d(nn.Module):
    """A convolution for evaluation whose numbers are split in three, each of which bf16 can hold.

    Of the nine products that two numbers have then, the six that matter in fp32 are summed in fp32:
    the output is that of the layer but for rounding, and does not hang on the number of threads
    nor on the other images of a batch. What needs a gradient, other precisions, and images that are
    not channels-last are computed by the layer itself.

    Args:
        convolution: The layer, for which :func:`~.tiles.fits_tiles` is true; its tensors are shared.

    Shape:
        As the layer's.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer."""
        layer = self.convolution
        if not self._takes(x):
            return layer(x)
        size, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
        assert isinstance(padding, int), "fits_tiles() asks for it"
        height, width = ((side + 2 * padding - size) // stride + 1 for side in x.shape[2:])
        y = torch.empty(
            (x.shape[0], layer.out_channels, height, width), memory_format=torch.channels_last
        )
        weight = layer.weight.contiguous(memory_format=torch.channels_last)
        library().split_convolution(
            x.data_ptr(),
            weight.data_ptr(),
            None if layer.bias is None else layer.bias.data_ptr(),
            y.data_ptr(),
            shape_of(x, y, size, stride, padding),
            torch.get_num_threads(),
        )
        return y

    def _takes(self, x: Tensor) -> bool:
        return (
            not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and x.ndim == 4
            and all(tensor.device.type == "cpu" for tensor in (x, self.convolution.weight))
            and all(tensor.dtype == torch.float32 for tensor in (x, self.convolution.weight))
            and x.is_contiguous(memory_format=torch.channels_last)
            and bool(library().has_tiles())
        )


def with_split_convolutions(network: nn.Module) -> nn.Module:
    """Replace convolutions of a network by those that are faster in evaluation, in fp32.

    Args:
        network: It is changed.

    Returns:
        The network, or what is in its place.
    """
    if fits_tiles(network):
        assert isinstance(network, nn.Conv2d)
        return SplitConv2d(network)
    for name, child in network.named_children():
        setattr(network, name, with_split_convolutions(child))
    return network
