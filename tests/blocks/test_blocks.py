"""Blocks: the contract of each registered block, and the tensors that it saves for backward."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from resnet_builder.blocks.antialias import blur
from resnet_builder.blocks.attention import efficient_channel_attention, squeeze_excitation
from resnet_builder.blocks.interfaces import BLOCKS
from resnet_builder.blocks.layers import gelu, silu
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
    ("bottleneck", {"attention": efficient_channel_attention, "antialias": blur}),
    ("bottleneck", {"stride_in": "conv1x1", "activation": silu, "antialias": blur}),
    ("preact_basic", {}),
    ("preact_basic", {"dropout": 0.3, "drop_path": 0.2, "shared": "never"}),
    ("preact_basic", {"first_activation": False, "last_norm": True, "attention": squeeze}),
    ("preact_basic", {"begins_stage": True, "shared": "first", "norm": four_groups}),
    ("preact_bottleneck", {}),
    ("preact_bottleneck", {"stride_in": "conv1x1", "shared": "never", "dilation": 2}),
    ("preact_bottleneck", {"groups": 4, "width_per_group": 16, "last_norm": True}),
    ("preact_bottleneck", {"begins_stage": True, "shared": "first", "dropout": 0.3}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_registered_block_keeps_the_contract(name: str, options: dict[str, Any]) -> None:
    check_block(BLOCKS.get(name), **options)


def test_every_registered_block_is_among_the_variants() -> None:
    assert {name for name, _ in VARIANTS} == set(BLOCKS.names())


WIDTH, PIXELS = 4, 2 * 6 * 6


def saved_channels(block: nn.Module) -> list[int]:
    """Return the number of channels of each tensor of pixels that a block saves for backward."""
    own = {tensor.untyped_storage().data_ptr() for tensor in block.parameters()}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and storage.nbytes() >= 4 * PIXELS:
            found[storage.data_ptr()] = tensor
        return tensor

    images = random_images(2, block.in_channels, 6, 6)  # type: ignore[arg-type]
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = block(images)
    assert output.requires_grad
    return [tensor.untyped_storage().nbytes() // (4 * PIXELS) for tensor in found.values()]


def identity_block(name: str, **options: Any) -> nn.Module:
    block = BLOCKS.get(name)
    channels = WIDTH * getattr(block, "expansion", 1)
    made: nn.Module = block(channels, WIDTH, stride=1, shortcut=lambda *_: nn.Identity(), **options)
    made.in_channels = channels  # type: ignore[assignment]
    return made


def inplace() -> nn.Module:
    return nn.ReLU(inplace=True)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("basic", [4, 4, 4, 4, 4]),  # input, conv1, its activation, conv2, output
        ("bottleneck", [16, 4, 4, 4, 4, 16, 16]),
        ("preact_basic", [4, 4, 4, 4]),  # input, its activation, conv1, its activation
        ("preact_bottleneck", [16, 16, 4, 4, 4, 4]),
    ],
)
def test_sum_and_activations_are_computed_in_place(name: str, channels: list[int]) -> None:
    assert saved_channels(identity_block(name, activation=inplace)) == channels


def test_an_activation_that_is_not_in_place_keeps_its_input_apart() -> None:
    """Each norm's output; the last one has the shortcut added to it in place."""
    assert saved_channels(identity_block("basic", activation=nn.GELU)) == [4, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("name", ["basic", "bottleneck", "preact_basic", "preact_bottleneck"])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.Softplus, inplace])
def test_in_place_or_not_the_gradients_are_the_same(name: str, activation: Any) -> None:
    """Also of activations from outside, some of which keep what they give."""
    block = identity_block(name, activation=activation).double()
    images = random_images(2, block.in_channels, 6, 6).double()  # type: ignore[arg-type]
    images.requires_grad_()
    assert torch.autograd.gradcheck(block, images, fast_mode=True)
