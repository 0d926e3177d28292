"""Squeeze and excitation, and attention by a convolution along the channels."""

import pytest
import torch
from torch import nn

from resnet_builder.blocks.attention import efficient_channel_attention, squeeze_excitation
from resnet_builder.errors import PartError
from resnet_builder.model import count_parameters
from tests.networks import random_images, randomise


def test_squeeze_and_excitation_weighs_channels_by_their_means() -> None:
    layer = squeeze_excitation(8, reduction=4)
    randomise(layer)
    fc1, fc2 = (layer.get_parameter(f"{name}.weight").flatten(1) for name in ("fc1", "fc2"))
    bias1, bias2 = (layer.get_parameter(f"{name}.bias") for name in ("fc1", "fc2"))
    images = random_images(2, 8, 5, 3)
    hidden = nn.functional.linear(images.mean((2, 3)), fc1, bias1).relu()
    gate = nn.functional.linear(hidden, fc2, bias2).sigmoid()
    torch.testing.assert_close(layer(images), images * gate[:, :, None, None])


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


def test_channel_attention_convolves_along_the_means() -> None:
    layer = efficient_channel_attention(4, kernel=3)
    weights = torch.tensor([0.5, -1.0, 2.0])
    with torch.no_grad():
        layer.get_parameter("conv.weight").copy_(weights[None, None])
    images = random_images(2, 4, 3, 5)
    means = nn.functional.pad(images.mean((2, 3)), (1, 1))
    gate = torch.stack([means[:, i : i + 3] @ weights for i in range(4)], 1).sigmoid()
    torch.testing.assert_close(layer(images), images * gate[:, :, None, None])


def test_channel_attention_refuses_an_even_kernel() -> None:
    with pytest.raises(PartError, match="a kernel of 4 has no middle"):
        efficient_channel_attention(64, kernel=4)
