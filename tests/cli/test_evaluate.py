"""``resnet-build evaluate``."""

import json
from pathlib import Path

import pytest

from tests.cli.experiments import call


def test_run_is_evaluated_on_its_test_images(finished_run: Path) -> None:
    result = call("evaluate", finished_run)
    assert (result.exit_code, result.stderr) == (0, "")
    told = json.loads((finished_run / "result.json").read_text())
    first, *lines = result.stdout.splitlines()
    assert first.startswith(f"test, 40 images: top-1 {100 * told['test.top1']:.2f} %, top-5 ")
    assert ["class", "top-1"] in [line.split() for line in lines]


@pytest.mark.parametrize(("split", "images"), [("test", 40), ("val", 32), ("train", 128)])
def test_file_of_weights_is_evaluated_on_any_split(
    split: str, images: int, finished_run: Path
) -> None:
    result = call("evaluate", finished_run / "best.safetensors", "--split", split, "--json")
    found = json.loads(result.stdout)
    assert (found["split"], found["images"]) == (split, images)
    assert set(found["metrics"]) == {f"{split}.{name}" for name in ("loss", "top1", "top5")}
    confusion = found["confusion"]
    assert sum(map(sum, confusion)) == images
    hits = sum(confusion[label][label] for label in range(4))
    assert found["metrics"][f"{split}.top1"] == pytest.approx(hits / images)
    for row, label in zip(confusion, range(4), strict=True):
        assert found["top1_by_class"][label] == pytest.approx(row[label] / sum(row))


def test_evaluation_repeats_what_the_run_reported(finished_run: Path) -> None:
    told = json.loads((finished_run / "result.json").read_text())
    test, val = (
        json.loads(call("evaluate", finished_run, "--split", split, "--json").stdout)["metrics"]
        for split in ("test", "val")
    )
    assert test["test.top1"] == told["test.top1"]
    assert test["test.top5"] == told["test.top5"]
    assert val["val.top1"] == told["val.top1"]


def test_split_that_is_not_there_is_2(folder: Path) -> None:
    from tests.cli.experiments import write_tiny

    change = ["--set", "data.validation=0", "--set", "train.epochs=1"]
    assert call("train", write_tiny(folder), "--out", "run", *change).exit_code == 0
    result = call("evaluate", "run", "--split", "val")
    assert result.exit_code == 2
    assert "there are no val images; there are train, test" in result.stderr


def test_damaged_weights_are_4(folder: Path, finished_run: Path) -> None:
    data = bytearray((finished_run / "best.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "broken.safetensors").write_bytes(data)
    result = call("evaluate", "broken.safetensors")
    assert result.exit_code == 4
    assert "broken.safetensors" in result.stderr


def test_what_is_no_run_is_2(folder: Path) -> None:
    assert call("evaluate", folder).exit_code == 2
    assert call("evaluate", "missing").exit_code == 2
