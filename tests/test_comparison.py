"""Comparison of two experiments, by their specs."""

from pathlib import Path
from typing import Any

import pytest

from resnet_builder.blocks import BLOCKS
from resnet_builder.blocks.basic import BasicBlock
from resnet_builder.comparison import compare
from resnet_builder.errors import UsageError
from resnet_builder.spec.dump import dump_spec
from tests.cli.experiments import write_tiny
from tests.networks import cifar_spec


def differences(a: object, b: object) -> dict[str, tuple[Any, Any]]:
    found = compare(str(a), str(b))
    return {one.path: (one.before, one.after) for one in found.differences}


def test_two_bundled_specs_differ_in_what_they_are_named_for() -> None:
    assert differences("resnet50", "resnet101") == {
        "name": ("resnet50", "resnet101"),
        "model.stages[2].blocks": (6, 23),
        "expect.parameters": (25_557_032, 44_549_160),
        "expect.depth": (50, 101),
        "expect.macs": (4_089_184_256, 7_801_405_440),
        "published.test_top1": (0.7613, 0.77374),
        "published.test_top5": (0.92862, 0.93546),
        "published.source": (
            "torchvision, ResNet50_Weights.IMAGENET1K_V1",
            "torchvision, ResNet101_Weights.IMAGENET1K_V1",
        ),
    }


def test_numbers_are_those_of_the_networks() -> None:
    found = compare("resnet20", "resnet32")
    subjects = (found.a, found.b)
    assert [one.parameters for one in subjects] == [269_722, 464_154]
    assert [one.macs for one in subjects] == [40_551_040, 68_862_592]
    assert [one.depth for one in subjects] == [20, 32]
    assert [(one.kind, one.metrics) for one in subjects] == [("spec", {}), ("spec", {})]


def test_part_is_told_without_its_defaults_unless_they_differ(tmp_path: Path) -> None:
    specs = []
    for name, shortcut in (
        ("end", "{type: pad, position: end, subsample: stride}"),
        ("both", "{type: pad, position: both}"),
        ("projected", "projection"),
    ):
        text = write_tiny(tmp_path).read_text().replace("shortcut: pad", f"shortcut: {shortcut}")
        specs.append(tmp_path / f"{name}.yaml")
        specs[-1].write_text(text)
    end, both, projected = specs
    assert differences(end, both) == {"model.shortcut.position": ("end", "both")}
    part = {"type": "pad", "position": "end"}
    assert differences(end, projected) == {"model.shortcut": (part, "projection")}
    assert differences(both, projected) == {"model.shortcut": ("pad", "projection")}


def test_section_that_one_lacks_is_told_without_defaults(tmp_path: Path) -> None:
    spec = write_tiny(tmp_path)
    bare = tmp_path / "bare.yaml"
    bare.write_text(spec.read_text().partition("\ntrain:")[0])
    told = differences(bare, spec)
    assert told["train"] == (
        None,
        {"epochs": 3, "batch_size": 32, "optimizer": {"type": "sgd", "lr": 0.1}},
    )
    assert told["run.device"] == ("auto", "cpu")


def test_run_that_was_only_set_up_has_no_metrics(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(dump_spec(cifar_spec(1)))
    found = compare(str(tmp_path), "resnet20").a
    assert (found.kind, found.metrics, found.name) == ("run", {}, "test")
    with pytest.raises(UsageError, match="is no run"):
        compare("resnet20", str(tmp_path.parent))


class Gained(BasicBlock):
    """A block from outside, with an option."""

    def __init__(self, *args: Any, gain: float = 1.0, **contract: Any) -> None:
        super().__init__(*args, **contract)


def test_part_from_outside_is_told_by_its_own_defaults(tmp_path: Path) -> None:
    plain, gained = write_tiny(tmp_path), tmp_path / "gained.yaml"
    text = plain.read_text()
    with BLOCKS.temporary("gained", Gained):
        for block, told in (
            ("gained", "gained"),
            ("{type: gained, gain: 2.0}", {"type": "gained", "gain": 2.0}),
        ):
            gained.write_text(text.replace("block: basic", f"block: {block}"))
            assert differences(plain, gained) == {"model.block": ("basic", told)}
