"""An experiment of seconds, and how the program is called in tests."""

from pathlib import Path

from click.testing import CliRunner, Result

from resnet_builder.cli.main import main

TINY = """\
name: tiny
model:
  num_classes: 4
  stem: {type: conv3x3, channels: 4}
  block: basic
  shortcut: pad
  stages: [{channels: 4, blocks: 1}]
data:
  dataset: {type: synthetic, num_classes: 4, image_size: 8, train: 160, test: 40}
  validation: 32
  augment: [horizontal_flip]
train:
  epochs: 3
  batch_size: 32
  optimizer: {type: sgd, lr: 0.1}
run: {device: cpu, precision: fp32}
published: {test_top1: 0.5, source: nobody}
"""


def write_tiny(folder: Path, *more: str, name: str = "tiny.yaml") -> Path:
    """Write the experiment, and further lines, into a file."""
    path = folder / name
    path.write_text(TINY + "".join(f"{line}\n" for line in more), encoding="utf-8")
    return path


def call(*arguments: object) -> Result:
    """Call the program by its own entry, in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])
