import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from tests.networks import built, cifar_spec, random_images


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
