"""Networks of ten codebases, from their own files: the names, and the logits they gave there."""

import re
from pathlib import Path

import pytest
import torch

from resnet_builder.builder import build
from resnet_builder.weights.convert import match
from resnet_builder.weights.key_maps import KEY_MAPS, KeyMap, find_key_map
from tests.weights.others import NAMES, SPECS, read_network

REFUSED = {
    "weiaicunzai-preactresnet18",
    "weiaicunzai-preactresnet50",
    "weiaicunzai-seresnet18",
    "weiaicunzai-seresnet50",
}
"""Networks that no part expresses; docs/reference/checkpoints.md says why."""

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

WIDE = {"torchvision-wide_resnet50_2"}

EVERY = [
    pytest.param(name, marks=[pytest.mark.ci] if name in WIDE else [])
    for name in sorted(set(NAMES) - REFUSED)
]


def test_every_network_has_a_spec_and_every_key_map_is_in_the_documentation() -> None:
    assert len(NAMES) == 42
    assert sorted(SPECS) == NAMES
    text = (Path(__file__).parents[2] / "docs" / "reference" / "checkpoints.md").read_text(
        encoding="utf-8"
    )
    rows = re.findall(r"^\| `([^`]+)` \| \S", text, re.MULTILINE)
    names = tuple(key_map.name for key_map in KEY_MAPS)
    assert tuple(rows[: len(names)]) == names
    assert len(set(names)) == 11


@pytest.mark.parametrize("name", EVERY)
def test_weights_give_the_logits_of_their_own_codebase(name: str) -> None:
    foreign = read_network(name)
    network = build(SPECS[name])
    found = match(foreign.tensors(), network)
    assert found.key_map.name == OTHERWISE_NAMED.get(name, name.partition("-")[0])
    assert (found.missing, found.unexpected, found.mismatched) == ([], [], [])
    assert (found.unfoldable, found.uncounted, found.key_map.unsupported) == ([], [], None)
    network.load_state_dict(found.tensors)
    network.double().eval()  # their own rounding is all that is left
    with torch.no_grad():
        logits = network(foreign.images().double())
    wanted = torch.tensor(foreign.logits, dtype=torch.float64)
    assert (logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    ("name", "unfoldable"),
    [
        ("weiaicunzai-preactresnet50", 16 + 4),  # the last of each branch, and the shortcuts'
        ("weiaicunzai-seresnet50", 0),
    ],
)
def test_networks_that_no_part_expresses_are_recognised(name: str, unfoldable: int) -> None:
    found = match(read_network(name).tensors(), build(SPECS[name]))
    assert found.key_map.name == OTHERWISE_NAMED[name]
    assert (found.missing, found.unexpected, found.mismatched) == ([], [], [])
    assert len(found.unfoldable) == unfoldable
    assert (found.key_map.unsupported is None) == (unfoldable > 0)


def test_stages_and_blocks_are_renumbered() -> None:
    key_map = KeyMap(
        "theirs",
        {"s{stage}.b{block}.n{number}": ("absent", "layer{stage}.{block}.bn{number}")},
        first_stage=0,
        first_block=1,
        prefix="net.",
    )
    assert key_map.translate("s2.b10.n3", {"layer3.9.bn3"}) == "layer3.9.bn3"
    assert key_map.translate("net.s2.b10.n3", {"layer3.9.bn3"}) == "layer3.9.bn3"
    assert key_map.translate("s2.b10.n3", {"layer3.10.bn3"}) is None
    assert key_map.translate("s2.b10.n3.conv", {"layer3.9.bn3"}) is None
    assert key_map.translate("fc", {"fc"}) == "fc"
    assert key_map.translate("linear", {"fc"}) is None


def test_own_names_are_taken_for_torchvisions() -> None:
    layers = ["conv1", "layer1.0.anything", "fc"]
    assert find_key_map(layers, layers).name == "torchvision"


def test_mmpretrains_names_are_known_without_the_backbones_prefix() -> None:
    name = "mmpretrain-resnet18_cifar"
    theirs = {
        key.removeprefix("backbone."): one for key, one in read_network(name).tensors().items()
    }
    found = match(theirs, build(SPECS[name]))
    assert found.key_map.name == "mmpretrain"
    assert len(found.tensors) == len(theirs)
