"""Names that come from files: shown by every command, obeyed by no terminal."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_builder.blocks.interfaces import BLOCKS
from tests.cli.experiments import call

EVIL = "\x1b]0;x\x07\x9b2J\x7f\u202e\u2066\nerror: forged\r"
"""Escape sequences of one and of two bytes, bidirectional controls, and a line of its own."""

SPEC = """\
name: evil
model:
  num_classes: 2
  stem: {type: conv3x3, channels: 4}
  block: basic
  shortcut: pad
  stages: [{channels: 4, blocks: 1}]
data:
  dataset: {type: image_folder, path: images}
  preprocess: [{type: resize, size: 8}, {type: center_crop, size: 8}]
train: {epochs: 1, batch_size: 4, optimizer: {type: sgd, lr: 0.1}}
run: {device: cpu, precision: fp32, report: false}
published: {test_top1: 0.5, source: "EVIL"}
"""

PLUGIN = '''\
from resnet_builder.blocks.interfaces import BLOCKS
from resnet_builder.blocks.basic import BasicBlock

@BLOCKS.register("evil")
class Evil(BasicBlock):
    """A block. EVIL"""
'''

BROKEN = "raise ValueError('EVIL')\n"

LINES = {
    "train": ("train", "SPEC", "--data-dir", ".", "--out", "NEW"),
    "train without an image": ("train", "SPEC", "--data-dir", "torn", "--out", "NEW"),
    "train --skip-bad": ("train", "SPEC", "--data-dir", "torn", "--out", "NEW", "--skip-bad"),
    "resume": ("train", "--resume", "RUN"),
    "evaluate": ("evaluate", "RUN", "--data-dir", "."),
    "predict": ("predict", "RUN", "images/test", "torn", "--top", "2"),
    "export": ("export", "RUN", "-o", "OUT.safetensors"),
    "import": ("import", "RUN/best.safetensors", "--spec", "SPEC", "-o", "OUT.safetensors"),
    "import of other tensors": ("import", "OTHER", "--spec", "SPEC", "-o", "OUT.safetensors"),
    "diff": ("diff", "RUN", "SPEC"),
    "validate": ("validate", "SPEC", "--set", "model.block=EVIL"),
    "summary": ("summary", "SPEC"),
    "bench": ("bench", "SPEC", "--seconds", "0.1"),
    "list runs": ("list", "runs", "."),
    "list parts": ("list", "parts", "--plugin", "plugin.py"),
    "failing plugin": ("list", "parts", "--plugin", "broken.py"),
    "no such file": ("evaluate", "NOTHING"),
    "no such spec": ("summary", "NOTHING.yaml"),
    "no such option": ("summary", "--EVIL"),
}


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which all that has a name has an evil one, and a run on its images."""
    folder = tmp_path_factory.mktemp("evil")
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in (f"a{EVIL}", f"b{EVIL}"):
            (folder / "images" / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(
                    folder / "images" / split / name / f"{number}{EVIL}.png"
                )
            torn = folder / "torn" / "images" / split / name
            torn.mkdir(parents=True)
            (torn / f"torn{EVIL}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
            (torn / f"sound{EVIL}.png").write_bytes(
                (folder / "images" / split / name / f"0{EVIL}.png").read_bytes()
            )
    text = json.dumps(EVIL)[1:-1]
    (folder / f"spec{EVIL}.yaml").write_text(SPEC.replace("EVIL", text), encoding="utf-8")
    (folder / "plugin.py").write_text(PLUGIN.replace("EVIL", text), encoding="utf-8")
    (folder / "broken.py").write_text(BROKEN.replace("EVIL", text), encoding="utf-8")
    torch.save({f"layer{EVIL}": torch.ones(2)}, folder / f"other{EVIL}.pth")
    return folder


@pytest.fixture(scope="module")
def trained(evil: Path) -> Path:
    """Return the folder with a run in it."""
    spec = evil / f"spec{EVIL}.yaml"
    result = call("train", spec, "--data-dir", evil, "--out", evil / f"run{EVIL}")
    assert result.exit_code == 0, result.stderr
    return evil


SLOWER = {"bench": [pytest.mark.slow]}


@pytest.mark.parametrize(
    "line",
    [pytest.param(each, id=name, marks=SLOWER.get(name, [])) for name, each in LINES.items()],
)
def test_name_in_a_file_reaches_no_terminal_raw(
    line: tuple[str, ...], trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setattr(BLOCKS, "_parts", dict(BLOCKS._parts))
    named = {
        "SPEC": f"spec{EVIL}.yaml",
        "RUN": f"run{EVIL}",
        "OTHER": f"other{EVIL}.pth",
        "OUT": str(tmp_path / f"out{EVIL}"),
        "NEW": str(tmp_path / f"new{EVIL}"),
        "NOTHING": f"nothing{EVIL}",
        "EVIL": EVIL,
    }
    words = list(line)
    for name, evil in named.items():
        words = [word.replace(name, evil) for word in words]
    for flag in ("--json", "--debug"):
        result = call(*words, flag)
        assert result.exit_code != 1, result.output
        assert result.output.replace("\n", "").isprintable()
        assert not re.search("^error: forged", result.output, re.MULTILINE)
        if flag == "--json" and result.exit_code == 0:
            json.loads(result.stdout)
        for made in tmp_path.iterdir():
            shutil.rmtree(made) if made.is_dir() else made.unlink()


def test_programs_get_the_names_as_they_are(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    found = json.loads(call("evaluate", f"run{EVIL}", "--data-dir", ".", "--json").stdout)
    assert found["classes"] == [f"a{EVIL}", f"b{EVIL}"]
