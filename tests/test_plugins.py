"""Code from outside the package runs only if the user says so."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_builder.blocks import BLOCKS
from resnet_builder.builder import build_from_spec, read_spec
from resnet_builder.errors import SpecError
from resnet_builder.testing import check_block
from tests.cli.experiments import call

PLUGIN = '''
from pathlib import Path

from torch import nn

from resnet_builder.blocks.interfaces import BLOCKS

Path(__file__).with_name("canary").write_text("imported")


@BLOCKS.register("{name}")
class Mine(nn.Module):
    """One convolution."""

    def __init__(self, in_channels, channels, *, stride, shortcut, gain: float = 1.0):
        super().__init__()
        self.out_channels = channels
        self.gain = gain
        self.conv = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.downsample = shortcut(in_channels, channels, stride)

    def zero_residual(self):
        nn.init.zeros_(self.bn.weight)

    def forward(self, x):
        residual = self.bn(self.conv(x)) * self.gain
        return residual if self.downsample is None else residual + self.downsample(x)
'''

TRAINING = """\
data:
  dataset: {type: synthetic, image_size: 8, train: 64, test: 20}
train:
  steps: 3
  batch_size: 16
  optimizer: {type: sgd, lr: 0.1}
run: {device: cpu, precision: fp32}
"""

SPEC = """\
name: mine
plugins: [{plugin}]
model:
  num_classes: 10
  stem: {{type: conv3x3, channels: 8}}
  block: {{type: {name}, gain: 0.5}}
  shortcut: projection
  stages: [{{channels: 8, blocks: 2}}, {{channels: 16, blocks: 2, stride: 2}}]
"""


@pytest.fixture
def spec(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A spec that declares a plugin beside it, under a name of its own for each test."""
    name = f"mine_{abs(hash(request.node.name)) % 10**8}"
    (tmp_path / "my_blocks.py").write_text(PLUGIN.format(name=name))
    path = tmp_path / "mine.yaml"
    path.write_text(SPEC.format(plugin="my_blocks.py", name=name))
    yield path
    BLOCKS._parts.pop(name, None)


def test_declared_plugin_is_refused_without_consent(spec: Path) -> None:
    with pytest.raises(SpecError) as caught:
        read_spec(spec)
    (problem,) = caught.value.errors
    assert problem.code == "plugin"
    assert problem.line == 2
    assert problem.message.endswith("if you trust it, add --plugin my_blocks.py")
    assert not spec.with_name("canary").exists()


@pytest.mark.parametrize("how", ["as declared", "by path", "by environment"])
def test_consent_imports_the_plugin(spec: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins: list[str] = []
    if how == "by environment":
        monkeypatch.setenv("RESNET_BUILDER_PLUGINS", "other, my_blocks.py")
    else:
        plugins = ["my_blocks.py" if how == "as declared" else str(spec.with_name("my_blocks.py"))]
    network: Any = build_from_spec(spec, seed=0, plugins=plugins)
    assert network.depth == 6
    assert network(torch.ones(2, 3, 32, 32)).shape == (2, 10)
    assert spec.with_name("canary").exists()
    block = type(network.stages[0][0])
    check_block(block)


@pytest.mark.parametrize("is_declared", [True, False])
def test_resolved_spec_declares_the_plugin_by_its_whole_path(
    is_declared: bool, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_declared:
        spec.write_text(spec.read_text().replace("plugins: [my_blocks.py]\n", ""))
        monkeypatch.chdir(spec.parent)
    resolved = read_spec(spec, plugins=["my_blocks.py"])
    assert resolved.plugins == (str(spec.with_name("my_blocks.py").resolve()),)


@pytest.mark.parametrize(
    ("text", "message"), [("raise RuntimeError('no')", "RuntimeError: no"), (None, "cannot import")]
)
def test_plugin_that_fails_or_is_missing_is_a_message(
    text: str | None, message: str, spec: Path
) -> None:
    plugin = spec.with_name("my_blocks.py")
    plugin.unlink()
    if text:
        plugin.write_text(text)
    with pytest.raises(SpecError, match=message):
        read_spec(spec, plugins=["my_blocks.py"])


def test_network_of_a_plugin_s_blocks_is_trained_and_used_by_consent_alone(spec: Path) -> None:
    spec.write_text(spec.read_text() + TRAINING)
    run, canary = spec.with_name("run"), spec.with_name("canary")
    refused = call("train", spec, "--out", run)
    assert refused.exit_code == 2
    assert "if you trust it, add --plugin my_blocks.py" in refused.stderr
    assert not canary.exists()
    assert not run.exists()

    trained = call("train", spec, "--out", run, "--plugin", "my_blocks.py")
    assert trained.exit_code == 0, trained.stderr
    assert canary.exists()
    assert "block: {type: mine_" in (run / "spec.yaml").read_text()

    refused = call("evaluate", run)
    assert refused.exit_code == 2
    flag = refused.stderr.rpartition("add ")[2].split()[:2]
    evaluated = call("evaluate", run, *flag)
    assert evaluated.exit_code == 0, evaluated.stderr
    assert evaluated.stdout.startswith("test, 20 images: top-1 ")
