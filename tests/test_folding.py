"""Norms fuse_conv_bn into convolutions, for evaluation."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.builder import build, read_spec
from resnet_builder.folding import fuse_conv_bn, norms_by_convolution
from tests.networks import built, cifar_spec, random_images, randomise

# What is folded of two blocks in each of two stages, the stem included.
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "basic": ({}, 9),
    "projected": ({"shortcut": "projection_all"}, 13),
    "bottleneck": ({"block": "bottleneck", "shortcut": "projection"}, 15),
    "pre-activated": ({"block": "preact_basic"}, 5),
    "deep": ({"stem": "deep", "shortcut": "average_projection"}, 13),
    "blurred": ({"antialias": "blur", "attention": "eca"}, 9),
}


def norms(network: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_folded_network_gives_the_same_logits_with_fewer_layers(name: str) -> None:
    model, count = NETWORKS[name]
    network = built(cifar_spec(2, widths=(16, 32), **model))
    randomise(network)
    images = random_images(2, 3, 33, 31)
    with torch.no_grad():
        wanted = network.eval()(images)
        twin = fuse_conv_bn(network)
        found = twin(images)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert norms(network) - norms(twin) == count


def test_folding_leaves_the_network_as_it_was() -> None:
    network = built(cifar_spec(1), seed=0)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    twin = fuse_conv_bn(network.train())
    assert twin is not network
    assert network.training
    assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("norm", ["group_norm", "instance_norm", "frozen_batch_norm"])
def test_other_norms_are_left_alone(norm: str) -> None:
    network = built(cifar_spec(1, widths=(32, 64), norm=norm))
    assert fuse_conv_bn(network) is network


def test_a_network_that_cannot_be_followed_is_left_alone() -> None:
    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x)) if x.mean() > 0 else x

    network = Choosy()
    assert fuse_conv_bn(network) is network


def test_a_norm_that_serves_twice_is_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv2(self.bn(self.conv1(x))))

    assert norms_by_convolution(Shared()) == {}


def test_a_convolution_that_feeds_more_than_its_norm_is_left_alone() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return x + self.bn(x)

    assert norms_by_convolution(Forked()) == {}


def test_every_norm_behind_a_convolution_of_resnet50_is_folded() -> None:
    network = build(read_spec("resnet50"))
    assert norms(fuse_conv_bn(network)) == 0
