"""``resnet-build init``."""

import re
from pathlib import Path

import pytest

from resnet_builder.spec.bundled import bundled_file
from resnet_builder.spec.load import load_spec
from tests.cli.experiments import call

RESNET8 = """\
# ResNet-8 for digits.
#
# Source: He et al. 2015, https://arxiv.org/abs/1512.03385.
# Train: resnet-build train resnet8_digits.yaml
# Written by: resnet-build init resnet --depth 8 --dataset digits
name: resnet8_digits
model:
  num_classes: 10
  stem: {type: conv3x3, channels: 16}
  block: basic
  shortcut: pad
  stages: # 8 = 6 * 1 + 2
    - {channels: 16, blocks: 1}
    - {channels: 32, blocks: 1, stride: 2}
    - {channels: 64, blocks: 1, stride: 2}
data:
  dataset: digits
  validation: 287 # training images held out, by which the best weights are chosen
  augment:
    - {type: random_crop, padding: 1}
train:
  epochs: 30
  batch_size: 64
  optimizer: {type: sgd, lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0.0005}
  schedule: {type: one_cycle, pct_start: 0.25}
  loss: {type: cross_entropy, label_smoothing: 0.1}
  ema: {decay: 0.98}
# Checked at each build; `resnet-build validate` prints the line anew.
expect: {parameters: 75002, depth: 8, macs: 747136}
"""


def test_spec_is_written_with_what_it_counts_to(folder: Path) -> None:
    result = call("init", "resnet", "--depth", 8, "--dataset", "digits")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "wrote resnet8_digits.yaml: 75,002 parameters, depth 8, 747,136 MACs\n"
    assert (folder / "resnet8_digits.yaml").read_text(encoding="utf-8") == RESNET8
    assert [path.name for path in folder.iterdir()] == ["resnet8_digits.yaml"]
    result = call("validate", "resnet8_digits.yaml")
    assert result.stdout.startswith(
        "resnet8_digits.yaml: 75,002 parameters, depth 8, 747,136 MACs\n"
    )


@pytest.mark.parametrize(
    "arguments", [["resnet", "--depth", 8, "--dataset", "digits"], ["--from", "resnet56"]]
)
def test_spec_is_printed_and_no_file_written(arguments: list[object], folder: Path) -> None:
    result = call("init", *arguments, "-o", "-")
    assert (result.exit_code, result.stderr) == (0, "")
    assert list(folder.iterdir()) == []
    (folder / "printed.yaml").write_text(result.stdout, encoding="utf-8")
    assert load_spec("printed.yaml").expect is not None


def test_spec_is_called_like_its_file(folder: Path) -> None:
    arguments = ("--depth", 28, "--width", 10, "--shortcut", "projection_all")
    result = call("init", "wrn", *arguments, "-o", "my_net.yaml")
    assert result.exit_code == 0
    counts = "(28 in the paper, which counts the convolutions of shortcuts and not the classifier)"
    assert f", depth 26 {counts}, " in result.stdout
    text = (folder / "my_net.yaml").read_text(encoding="utf-8")
    assert "# Train: resnet-build train my_net.yaml\n" in text
    assert "--depth 28 --width 10 --shortcut projection_all\n" in text
    spec = load_spec("./my_net.yaml")
    assert spec.name == "my_net"
    assert spec.model.shortcut.type == "projection_all"


def test_command_for_large_pictures_says_where_they_are(folder: Path) -> None:
    result = call("init", "resnet", "--depth", 18, "--dataset", "image_folder", "-o", "-")
    assert "# Train: resnet-build train resnet18.yaml --data-dir DIR\n" in result.stdout
    assert "expect: {parameters: 11689512, depth: 18, macs: 1814073344}\n" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a family and its --depth, or a spec to copy with --from"),
        (["resnet"], "name a family and its --depth"),
        (["resnet", "--depth", "30"], "depths are 6n + 2, the nearest 26 and 32"),
        (
            ["resnet", "--depth", "20", "--dataset", "cifar"],
            "no dataset is named 'cifar'; did you mean: cifar10",
        ),
        (["resnet", "--depth", "20", "--dataset", "image_table"], "image_table needs path"),
        (["resnet", "--depth", "0"], "0 is not in the range x>=1"),
        (["resnet", "--depth", "8", "--shortcut", "pda"], "did you mean: pad"),
        (["--from", "resnet20", "--depth", "20"], "leave out all but -o"),
        (["resnet", "--from", "resnet20"], "leave out all but -o"),
        (["--from", "resnet19"], "no bundled spec is named 'resnet19'"),
        (["--from", "./mine.yaml"], "--from copies bundled specs"),
    ],
)
def test_what_cannot_be_meant_is_2_and_nothing_is_written(
    arguments: list[str], message: str, folder: Path
) -> None:
    result = call("init", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(folder.iterdir()) == []


def test_bundled_spec_is_copied_with_its_comments(folder: Path) -> None:
    result = call("init", "--from", "resnet56", "-o", "mine.yaml")
    assert (result.exit_code, result.stdout) == (0, "wrote mine.yaml, a copy of resnet56\n")
    first, *lines = (folder / "mine.yaml").read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"# Copied from `resnet56` of resnet-builder \d+\.\d+\.\d+\S*\.", first)
    original = bundled_file("resnet56").read_text(encoding="utf-8").splitlines()
    changed = [(a, b) for a, b in zip(original, lines, strict=True) if a != b]
    assert changed == [
        ("# Train: resnet-build train resnet56", "# Train: resnet-build train mine.yaml"),
        ("name: resnet56", "name: mine"),
    ]
    assert load_spec("mine.yaml").model == load_spec("resnet56").model
