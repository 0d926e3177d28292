"""``resnet-build export``."""

import errno
import os
import re
import sys
from pathlib import Path

import onnxruntime
import pytest

from resnet_builder.spec.schema import Resize
from resnet_builder.weights.file import read_weights, save_weights
from tests.cli.experiments import call

ONNX = """\
net.onnx: onnx, {size} bytes
loaded again, it computes the network's logits, to {difference} of the largest
input: float32 (batch, 3, 8, 8): pixels from 0 to 1, minus mean, divided by std
mean: 0.496941, 0.495364, 0.519884
std: 0.277997, 0.28331, 0.289473
"""


@pytest.mark.slow
def test_run_is_exported_for_onnx(folder: Path, finished_run: Path) -> None:
    result = call("export", finished_run, "-o", "net.onnx")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [path.name for path in folder.iterdir()] == ["net.onnx"]
    size = f"{(folder / 'net.onnx').stat().st_size:,}"
    (difference,) = re.findall(r"logits, to (\d\.\de-\d\d) of", result.stdout)
    assert result.stdout == ONNX.format(size=size, difference=difference)
    assert 0 < float(difference) <= 1e-4
    session = onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["images"]


def test_exported_safetensors_are_exact_and_evaluated_as_their_run(
    folder: Path, finished_run: Path
) -> None:
    weights, header = read_weights(finished_run / "best.safetensors")
    resized = header.model_copy(update={"preprocess": (Resize(type="resize", size=8),)})
    save_weights(folder / "resized.safetensors", weights, resized)
    lines = call("export", "resized.safetensors", "-o", "net.safetensors").stdout.splitlines()
    assert lines[1] == "loaded again, it computes the network's logits exactly"
    assert "preprocess: [{type: resize, size: 8}]" in lines
    assert call("evaluate", "net.safetensors").stdout == call("evaluate", finished_run).stdout


@pytest.mark.parametrize("out", ["net.safetensors", "net.pt2"])
def test_full_disk_is_told_of_the_file_that_was_asked_for(
    out: str, folder: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int, _data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.write", fail)
    result = call("export", finished_run, "-o", out)
    assert result.exit_code == 7
    assert result.stderr == f"error: cannot write {out}: No space left on device\n"
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("out", "code", "message"),
    [
        (
            "net.pth",
            2,
            "net.pth: unknown format 'pth'; name the file *.safetensors, *.pt2 or *.onnx",
        ),
        ("net.onnx", 2, "pip install --upgrade 'resnet-builder[export]'"),
        ("nowhere/net.safetensors", 7, "cannot write"),
    ],
)
def test_file_that_cannot_be_written_is_an_error(
    out: str,
    code: int,
    message: str,
    folder: Path,
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = call("export", finished_run, "-o", out)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert not list(folder.iterdir())
