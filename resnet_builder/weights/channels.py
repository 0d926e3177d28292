"""Adaptation of pretrained weights to images of another number of channels."""

from collections.abc import Sequence

from torch import Tensor

_GREY = (0.299, 0.587, 0.114)
"""Share of red, green and blue in grey images (ITU-R 601), as Pillow converts them."""


def adapt_weight(weight: Tensor, channels: int) -> Tensor:
    """Adapt the weight of a network's first convolution to another number of channels.

    For one channel, the weights of all channels are summed, so that a grey image gives what three
    equal channels gave. Otherwise they are repeated in turn and scaled by ``before / channels``,
    which keeps the scale of the features. The rule is that of timm's ``adapt_input_conv``
    (https://github.com/huggingface/pytorch-image-models, ``timm/models/_manipulate.py``).

    Args:
        weight: ``(O, I, H, W)``.
        channels: Number of channels of the images.

    Returns:
        ``(O, channels, H, W)``.
    """
    before = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    times = -(-channels // before)
    return weight.repeat(1, times, 1, 1)[:, :channels] * (before / channels)


def adapt_statistics(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Adapt means, or standard deviations, of the channels of images as :func:`adapt_weight` does.

    The mean of grey images is exactly that of red, green and blue, weighted as grey is. Their
    standard deviation is so, too, if the colours rise and fall together.
    """
    if channels == 1:
        shares = _GREY if len(values) == len(_GREY) else [1 / len(values)] * len(values)
        return (sum(share * value for share, value in zip(shares, values, strict=True)),)
    return tuple(values[number % len(values)] for number in range(channels))
