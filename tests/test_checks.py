"""Checks that need the parts: exact messages, and what a recipe may freeze."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.blocks import BLOCKS, SHORTCUTS
from resnet_builder.builder import check_source, read_spec
from resnet_builder.errors import SpecError
from resnet_builder.parts import resolve
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.load import load_spec_text
from tests.cli.experiments import call, write_tiny

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


def problems(folder: Path, *changes: tuple[str, str]) -> list[str]:
    """Return the problems of the spec with some of its text changed, without its folder."""
    text = SPEC
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "s.yaml").write_text(text)
    found = check_source(folder / "s.yaml", with_forward=True).problems
    return [str(problem).replace(f"{folder}/", "") for problem in found]


SHORTCUT_NAMES = f"\nallowed: {', '.join(SHORTCUTS.names())}"
BLOCK, SHORTCUT, DATA, TRAIN = "block: basic", "shortcut: pad", "dataset: cifar10", "epochs: 2"

# What is changed, the message, and what follows the line of the spec with its caret.
MESSAGES = [
    (
        (SHORTCUT, "shortcut: projecton"),
        "6:13: error[unknown-name]: model.shortcut: no shortcut is named 'projecton'",
        f"{SHORTCUT_NAMES}\ndid you mean: projection",
    ),
    (
        (SHORTCUT, "shortcut: C"),
        "6:13: error[unknown-name]: model.shortcut: no shortcut is named 'C': option C of He et al."
        " 2015 is `projection_all`; KellerJordan's C is `pad` with `subsample: average`",
        SHORTCUT_NAMES,
    ),
    (
        (BLOCK, "block: botleneck"),
        "5:10: error[unknown-name]: model.block: no block is named 'botleneck'",
        "\nallowed: basic, bottleneck, preact_basic, preact_bottleneck\ndid you mean: bottleneck",
    ),
    (
        (SHORTCUT, "shortcut: identity"),
        "6:13: error[unknown-name]: model.shortcut: no shortcut is named 'identity': where nothing "
        "changes every shortcut is one; `pad` needs no parameters anywhere",
        SHORTCUT_NAMES,
    ),
    (
        ("channels: 32", "channels: 8"),
        "9:7: error[shape]: model.stages[1]: `pad` cannot narrow 16 channels to 8",
        "",
    ),
    (
        ("stride: 2}", "stride: 8}\n    - {channels: 32, blocks: 1, stride: 8}"),
        "8:5: error[shape]: model.stages: strides shrink 32 pixels below one: "
        "stem 32, layer1 32, layer2 4, layer3 below 1",
        "",
    ),
    (
        (BLOCK, "block: {type: bottleneck, width_per_group: 5}"),
        "5:46: error[shape]: model.block.width_per_group: "
        "16 channels at 5 per 64 are not a whole number",
        "",
    ),
    (
        (BLOCK, f"{BLOCK}\n  attention: {{type: eca, kernel: 4}}"),
        "6:34: error[out-of-range]: model.attention.kernel: a kernel of 4 has no middle",
        "",
    ),
    (
        ("channels: 32,", "attention: {type: se, reduction: 64}, channels: 32,"),
        "9:41: error[shape]: model.stages[1].attention.reduction: "
        "32 channels cannot be reduced 64 times; a `divisor` rounds",
        "",
    ),
    (
        (BLOCK, f"{BLOCK}\n  norm: {{type: group_norm, groups: 5}}"),
        "6:36: error[shape]: model.norm.groups: 5 groups do not divide 16 channels",
        "",
    ),
    (
        ("channels: 16}\n  block", "channels: 16, kernel: 4}\n  block"),
        "4:39: error[unknown-option]: model.stem.kernel: there is no such option",
        "\nallowed: channels, bare",
    ),
    (
        ("conv3x3, channels: 16", "conv, channels: 16, kernel_size: 4, stride: 2"),
        "4:49: error[out-of-range]: model.stem.kernel_size: a kernel of 4 must have a stride of 4, "
        "for patches; kernels of other strides are odd",
        "",
    ),
    (
        ("type: conv3x3", "type: conv7x7"),
        "4:16: error[unknown-name]: model.stem: no stem is named 'conv7x7': kernel, stride and "
        "pooling are options of the stem `conv`",
        "\nallowed: conv, conv1x1, conv3x3, conv7x7_maxpool, deep",
    ),
    (
        (BLOCK, "block: {type: bottleneck, expansion: 17}"),
        "5:40: error[out-of-range]: model.block.expansion: 17 is out of range",
        "\nallowed: 1 to 16",
    ),
    (
        (BLOCK, "block: {type: basic, expansion: 2}"),
        "5:24: error[unknown-option]: model.block.expansion: there is no such option",
        "\nallowed: dropout",
    ),
    (
        ("stride: 2}", "dilation: 0}"),
        "9:43: error[out-of-range]: model.stages[1].dilation: 0 is out of range",
        "\nallowed: 1 to 64",
    ),
    (
        (DATA, "dataset: cifar100"),
        "3:16: error[mismatch]: model.num_classes: must be 100, the classes of cifar100, not 10",
        "",
    ),
    (
        ("num_classes: 10", "num_classes: 10\n  in_channels: 1"),
        "4:16: error[mismatch]: model.in_channels: must be 3, the channels of cifar10, not 1",
        "",
    ),
    (
        (DATA, "dataset: {type: synthetic, channels: 4}\n  augment: [mixup, trivial_augment]"),
        "12:20: error[mismatch]: data.augment[1]: `trivial_augment` changes images of "
        "1 or 3 channels, not 4",
        "",
    ),
]


@pytest.mark.parametrize(("change", "message", "rest"), MESSAGES)
def test_message_is_exact(change: tuple[str, str], message: str, rest: str, tmp_path: Path) -> None:
    [found] = problems(tmp_path, change)
    line, col, _ = message.split(":", 2)
    text = (tmp_path / "s.yaml").read_text().splitlines()[int(line) - 1]
    caret = " " * (int(col) - 1) + "^"
    assert found == f"s.yaml:{message}\n{line:>5} | {text}\n      | {caret}{rest}"


@pytest.mark.parametrize(
    ("dataset", "given", "message"),
    [
        (
            "fashion_mnist",
            "in_channels: 3",
            "must be 1, the channels of fashion_mnist, not 3; or add `to_rgb`",
        ),
        ("fashion_mnist", "in_channels: 2", "must be 1, the channels of fashion_mnist, not 2\n"),
        ("cifar10", "in_channels: 4", "must be 3, the channels of cifar10, not 4\n"),
        (
            "cifar10",
            "image_size: 64",
            "not 64; or add `resize` or `center_crop` to data.preprocess",
        ),
    ],
)
def test_advice_for_other_images_is_possible(
    dataset: str, given: str, message: str, tmp_path: Path
) -> None:
    network = ("num_classes: 10", f"num_classes: 10\n  {given}")
    [found] = problems(tmp_path, (DATA, f"dataset: {dataset}"), network)
    assert message in found


@pytest.mark.parametrize(
    ("change", "channels", "stride"),
    [
        (("channels: 32, blocks: 1, stride: 2", "channels: 32, blocks: 1"), 32, 1),
        (("channels: 32", "channels: 16"), 16, 2),
        (("channels: 32", "channels: 32"), 32, 2),
    ],
)
def test_identity_where_the_shape_changes_is_refused_with_both_shapes(
    change: tuple[str, str], channels: int, stride: int, tmp_path: Path
) -> None:
    with SHORTCUTS.temporary("mine", lambda *_: nn.Identity()):
        [found] = problems(tmp_path, (SHORTCUT, "shortcut: mine"), change)
    assert found.startswith(
        "s.yaml:9:7: error[shape]: model.stages[1]: shortcut 'mine' hands on 16 channels at "
        f"stride 1, where the block gives {channels} at stride {stride}\n"
    )


def codes(found: list[str]) -> list[str]:
    """Return the code of each problem."""
    return [text.split("error[")[1].split("]")[0] for text in found]


def test_both_halves_report_together_in_file_order(tmp_path: Path) -> None:
    found = problems(
        tmp_path, (BLOCK, "block: basik"), (TRAIN, "epochs: two"), ("lr: 0.1", "lr: 0")
    )
    assert codes(found) == ["unknown-name", "wrong-type", "out-of-range"]


@pytest.mark.parametrize(
    ("old", "new", "path", "code"),
    [
        (SHORTCUT, "shortcut: none\n  zero_init_residual: true", "zero_init_residual", "exclusive"),
        (SHORTCUT, "shortcut: none\n  drop_path: 0.1", "drop_path", "exclusive"),
        (
            BLOCK,
            f"{BLOCK}\n  norm: frozen_batch_norm\n  zero_init_residual: true",
            "zero_init_residual",
            "no-effect",
        ),
        (BLOCK, "block: preact_basic\n  antialias: blur", "antialias", "no-effect"),
        (DATA, f"{DATA}\n  normalize: {{mean: [0, 0], std: [1, 1]}}", "data.normalize", "shape"),
        (DATA, f"{DATA}\n  normalize: {{mean: [0], std: [1]}}", "data.normalize", "shape"),
        (", stride: 2}", "}\n  antialias: blur", "antialias", "no-effect"),
        ("stride: 2}", "dilation: 2, block: bottleneck}", "stages[1].dilation", "no-effect"),
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
    assert set(codes(found)) == {code}
    assert path in found[0].split("\n")[0]


class Bare(nn.Module):
    """A block that takes nothing but what is compulsory."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, shortcut: Any) -> None:
        super().__init__()
        self.out_channels = channels
        self.conv = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.downsample = shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.downsample(x)


