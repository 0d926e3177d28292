"""Networks of ten codebases, from their own files: the names, and the logits they gave there."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_builder.builder import build
from resnet_builder.errors import CheckpointError
from resnet_builder.weights.convert import load_weights
from resnet_builder.weights.key_maps import KeyMap, place_layers
from tests.networks import built, randomise
from tests.weights.others import NAMES, SPECS, large, read_network

BIASED = r"no part has a biased convolution, .* bias of stage1\.0\.residual\.[58]\.bias, "
ACTIVATED = "its blocks have an activation before squeeze-and-excitation, which no part has"

REFUSED = {
    "weiaicunzai-preactresnet18": BIASED,
    "weiaicunzai-preactresnet50": BIASED,
    "weiaicunzai-seresnet18": ACTIVATED,
    "weiaicunzai-seresnet50": ACTIVATED,
}
"""Networks that no part expresses, and why; see docs/reference/checkpoints.md."""

OTHERWISE_NAMED = {
    "chenyaofo-cifar10_resnet20": "torchvision",
    "timm-ecaresnet50d": "torchvision",
    "timm-resnet18": "torchvision",
    "timm-resnet50d": "torchvision",
    "timm-resnetv2_50": "timm resnetv2",
    "timm-seresnet50": "torchvision",
    "weiaicunzai-preactresnet18": "weiaicunzai preactresnet",
    "weiaicunzai-preactresnet50": "weiaicunzai preactresnet",
    "weiaicunzai-seresnet18": "weiaicunzai senet",
    "weiaicunzai-seresnet50": "weiaicunzai senet",
}
"""Key maps, where they are not simply called after the codebase."""

LARGE = {
    *("kuangliu-preactresnet50", "mmpretrain-resnet50", "mmpretrain-seresnet50"),
    *("pycls-anynet50", "pycls-resnet50", "timm-ecaresnet50d", "timm-resnet50d"),
    *("timm-seresnet50", "torchvision-resnext50_32x4d"),
    *("torchvision-wide_resnet50_2", "weiaicunzai-preactresnet50", "weiaicunzai-resnet50"),
    "weiaicunzai-seresnet50",
}
"""Networks that take seconds, and whose names a smaller one has as well."""

MEDIUM = {
    *("hysts-imagenet-resnet_preact18", "hysts-resnet-bottleneck29", "kuangliu-preactresnet18"),
    *("hysts-resnet_preact-basic20-pff", "hysts-resnet_preact-bottleneck29", "kuangliu-senet18"),
    *("kuangliu-resnet18", "kuangliu-resnext29_2x64d", "mmpretrain-resnet18_cifar"),
    *("pycls-resnet56", "timm-resnet18", "timm-resnetv2_50", "torchvision-resnet50"),
    *("weiaicunzai-preactresnet18", "weiaicunzai-resnet18", "weiaicunzai-seresnet18"),
}
"""Networks that together take as long as all tests of this folder."""


def parameters(names: Iterable[str]) -> list[Any]:
    marks = {name: [pytest.mark.slow] for name in LARGE}
    marks |= {name: [pytest.mark.ci] for name in MEDIUM}
    return [pytest.param(name, marks=marks.get(name, [])) for name in sorted(names)]


def test_every_network_has_a_spec() -> None:
    assert len(NAMES) == 42
    assert sorted(SPECS) == NAMES


@pytest.mark.parametrize("name", parameters(set(NAMES) - set(REFUSED)))
def test_weights_give_the_logits_of_their_own_codebase(name: str, tmp_path: Path) -> None:
    foreign = read_network(name)
    network = build(SPECS[name])
    torch.save(foreign.tensors(), tmp_path / "weights.pth")
    report = load_weights(network, tmp_path / "weights.pth")
    assert report.layout == OTHERWISE_NAMED.get(name, name.partition("-")[0])
    assert (report.missing, report.unexpected, report.uncounted) == ([], [], [])
    network.double().eval()  # their own rounding is all that is left
    with torch.no_grad():
        logits = network(foreign.images().double())
    wanted = torch.tensor(foreign.logits, dtype=torch.float64)
    assert (logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", parameters(REFUSED))
def test_networks_that_no_part_expresses_are_recognised_and_refused(
    name: str, tmp_path: Path
) -> None:
    torch.save(read_network(name).tensors(), tmp_path / "weights.pth")
    options = {"allow_missing": True, "allow_unexpected": True}
    with pytest.raises(CheckpointError, match=REFUSED[name]):
        load_weights(build(SPECS[name]), tmp_path / "weights.pth", **options)


def test_stages_and_blocks_are_renumbered() -> None:
    key_map = KeyMap(
        "theirs",
        {"s{stage}.b{block}.n{number}": ("absent", "layer{stage}.{block}.bn{number}")},
        first_stage=0,
        first_block=1,
    )
    assert key_map.translate("s2.b10.n3", {"layer3.9.bn3"}) == "layer3.9.bn3"
    assert key_map.translate("s2.b10.n3", {"layer3.10.bn3"}) is None
    assert key_map.translate("s2.b10.n3.conv", {"layer3.9.bn3"}) is None
    assert key_map.translate("fc", {"fc"}) == "fc"
    assert key_map.translate("linear", {"fc"}) is None


def test_own_names_are_taken_for_torchvisions() -> None:
    layers = ["conv1", "layer1.0.anything", "fc"]
    assert place_layers(layers, layers)[0].name == "torchvision"


MMPRETRAIN_STEM: tuple[tuple[str, Any], ...] = (
    (r"^conv1\.0", "stem.0.conv"),
    (r"^conv1\.1", "stem.0.bn"),
    (r"^conv1\.3", "stem.1.conv"),
    (r"^conv1\.4", "stem.1.bn"),
    (r"^conv1\.6", "stem.2.conv"),
    (r"^bn1", "stem.2.bn"),
    (r"^(?!fc)", "backbone."),
    (r"^fc", "head.fc"),
)
RENAMED: dict[str, tuple[str, dict[str, Any], tuple[tuple[str, Any], ...]]] = {
    "ResNetV1c": ("mmpretrain", {"stem": "deep"}, MMPRETRAIN_STEM),
    "ResNetV1d": (
        "mmpretrain",
        {"stem": "deep", "shortcut": "average_projection"},
        # Its first stage does not stride, and has no average in its shortcut.
        (
            (r"(layer1\.0\.downsample)\.1", r"\1.0"),
            (r"(layer1\.0\.downsample)\.2", r"\1.1"),
            *MMPRETRAIN_STEM,
        ),
    ),
    "ResNetForImageClassification": (
        "transformers",
        {},
        (
            (r"^conv1", "embedder.embedder.convolution"),
            (r"^bn1", "embedder.embedder.normalization"),
            (r"^layer(\d)\.(\d)", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}"),
            (r"downsample\.0", "shortcut.convolution"),
            (r"downsample\.1", "shortcut.normalization"),
            (r"conv(\d)", lambda m: f"layer.{int(m[1]) - 1}.convolution"),
            (r"bn(\d)", lambda m: f"layer.{int(m[1]) - 1}.normalization"),
            (r"^(?!fc)", "resnet."),
            (r"^fc", "classifier.1"),
        ),
    ),
}
"""Key map, network, and what makes its names of ours, by the class that has them."""


@pytest.mark.parametrize("name", RENAMED)
def test_names_that_no_stored_network_has_are_known(name: str, tmp_path: Path) -> None:
    layout, model, replacements = RENAMED[name]
    network = built(large((1, 2), widths=(4, 8), **model))
    wanted = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    theirs = {}
    for key, tensor in wanted.items():
        for pattern, replacement in replacements:
            key = re.sub(pattern, replacement, key)
        theirs[key] = tensor
    torch.save(theirs, tmp_path / "weights.pth")
    randomise(network)
    assert load_weights(network, tmp_path / "weights.pth").layout == layout
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in network.state_dict().items())


def test_mmpretrains_names_are_known_without_the_backbones_prefix() -> None:
    layers = [
        name.removeprefix("backbone.") for name in read_network("mmpretrain-resnet18_cifar").layers
    ]
    network = {
        name.rpartition(".")[0] for name in build(SPECS["mmpretrain-resnet18_cifar"]).state_dict()
    }
    key_map, _, places = place_layers(layers, network)
    assert key_map.name == "mmpretrain"
    assert set(places.values()) == network
