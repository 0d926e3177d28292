"""``resnet-build evaluate``."""

import json
from pathlib import Path

import pytest

from tests.cli.experiments import call, write_tiny


def test_run_is_evaluated_on_its_test_images(finished_run: Path) -> None:
    result = call("evaluate", finished_run)
    assert (result.exit_code, result.stderr) == (0, "")
    told = json.loads((finished_run / "result.json").read_text())
    first, *lines = result.stdout.splitlines()
    assert first.startswith(f"test, 40 images: top-1 {100 * told['test.top1']:.2f} %, top-5 ")
    assert ["class", "top-1"] in [line.split() for line in lines]


@pytest.mark.parametrize(("split", "images"), [("test", 40), ("val", 32), ("train", 128)])
def test_file_of_weights_is_evaluated_on_any_split_as_the_run_reported(
    split: str, images: int, finished_run: Path
) -> None:
    result = call("evaluate", finished_run / "best.safetensors", "--split", split, "--json")
    found = json.loads(result.stdout)
    assert (found["split"], found["images"]) == (split, images)
    assert set(found["metrics"]) == {f"{split}.{name}" for name in ("loss", "top1", "top5")}
    told = json.loads((finished_run / "result.json").read_text())
    for name in ("test.top1", "test.top5", "val.top1"):
        if name in found["metrics"]:
            assert found["metrics"][name] == told[name]
    confusion = found["confusion"]
    assert sum(map(sum, confusion)) == images
    num_correct = sum(confusion[label][label] for label in range(4))
    assert found["metrics"][f"{split}.top1"] == pytest.approx(num_correct / images)
    for row, label in zip(confusion, range(4), strict=True):
        assert found["top1_by_class"][label] == pytest.approx(row[label] / sum(row))


def test_split_that_is_not_there_is_2(folder: Path) -> None:
    change = ["--set", "data.validation=0", "--set", "train.epochs=1"]
    assert call("train", write_tiny(folder), "--out", "run", *change).exit_code == 0
    result = call("evaluate", "run", "--split", "val")
    assert result.exit_code == 2
    assert "there are no val images; there are train, test" in result.stderr


def test_damaged_weights_are_4_and_what_is_no_run_is_2(folder: Path, finished_run: Path) -> None:
    data = bytearray((finished_run / "best.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "broken.safetensors").write_bytes(data)
    result = call("evaluate", "broken.safetensors")
    assert result.exit_code == 4
    assert "broken.safetensors" in result.stderr
    assert call("evaluate", folder).exit_code == 2
    assert call("evaluate", "missing").exit_code == 2
