"""What a recipe may freeze or activation_checkpointing, and what makes no sense together."""

from pathlib import Path

import pytest

from resnet_builder.builder import read_spec
from resnet_builder.errors import SpecError
from tests.cli.experiments import write_tiny

WEIGHTS = "model.weights=some.pth"
TWO_STAGES = "model.stages=[{channels: 4, blocks: 1}, {channels: 8, blocks: 1}]"


def messages(folder: Path, *overrides: str) -> list[str]:
    """Return what is wrong with a network of two stages, each message's first line."""
    with pytest.raises(SpecError) as raised:
        read_spec(write_tiny(folder), overrides=[TWO_STAGES, *overrides])
    assert {problem.file for problem in raised.value.errors} == {"<command line>:--set"}
    return [str(problem).partition("error")[2] for problem in raised.value.errors]


@pytest.mark.parametrize(
    "freeze", ["[stem]", "[layer2, stem]", "[stem, layer1, layer2]", "[head, layer1]"]
)
def test_sections_can_be_frozen(tmp_path: Path, freeze: str) -> None:
    overrides = [TWO_STAGES, WEIGHTS, f"train.freeze={freeze}"]
    spec = read_spec(write_tiny(tmp_path), overrides=overrides)
    assert spec.train is not None
    assert f"[{', '.join(spec.train.freeze)}]" == freeze


def test_unknown_section_gets_the_names_there_are(tmp_path: Path) -> None:
    first, second = messages(tmp_path, WEIGHTS, "train.freeze=[layer3, hed]")
    assert first == (
        "[unknown-name]: train.freeze[0]: the network has no 'layer3'\n"
        "      | train.freeze=[layer3, hed]\n"
        "      |               ^\n"
        "allowed: stem, layer1, layer2, head\n"
        "did you mean: layer2"
    )
    assert second.endswith("did you mean: head")


def test_only_stages_can_be_recomputed(tmp_path: Path) -> None:
    [message] = messages(tmp_path, "train.activation_checkpointing=[head]")
    assert message == (
        "[unknown-name]: train.activation_checkpointing[0]: the network has no stage 'head'\n"
        "      | train.activation_checkpointing=[head]\n"
        "      |                                 ^\n"
        "allowed: layer1, layer2"
    )


@pytest.mark.parametrize("stages", ["all", "[layer1]", "[layer2, layer1]"])
def test_stages_can_be_recomputed(tmp_path: Path, stages: str) -> None:
    overrides = [TWO_STAGES, f"train.activation_checkpointing={stages}"]
    spec = read_spec(write_tiny(tmp_path), overrides=overrides)
    assert spec.train is not None
    given = spec.train.activation_checkpointing
    assert given == stages if stages == "all" else f"[{', '.join(given)}]" == stages


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            (WEIGHTS, "train.freeze=[stem, head, stem]"),
            "[no-effect]: train.freeze[2]: 'stem' is named before",
        ),
        (
            (WEIGHTS, "train.freeze=[head, stem, layer2, layer1]"),
            "[exclusive]: train.freeze: this leaves nothing to train",
        ),
        (
            ("train.freeze=[stem]",),
            "[exclusive]: train.freeze: layers that were never trained would stay random: "
            "give `model.weights` too (a file of random weights, if that is meant)",
        ),
        (
            ("model.weights={path: some.pth, new_head: true}", "train.freeze=[head]"),
            "[exclusive]: train.freeze: a new head would stay random: do not freeze `head`, "
            "or take back `new_head`",
        ),
        (
            (WEIGHTS, "train.freeze=[head]", "train.head_lr_multiplier=2.0"),
            "[no-effect]: train.head_lr_multiplier: has no effect on a head that is frozen",
        ),
        (
            ("train.head_lr_multiplier=0",),
            "[out-of-range]: train.head_lr_multiplier: 0 is out of range",
        ),
        (
            ("train.activation_checkpointing=[layer1, layer1]",),
            "[no-effect]: train.activation_checkpointing[1]: 'layer1' is named before",
        ),
        (("train.freeze=stem",), "[wrong-type]: train.freeze: must be a list, not the text 'stem'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, overrides: tuple[str, ...], expected: str
) -> None:
    [message] = messages(tmp_path, *overrides)
    assert message.partition("\n")[0] == expected
