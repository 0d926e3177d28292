"""Every registered block with every shortcut, norm and attention, against plain functions.

What a network computes, how deep it is and how many parameters it has is written here a second
time, from its state dict and the papers, without any of the parts.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_builder.blocks import ATTENTIONS, BLOCKS, NORMS, SHORTCUTS
from resnet_builder.model import count_parameters
from tests.networks import built, cifar_spec, random_images, randomise

WIDTHS = (8, 16)
GROUPS = 4

COMBINATIONS = list(
    itertools.product(BLOCKS.names(), SHORTCUTS.names(), NORMS.names(), ATTENTIONS.names())
)

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Stem:
    """A stem of one convolution, by default 3x3 of stride 1."""

    kernel_size: int = 3
    stride: int = 1
    padding: int = 1
    pools: bool = False


def network_of(block: str, shortcut: str, norm: str, attention: str) -> Any:
    model: dict[str, Any] = {
        "norm": {"type": norm, "groups": GROUPS} if norm == "group_norm" else norm,
        "attention": {"type": attention, "reduction": 4} if attention == "se" else attention,
        "stem": {"type": "conv3x3", "channels": WIDTHS[0], "bare": block.startswith("preact")},
    }
    spec = cifar_spec(2, block=block, shortcut=shortcut, widths=WIDTHS, image_size=9, **model)
    return built(spec, seed=0)


def normalise(x: Tensor, tensors: Tensors, name: str, norm: str) -> Tensor:
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    if norm == "group_norm":
        return F.group_norm(x, GROUPS, weight, bias)
    if norm == "instance_norm":
        return F.instance_norm(x, weight=weight, bias=bias)
    mean, variance = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
    scale = weight / (variance + 1e-5).sqrt()
    return (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]


def attend(x: Tensor, tensors: Tensors, name: str, attention: str) -> Tensor:
    means = x.mean((2, 3))
    if attention == "se":
        hidden = F.conv2d(means[..., None, None], *weight_and_bias(tensors, f"{name}.fc1")).relu()
        gate = F.conv2d(hidden, *weight_and_bias(tensors, f"{name}.fc2")).flatten(1)
    elif attention == "eca":
        kernel = tensors[f"{name}.conv.weight"]
        gate = F.conv1d(means[:, None], kernel, padding=kernel.shape[-1] // 2)[:, 0]
    else:
        return x
    return x * gate.sigmoid()[..., None, None]


def weight_and_bias(tensors: Tensors, name: str) -> tuple[Tensor, Tensor]:
    return tensors[f"{name}.weight"], tensors[f"{name}.bias"]


def skip(
    x: Tensor, tensors: Tensors, name: str, shortcut: str, norm: str, width: int, stride: int
) -> Tensor:
    """Compute a shortcut; without a norm where none is in the state dict."""
    changes = stride != 1 or x.shape[1] != width
    if not changes and shortcut != "projection_all":
        return x
    if shortcut == "pad":
        added = width - x.shape[1]
        return F.pad(x[..., ::stride, ::stride], (0, 0, 0, 0, added // 2, added - added // 2))
    conv, bn = f"{name}.0", f"{name}.1"
    if shortcut == "average_projection":
        conv, bn = f"{name}.1", f"{name}.2"
        x = F.avg_pool2d(x, stride, ceil_mode=True, count_include_pad=False)
        stride = 1
    x = F.conv2d(x, tensors[f"{conv}.weight"], stride=stride)
    return normalise(x, tensors, bn, norm) if f"{bn}.weight" in tensors else x


def convolutions(block: str) -> tuple[int, ...]:
    """Return the sides of the kernels on a block's residual path."""
    return (1, 3, 1) if "bottleneck" in block else (3, 3)


def compute_block(
    x: Tensor,
    tensors: Tensors,
    name: str,
    stride: int,
    parts: tuple[str, str, str, str],
    dilations: tuple[int, ...] = (1, 1),
) -> Tensor:
    """Compute a block; ``dilations`` are those of the first 3x3 convolution and of the second."""
    block, shortcut, norm, attention = parts
    sides = convolutions(block)
    strides = [stride if side == 3 else 1 for side in sides]
    if sides == (3, 3):
        strides[1] = 1
    preactivated = block.startswith("preact")
    width = tensors[f"{name}.conv{len(sides)}.weight"].shape[0]
    through = residual = x
    for number, (side, step) in enumerate(zip(sides, strides, strict=True), 1):
        if preactivated:
            residual = normalise(residual, tensors, f"{name}.bn{number}", norm).relu()
            is_identity = stride == 1 and x.shape[1] == width and shortcut != "projection_all"
            if number == 1 and not is_identity:
                through = residual
        kernel = tensors[f"{name}.conv{number}.weight"]
        reach = dilations[side == 3 and number == 2 and sides[0] == 3] if side == 3 else 0
        residual = F.conv2d(residual, kernel, stride=step, padding=reach, dilation=max(reach, 1))
        if not preactivated:
            residual = normalise(residual, tensors, f"{name}.bn{number}", norm)
            residual = residual.relu() if number < len(sides) else residual
    residual = attend(residual, tensors, f"{name}.se", attention)
    if shortcut != "none":
        residual = residual + skip(
            through, tensors, f"{name}.downsample", shortcut, norm, width, stride
        )
    return residual if preactivated else residual.relu()


