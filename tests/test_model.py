import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.builder import build, read_spec
from resnet_builder.model import fuse_conv_bn, norms_by_convolution
from tests.networks import built, cifar_spec, random_images, randomise


@pytest.fixture
def network() -> Any:
    return built(cifar_spec(2), seed=0).eval()


def test_children_have_torchvision_s_names(network: Any) -> None:
    names = [name for name, _ in network.named_children()]
    assert names == [
        "conv1",
        "bn1",
        "relu",
        "layer1",
        "layer2",
        "layer3",
        "avgpool",
        "flatten",
        "fc",
    ]


def test_a_slice_gives_features(network: Any) -> None:
    images = random_images(2, 3, 32, 32)
    features = network[:-1]
    assert type(features) is nn.Sequential
    assert torch.equal(network.fc(features(images)), network(images))


def test_layers_are_found_by_name_and_by_index(network: Any) -> None:
    assert network.layer3[-1] is network[5][1]


def test_a_deep_copy_and_an_unpickled_copy_compute_the_same(network: Any) -> None:
    images = random_images(2, 3, 32, 32)
    wanted = network(images)
    assert torch.equal(copy.deepcopy(network)(images), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(network))(images), wanted)


def test_a_saved_network_loads(network: Any) -> None:
    """akamaster's lambdas could not be pickled."""
    again = built(cifar_spec(2), seed=1).eval()
    again.load_state_dict(network.state_dict())
    images = random_images(2, 3, 32, 32)
    assert torch.equal(again(images), network(images))


def test_it_exports(network: Any) -> None:
    images = random_images(2, 3, 32, 32)
    exported = torch.export.export(network, (images,)).module()
    assert torch.allclose(exported(images), network(images), atol=1e-6)


@pytest.mark.parametrize("shortcut", ["pad", "projection", "average_projection", "none"])
def test_channels_last_and_bf16_compute_nearly_the_same(shortcut: str) -> None:
    network = built(cifar_spec(2, shortcut=shortcut), seed=0).eval()
    images = random_images(4, 3, 32, 32)
    wanted = network(images)
    network.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    assert torch.allclose(network(images), wanted, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        low = network(images).float()
    assert (low - wanted).abs().max() < 0.1 * wanted.abs().max()


@pytest.mark.parametrize(
    ("blocks", "block", "depths"),
    [(1, "basic", (2, 2, 2)), ((1, 2, 3), "bottleneck", (3, 6, 9))],
)
def test_depth_leaves_out_shortcuts(
    blocks: int | tuple[int, ...], block: str, depths: tuple[int, ...]
) -> None:
    network = built(cifar_spec(blocks, shortcut="projection_all", block=block))
    assert network.stage_depths == depths
    assert network.depth == 2 + sum(depths)


# Norms that are fused, of two blocks in each of two stages, the stem included.
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
def test_fused_network_gives_the_same_logits_with_fewer_layers(name: str) -> None:
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


def test_fusing_leaves_the_network_as_it_was() -> None:
    network = built(cifar_spec(1), seed=0)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    twin = fuse_conv_bn(network.train())
    assert twin is not network
    assert network.training
    assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("norm", ["group_norm", "instance_norm", "frozen_batch_norm"])
def test_other_norms_are_not_fused(norm: str) -> None:
    network = built(cifar_spec(1, widths=(32, 64), norm=norm))
    assert fuse_conv_bn(network) is network


def test_network_that_cannot_be_traced_is_not_fused() -> None:
    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x)) if x.mean() > 0 else x

    network = Choosy()
    assert fuse_conv_bn(network) is network


class Shared(nn.Module):
    """Network that goes through one norm twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv2(self.bn(self.conv1(x))))


class Forked(nn.Module):
    """Network with a convolution that feeds more than its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.bn(x)


@pytest.mark.parametrize("kind", [Shared, Forked])
def test_norm_that_is_not_of_one_convolution_alone_is_not_fused(kind: type[nn.Module]) -> None:
    network = kind()
    assert norms_by_convolution(network) == {}
    assert fuse_conv_bn(network) is network


def test_every_norm_behind_a_convolution_of_resnet50_is_fused() -> None:
    network = build(read_spec("resnet50"))
    assert norms(fuse_conv_bn(network)) == 0
