"""Squeeze and excitation, and attention by a convolution along the channels."""

import pytest

from resnet_builder.blocks.attention import efficient_channel_attention, squeeze_excitation
from resnet_builder.errors import PartError
from resnet_builder.model import count_parameters


@pytest.mark.parametrize(("channels", "parameters"), [(16, 49), (32, 162), (64, 580)])
def test_squeeze_and_excitation_has_the_published_parameters(
    channels: int, parameters: int
) -> None:
    assert count_parameters(squeeze_excitation(channels)) == parameters


@pytest.mark.parametrize(
    ("channels", "reduction", "divisor", "squeezed"),
    [(64, 16, 1, 4), (64, 16, 8, 8), (192, 16, 8, 16), (24, 16, 2, 2), (256, 16, 8, 16)],
)
def test_squeeze_and_excitation_rounds_to_its_divisor(
    channels: int, reduction: int, divisor: int, squeezed: int
) -> None:
    layer = squeeze_excitation(channels, reduction=reduction, divisor=divisor)
    assert layer.get_parameter("fc1.weight").shape == (squeezed, channels, 1, 1)


@pytest.mark.parametrize("channels", [24, 8])
def test_squeeze_and_excitation_refuses_what_it_cannot_reduce(channels: int) -> None:
    with pytest.raises(PartError, match=f"{channels} channels cannot be reduced 16 times") as found:
        squeeze_excitation(channels)
    assert found.value.option == "reduction"


# Wang et al. 2020, equation 12, with gamma 2 and b 1.
@pytest.mark.parametrize(
    ("channels", "kernel"), [(16, 3), (64, 3), (128, 5), (256, 5), (512, 5), (2048, 7)]
)
def test_channel_attention_sees_as_many_channels_as_the_paper_says(
    channels: int, kernel: int
) -> None:
    layer = efficient_channel_attention(channels)
    assert layer.get_parameter("conv.weight").shape == (1, 1, kernel)


def test_channel_attention_refuses_an_even_kernel() -> None:
    with pytest.raises(PartError, match="a kernel of 4 has no middle"):
        efficient_channel_attention(64, kernel=4)
