"""``resnet-build evaluate``."""

import csv
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_builder.weights.file import Origin, read_weights, save_weights
from tests.cli.experiments import call, write_tiny
from tests.data.folders import write_image, write_pets, write_pets_spec


def test_run_is_evaluated_on_its_test_images(finished_run: Path) -> None:
    result = call("evaluate", finished_run)
    assert (result.exit_code, result.stderr) == (0, "")
    told = json.loads((finished_run / "result.json").read_text())
    first, *lines = result.stdout.splitlines()
    assert first.startswith(f"test, 40 images: top-1 {100 * told['test.top1']:.2f} %, loss ")
    assert ["class", "images", "precision", "recall", "F1"] in [line.split() for line in lines]


@pytest.mark.parametrize(("split", "images"), [("test", 40), ("val", 32), ("train", 128)])
def test_file_of_weights_is_evaluated_on_any_split_as_the_run_reported(
    split: str, images: int, finished_run: Path
) -> None:
    result = call("evaluate", finished_run / "best.safetensors", "--split", split, "--json")
    found = json.loads(result.stdout)
    assert (found["split"], found["images"]) == (split, images)
    assert set(found["metrics"]) == {f"{split}.{name}" for name in ("loss", "top1")}
    told = json.loads((finished_run / "result.json").read_text())
    for name in ("test.top1", "val.top1"):
        if name in found["metrics"]:
            assert found["metrics"][name] == told[name]
    confusion = found["confusion"]
    assert sum(map(sum, confusion)) == images
    num_correct = sum(confusion[label][label] for label in range(4))
    assert found["metrics"][f"{split}.top1"] == pytest.approx(num_correct / images)
    for row, label in zip(confusion, range(4), strict=True):
        scores = found["by_class"][found["classes"][label]]
        assert scores["recall"] == pytest.approx(row[label] / sum(row))


def test_split_that_is_not_there_is_2(folder: Path) -> None:
    change = ["--set", "data.validation=0", "--set", "train.epochs=1"]
    assert call("train", write_tiny(folder), "--out", "run", *change).exit_code == 0
    result = call("evaluate", "run", "--split", "val")
    assert result.exit_code == 2
    assert "there are no val images; there are train, test" in result.stderr


@pytest.mark.parametrize("name", ["theirs.pth", "odd name"])
def test_checkpoint_of_another_program_is_4_and_how_to_convert_it_is_told(
    name: str, folder: Path
) -> None:
    torch.save({"fc.weight": torch.ones(2)}, folder / name)
    result = call("evaluate", name)
    assert result.exit_code == 4
    assert result.stderr == (
        f"error: {name}: it is a file of torch.save; convert it first: "
        f"resnet-build import {shlex.quote(name)} --spec SPEC -o FILE.safetensors\n"
    )