class Broken(Bare):
    """A block that builds, but cannot compute."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


def test_what_a_block_does_not_take_is_refused(tmp_path: Path) -> None:
    with BLOCKS.temporary("bare", Bare):
        found = problems(tmp_path, (BLOCK, "block: bare\n  norm: instance_norm"))
    assert "error[no-effect]: model.norm: block 'bare' in stages[0] takes no `norm`" in found[0]


def test_a_block_that_cannot_be_dilated_is_named_at_the_dilation(tmp_path: Path) -> None:
    with BLOCKS.temporary("bare", Bare):
        [found] = problems(tmp_path, (BLOCK, "block: bare"), ("stride: 2}", "dilation: 2}"))
    assert found.startswith(
        "s.yaml:9:43: error[shape]: model.stages[1].dilation: block 'bare' cannot be dilated: it "
        "has no parameters `previous_dilation` and `dilation`\n"
    )


def test_an_antialias_filter_of_a_stem_that_strides_has_an_effect(tmp_path: Path) -> None:
    plain = (", stride: 2}", "}\n  antialias: blur")
    stem = "conv, channels: 16, kernel_size: 3"
    [found] = problems(tmp_path, plain, ("conv3x3, channels: 16", stem))
    assert "error[no-effect]: model.antialias: no block strides" in found
    assert problems(tmp_path, plain, ("conv3x3, channels: 16", f"{stem}, stride: 2")) == []


def test_a_block_that_cannot_compute_is_a_message_not_a_torch_error(tmp_path: Path) -> None:
    with BLOCKS.temporary("broken", Broken):
        [found] = problems(tmp_path, (BLOCK, "block: broken"))
    line = Broken.forward.__code__.co_firstlineno + 1
    assert found.startswith(
        f"s.yaml:9:7: error[shape]: model.stages[1]: a forward pass fails in {__file__}, line "
        f"{line}, in forward: RuntimeError: Invalid channel dimensions\n"
    )


RESTARTS = "train.schedule={type: cosine_restarts, first_cycle: {epochs: 2}, warmup: {steps: 4}}"
IN_EPOCHS = "train.schedule={type: multistep, milestones: [2, 4], unit: epochs}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("train.steps=20", "train.schedule={type: cosine, warmup: {epochs: 5}}"),
            "train.schedule.warmup: its 20 steps leave nothing of the training's 20 steps (an "
            "epoch of 128 images has 4 steps); shorten it or train longer",
        ),
        (
            ("train.steps=16", IN_EPOCHS),
            "train.schedule.milestones[1]: epoch 4 (step 16) is beyond the training's 16 steps (an "
            "epoch of 128 images has 4 steps); lower it or train longer",
        ),
        (
            ("train.schedule={type: multistep, milestones: [12], unit: steps}",),
            "train.schedule.milestones[0]: step 12 is beyond the training's 12 steps (an epoch "
            "of 128 images has 4 steps); lower it or train longer",
        ),
        (
            ("train.ema={decay: 0.9, every: 13}",),
            "train.ema.every: its 13 steps are beyond the training's 12 steps (an epoch of 128 "
            "images has 4 steps): the average would stay the initial weights; lower it or train "
            "longer",
        ),
        (
            ("train.schedule={type: step, every: {epochs: 3}}",),
            "train.schedule.every: the first fall, at step 12, is beyond the training's 12 steps "
            "(an epoch of 128 images has 4 steps); lower it or train longer",
        ),
        (
            (RESTARTS,),
            "train.schedule.first_cycle: the first restart, at step 12, is beyond the training's "
            "12 steps (an epoch of 128 images has 4 steps); lower it or train longer",
        ),
        (
            ("train.schedule=plateau",),
            "train.schedule.patience: the end of the patience, at step 40, is beyond the "
            "training's 12 steps (an epoch of 128 images has 4 steps); lower it or train longer",
        ),
        (
            ("train.schedule={type: plateau, patience: 0}", "data.validation=0"),
            "train.schedule: `plateau` has no effect without data.validation",
        ),
        (
            ("train.schedule={type: plateau, patience: 0, min_lr: 0.1}",),
            "train.schedule.min_lr: must be below the optimizer's learning rate, 0.1",
        ),
        (
            ("train.optimizer.lr=1e-30",),
            "train.optimizer.lr: 1e-30 is out of range",
        ),
        (
            ("train.batch_size=129",),
            "train.batch_size: a batch of 129 images is larger than the training set of 128 "
            "images; lower train.batch_size, or add --with small_data, or --with finetune for "
            "pretrained weights",
        ),
    ],
)
def test_recipe_that_does_not_fit_the_number_of_images_is_refused_with_its_place(
    overrides: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """160 images, 32 of them for validation; ``train`` says the same, and makes no directory."""
    monkeypatch.chdir(tmp_path)
    path = write_tiny(tmp_path)
    flags = [word for change in overrides for word in ("--set", change)]
    found = [call(command, path, *flags) for command in ("validate", "train")]
    assert [result.exit_code for result in found] == [2, 2]
    assert found[1].stderr.endswith(found[0].stderr)  # behind the notices
    assert f"error: {message}\n" in re.sub(r"error\[[a-z-]+\]", "error", found[0].stderr)
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.yaml"]


def test_a_resolved_spec_writes_everything_out_and_loads_as_itself(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SPEC)
    spec = read_spec(tmp_path / "s.yaml")
    assert (spec.model.in_channels, spec.model.image_size) == (3, 32)
    assert spec.model.block.options == {"dropout": 0.0}
    assert spec.model.shortcut.options == {"position": "both", "subsample": "stride"}
    assert spec.model.norm.options == {"eps": 1e-5, "momentum": 0.1}
    loaded = load_spec_text(dump_spec(spec))
    assert loaded == resolve(loaded) == spec


@pytest.mark.parametrize(
    ("dataset", "shape"),
    [
        ("digits", (1, 8)),
        ("digits\n  preprocess: [{type: resize, size: 16}, to_rgb]", (3, 16)),
    ],
)
def test_channels_and_size_of_the_data_are_the_network_s_defaults(
    dataset: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(SPEC.replace("cifar10", dataset))
    spec = read_spec(tmp_path / "s.yaml")
    assert (spec.model.in_channels, spec.model.image_size) == shape


WEIGHTS = "model.weights=some.pth"
TWO_STAGES = "model.stages=[{channels: 4, blocks: 1}, {channels: 8, blocks: 1}]"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            (WEIGHTS, "train.freeze=[layer3]"),
            "[unknown-name]: train.freeze[0]: the network has no 'layer3'\n"
            "      | train.freeze=[layer3]\n"
            "      |               ^\n"
            "allowed: stem, layer1, layer2, head",
        ),
        (
            ("train.activation_checkpointing=[head]",),
            "[unknown-name]: train.activation_checkpointing[0]: the network has no stage 'head'\n"
            "      | train.activation_checkpointing=[head]\n"
            "      |                                 ^\n"
            "allowed: layer1, layer2",
        ),
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
    ],
)
def test_fine_tuning_that_makes_no_sense_is_refused(
    overrides: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as raised:
        read_spec(write_tiny(tmp_path), overrides=[TWO_STAGES, *overrides])
    [problem] = raised.value.errors
    assert problem.file == "<command line>:--set"
    assert str(problem).partition("error")[2].startswith(expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("run.device=auto", None),
        ("run.device=cuda:1", None),
        ("run.device=cpu", "without CUDA, and `run.device` is 'cpu'"),
        ("model.norm={type: group_norm, groups: 2}", "on a network without batch norms"),
    ],
)
def test_synchronised_norms_need_cuda_and_batch_norms(
    change: str, reason: str | None, tmp_path: Path
) -> None:
    overrides = ["train.sync_norm=true", change]
    found = check_source(write_tiny(tmp_path), overrides=overrides).problems
    assert [problem.message for problem in found] == [f"has no effect {reason}"] * bool(reason)


@pytest.mark.parametrize(("processes", "is_refused"), [(1, False), (2, True)])
def test_processes_synchronise_norms_on_cuda_only(
    processes: int, is_refused: bool, tmp_path: Path
) -> None:
    """A spec may be for a machine with GPUs, but `train` would refuse it here."""
    if torch.cuda.is_available():
        pytest.skip("it is refused where there is no CUDA")
    overrides = ["train.sync_norm=true", "run.device=auto"]
    found = check_source(write_tiny(tmp_path), overrides=overrides, processes=processes).problems
    message = "needs CUDA, and this machine trains on 'cpu'; set it to false"
    assert [problem.message for problem in found] == [message] * is_refused


@pytest.mark.parametrize(("name", "is_refused"), [("mixup", True), ("horizontal_flip", False)])
def test_mixing_the_images_of_a_batch_of_one_has_no_effect(name: str, is_refused: bool) -> None:
    overrides = [f"data.augment=[{name}]", "train.batch_size=1"]
    found = check_source("resnet20", overrides=overrides).problems
    assert [problem.code for problem in found] == ["no-effect"] * is_refused
