"""What blocks keep for their gradients: one tensor before and one after each norm, no more."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from resnet_builder.blocks.interfaces import BLOCKS
from tests.networks import random_images

WIDTH, PIXELS = 4, 2 * 6 * 6


def kept(block: nn.Module) -> list[int]:
    """Return how many channels each tensor of pixels has that a block keeps."""
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
    assert kept(identity_block(name, activation=inplace)) == channels


def test_an_activation_that_is_not_in_place_keeps_its_input_apart() -> None:
    """Each norm's output; the last one has the shortcut added to it in place."""
    assert kept(identity_block("basic", activation=nn.GELU)) == [4, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("name", ["basic", "bottleneck", "preact_basic", "preact_bottleneck"])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.Softplus, inplace])
def test_in_place_or_not_the_gradients_are_the_same(name: str, activation: Any) -> None:
    """Also of activations from outside, some of which keep what they give."""
    block = identity_block(name, activation=activation).double()
    images = random_images(2, block.in_channels, 6, 6).double()  # type: ignore[arg-type]
    images.requires_grad_()
    assert torch.autograd.gradcheck(block, images, fast_mode=True)