def compute(
    images: Tensor,
    tensors: Tensors,
    parts: tuple[str, str, str, str],
    stem: Stem = Stem(),
    dilations: tuple[int, int] = (1, 1),
) -> Tensor:
    """Compute the logits from a state dict."""
    norm = parts[2]
    x = F.conv2d(images, tensors["conv1.weight"], stride=stem.stride, padding=stem.padding)
    if "bn1.weight" in tensors:
        x = normalise(x, tensors, "bn1", norm).relu()
    if stem.pools:
        x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage, block in itertools.product((1, 2), (0, 1)):
        stride = 2 if (stage, block) == (2, 0) else 1
        own = dilations[stage - 1]
        first = own if block == 1 else (1, *dilations)[stage - 1]
        x = compute_block(x, tensors, f"layer{stage}.{block}", stride, parts, (first, own))
    if "norm.weight" in tensors:
        x = normalise(x, tensors, "norm", norm).relu()
    return F.linear(x.mean((2, 3)), *weight_and_bias(tensors, "fc"))


def count(parts: tuple[str, str, str, str], stem: Stem = Stem(), expansion: int = 4) -> int:
    """Add up the parameters, from the papers' figures."""
    block, shortcut, norm, attention = parts
    scaled = 0 if norm == "frozen_batch_norm" else 2
    preactivated, expansion = block.startswith("preact"), expansion if "bottleneck" in block else 1
    total = 3 * stem.kernel_size**2 * WIDTHS[0] + (0 if preactivated else scaled * WIDTHS[0])
    before = WIDTHS[0]
    for width, number in itertools.product(WIDTHS, (0, 1)):
        out = width * expansion
        sides = convolutions(block)
        widths = [before, *[width] * (len(sides) - 1), out]
        total += sum(
            side**2 * a * b for side, (a, b) in zip(sides, itertools.pairwise(widths), strict=True)
        )
        total += scaled * sum(widths[:-1] if preactivated else widths[1:])
        changes = before != out or (width != WIDTHS[0] and number == 0)
        if shortcut == "projection_all" or (changes and "projection" in shortcut):
            total += before * out + (0 if preactivated else scaled * out)
        if attention == "se":
            total += 2 * out * (out // 4) + out + out // 4
        elif attention == "eca":
            total += max(3, int((math.log2(out) + 1) / 2) // 2 * 2 + 1)
        before = out
    return total + (scaled * before if preactivated else 0) + before * 10 + 10


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(one, id="-".join(one), marks=pytest.mark.slow if number % 2 else [])
        for number, one in enumerate(COMBINATIONS)
    ],
)
def test_network_computes_what_its_parts_say_and_trains_all_of_them(
    parts: tuple[str, str, str, str],
) -> None:
    network = network_of(*parts)
    randomise(network)
    images = random_images(2, 3, 9, 7)
    with torch.no_grad():
        found = network.eval()(images)
        wanted = compute(images, network.state_dict(), parts)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert count_parameters(network) == count(parts)
    assert network.depth == 1 + 4 * len(convolutions(parts[0])) + 1
    network.train()(images).square().sum().backward()
    assert [key for key, weight in network.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize(
    ("stem", "dilations"),
    [
        (Stem(5, 1, 2), (1, 1)),
        (Stem(7, 2, 3), (2, 1)),
        (Stem(3, 2, 1, pools=True), (3, 2)),
        (Stem(4, 4, 0), (1, 3)),
    ],
)
@pytest.mark.parametrize(
    ("block", "expansion"),
    [
        *((block, 1) for block in BLOCKS.names()),
        *((block, 3) for block in BLOCKS.names() if "bottleneck" in block),
    ],
)
def test_network_of_another_geometry_computes_what_its_spec_says(
    block: str, stem: Stem, dilations: tuple[int, int], expansion: int
) -> None:
    parts = (block, "projection", "batch_norm", "se")
    model: dict[str, Any] = {
        "attention": {"type": "se", "reduction": 4},
        "stem": {
            "type": "conv",
            "channels": WIDTHS[0],
            "kernel_size": stem.kernel_size,
            "stride": stem.stride,
            "max_pool": stem.pools,
            "bare": block.startswith("preact"),
        },
        "block": {"type": block, "expansion": expansion} if "bottleneck" in block else block,
        "stages": [
            {"channels": width, "blocks": 2, "stride": stride, "dilation": dilation}
            for width, stride, dilation in zip(WIDTHS, (1, 2), dilations, strict=True)
        ],
    }
    network = built(cifar_spec(shortcut="projection", image_size=30, **model), seed=0)
    randomise(network)
    images = random_images(2, 3, 30, 27)
    with torch.no_grad():
        found = network.eval()(images)
        wanted = compute(images, network.state_dict(), parts, stem, dilations)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert count_parameters(network) == count(parts, stem, expansion)
    assert network.layer2[-1].out_channels == WIDTHS[1] * (
        expansion if "bottleneck" in block else 1
    )
    network.train()(images).square().sum().backward()
    assert [key for key, weight in network.named_parameters() if weight.grad is None] == []
