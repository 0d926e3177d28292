"""Stems: sizes, strides, filters, and the one that the others are made of."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from resnet_builder.blocks.antialias import Blur
from resnet_builder.model import Features
from tests.networks import built, cifar_spec, random_images


def network_of(stem: dict[str, Any], **model: Any) -> Any:
    stages = [{"channels": 8, "blocks": 1}]
    return built(cifar_spec(stem={"channels": 8, **stem}, stages=stages, **model), seed=0)


@pytest.mark.parametrize("antialias", ["none", "blur"])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "max_pool"),
    [
        (1, 1, False),
        (3, 1, False),
        (5, 1, False),
        (7, 1, False),
        (7, 2, False),
        (7, 2, True),
        (3, 3, False),
        (3, 1, True),
        (2, 2, False),
        (4, 4, False),
        (4, 4, True),
    ],
)
def test_only_strides_change_the_size_and_patches_leave_a_rest(
    kernel_size: int, stride: int, max_pool: bool, antialias: str
) -> None:
    options = {"kernel_size": kernel_size, "stride": stride, "max_pool": max_pool}
    network = network_of({"type": "conv", **options}, antialias=antialias)
    images = random_images(1, 3, 33, 30)
    divided = math.floor if kernel_size % 2 == 0 else math.ceil
    height, width = divided(33 / stride), divided(30 / stride)
    if max_pool:
        height, width, stride = math.ceil(height / 2), math.ceil(width / 2), 2 * stride
    features = Features(network.eval(), ["layer1"])
    assert features.strides == {"layer1": stride}
    assert features(images)["layer1"].shape == (1, 8, height, width)
    filters = [layer for layer in network.modules() if isinstance(layer, Blur)]
    assert len(filters) == (antialias == "blur" and stride != 1)
    assert all("blur" not in key for key in network.state_dict())


def test_filter_of_a_stem_subsamples_after_the_activation() -> None:
    network = network_of({"type": "conv", "kernel_size": 5, "stride": 2}, antialias="blur")
    assert [name for name, _ in network.named_children()][:5] == [
        *("conv1", "bn1", "relu", "blur", "layer1")
    ]
    assert network.conv1.stride == (1, 1)
    network = network_of(
        {"type": "conv", "kernel_size": 5, "stride": 2, "max_pool": True}, antialias="blur"
    )
    assert network.conv1.stride == (2, 2)  # as in timm
    assert isinstance(network.maxpool[1], Blur)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ({"type": "conv3x3"}, {"kernel_size": 3}),
        ({"type": "conv3x3", "bare": True}, {"kernel_size": 3, "bare": True}),
        ({"type": "conv1x1"}, {"kernel_size": 1}),
        ({"type": "conv7x7_maxpool"}, {"kernel_size": 7, "stride": 2, "max_pool": True}),
        (
            {"type": "conv7x7_maxpool", "bare": True},
            {"kernel_size": 7, "stride": 2, "max_pool": True, "bare": True},
        ),
    ],
)
def test_stems_with_names_are_convolutions_of_these_options(
    name: dict[str, Any], options: dict[str, Any]
) -> None:
    ours, theirs = network_of(name), network_of({"type": "conv", **options})
    assert str(ours) == str(theirs)
    weights = theirs.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in ours.state_dict().items())


def test_keys_of_a_stem_are_torchvision_s_whatever_its_geometry() -> None:
    network = network_of({"type": "conv", "kernel_size": 4, "stride": 4, "max_pool": True})
    keys = [key for key in network.state_dict() if not key.startswith(("layer", "fc"))]
    assert keys[:2] == ["conv1.weight", "bn1.weight"]
    assert isinstance(network.maxpool, nn.MaxPool2d)
