"""Networks that timm has too are timm's: logits, gradients and statistics.

Where timm's names are ours, weights go over as they are; pre-activated networks are renamed here by
a few lines of their own, apart from the import of checkpoints.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.networks import built, imagenet_spec, random_images, randomise

D = {"stem": {"type": "deep"}, "shortcut": "average_projection"}
V2 = {"stem": {"type": "conv7x7_maxpool", "bare": True}}

# The stages' blocks, the block, and what else the spec says.
NETWORKS: dict[str, tuple[tuple[int, ...], Any, dict[str, Any]]] = {
    "resnet18": ((2, 2, 2, 2), "basic", {}),
    "resnet26": ((2, 2, 2, 2), "bottleneck", {}),
    "resnet34": ((3, 4, 6, 3), "basic", {}),
    "resnet50": ((3, 4, 6, 3), "bottleneck", {}),
    "resnet101": ((3, 4, 23, 3), "bottleneck", {}),
    "resnet18d": ((2, 2, 2, 2), "basic", D),
    "resnet26d": ((2, 2, 2, 2), "bottleneck", D),
    "resnet50d": ((3, 4, 6, 3), "bottleneck", D),
    "resnet101d": ((3, 4, 23, 3), "bottleneck", D),
    "seresnet50": ((3, 4, 6, 3), "bottleneck", {"attention": {"type": "se", "divisor": 8}}),
    "resnext50_32x4d": (
        (3, 4, 6, 3),
        {"type": "bottleneck", "groups": 32, "width_per_group": 4},
        {},
    ),
    "wide_resnet50_2": ((3, 4, 6, 3), {"type": "bottleneck", "width_per_group": 128}, {}),
    "ecaresnet50d": ((3, 4, 6, 3), "bottleneck", {**D, "attention": "eca"}),
    "resnetblur50": ((3, 4, 6, 3), "bottleneck", {"antialias": "blur"}),
    "resnetv2_50": ((3, 4, 6, 3), "preact_bottleneck", V2),
}

# One of each kind of operation; the others differ in depth alone.
TRAINED = (
    *("resnet18d", "resnet50d", "seresnet50", "resnext50_32x4d"),
    *("ecaresnet50d", "resnetblur50", "resnetv2_50"),
)

# timm's classifier is a 1x1 convolution, which adds up in another order than a linear layer.
ROUNDED = {"resnetv2_50"}

Rename = Callable[[str], str]


def resnetv2_name(key: str) -> str:
    """Give a tensor of timm's ResNetV2 the name it has in ours."""
    key = re.sub(r"stages\.(\d+)\.blocks\.", lambda found: f"layer{int(found[1]) + 1}.", key)
    key = key.replace("stem.conv.", "conv1.").replace("downsample.conv.", "downsample.0.")
    return re.sub(r"\.norm(\d)\.", r".bn\1.", key).replace("head.fc.", "fc.")


def renamed(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name timm's tensors as ours are, and give the classifier its two dimensions."""
    rename: Rename = resnetv2_name if name == "resnetv2_50" else str
    named = {rename(key): tensor for key, tensor in tensors.items()}
    return {
        key: tensor.flatten(1) if key == "fc.weight" else tensor for key, tensor in named.items()
    }


def twins(name: str) -> tuple[Any, nn.Module]:
    """Build a network and timm's, with the same random weights and statistics."""
    blocks, block, model = NETWORKS[name]
    ours = built(imagenet_spec(blocks, block, **model))
    theirs = timm.create_model(name, pretrained=False)
    randomise(theirs)
    ours.load_state_dict(renamed(name, theirs.state_dict()))
    return ours, theirs


EVERY = [pytest.param(name, marks=[] if name in TRAINED else [pytest.mark.ci]) for name in NETWORKS]


@pytest.mark.parametrize("name", EVERY)
def test_logits_equal_timm_s(name: str) -> None:
    ours, theirs = twins(name)
    for size in ((64, 64), (96, 64)):
        images = random_images(2, 3, *size)
        with torch.no_grad():
            wanted = theirs.eval()(images)
            found = ours.eval()(images)
        allowed = 1e-5 * wanted.abs().max() if name in ROUNDED else 0.0
        assert (found - wanted).abs().max() <= allowed
        assert wanted[0].sub(wanted[1]).abs().max() > 0


@pytest.mark.ci
@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_equals_timm_s(name: str) -> None:
    ours, theirs = twins(name)
    images = random_images(4, 3, 96, 64)
    for network in (ours, theirs):
        logits = network.train()(images)
        nn.functional.cross_entropy(logits, torch.arange(len(images))).backward()
    gradients = {key: weight.grad for key, weight in theirs.named_parameters()}
    wanted = renamed(name, {k: v for k, v in gradients.items() if v is not None})
    for key, weight in ours.named_parameters():
        assert weight.grad is not None
        difference = (weight.grad - wanted[key]).norm() / wanted[key].norm()
        assert difference <= 1e-5, key
    statistics = renamed(name, dict(theirs.named_buffers()))
    for key, buffer in ours.named_buffers():
        if key in statistics:
            torch.testing.assert_close(buffer, statistics[key], rtol=1e-5, atol=1e-6)
