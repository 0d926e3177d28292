"""Networks of ten codebases, from their own files: the names, and the logits they gave there."""

import re
from pathlib import Path

import pytest
import torch

from resnet_builder.builder import build
from resnet_builder.weights.layouts import LAYOUTS
from resnet_builder.weights.matching import match
from tests.weights.others import NAMES, SPECS, read_facts

REFUSED = {
    "weiaicunzai-preactresnet18",
    "weiaicunzai-preactresnet50",
    "weiaicunzai-seresnet18",
    "weiaicunzai-seresnet50",
}
"""What no part expresses; docs/layouts.md says why."""

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
"""Layouts, where they are not simply called after the codebase."""


def test_every_layout_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "layouts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| \S", text, re.MULTILINE)
    assert tuple(rows[: len(LAYOUTS)]) == tuple(layout.name for layout in LAYOUTS)


def test_every_network_has_a_spec() -> None:
    assert len(NAMES) == 42
    assert sorted(SPECS) == NAMES


WIDE = {"torchvision-wide_resnet50_2"}

EVERY = [
    pytest.param(name, marks=[pytest.mark.ci] if name in WIDE else [])
    for name in sorted(set(NAMES) - REFUSED)
]


@pytest.mark.parametrize("name", EVERY)
def test_weights_give_the_logits_of_their_own_codebase(name: str) -> None:
    facts = read_facts(name)
    network = build(SPECS[name])
    found = match(facts.tensors(), network)
    assert found.layout.name == OTHERWISE_NAMED.get(name, name.partition("-")[0])
    assert (found.missing, found.unexpected, found.mismatched) == ([], [], [])
    assert (found.unfoldable, found.uncounted, found.layout.refusal) == ([], [], None)
    network.load_state_dict(found.tensors)
    network.double().eval()  # their own rounding is all that is left
    with torch.no_grad():
        logits = network(facts.images().double())
    wanted = torch.tensor(facts.logits, dtype=torch.float64)
    assert (logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    ("name", "unfoldable"),
    [
        ("weiaicunzai-preactresnet50", 16 + 4),  # the last of each branch, and the shortcuts'
        ("weiaicunzai-seresnet50", 0),
    ],
)
def test_networks_that_no_part_expresses_are_recognised(name: str, unfoldable: int) -> None:
    found = match(read_facts(name).tensors(), build(SPECS[name]))
    assert found.layout.name == OTHERWISE_NAMED[name]
    assert (found.missing, found.unexpected, found.mismatched) == ([], [], [])
    assert len(found.unfoldable) == unfoldable
    assert (found.layout.refusal is None) == (unfoldable > 0)
