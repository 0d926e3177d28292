"""Networks that torchvision and timm have too are theirs: logits, gradients and statistics."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from resnet_builder.builder import build_on_meta
from resnet_builder.parts import resolve
from tests.networks import built, imagenet_spec, random_images, randomise

# The stages' blocks, the block, and what else the spec says.
Network = tuple[tuple[int, ...], Any, dict[str, Any]]

BASIC_18: Network = ((2, 2, 2, 2), "basic", {})
BASIC_34: Network = ((3, 4, 6, 3), "basic", {})
R50, R101, R152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
D = {"stem": {"type": "deep"}, "shortcut": "average_projection"}


def grouped(groups: int, width: int) -> dict[str, Any]:
    return {"type": "bottleneck", "groups": groups, "width_per_group": width}


TORCHVISION: dict[str, Network] = {
    "resnet18": BASIC_18,
    "resnet34": BASIC_34,
    "resnet50": (R50, "bottleneck", {}),
    "resnet101": (R101, "bottleneck", {}),
    "resnet152": (R152, "bottleneck", {}),
    "resnext50_32x4d": (R50, grouped(32, 4), {}),
    "resnext101_32x8d": (R101, grouped(32, 8), {}),
    "resnext101_64x4d": (R101, grouped(64, 4), {}),
    "wide_resnet50_2": (R50, grouped(1, 128), {}),
    "wide_resnet101_2": (R101, grouped(1, 128), {}),
}
TIMM: dict[str, Network] = {
    "resnet18": BASIC_18,
    "resnet26": ((2, 2, 2, 2), "bottleneck", {}),
    "resnet34": BASIC_34,
    "resnet50": (R50, "bottleneck", {}),
    "resnet101": (R101, "bottleneck", {}),
    "resnet18d": ((2, 2, 2, 2), "basic", D),
    "resnet26d": ((2, 2, 2, 2), "bottleneck", D),
    "resnet50d": (R50, "bottleneck", D),
    "resnet101d": (R101, "bottleneck", D),
    "seresnet50": (R50, "bottleneck", {"attention": {"type": "se", "divisor": 8}}),
    "resnext50_32x4d": (R50, grouped(32, 4), {}),
    "wide_resnet50_2": (R50, grouped(1, 128), {}),
    "ecaresnet50d": (R50, "bottleneck", {**D, "attention": "eca"}),
    "resnetblur50": (R50, "bottleneck", {"antialias": "blur"}),
    "resnetv2_50": (
        R50,
        "preact_bottleneck",
        {"stem": {"type": "conv7x7_maxpool", "bare": True}},
    ),
}

# One of each kind of operation; the others differ in depth alone, and take seconds each.
QUICK = {
    *(("torchvision", name) for name in ("resnet18", "resnet50")),
    ("timm", "resnet18d"),
}
EVERY = [("torchvision", name) for name in TORCHVISION] + [("timm", name) for name in TIMM]
CI = {("timm", "resnetv2_50")}
BY_COST = [
    *(pytest.param(*one) for one in EVERY if one in QUICK),
    *(pytest.param(*one, marks=pytest.mark.ci) for one in EVERY if one in CI),
    *(pytest.param(*one, marks=pytest.mark.slow) for one in EVERY if one not in QUICK | CI),
]

# timm's classifier is a 1x1 convolution, which adds up in another order than a linear layer.
ROUNDED = {"resnetv2_50"}


def renamed(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name timm's tensors of ResNetV2 as ours are, apart from the import of checkpoints."""
    if name != "resnetv2_50":
        return dict(tensors)
    found = {}
    for key, tensor in tensors.items():
        key = re.sub(r"stages\.(\d+)\.blocks\.", lambda m: f"layer{int(m[1]) + 1}.", key)
        key = key.replace("stem.conv.", "conv1.").replace("downsample.conv.", "downsample.0.")
        key = re.sub(r"\.norm(\d)\.", r".bn\1.", key).replace("head.fc.", "fc.")
        found[key] = tensor.flatten(1) if key == "fc.weight" else tensor
    return found


def twins(library: str, name: str) -> tuple[Any, nn.Module]:
    """Build a network and the library's, with the same random weights and statistics."""
    blocks, block, model = (TORCHVISION if library == "torchvision" else TIMM)[name]
    ours = built(imagenet_spec(blocks, block, **model))
    theirs: nn.Module = (
        getattr(torchvision.models, name)()
        if library == "torchvision"
        else timm.create_model(name, pretrained=False)
    )
    randomise(theirs)
    ours.load_state_dict(renamed(name, theirs.state_dict()))
    return ours, theirs


def test_dilation_in_place_of_strides_is_torchvision_s() -> None:
    stages = [
        {"channels": 64, "blocks": 3},
        {"channels": 128, "blocks": 4, "stride": 2},
        {"channels": 256, "blocks": 6, "dilation": 2},
        {"channels": 512, "blocks": 3, "dilation": 4},
    ]
    ours = built(imagenet_spec(R50, "bottleneck", stages=stages))
    replaced = [False, True, True]
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=replaced)
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    images = random_images(1, 3, 64, 48)
    with torch.no_grad():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("name", TORCHVISION)
def test_state_dict_has_the_keys_and_shapes_of_torchvision(name: str) -> None:
    blocks, block, _ = TORCHVISION[name]
    ours = build_on_meta(resolve(imagenet_spec(blocks, block)).model)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)()
    shapes = [
        {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        for network in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("library", "name"), BY_COST)
def test_logits_gradients_and_statistics_equal_the_library_s(library: str, name: str) -> None:
    ours, theirs = twins(library, name)
    for size in ((64, 64), (96, 64)):
        images = random_images(2, 3, *size)
        with torch.no_grad():
            wanted = theirs.eval()(images)
            found = ours.eval()(images)
        allowed = 1e-5 * wanted.abs().max() if name in ROUNDED else 0.0
        assert (found - wanted).abs().max() <= allowed
        assert wanted[0].sub(wanted[1]).abs().max() > 0

    images = random_images(*((2, 3, 64, 64) if library == "torchvision" else (4, 3, 96, 64)))
    losses = []
    for network in (ours, theirs):
        logits = network.train()(images)
        losses.append(nn.functional.cross_entropy(logits, torch.arange(len(images))))
        losses[-1].backward()
    assert torch.allclose(losses[0], losses[1], rtol=1e-5)
    gradients = {key: weight.grad for key, weight in theirs.named_parameters()}
    wanted = renamed(name, {key: grad for key, grad in gradients.items() if grad is not None})
    for key, weight in ours.named_parameters():
        assert weight.grad is not None
        assert (weight.grad - wanted[key]).norm() / wanted[key].norm() <= 1e-5, key
    statistics = renamed(name, dict(theirs.named_buffers()))
    for key, buffer in ours.named_buffers():
        if key in statistics:  # timm has no buffers for the filters of blurs
            atol = 1e-8 if library == "torchvision" else 1e-6
            torch.testing.assert_close(buffer, statistics[key], rtol=1e-5, atol=atol)


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.ci)])
def test_every_residual_branch_matters_to_the_logits(name: str) -> None:
    """Otherwise equal logits would say little."""
    blocks, block, _ = TORCHVISION[name]
    ours = built(imagenet_spec(blocks, block)).eval()
    randomise(ours)
    images = random_images(1, 3, 64, 64)
    with torch.no_grad():
        wanted = ours(images)
        for stage in ours.stages:
            for block in stage:
                kept = {key: value.clone() for key, value in block.state_dict().items()}
                block.zero_residual()
                assert not torch.equal(ours(images), wanted)
                block.load_state_dict(kept)
