"""Channel attention: widths between the layers, and the paper's sizes of kernels."""

import pytest

from resnet_builder.blocks.attention import efficient_channel_attention, squeeze_excitation


@pytest.mark.parametrize(
    ("channels", "reduction", "divisor", "squeezed"),
    [(64, 16, 1, 4), (64, 16, 8, 8), (192, 16, 8, 16), (24, 16, 2, 2), (256, 16, 8, 16)],
)
def test_squeeze_and_excitation_rounds_to_its_divisor(
    channels: int, reduction: int, divisor: int, squeezed: int
) -> None:
    layer = squeeze_excitation(channels, reduction=reduction, divisor=divisor)
    assert layer.get_parameter("fc1.weight").shape == (squeezed, channels, 1, 1)


# Wang et al. 2020, equation 12, with gamma 2 and b 1.
@pytest.mark.parametrize(
    ("channels", "kernel"), [(16, 3), (64, 3), (128, 5), (256, 5), (512, 5), (2048, 7)]
)
def test_channel_attention_sees_as_many_channels_as_the_paper_says(
    channels: int, kernel: int
) -> None:
    layer = efficient_channel_attention(channels)
    assert layer.get_parameter("conv.weight").shape == (1, 1, kernel)
