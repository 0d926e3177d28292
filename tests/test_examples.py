"""Examples run as their first lines say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.experiments import call

EXAMPLES = Path(__file__).parent.parent / "examples"

SPEC = """\
model:
  num_classes: 10
  stem: {type: conv3x3, channels: 8}
  block: basic
  shortcut: pad
  stages: [{channels: 8, blocks: 1}, {channels: 16, blocks: 1, stride: 2}]
data: {dataset: digits}
train: {epochs: 1, batch_size: 64, optimizer: {type: sgd, lr: 0.1}}
"""


@pytest.mark.ci
def test_minimal_example_is_a_page_and_learns(tmp_path: Path) -> None:
    example = EXAMPLES / "minimal.py"
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 60
    spec = tmp_path / "small.yaml"
    spec.write_text(SPEC, encoding="utf-8")
    command = [sys.executable, str(example), str(spec)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=one_thread)
    accuracies = re.findall(r"^epoch \d: loss .*, test accuracy (.*)%$", run.stdout, re.MULTILINE)
    assert len(accuracies) == 3
    assert float(accuracies[-1]) > 85


@pytest.mark.ci
def test_sweep_example_is_valid() -> None:
    result = call("validate", EXAMPLES / "shortcuts.yaml")
    assert result.stdout.endswith("shortcuts.yaml: a sweep of 9 runs\n"), result.stderr
