"""Networks of other codebases: their tensors, and specs that describe them."""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resnet_builder.spec.schema import Spec
from tests.networks import cifar_spec

FOLDER = Path(__file__).parent / "layouts"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


@dataclass(frozen=True, slots=True)
class ForeignNetwork:
    """Network of another codebase: layers, shapes and true logits; see ``layouts/README.md``."""

    source: str
    build: str
    input: tuple[int, ...]
    layers: Mapping[str, Sequence[int]]
    biased: Sequence[str]
    logits: Sequence[Sequence[float]]

    def tensors(self) -> dict[str, Tensor]:
        """Make its state dict, by its own names."""
        found: dict[str, Tensor] = {}
        for layer, shape in self.layers.items():
            found |= norm(layer, shape) if len(shape) == 1 else convolution(layer, shape)
            if layer in self.biased:
                name = f"{layer}.bias"
                found[name] = (even(name, shape[:1]) - 0.5) * 0.2
        return {name: tensor.float() for name, tensor in found.items()} | counters(self.layers)

    def images(self) -> Tensor:
        """Make the images that the logits are of."""
        steps = torch.arange(1, math.prod(self.input) + 1, dtype=torch.float64) * 0.7548776662466927
        return (2 * steps.frac() - 1).float().reshape(self.input)


def read_network(name: str) -> ForeignNetwork:
    """Read the description of a network."""
    return ForeignNetwork(**json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))


def even(name: str, shape: Sequence[int]) -> Tensor:
    """Spread numbers evenly over 0 to 1, by a tensor's name, in fp64."""
    start = zlib.crc32(name.encode()) / 2**32
    steps = np.arange(1, math.prod(shape) + 1) * 0.6180339887498949 + start
    return torch.from_numpy(steps - np.floor(steps)).reshape(tuple(shape))


def convolution(layer: str, shape: Sequence[int]) -> dict[str, Tensor]:
    """Make the weight of a convolution or linear layer."""
    name = f"{layer}.weight"
    return {name: (even(name, shape) - 0.5) * 2 * math.sqrt(3 / math.prod(shape[1:]))}


def norm(layer: str, shape: Sequence[int]) -> dict[str, Tensor]:
    """Make the tensors of a batch norm, except its counter."""
    return {
        f"{layer}.weight": 0.5 + even(f"{layer}.weight", shape),
        f"{layer}.bias": even(f"{layer}.bias", shape) - 0.5,
        f"{layer}.running_mean": even(f"{layer}.running_mean", shape) - 0.5,
        f"{layer}.running_var": 0.5 + 1.5 * even(f"{layer}.running_var", shape),
    }


