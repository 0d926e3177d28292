"""Checks that need the parts: exact messages, and what a recipe may freeze."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from resnet_builder.blocks import BLOCKS, SHORTCUTS
from resnet_builder.builder import check_source, read_spec
from resnet_builder.errors import SpecError
from resnet_builder.parts import resolve
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.load import load_spec_text
from tests.cli.experiments import write_tiny

SPEC = """\
name: small
model:
  num_classes: 10
  stem: {type: conv3x3, channels: 16}
  block: basic
  shortcut: pad
  stages:
    - {channels: 16, blocks: 1}
    - {channels: 32, blocks: 1, stride: 2}
data:
  dataset: cifar10
train:
  epochs: 2
  batch_size: 8
  optimizer: {type: sgd, lr: 0.1}
"""

SHORTCUT_NAMES = ", ".join(SHORTCUTS.names())


def problems(tmp_path: Path, *changes: tuple[str, str]) -> list[str]:
    """Return the problems of the spec with some of its text changed, one string each."""
    text = SPEC
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "s.yaml"
    path.write_text(text)
    found = check_source(path, with_macs=True).problems
    return [str(problem).replace(str(tmp_path), "") for problem in found]


def caret(line: int, text: str, col: int) -> str:
    return f"{line:>5} | {text}\n      | {' ' * (col - 1)}^"


def test_a_sound_spec_has_no_problems(tmp_path: Path) -> None:
    assert problems(tmp_path) == []


CASES: dict[str, tuple[list[tuple[str, str]], list[str]]] = {
    "shortcut": (
        [("shortcut: pad", "shortcut: projecton")],
        [
            "/s.yaml:6:13: error[unknown-name]: model.shortcut: no shortcut is named 'projecton'\n"
            + caret(6, "  shortcut: projecton", 13)
            + f"\nallowed: {SHORTCUT_NAMES}\ndid you mean: projection"
        ],
    ),
    "letter": (
        [("shortcut: pad", "shortcut: C")],
        [
            "/s.yaml:6:13: error[unknown-name]: model.shortcut: no shortcut is named 'C': "
            "option C of He et al. 2015 is `projection_all`; KellerJordan's C is `pad` with "
            "`subsample: average`\n"
            + caret(6, "  shortcut: C", 13)
            + f"\nallowed: {SHORTCUT_NAMES}"
        ],
    ),
    "block": (
        [("block: basic", "block: botleneck")],
        [
            "/s.yaml:5:10: error[unknown-name]: model.block: no block is named 'botleneck'\n"
            + caret(5, "  block: botleneck", 10)
            + "\nallowed: basic, bottleneck, preact_basic, preact_bottleneck"
            + "\ndid you mean: bottleneck"
        ],
    ),
    "identity": (
        [("shortcut: pad", "shortcut: identity")],
        [
            "/s.yaml:6:13: error[unknown-name]: model.shortcut: no shortcut is named 'identity': "
            "where nothing changes every shortcut is one; `pad` needs no parameters anywhere\n"
            + caret(6, "  shortcut: identity", 13)
            + f"\nallowed: {SHORTCUT_NAMES}"
        ],
    ),
    "narrowing": (
        [("channels: 32", "channels: 8")],
        [
            "/s.yaml:9:7: error[shape]: model.stages[1]: `pad` cannot narrow 16 channels to 8\n"
            + caret(9, "    - {channels: 8, blocks: 1, stride: 2}", 7)
        ],
    ),
    "strides": (
        [
            ("stride: 2", "stride: 8"),
            ("channels: 16, blocks: 1}", "channels: 16, blocks: 1, stride: 8}"),
        ],
        [
            "/s.yaml:8:5: error[shape]: model.stages: strides shrink 32 pixels below one: "
            "stem 32, layer1 4, layer2 below 1\n"
            + caret(8, "    - {channels: 16, blocks: 1, stride: 8}", 5)
        ],
    ),
    "bottleneck": (
        [("block: basic", "block: {type: bottleneck, width_per_group: 5}")],
        [
            "/s.yaml:5:46: error[shape]: model.block.width_per_group: "
            "16 channels at 5 per 64 are not a whole number\n"
            + caret(5, "  block: {type: bottleneck, width_per_group: 5}", 46)
        ],
    ),
    "even-kernel-of-attention": (
        [("block: basic", "block: basic\n  attention: {type: eca, kernel: 4}")],
        [
            "/s.yaml:6:34: error[out-of-range]: model.attention.kernel: "
            "a kernel of 4 has no middle\n" + caret(6, "  attention: {type: eca, kernel: 4}", 34)
        ],
    ),
    "reduction": (
        [("channels: 32,", "attention: {type: se, reduction: 64}, channels: 32,")],
        [
            "/s.yaml:9:41: error[shape]: model.stages[1].attention.reduction: "
            "32 channels cannot be reduced 64 times; a `divisor` rounds\n"
            + caret(
                9,
                "    - {attention: {type: se, reduction: 64}, channels: 32, blocks: 1, stride: 2}",
                41,
            )
        ],
    ),
    "groups": (
        [("block: basic", "block: basic\n  norm: {type: group_norm, groups: 5}")],
        [
            "/s.yaml:6:36: error[shape]: model.norm.groups: 5 groups do not divide 16 channels\n"
            + caret(6, "  norm: {type: group_norm, groups: 5}", 36)
        ],
    ),
    "even-kernel": (
        [("channels: 16}\n  block", "channels: 16, kernel: 4}\n  block")],
        [
            "/s.yaml:4:39: error[unknown-option]: model.stem.kernel: there is no such option\n"
            + caret(4, "  stem: {type: conv3x3, channels: 16, kernel: 4}", 39)
            + "\nallowed: channels, bare"
        ],
    ),
    "classes": (
        [("dataset: cifar10", "dataset: cifar100")],
        [
            "/s.yaml:3:16: error[mismatch]: model.num_classes: "
            "the network is for 10 classes, cifar100 has 100\n" + caret(3, "  num_classes: 10", 16)
        ],
    ),
    "channels": (
        [("num_classes: 10", "num_classes: 10\n  in_channels: 1")],
        [
            "/s.yaml:4:16: error[mismatch]: model.in_channels: the network is for 1 channels, "
            "cifar10 has 3; `to_rgb` under data.preprocess makes three of one\n"
            + caret(4, "  in_channels: 1", 16)
        ],
    ),
    "augmentation-channels": (
        [
            (
                "dataset: cifar10",
                "dataset: {type: synthetic, channels: 4}\n"
                "  augment: [horizontal_flip, trivial_augment]",
            )
        ],
        [
            "/s.yaml:12:30: error[mismatch]: data.augment[1]: `trivial_augment` changes images of "
            "1 or 3 channels, not 4\n"
            + caret(12, "  augment: [horizontal_flip, trivial_augment]", 30)
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_message_is_exact(name: str, tmp_path: Path) -> None:
    changes, wanted = CASES[name]
    assert problems(tmp_path, *changes) == wanted


@pytest.mark.parametrize("name", ["trivial_augment", "rand_augment"])
@pytest.mark.parametrize(("channels", "count"), [(1, 0), (2, 1), (3, 0)])
def test_colours_are_changed_of_images_that_have_them(
    name: str, channels: int, count: int, tmp_path: Path
) -> None:
    data = f"dataset: {{type: synthetic, channels: {channels}}}\n  augment: [{name}]"
    assert len(problems(tmp_path, ("dataset: cifar10", data))) == count


@pytest.mark.parametrize(
    ("change", "shapes"),
    [
        (("channels: 32, blocks: 1, stride: 2", "channels: 32, blocks: 1"), (32, 1)),
        (("channels: 32, blocks: 1, stride: 2", "channels: 16, blocks: 1, stride: 2"), (16, 2)),
        (("channels: 32", "channels: 32"), (32, 2)),
    ],
    ids=["channels", "stride", "both"],
)
def test_identity_where_the_shape_changes_is_refused_with_both_shapes(
    change: tuple[str, str], shapes: tuple[int, int], tmp_path: Path
) -> None:
    channels, stride = shapes
    with SHORTCUTS.temporary("mine", lambda *_: nn.Identity()):
        [found] = problems(tmp_path, ("shortcut: pad", "shortcut: mine"), change)
    assert found.startswith(
        "/s.yaml:9:7: error[shape]: model.stages[1]: shortcut 'mine' hands on 16 channels at "
        f"stride 1, where the block gives {channels} at stride {stride}\n"
    )


def test_both_halves_report_together_in_file_order(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        ("block: basic", "block: basik"),
        ("epochs: 2", "epochs: two"),
        ("lr: 0.1", "lr: 0"),
    )
    assert [text.split(": ")[1] for text in found] == [
        "error[unknown-name]",
        "error[wrong-type]",
        "error[out-of-range]",
    ]


MODEL, DATA, TRAIN = "shortcut: pad", "dataset: cifar10", "epochs: 2"


@pytest.mark.parametrize(
    ("old", "new", "path", "code"),
    [
        (MODEL, "shortcut: none\n  zero_init_residual: true", "zero_init_residual", "exclusive"),
        (MODEL, "shortcut: none\n  drop_path: 0.1", "drop_path", "exclusive"),
        (TRAIN, f"{TRAIN}\n  early_stop: {{patience: 3}}", "early_stop", "no-effect"),
        (TRAIN, f"{TRAIN}\n  evaluate_every: {{steps: 3}}", "evaluate_every", "no-effect"),
        (DATA, f"{DATA}\n  augment: [mixup, trivial_augment]", "augment[1]", "exclusive"),
        (
            DATA,
            f"{DATA}\n  augment: [mixup, {{type: random_resized_crop, size: 32}}]",
            "augment[1]",
            "exclusive",
        ),
        ("name: small", "name: small\nexpect: {parameters: 1}", "parameters", "expect"),
        ("name: small", "name: small\nexpect: {depth: 1}", "depth", "expect"),
        ("name: small", "name: small\nexpect: {macs: 1}", "macs", "expect"),
    ],
)
def test_what_cannot_work_together_is_refused(
    old: str, new: str, path: str, code: str, tmp_path: Path
) -> None:
    found = problems(tmp_path, (old, new))
    assert len(found) == 1
    assert f"error[{code}]" in found[0]
    assert path in found[0].split("\n")[0]


class Bare(nn.Module):
    """A block that takes nothing but what is compulsory."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, shortcut: Any) -> None:
        super().__init__()
        self.out_channels = channels
        self.conv = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.downsample = shortcut(in_channels, channels, stride)

    def zero_residual(self) -> None:
        nn.init.zeros_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.downsample(x)


