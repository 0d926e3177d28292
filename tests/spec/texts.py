"""Specs as text, for tests."""

from pathlib import Path

from resnet_builder.errors import Problem, SpecError
from resnet_builder.spec.load import Draft, load_spec_text, read_draft

MINIMAL = """\
model:
  num_classes: 10
  stem: conv3x3
  block: basic
  shortcut: pad
  stages: [{channels: 16, blocks: 1}]
"""

FULL = """\
name: full
model:
  num_classes: 10
  stem: {type: conv3x3, channels: 16}
  block: basic
  shortcut: {type: pad, position: end}
  norm: group_norm
  stages:
    - {channels: 16, blocks: 1}
    - {channels: 32, blocks: 2, stride: 2}
data:
  dataset: digits
  validation: 0.1
  augment: [horizontal_flip]
train:
  steps: 1000
  batch_size: 32
  optimizer: {type: sgd, lr: 0.1, momentum: 0.9}
  schedule: {type: multistep, milestones: [500], warmup: {steps: 10}}
  checkpoint_every: {seconds: 60}
expect: {parameters: 100, depth: 8}
published: {test_top1: 0.9, source: someone}
"""

BAD_BASE = """\
# A spec without problems, for the bad ones to extend.
name: base
model:
  num_classes: 10
  stem: {type: conv3x3, channels: 16}
  block: basic
  shortcut: projection
  stages:
    - {channels: 16, blocks: 1}
    - {channels: 32, blocks: 1, stride: 2}
data:
  dataset: digits
  validation: 100
train:
  steps: 1000
  batch_size: 32
  optimizer: {type: sgd, lr: 0.1, momentum: 0.9}
"""
"""A spec without problems, for the bad ones to extend."""

BAD_FILES = sorted(Path(__file__).parent.glob("bad_*.txt"))


def bad_specs() -> dict[str, tuple[str, str]]:
    """Return bad specs and their messages, by name."""
    found = {}
    for file in BAD_FILES:
        for case in file.read_text(encoding="utf-8").split("==== ")[1:]:
            name, _, text = case.partition("\n")
            spec, _, message = text.partition("----\n")
            found[name] = spec, message
    return found


def write(folder: Path, text: str, name: str = "spec.yaml") -> Path:
    """Write a spec into a file."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(text: str) -> tuple[Problem, ...]:
    """Return what is wrong with a text."""
    try:
        load_spec_text(text)
    except SpecError as error:
        return error.errors
    return ()


def draft(folder: Path, *overrides: str, text: str = FULL) -> Draft:
    """Read a text with values set."""
    return read_draft(write(folder, text), overrides=overrides)
