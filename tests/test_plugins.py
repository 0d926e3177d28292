"""Code from outside the package runs only if the user says so."""

import importlib.util
import os
import py_compile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_builder.blocks import BLOCKS
from resnet_builder.builder import build_from_spec, read_spec
from resnet_builder.errors import SpecError
from resnet_builder.plugins import import_plugins
from resnet_builder.spec.diagnostics import Positions
from resnet_builder.spec.yaml_source import document_of
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
run: {device: cpu, precision: fp32, report: false}
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
def spec(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A spec in the working directory that declares a plugin beside it."""
    name = f"mine_{abs(hash(request.node.name)) % 10**8}"  # a name of its own for each test
    write(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "mine.yaml"
    BLOCKS._parts.pop(name, None)


def write(folder: Path, name: str, plugin: str = "my_blocks.py") -> None:
    """Write a spec, and a plugin that leaves a canary beside itself when it is imported."""
    folder.mkdir(exist_ok=True)
    (folder / "my_blocks.py").write_text(PLUGIN.format(name=name))
    (folder / "mine.yaml").write_text(SPEC.format(plugin=plugin, name=name))


def refused(spec: Path | str, *plugins: str) -> str:
    """Return the flag that a message asks for; nothing was imported."""
    with pytest.raises(SpecError) as caught:
        read_spec(spec, plugins=plugins)
    (problem,) = caught.value.errors
    assert problem.code == "plugin"
    assert not list(Path.cwd().rglob("canary"))
    return problem.message.partition("; if you trust it, add --plugin ")[2]


@pytest.mark.parametrize("how", ["as seen", "by its whole path", "by environment"])
def test_consent_imports_the_plugin(spec: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(spec) == "my_blocks.py"
    plugins: list[str] = []
    if how == "by environment":
        monkeypatch.setenv("RESNET_BUILDER_PLUGINS", "other, my_blocks.py")
    else:
        plugins = ["my_blocks.py" if how == "as seen" else str(spec.with_name("my_blocks.py"))]
    network: Any = build_from_spec(spec, seed=0, plugins=plugins)
    assert network.depth == 6
    assert network(torch.ones(2, 3, 32, 32)).shape == (2, 10)
    assert spec.with_name("canary").exists()
    check_block(type(network.stages[0][0]))


@pytest.mark.parametrize(
    "foreign",
    [
        "a spec",
        "a base",
        "a fragment",
        "a path through ..",
        "a link to it",
        "a link in the foreign folder",
        "an empty name",
        "another case",
    ],
)
@pytest.mark.parametrize("how", ["flag", "environment"])
def test_consent_is_to_one_file_and_not_to_others_of_its_name(
    foreign: str, how: str, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with a spec and a plugin, as one gets them from elsewhere."""
    folder = spec.parent / "evil"
    plugin, flag, asked = "my_blocks.py", "evil/my_blocks.py", "evil/mine.yaml"
    more: list[str] = []
    if foreign == "a path through ..":
        plugin = "../evil/my_blocks.py"
    elif foreign == "another case":
        plugin = flag = "MY_BLOCKS.py"
        flag = f"evil/{flag}"
    elif foreign == "an empty name":
        plugin, flag = "./.py", "evil/.py"
    write(folder, f"{spec.stem}_evil", plugin)
    if foreign == "a base":
        asked = "based.yaml"
        Path(asked).write_text("extends: evil/mine.yaml\nname: based\n")
    elif foreign == "a fragment":
        asked, more = "resnet20", ["--with", "evil/with.yaml"]
        Path("evil/with.yaml").write_text("plugins: [my_blocks.py]\n")
    elif foreign == "a link to it":
        Path("link").symlink_to(folder)
        asked = "link/mine.yaml"
    elif foreign == "a link in the foreign folder":
        (folder / "my_blocks.py").rename(folder / "other.py")
        (folder / "my_blocks.py").symlink_to("other.py")
        flag = "evil/other.py"
    if how == "environment":
        monkeypatch.setenv("RESNET_BUILDER_PLUGINS", "my_blocks.py")
    else:
        more += ["--plugin", "my_blocks.py"]
    result = call("validate", asked, *more)
    assert result.exit_code == 2
    assert f"if you trust it, add --plugin {flag}\n" in result.stderr
    assert not list(spec.parent.rglob("canary"))


def test_consent_follows_links_and_is_shown_for_the_shell(spec: Path) -> None:
    elsewhere = spec.parent / "with space"
    write(elsewhere, "spaced")
    flag = refused(elsewhere / "mine.yaml")
    assert flag == "'with space/my_blocks.py'"
    Path("link.py").symlink_to(elsewhere / "my_blocks.py")
    read_spec(elsewhere / "mine.yaml", plugins=["link.py"])
    assert (elsewhere / "canary").exists()
    BLOCKS._parts.pop("spaced")


def test_bytecode_beside_a_plugin_is_not_run(spec: Path) -> None:
    plugin = spec.with_name("my_blocks.py")
    text = plugin.read_bytes()
    cached = Path(importlib.util.cache_from_source(str(plugin)))
    plugin.write_bytes(text.replace(b"canary", b"vermin"))  # as long: Python compares the size
    py_compile.compile(str(plugin), str(cached), doraise=True)
    status = plugin.stat()
    plugin.write_bytes(text)
    os.utime(plugin, ns=(status.st_atime_ns, status.st_mtime_ns))
    read_spec(spec, plugins=["my_blocks.py"])
    assert spec.with_name("canary").exists()
    assert not spec.with_name("vermin").exists()


@pytest.mark.parametrize("is_declared", [True, False])
def test_resolved_spec_declares_the_plugin_by_its_whole_path(is_declared: bool, spec: Path) -> None:
    if not is_declared:
        spec.write_text(spec.read_text().replace("plugins: [my_blocks.py]\n", ""))
    resolved = read_spec(spec, plugins=["my_blocks.py"])
    assert resolved.plugins == (str(spec.with_name("my_blocks.py").resolve()),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nraise RuntimeError('no')", "my_blocks.py', line 2: RuntimeError: no"),
        ("import sys\nsys.exit(0)", "my_blocks.py', line 2: SystemExit: 0"),
        ("x = (", r"SyntaxError: .*\(my_blocks.py, line 1\)"),
        ("FIFO", "my_blocks.py': .*it is a FIFO, not a regular file"),
        (None, "my_blocks.py': FileNotFoundError: .*No such file"),
    ],
)
def test_plugin_that_fails_or_is_missing_is_a_message(
    text: str | None, message: str, spec: Path
) -> None:
    plugin = spec.with_name("my_blocks.py")
    plugin.unlink()
    if text == "FIFO":
        os.mkfifo(plugin)
    elif text is not None:
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


def test_plugin_that_was_moved_is_named_where_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moved.py").write_text("LOADED = True")
    positions = Positions(document_of({"plugins": ["/nowhere/moved.py"]}).root)
    now = str(tmp_path / "moved.py")
    assert import_plugins(("/nowhere/moved.py",), ["moved.py"], positions) == (now,)
    with pytest.raises(SpecError, match=r"if you trust it, add --plugin /nowhere/moved\.py"):
        import_plugins(("/nowhere/moved.py",), [], positions)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "moved.py").touch()
    there = str(tmp_path / "old" / "moved.py")
    with pytest.raises(SpecError, match=r"if you trust it, add --plugin old/moved\.py"):
        import_plugins((there,), ["moved.py"], positions)