def test_damaged_weights_are_4_and_what_is_no_run_is_2(folder: Path, finished_run: Path) -> None:
    data = bytearray((finished_run / "best.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "broken.safetensors").write_bytes(data)
    result = call("evaluate", "broken.safetensors")
    assert result.exit_code == 4
    assert "broken.safetensors" in result.stderr
    assert call("evaluate", folder).exit_code == 2
    assert call("evaluate", "missing").exit_code == 2


def test_predictions_of_single_images_are_a_table(pets: Path, folder: Path) -> None:
    """Files are named where there are any. No file is written over."""
    command = ("evaluate", pets, "--data-dir", pets.parent / "data", "--json", "-o")
    found = json.loads(call(*command, "table.csv").stdout)
    with Path("table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]] == ["file", "label", "prediction", "confidence", "correct", "p_ant", "p_bee"]
    assert len(rows) == found["images"]
    assert found["confusion"] == [
        [sum((row["label"], row["prediction"]) == pair for row in rows) for pair in line]
        for line in ((("ant", "ant"), ("ant", "bee")), (("bee", "ant"), ("bee", "bee")))
    ]
    for row in rows:
        p = {name: float(row[f"p_{name}"]) for name in ("ant", "bee")}
        assert sum(p.values()) == pytest.approx(1)
        assert float(row["confidence"]) == max(p.values()) == p[row["prediction"]]
        assert row["correct"] == str(row["label"] == row["prediction"])
        assert Path(row["file"]).is_file()
        assert Path(row["file"]).parent.name == row["label"]

    before = Path("table.csv").read_bytes()
    result = call(*command, "table.csv")
    assert (result.exit_code, Path("table.csv").read_bytes()) == (2, before)
    assert "table.csv exists and is not overwritten" in result.stderr


def test_images_without_files_are_numbered_in_the_table(finished_run: Path, folder: Path) -> None:
    result = call("evaluate", finished_run, "--split", "val", "-o", "table.json")
    assert (result.exit_code, result.stderr) == (0, "wrote table.json: 32 images\n")
    rows = json.loads(Path("table.json").read_text())
    assert [row["index"] for row in rows] == list(range(32))


# Class names.


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on folders of ants and bees; tests only read the run."""
    folder = tmp_path_factory.mktemp("pets")
    write_pets(folder)
    spec = write_pets_spec(folder)
    result = call("train", spec, "--data-dir", folder, "--out", folder / "run")
    assert result.exit_code == 0, result.stderr
    (folder / "data").mkdir()
    (folder / "pets").rename(folder / "data" / "pets")
    return folder / "run"


@pytest.mark.parametrize(
    ("renamed", "found"),
    [
        ({"ant": "zebra"}, "bee, zebra"),
        ({"ant": "Ant"}, "Ant, bee"),
        ({"ant": "0", "bee": "1"}, "0, 1"),
        ({"ant": "ant\u200b"}, "ant<U+200B> ('ant\\u200b'), bee"),
        ({"": "cow"}, "ant, bee, cow"),
    ],
    ids=["another", "case", "all", "look-alike", "one more"],
)
def test_other_classes_than_the_weights_are_3_and_both_are_listed(
    renamed: dict[str, str], found: str, pets: Path, folder: Path
) -> None:
    root = write_pets(folder)
    for split in ("train", "test"):
        for before, after in renamed.items():
            if before:
                (root / split / before).rename(root / split / after)
            else:
                write_image(root / split / after / "0.bmp", 70 + len(split))
    result = call("evaluate", pets, "--data", root)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == (
        f"error: {pets}/best.safetensors was trained on other classes than the data has:\n"
        "  in the weights: ant, bee\n"
        f"  in the data: {found}\n"
        "rename the classes of the data, or use weights that were trained on them\n"
    )


def test_validation_images_that_are_others_now_are_told(folder: Path) -> None:
    root, spec = write_pets(folder), write_pets_spec(folder)
    run = ("--data-dir", folder, "--set", "data.validation=4", "--out", "run")
    assert call("train", spec, *run).exit_code == 0
    line = ("evaluate", "run", "--data-dir", folder, "--split")
    assert call(*line, "val").stderr == ""
    write_image(root / "train" / "ant" / "5.bmp", 71)
    result = call(*line, "val")
    assert result.exit_code == 0
    assert result.stderr == (
        "the images have changed since run/best.safetensors was trained: others are set aside for "
        "validation now, and some of them may have been trained on\n"
    )
    assert call(*line, "test").stderr == ""


def test_classes_of_the_data_are_told_where_the_weights_name_none(pets: Path, folder: Path) -> None:
    write_pets(folder)
    weights, header = read_weights(pets / "best.safetensors")
    theirs = {"classes": None, "source": Origin(file="x.pth", layout="torchvision")}
    save_weights(folder / "x.safetensors", weights, header.model_copy(update=theirs))
    result = call("evaluate", "x.safetensors", "--data-dir", folder)
    assert result.exit_code == 0
    assert result.stderr == (
        "x.safetensors does not name its classes; they are taken to be, in order, ant, bee\n"
    )


def test_classes_are_matched_by_name_in_any_order(pets: Path, folder: Path) -> None:
    weights, header = read_weights(pets / "best.safetensors")
    for name in ("fc.weight", "fc.bias"):
        weights[name] = weights[name].flip(0)
    reversed_classes = header.model_copy(update={"classes": ("bee", "ant")})
    save_weights(folder / "reversed.safetensors", weights, reversed_classes)
    found, wanted = (
        json.loads(call("evaluate", path, "--data-dir", pets.parent / "data", "--json").stdout)
        for path in ("reversed.safetensors", pets)
    )
    assert (found["classes"], wanted["classes"]) == (["bee", "ant"], ["ant", "bee"])
    assert found["metrics"] == wanted["metrics"]
    assert torch.equal(
        torch.tensor(found["confusion"]), torch.tensor(wanted["confusion"]).flip(0, 1)
    )


def test_some_of_the_classes_are_evaluated_with_a_notice(pets: Path, folder: Path) -> None:
    root = write_pets(folder)
    for split in ("train", "test"):
        for image in (root / split / "ant").iterdir():
            image.unlink()
        (root / split / "ant").rmdir()
    result = call("evaluate", pets, "--data", root, "--json")
    assert result.stderr == f"the data has 1 of the 2 classes of {pets}/best.safetensors\n"
    found, whole = (
        json.loads(one.stdout)
        for one in (result, call("evaluate", pets, "--data-dir", pets.parent / "data", "--json"))
    )
    assert found["confusion"] == [[0, 0], whole["confusion"][1]]
    assert found["by_class"]["bee"]["recall"] == whole["by_class"]["bee"]["recall"]
    shown = call("evaluate", pets, "--data", root).stdout.splitlines()
    assert ["ant", "no", "images"] in [line.split()[:3] for line in shown]


def test_header_that_does_not_fit_its_spec_is_4(pets: Path, folder: Path) -> None:
    weights, header = read_weights(pets / "best.safetensors")
    for change, reason in (
        ({"classes": ("ant",)}, "`classes` has 1 entry, and its spec needs 2"),
        ({"mean": (0.5,), "std": (0.5,)}, "`mean` has 1 entry, and its spec needs 3"),
    ):
        save_weights(folder / "x.safetensors", weights, header.model_copy(update=change))
        result = call("evaluate", "x.safetensors", "--data-dir", pets.parent / "data")
        assert result.exit_code == 4
        assert f"its header is damaged: {reason}" in result.stderr


# Other images.


@pytest.fixture(scope="module")
def own_result(pets: Path) -> dict[str, Any]:
    """Return what the run's own test images give, but for the name of its file."""
    result = call("evaluate", pets, "--data-dir", pets.parent / "data", "--json")
    return dict(json.loads(result.stdout))


@pytest.mark.parametrize("arranged", ["splits", "test alone", "classes", "Testing", "no --data"])
def test_test_images_alone_suffice_wherever_they_are(
    arranged: str, own_result: dict[str, Any], pets: Path, folder: Path
) -> None:
    root = write_pets(folder)
    if arranged != "splits":
        for path in (root / "train").rglob("*.bmp"):
            path.write_bytes(b"not looked at")
    if arranged in {"test alone", "no --data", "Testing"}:
        shutil.rmtree(root / "train")
    if arranged == "Testing":
        (root / "test").rename(root / "Testing")
    where = {
        "classes": ("--data", root / "test"),
        "no --data": (),
    }.get(arranged, ("--data", root))
    result = call("evaluate", pets, *where, "--data-dir", folder, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == own_result


def test_classes_of_other_images_are_matched_by_name(
    own_result: dict[str, Any], pets: Path, folder: Path
) -> None:
    root = write_pets(folder) / "test"
    shutil.rmtree(root / "ant")
    result = call("evaluate", pets, "--data", root, "--data-dir", folder, "--json")
    assert result.stderr == f"the data has 1 of the 2 classes of {pets}/best.safetensors\n"
    assert json.loads(result.stdout)["confusion"] == [[0, 0], own_result["confusion"][1]]
    (root / "bee").rename(root / "wasp")
    result = call("evaluate", pets, "--data", root, "--data-dir", folder)
    assert result.exit_code == 3
    assert "  in the weights: ant, bee\n  in the data: wasp\n" in result.stderr


def test_split_of_other_images_that_is_not_there_is_2(pets: Path, folder: Path) -> None:
    root = write_pets(folder, ("train", "val"))
    result = call("evaluate", pets, "--data", root, "--data-dir", folder)
    assert result.exit_code == 2
    assert "there are no test images; there are train, val" in result.stderr
    assert (
        call("evaluate", pets, "--data", root, "--data-dir", folder, "--split", "val").exit_code
        == 0
    )
    result = call("evaluate", pets, "--data", root / "val", "--data-dir", folder, "--split", "val")
    assert result.exit_code == 2
    assert "is not divided into splits" in result.stderr
    assert call("evaluate", pets, "--data", "gone").exit_code == 3


def test_validation_images_take_the_place_of_test_images_that_are_not_there(folder: Path) -> None:
    root = write_pets(folder, ("train",)) / "train"
    spec = write_pets_spec(folder)
    line = ("train", spec, "--data", root, "--data-dir", folder, "--set", "data.validation=2")
    trained = call(*line, "--set", "model.num_classes=2", "--out", "run")
    assert trained.exit_code == 0, trained.stderr
    result = call("evaluate", "run", "--data-dir", folder, "--json")
    assert result.exit_code == 0
    assert "there are no test images: " in result.stderr
    assert "evaluating on the validation images\n" in result.stderr
    told = json.loads((folder / "run" / "result.json").read_text())
    assert json.loads(result.stdout)["metrics"]["val.top1"] == told["val.top1"]
    result = call("evaluate", "run", "--data-dir", folder, "--split", "test")
    assert (result.exit_code, result.stdout) == (2, "")
    result = call("evaluate", "run", "--data-dir", folder, "--split", "train", "--json")
    assert json.loads(result.stdout)["images"] == 8


@pytest.mark.parametrize("known", ["all", "no names", "no statistics"])
def test_weights_without_some_facts_are_evaluated_on_other_images(
    known: str, own_result: dict[str, Any], pets: Path, folder: Path
) -> None:
    """Imported weights name neither the classes nor, perhaps, the statistics."""
    weights, header = read_weights(pets / "best.safetensors")
    change: dict[str, Any] = {"source": Origin(file="x.pth", layout="torchvision")}
    if known != "all":
        change["classes"] = None
    if known == "no statistics":
        change |= {"mean": None, "std": None}
    save_weights(folder / "x.safetensors", weights, header.model_copy(update=change))
    root = write_pets(folder) / "test"
    result = call("evaluate", "x.safetensors", "--data", root, "--data-dir", folder, "--json")
    assert result.exit_code == 0, result.stderr
    assert ("does not say how images are normalised" in result.stderr) == (known == "no statistics")
    found = json.loads(result.stdout)
    assert (found["classes"], found["images"]) == (["ant", "bee"], 10)
    assert known == "no statistics" or found["metrics"] == own_result["metrics"]
    shutil.rmtree(root / "ant")
    result = call("evaluate", "x.safetensors", "--data", root, "--data-dir", folder)
    if known == "all":
        assert result.exit_code == 0
    else:
        assert result.exit_code == 3
        assert "does not name its 2 classes, and the data has 1: bee" in result.stderr


@pytest.mark.ci
def test_grey_network_reads_other_images_as_grey(folder: Path) -> None:
    root = write_pets(folder)
    spec = write_pets_spec(folder)
    text = spec.read_text().replace("path: pets}", "path: pets, channels: 1}")
    spec.write_text(text)
    assert call("train", spec, "--data-dir", folder, "--out", "run").exit_code == 0
    results = [
        call("evaluate", "run", *where, "--json")
        for where in (("--data-dir", folder), ("--data", root / "test", "--data-dir", folder))
    ]
    assert results[0].exit_code == 0
    assert results[0].stdout == results[1].stdout


@pytest.mark.parametrize(
    ("confusion", "unseen"),
    [
        (((37, 0), (3, 0)), ["rare"]),
        (((36, 1), (3, 0)), []),
        (((5, 0), (5, 0)), []),  # a network that has learnt nothing yet
        (((5, 0), (0, 0)), []),  # no images of the class
    ],
)
def test_rare_class_that_is_never_predicted_is_named(
    confusion: tuple[tuple[int, ...], ...], unseen: list[str], finished_run: Path
) -> None:
    from dataclasses import replace

    from resnet_builder import load_run
    from resnet_builder.cli.evaluate import _never_predicted

    found = load_run(finished_run).evaluate()
    found = replace(found, classes=("usual", "rare"), confusion=confusion)
    assert _never_predicted(found) == unseen
