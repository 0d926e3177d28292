"""Comparison of experiments, by their specs."""

from pathlib import Path
from typing import Any

from resnet_builder.blocks import BLOCKS
from resnet_builder.blocks.basic import BasicBlock
from resnet_builder.comparison import compare
from tests.cli.experiments import write_tiny


def differences(a: object, b: object) -> dict[str, tuple[Any, ...]]:
    found = compare(str(a), str(b))
    return {one.path: one.values for one in found.differences}


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
