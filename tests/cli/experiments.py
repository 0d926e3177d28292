"""An experiment of seconds, and how the program is called in tests."""

from pathlib import Path

import torch
from click.testing import CliRunner, Result

from resnet_builder.cli.main import main
from resnet_builder.weights.file import read_weights

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
run: {device: cpu, precision: fp32, report: false}
published: {test_top1: 0.5, source: nobody}
"""


def write_tiny(folder: Path, *more: str, name: str = "tiny.yaml") -> Path:
    """Write the experiment, and further lines, into a file."""
    path = folder / name
    path.write_text(TINY + "".join(f"{line}\n" for line in more), encoding="utf-8")
    return path


def write_checkpoint(path: Path, run: Path) -> Path:
    """Write the weights that a run selected as another program would, with a bias that is zero."""
    weights, _ = read_weights(run / "best.safetensors")
    theirs = {f"module.{name.replace('fc.', 'linear.')}": one for name, one in weights.items()}
    theirs["module.conv1.bias"] = torch.zeros_like(weights["bn1.bias"])
    torch.save({"net": theirs, "acc": 71.5, "epoch": 3}, path)
    return path


def call(*arguments: object) -> Result:
    """Call the program by its own entry, in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])
