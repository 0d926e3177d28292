"""``resnet-build export``."""

import json
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


def test_file_of_weights_is_exported_as_json_says(folder: Path, finished_run: Path) -> None:
    weights = finished_run / "best.safetensors"
    result = call("export", weights, "-o", "net.bin", "--format", "safetensors", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["weights"] == str(weights)
    assert (found["files"], found["format"]) == (["net.bin"], "safetensors")
    assert found["bytes"] == (folder / "net.bin").stat().st_size
    assert (found["image"], found["difference"]) == ([3, 8, 8], 0)


def test_exact_file_is_said_to_be_exact(folder: Path, finished_run: Path) -> None:
    result = call("export", finished_run, "-o", "net.safetensors")
    assert result.stdout.splitlines()[1] == "loaded again, it computes the network's logits exactly"


def test_exported_safetensors_are_evaluated_as_their_run(folder: Path, finished_run: Path) -> None:
    call("export", finished_run, "-o", "net.safetensors")
    assert call("evaluate", "net.safetensors").stdout == call("evaluate", finished_run).stdout


def test_preprocessing_is_told(folder: Path, finished_run: Path) -> None:
    weights, header = read_weights(finished_run / "best.safetensors")
    resized = header.model_copy(update={"preprocess": (Resize(type="resize", size=8),)})
    save_weights(folder / "resized.safetensors", weights, resized)
    result = call("export", "resized.safetensors", "-o", "net.safetensors")
    assert "preprocess: [{type: resize, size: 8}]" in result.stdout.splitlines()


def test_existing_file_is_2(folder: Path, finished_run: Path) -> None:
    (folder / "net.pt2").write_bytes(b"mine")
    result = call("export", finished_run, "-o", "net.pt2")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: net.pt2 exists, and is not overwritten; choose another name\n"
    assert (folder / "net.pt2").read_bytes() == b"mine"


def test_missing_package_is_2(
    folder: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = call("export", finished_run, "-o", "net.onnx")
    assert result.exit_code == 2
    assert "pip install --upgrade 'resnet-builder[export]'" in result.stderr


def test_unknown_ending_is_2(folder: Path, finished_run: Path) -> None:
    result = call("export", finished_run, "-o", "net.pth")
    assert result.exit_code == 2
    assert "net.pth ends in none of .safetensors, .pt2, .onnx" in result.stderr


def test_missing_folder_is_7(folder: Path, finished_run: Path) -> None:
    assert call("export", finished_run, "-o", "nowhere/net.pt2").exit_code == 7
