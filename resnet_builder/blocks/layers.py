"""The convolutions and regularising layers that blocks are made of."""

from torch import Tensor, nn

from resnet_builder.errors import PartError


def conv3x3(
    in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Make a 3x3 convolution that keeps the size, apart from its stride; a norm follows it.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.
    """
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        stride=stride,
        padding=dilation,
        dilation=dilation,
        groups=groups,
        bias=False,
    )


def conv1x1(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv2d:
    """Make a 1x1 convolution; a norm follows it.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.
    """
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)


def dropout_layer(probability: float) -> nn.Module:
    """Make a dropout layer, or nothing."""
    return nn.Dropout(probability) if probability else nn.Identity()


def drop_path_layer(probability: float) -> nn.Module:
    """Make a layer that zeroes whole images' residuals while training, or nothing.

    Stochastic depth, Huang et al. 2016, https://arxiv.org/abs/1603.09382.
    """
    if not probability:
        return nn.Identity()
    from torchvision.ops import StochasticDepth  # slow: brings torch's compiler

    return StochasticDepth(probability, mode="row")


def average(x: Tensor) -> Tensor:
    """Average over all pixels.

    As ``mean`` does, but the gradient is not written out, which ``mean`` would never do in the
    images' memory format; it is much slower to go on with two formats than with one.

    Shape:
        ``(N, C, H, W)`` to ``(N, C, 1, 1)``.
    """
    return x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])


class GlobalAverage(nn.Module):
    """Average over all pixels, however many.

    Shape:
        ``(N, C, H, W)`` to ``(N, C, 1, 1)``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer."""
        return average(x)


def zero_scale(norm: nn.Module) -> None:
    """Make a normalisation layer output zero.

    Raises:
        PartError: The layer has no scale.
    """
    scale = getattr(norm, "weight", None)
    if not isinstance(scale, nn.Parameter):
        raise PartError(f"{type(norm).__name__} has no scale that is learnt", code="no-effect")
    nn.init.zeros_(scale)
