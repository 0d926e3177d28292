"""Pre-activated blocks, step by step (He et al. 2016, figure 1b)."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.blocks.preact import PreactBasicBlock, PreactBottleneckBlock
from resnet_builder.blocks.shortcuts import projection
from tests.networks import random_images, randomise

bare = partial(projection, norm=nn.Identity)


def made(block: Any, in_channels: int = 4, **options: Any) -> Any:
    made = block(in_channels, 4, stride=2, shortcut=options.pop("shortcut", bare), **options)
    randomise(made)
    return made.eval()


def residual(block: Any, normed: Tensor) -> Tensor:
    hidden = block.conv2(block.bn2(block.conv1(normed)).relu())
    if isinstance(block, PreactBottleneckBlock):
        hidden = block.conv3(block.bn3(hidden).relu())
    return hidden


BLOCKS = [PreactBasicBlock, PreactBottleneckBlock]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_projection_that_shares_nothing_sees_the_input(block: Any) -> None:
    network = made(block, shared="never")
    images = random_images(2, 4, 6, 6)
    wanted = residual(network, network.bn1(images).relu()) + network.downsample(images)
    torch.testing.assert_close(network(images), wanted)


@pytest.mark.parametrize("begins_stage", [True, False])
@pytest.mark.parametrize("shared", ["change", "first", "never"])
def test_an_identity_sees_the_input_unless_the_first_block_shares(
    shared: str, begins_stage: bool
) -> None:
    options: dict[str, Any] = {"shared": shared, "begins_stage": begins_stage}
    network = PreactBasicBlock(4, 4, stride=1, shortcut=bare, **options)
    randomise(network)
    network.eval()
    images = random_images(2, 4, 6, 6)
    normed = network.bn1(images).relu()
    through = normed if shared == "first" and begins_stage else images
    torch.testing.assert_close(network(images), residual(network, normed) + through)


def test_first_activation_can_be_left_out_where_it_is_not_shared() -> None:
    network = made(PreactBasicBlock, shared="never", first_activation=False)
    images = random_images(2, 4, 6, 6)
    wanted = residual(network, network.bn1(images)) + network.downsample(images)
    torch.testing.assert_close(network(images), wanted)


@pytest.mark.parametrize(("block", "last"), list(zip(BLOCKS, ["bn3", "bn4"], strict=True)))
def test_last_norm_ends_the_residual(block: Any, last: str) -> None:
    network = made(block, shared="never", last_norm=True)
    images = random_images(2, 4, 6, 6)
    normed = network.bn1(images).relu()
    end = network.get_submodule(last)
    wanted = end(residual(network, normed)) + network.downsample(images)
    torch.testing.assert_close(network(images), wanted)


@pytest.mark.parametrize("block", BLOCKS)
def test_input_is_left_as_it_was(block: Any) -> None:
    images = random_images(2, 4, 6, 6)
    kept = images.clone()
    made(block, shared="first", begins_stage=True)(images)
    assert torch.equal(images, kept)