def counters(layers: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Make the counters of the batch norms."""
    norms = (layer for layer, shape in layers.items() if len(shape) == 1)
    return {f"{layer}.num_batches_tracked": torch.tensor(0) for layer in norms}


def small(blocks: int | Sequence[int] = 3, block: Any = "basic", **model: Any) -> Spec:
    """Describe a network for CIFAR images; shortcuts project unless told otherwise."""
    return cifar_spec(blocks, block=block, **{"shortcut": "projection", **model})


def large(blocks: Sequence[int], block: Any = "bottleneck", **model: Any) -> Spec:
    """Describe a network for ImageNet."""
    given = {"widths": WIDE, "classes": 1000, "stem": "conv7x7_maxpool", "image_size": 64}
    return small(blocks, block, **{**given, **model})


def preact(kind: str = "basic", **options: Any) -> dict[str, Any]:
    """Name a pre-activated block."""
    return {"type": f"preact_{kind}", **options}


def stem(channels: int, *, bare: bool = False) -> dict[str, Any]:
    """Name a stem for small images."""
    return {"type": "conv3x3", "channels": channels, "bare": bare}


def hysts(first: Any, others: Any, **model: Any) -> Spec:
    """Describe hysts' pre-activated ResNet-20, whose first stage may have blocks of its own."""
    stages = [
        {"channels": 16, "blocks": 3, "block": first},
        {"channels": 32, "blocks": 3, "stride": 2},
        {"channels": 64, "blocks": 3, "stride": 2},
    ]
    return small(block=others, stages=stages, stem=stem(16, bare=True), **model)


WIDE = (64, 128, 256, 512)
FOUR_TIMES_TWO = (2, 2, 2, 2)
SIXTEEN = (3, 4, 6, 3)
ACTIVATED = preact(shared="first")
RAW = preact(shared="never")
PYRAMID = {"first_activation": False, "last_norm": True}
RESNET50D: dict[str, Any] = {"stem": "deep", "shortcut": "average_projection"}

SPECS: dict[str, Spec] = {
    "akamaster-resnet20": small(shortcut="pad"),
    "chenyaofo-cifar10_resnet20": small(),
    "hysts-imagenet-resnet_preact18": large(FOUR_TIMES_TWO, ACTIVATED),
    "hysts-resnet-basic20": small(),
    "hysts-resnet-bottleneck29": small(block="bottleneck", widths=(4, 32, 64), stem=stem(16)),
    "hysts-resnet_preact-basic20": hysts(ACTIVATED, ACTIVATED),
    "hysts-resnet_preact-basic20-norelu-lastbn": hysts(ACTIVATED | PYRAMID, RAW | PYRAMID),
    "hysts-resnet_preact-basic20-pff": hysts(ACTIVATED, RAW),
    "hysts-resnet_preact-bottleneck29": small(
        block=preact("bottleneck", shared="first"), widths=(4, 32, 64), stem=stem(16, bare=True)
    ),
    "hysts-se_resnet_preact-basic20": hysts(ACTIVATED | PYRAMID, RAW | PYRAMID, attention="se"),
    "hysts-se_resnet_preact-basic20-plain": hysts(ACTIVATED, ACTIVATED, attention="se"),
    "hysts-wrn16_2": small(2, preact(), widths=(32, 64, 128), stem=stem(16, bare=True)),
    "kellerjordan-resnet20-a": small(shortcut={"type": "pad", "position": "end"}),
    "kellerjordan-resnet20-c": small(
        shortcut={"type": "pad", "position": "end", "subsample": "average"}
    ),
    "kuangliu-preactresnet18": small(
        FOUR_TIMES_TWO, preact(), widths=WIDE, stem=stem(64, bare=True), head="linear"
    ),
    "kuangliu-preactresnet50": small(
        SIXTEEN, preact("bottleneck"), widths=WIDE, stem=stem(64, bare=True), head="linear"
    ),
    "kuangliu-resnet18": small(FOUR_TIMES_TWO, widths=WIDE),
    "kuangliu-resnext29_2x64d": small(
        block={"type": "bottleneck", "groups": 2},
        widths=(64, 128, 256),
        stem={"type": "conv1x1", "channels": 64},
    ),
    "kuangliu-senet18": small(FOUR_TIMES_TWO, preact(), widths=WIDE, attention="se", head="linear"),
    "mmpretrain-resnet18_cifar": small(FOUR_TIMES_TWO, widths=WIDE),
    "mmpretrain-resnet50": large(SIXTEEN),
    "mmpretrain-seresnet50": large(SIXTEEN, attention="se"),
    "pycls-anynet20": small(),
    "pycls-anynet50": large(SIXTEEN),
    "pycls-resnet20": small(),
    "pycls-resnet50": large(SIXTEEN),
    "pycls-resnet56": small(9),
    "timm-ecaresnet50d": large(SIXTEEN, **RESNET50D, attention="eca"),
    "timm-resnet18": large(FOUR_TIMES_TWO, "basic"),
    "timm-resnet50d": large(SIXTEEN, **RESNET50D),
    "timm-resnetv2_50": large(
        SIXTEEN, preact("bottleneck"), stem={"type": "conv7x7_maxpool", "bare": True}
    ),
    "timm-seresnet50": large(SIXTEEN, attention="se"),
    "torchvision-resnet18": large(FOUR_TIMES_TWO, "basic"),
    "torchvision-resnet50": large(SIXTEEN),
    "torchvision-resnext50_32x4d": large(
        SIXTEEN, {"type": "bottleneck", "groups": 32, "width_per_group": 4}
    ),
    "torchvision-wide_resnet50_2": large(SIXTEEN, {"type": "bottleneck", "width_per_group": 128}),
    "weiaicunzai-preactresnet18": small(
        FOUR_TIMES_TWO, RAW, widths=WIDE, classes=100, head="linear"
    ),
    "weiaicunzai-preactresnet50": small(
        SIXTEEN,
        preact("bottleneck", shared="never", stride_in="conv1x1"),
        widths=WIDE,
        classes=100,
        head="linear",
    ),
    "weiaicunzai-resnet18": small(FOUR_TIMES_TWO, widths=WIDE, classes=100),
    "weiaicunzai-resnet50": small(SIXTEEN, "bottleneck", widths=WIDE, classes=100),
    "weiaicunzai-seresnet18": small(FOUR_TIMES_TWO, widths=WIDE, classes=100, attention="se"),
    "weiaicunzai-seresnet50": small(
        SIXTEEN, "bottleneck", widths=WIDE, classes=100, attention="se"
    ),
}
"""What describes each network; for four of weiaicunzai's, as nearly as parts can."""
