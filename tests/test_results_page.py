"""``docs/results.md`` is what ``benchmarks/networks.py`` writes from its JSON."""

import importlib
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from resnet_builder.builder import check_source

ROOT = Path(__file__).parent.parent


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Module ``benchmarks/networks.py``."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("networks")


def result(accuracies: list[float], networks: Any, lr: float | None = None) -> dict[str, Any]:
    """Return what the JSON has of a network."""
    curve = [{"step": step, "train_top1": step / 10, "val_top1": 0.5} for step in (2, 4)]
    runs = [
        {"seed": seed, "test_top1": one, "train_top1": 0.4, "steps": 4, "device": "CPU, 2 cores",
         "curve": curve}
        for seed, one in enumerate(accuracies)
    ]  # fmt: skip
    return {
        "what": "a network",
        "epochs": 2,
        "lr": lr,
        "parameters": 269_722,
        "macs": 40_551_808,
        "images": {"train": 45_000, "val": 5_000, "test": 10_000},
        **networks.spread("test_top1", runs),
        **networks.spread("train_top1", runs),
        "runs": runs,
    }


def test_page_has_the_numbers_of_the_json_and_sentences_that_they_support(networks: Any) -> None:
    found = {
        "recipe": "one_cycle10",
        "networks": {
            "resnet20": result([0.80, 0.81, 0.82], networks),
            "resnet20_projection": result([0.805, 0.82, 0.83], networks),
            "resnet20_projection_all": result([0.90, 0.91, 0.92], networks),
            "plain56": result([0.50, 0.51, 0.52], networks, lr=0.1),
            "resnet56": result([0.60, 0.61, 0.62], networks, lr=0.1),
        },
    }
    page = networks.page(found)
    assert "| `resnet20` | a network | 269,722 | 40,551,808 | 81.00 ± 1.00 % | 3 |" in page
    assert (
        "| `plain56` | a network | 269,722 | 40,551,808 | 51.00 ± 1.00 % | 40.00 ± 0.00 % | 3 |"
    ) in page
    assert (
        "option B has +0.83 points (standard error 0.93) and option C has +10.00 points (standard "
        "error 0.82) on the test images. The difference of option C is larger than the spread over "
        "the seeds explains; that of option B is not."
    ) in page.replace("\n", " ")
    assert "`resnet56` has +10.00 points (standard error 0.82) beside `plain56`" in page
    pictures = networks.pictures(found)
    assert sorted(pictures) == ["plain56.svg", "results.svg"]
    told = " ".join(" ".join(ElementTree.fromstring(one).itertext()) for one in pictures.values())
    told = " ".join(told.split())
    assert all(text in told for text in ("81.00 % n = 3", "91.00 % n = 3", "plain56", "resnet56"))


def test_page_is_what_the_json_gives(networks: Any) -> None:
    if not networks.PAGE.exists():
        pytest.skip("the trainings are not done")
    found = json.loads(networks.JSON.read_text(encoding="utf-8"))
    assert networks.PAGE.read_text(encoding="utf-8") == networks.page(found)
    for name, picture in networks.pictures(found).items():
        assert (networks.PAGE.parent / "images" / name).read_text(encoding="utf-8") == picture


def test_networks_are_what_their_names_say(networks: Any) -> None:
    depths = {"resnet20": 20, "kj20": 20, "preact20": 20, "plain56": 56, "wrn16_2": 14}
    for network in networks.NETWORKS:
        checked = check_source(network.spec, overrides=["expect=null", *network.changes])
        assert not checked.problems
        assert checked.network is not None
        assert checked.network.depth == depths.get(network.name, checked.network.depth)