class Broken(Bare):
    """A block that builds, but cannot compute."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


@pytest.mark.parametrize(
    "asked", ["norm: {type: group_norm, groups: 8}", "drop_path: 0.1"], ids=["norm", "drop_path"]
)
def test_what_a_block_does_not_take_is_refused(asked: str, tmp_path: Path) -> None:
    with BLOCKS.temporary("bare", Bare):
        found = problems(tmp_path, ("block: basic", f"block: bare\n  {asked}"))
    assert "no-effect" in found[0]
    assert f"block 'bare' in stages[0] takes no `{asked.split(':')[0]}`" in found[0]


def test_a_block_that_cannot_compute_is_a_message_not_a_torch_error(tmp_path: Path) -> None:
    with BLOCKS.temporary("broken", Broken):
        found = problems(tmp_path, ("block: basic", "block: broken"))
    assert len(found) == 1
    assert "error[shape]: model: a forward pass fails: " in found[0]


def test_a_typo_under_data_hides_no_network_problem_and_makes_none(tmp_path: Path) -> None:
    found = problems(
        tmp_path, ("dataset: cifar10", "datasett: cifar10"), ("epochs: 2", "epochs: 0")
    )
    assert {text.split("error[")[1].split("]")[0] for text in found} == {
        "unknown-key",
        "out-of-range",
    }


def test_a_resolved_spec_writes_everything_out_and_loads_as_itself(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SPEC)
    spec = read_spec(path)
    assert (spec.model.in_channels, spec.model.image_size) == (3, 32)
    assert spec.model.block.options == {"dropout": 0.0}
    assert spec.model.shortcut.options == {"position": "both", "subsample": "stride"}
    assert spec.model.norm.options == {"eps": 1e-5, "momentum": 0.1}
    text = dump_spec(spec)
    assert load_spec_text(text) == spec
    assert resolve(load_spec_text(text)) == spec


def test_facts_of_the_data_set_are_the_network_s_defaults(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SPEC.replace("cifar10", "digits"))
    spec = read_spec(path)
    assert (spec.model.in_channels, spec.model.image_size) == (1, 8)
    path.write_text(
        SPEC.replace(
            "dataset: cifar10",
            "dataset: digits\n  preprocess: [{type: resize, size: 16}, to_rgb]",
        )
    )
    spec = read_spec(path)
    assert (spec.model.in_channels, spec.model.image_size) == (3, 16)


def test_read_spec_raises_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SPEC.replace("basic", "basik").replace("lr: 0.1", "lr: 0"))
    with pytest.raises(SpecError) as caught:
        read_spec(path)
    assert [error.line for error in caught.value.errors] == [5, 15]


def test_depth_has_no_default(tmp_path: Path) -> None:
    """KellerJordan's had two, which differed."""
    [found] = problems(tmp_path, ("  stages:\n", "  stages: null\n  x:\n"))[:1]
    assert "model.stages: is missing" in found


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
