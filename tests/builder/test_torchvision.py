"""The ImageNet networks are torchvision's: keys, logits and gradients."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resnet_builder.builder import build_on_meta
from resnet_builder.parts import resolve
from tests.networks import built, imagenet_spec, random_images, randomise

NETWORKS: dict[str, tuple[Sequence[int], Any]] = {
    "resnet18": ((2, 2, 2, 2), "basic"),
    "resnet34": ((3, 4, 6, 3), "basic"),
    "resnet50": ((3, 4, 6, 3), "bottleneck"),
    "resnet101": ((3, 4, 23, 3), "bottleneck"),
    "resnet152": ((3, 8, 36, 3), "bottleneck"),
    "resnext50_32x4d": (
        (3, 4, 6, 3),
        {"type": "bottleneck", "groups": 32, "width_per_group": 4},
    ),
    "resnext101_32x8d": (
        (3, 4, 23, 3),
        {"type": "bottleneck", "groups": 32, "width_per_group": 8},
    ),
    "resnext101_64x4d": (
        (3, 4, 23, 3),
        {"type": "bottleneck", "groups": 64, "width_per_group": 4},
    ),
    "wide_resnet50_2": ((3, 4, 6, 3), {"type": "bottleneck", "width_per_group": 128}),
    "wide_resnet101_2": ((3, 4, 23, 3), {"type": "bottleneck", "width_per_group": 128}),
}


def twins(name: str) -> tuple[Any, nn.Module]:
    """Build a network and torchvision's, with the same random weights and statistics."""
    ours = built(imagenet_spec(*NETWORKS[name]))
    theirs = getattr(torchvision.models, name)()
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


SMALL = {"resnet18", "resnet50", "resnext50_32x4d"}

EVERY = [pytest.param(name, marks=[] if name in SMALL else [pytest.mark.ci]) for name in NETWORKS]
"""The large ones take seconds each; what they do, smaller ones do too."""


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dicts_have_torchvision_s_keys_and_shapes(name: str) -> None:
    blocks, block = NETWORKS[name]
    ours = build_on_meta(resolve(imagenet_spec(blocks, block)).model)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)()
    assert shapes(ours) == shapes(theirs)


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in network.state_dict().items()}


@pytest.mark.parametrize("name", EVERY)
def test_logits_equal_torchvision_s(name: str) -> None:
    ours, theirs = twins(name)
    for size in ((64, 64), (96, 64)):
        images = random_images(2, 3, *size)
        with torch.no_grad():
            wanted = theirs.eval()(images)
            assert torch.equal(ours.eval()(images), wanted)
        assert wanted[0].sub(wanted[1]).abs().max() > 0


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_every_residual_branch_matters_to_the_logits(name: str) -> None:
    ours, _ = twins(name)
    ours.eval()
    images = random_images(1, 3, 64, 64)
    with torch.no_grad():
        wanted = ours(images)
        for stage in ours.stages:
            for block in stage:
                kept = {key: value.clone() for key, value in block.state_dict().items()}
                block.zero_residual()
                assert not torch.equal(ours(images), wanted)
                block.load_state_dict(kept)


@pytest.mark.parametrize("name", EVERY)
def test_a_training_step_s_gradients_equal_torchvision_s(name: str) -> None:
    ours, theirs = twins(name)
    images = random_images(2, 3, 64, 64)
    losses = [_backward(network, images) for network in (ours, theirs)]
    assert torch.allclose(losses[0], losses[1], rtol=1e-5)
    wanted = {key: weight.grad for key, weight in theirs.named_parameters()}
    for key, weight in ours.named_parameters():
        assert weight.grad is not None
        reference = wanted[key]
        assert reference is not None
        difference = (weight.grad - reference).norm() / reference.norm()
        assert difference <= 1e-5, key
    statistics = dict(theirs.named_buffers())
    for key, buffer in ours.named_buffers():
        assert torch.allclose(buffer, statistics[key], rtol=1e-5), key


def _backward(network: nn.Module, images: Tensor) -> Tensor:
    logits = network.train()(images)
    loss = nn.functional.cross_entropy(logits, torch.arange(len(images)))
    loss.backward()
    return loss.detach()
