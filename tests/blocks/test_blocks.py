"""Blocks: the contract of each registered block, and the tensors that it saves for backward."""

from typing import Any

import pytest
import torch
from torch import nn

from resnet_builder.blocks.antialias import blur
from resnet_builder.blocks.attention import efficient_channel_attention, squeeze_excitation
from resnet_builder.blocks.interfaces import BLOCKS
from resnet_builder.blocks.layers import gelu, silu
from resnet_builder.memory import activation_memory
from resnet_builder.testing import check_block
from tests.networks import random_images


def four_groups(width: int) -> nn.Module:
    return nn.GroupNorm(4, width)


def squeeze(width: int) -> nn.Module:
    return squeeze_excitation(width, reduction=4)


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("basic", {}),
    ("basic", {"dropout": 0.3, "drop_path": 0.2}),
    ("basic", {"dilation": 2}),
    ("basic", {"norm": four_groups}),
    ("basic", {"attention": squeeze, "activation": gelu, "antialias": blur}),
    ("bottleneck", {}),
    ("bottleneck", {"stride_in": "conv1x1"}),
    ("bottleneck", {"groups": 4, "width_per_group": 16, "dropout": 0.3}),
    ("bottleneck", {"dilation": 2, "drop_path": 0.2}),
    ("bottleneck", {"expansion": 1}),
    ("bottleneck", {"attention": efficient_channel_attention, "antialias": blur}),
    ("bottleneck", {"stride_in": "conv1x1", "activation": silu, "antialias": blur}),
    ("preact_basic", {}),
    ("preact_basic", {"dropout": 0.3, "drop_path": 0.2, "shared": "never"}),
    ("preact_basic", {"first_activation": False, "last_norm": True, "attention": squeeze}),
    ("preact_basic", {"begins_stage": True, "shared": "first", "norm": four_groups}),
    ("preact_bottleneck", {}),
    ("preact_bottleneck", {"stride_in": "conv1x1", "shared": "never", "dilation": 2}),
    ("preact_bottleneck", {"groups": 4, "width_per_group": 16, "last_norm": True}),
    ("preact_bottleneck", {"begins_stage": True, "shared": "first", "expansion": 3}),
]


QUICK = {0, 4, 5, 7, 12, 15, 16, 19}
"""Numbers of variants that between them have every layer of a block; the others are slow."""


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(*one, marks=[] if number in QUICK else pytest.mark.slow)
        for number, one in enumerate(VARIANTS)
    ],
)
def test_registered_block_keeps_the_contract(name: str, options: dict[str, Any]) -> None:
    check_block(BLOCKS.get(name), **options)


def test_every_registered_block_is_among_the_variants() -> None:
    assert {name for name, _ in VARIANTS} == set(BLOCKS.names())


def identity_block(name: str, activation: Any) -> tuple[nn.Module, int]:
    """Make a block of width 4, and return it with the width of its input."""
    block = BLOCKS.get(name)
    channels = 16 if "bottleneck" in name else 4
    made = block(channels, 4, stride=1, shortcut=lambda *_: nn.Identity(), activation=activation)
    return made, channels


def inplace() -> nn.Module:
    return nn.ReLU(inplace=True)


@pytest.mark.parametrize(
    ("name", "activation", "channels"),
    [
        ("basic", inplace, 4 + 4 + 4 + 4 + 4),  # input, conv1, its activation, conv2, output
        ("bottleneck", inplace, 16 + 4 + 4 + 4 + 4 + 16 + 16),
        ("preact_basic", inplace, 4 + 4 + 4 + 4),  # input, its activation, conv1, its activation
        ("preact_bottleneck", inplace, 16 + 16 + 4 + 4 + 4 + 4),
        # Each norm's output too; the last one has the shortcut added to it in place.
        ("basic", nn.GELU, 4 + 4 + 4 + 4 + 4 + 4),
    ],
)
def test_sum_and_activations_are_computed_in_place(
    name: str, activation: Any, channels: int
) -> None:
    """Counted are the channels of the tensors that a block saves for the backward pass."""
    with torch.device("meta"):
        block, in_channels = identity_block(name, activation)
    saved = activation_memory(nn.Sequential(block), (2, in_channels, 6, 6)).saved
    assert saved // (4 * 2 * 6 * 6) == channels


@pytest.mark.parametrize("name", ["basic", "bottleneck", "preact_basic", "preact_bottleneck"])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.Softplus, inplace])
def test_in_place_or_not_the_gradients_are_the_same(name: str, activation: Any) -> None:
    """Also of activations from outside, some of which keep what they give."""
    block, channels = identity_block(name, activation)
    images = random_images(2, channels, 6, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(block.double(), images, fast_mode=True)
