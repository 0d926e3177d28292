"""``resnet-build predict``."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet_builder.data.interfaces import DATASETS, LoadContext
from resnet_builder.data.preprocess import Preprocessing
from resnet_builder.data.sources import InMemoryImages
from tests.cli.experiments import call


@pytest.fixture
def images(folder: Path) -> Path:
    """Make three images, one of them too large, and other files."""
    generator = np.random.default_rng(0)
    inside = folder / "images" / "inside"
    inside.mkdir(parents=True)
    for path, size in ((inside.parent / "a.png", 8), (inside / "b.png", 8), (inside / "c.JPG", 30)):
        pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (inside / "notes.txt").write_text("no image")
    (inside / ".hidden.png").write_text("no image")
    return inside.parent


def test_images_in_folders_get_classes(images: Path, finished_run: Path) -> None:
    result = call("predict", finished_run, images, "--top", "2")
    assert result.exit_code == 0, result.stderr
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["image", "class", "probability"]
    assert len(lines) == 6
    assert [line.split()[0] for line in lines[::2]] == [
        str(path) for path in (images / "a.png", images / "inside/b.png", images / "inside/c.JPG")
    ]
    assert result.stderr == (
        "1 of 3 images was resized and cropped to fit the network\n"
        f"{images}: passed over files that are not images: 1 .png (inside/.hidden.png), "
        "1 .txt (inside/notes.txt)\n"
    )


def test_probabilities_are_the_softmax(images: Path, finished_run: Path) -> None:
    weights = finished_run / "best.safetensors"
    result = call("predict", weights, images / "a.png", images, "--top", "9", "--json")
    found = json.loads(result.stdout)
    assert found["weights"] == str(weights)
    assert [Path(one["path"]).name for one in found["images"]] == [
        "a.png",
        "a.png",
        "b.png",
        "c.JPG",
    ]
    assert [one["fitted"] for one in found["images"]] == [False, False, False, True]
    for one in found["images"]:
        probabilities = [answer["probability"] for answer in one["predictions"]]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert probabilities == sorted(probabilities, reverse=True)
        assert len(probabilities) == 4
    first, again = found["images"][:2]
    assert first["predictions"] == again["predictions"]


def test_broken_image_is_named_and_the_others_are_predicted(
    images: Path, finished_run: Path
) -> None:
    (images / "broken.png").write_text("no image")
    result = call("predict", finished_run, images)
    assert result.exit_code == 3
    assert len(result.stdout.splitlines()) == 4
    assert "1 of 4 images cannot be read\n" in result.stderr
    assert str(images / "broken.png") in result.stderr


@pytest.mark.parametrize("name", ["table.csv", "table.JSON"])
def test_table_has_every_probability_of_every_image(
    name: str, images: Path, finished_run: Path
) -> None:
    (images / "broken.png").write_text("no image")
    result = call("predict", finished_run, images, "-o", name)
    assert result.exit_code == 3
    assert result.stdout == f"wrote {name}: 4 images\n"
    rows: list[dict[str, Any]]
    with Path(name).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file)) if name == "table.csv" else json.load(file)
    known = json.loads(call("predict", finished_run, images, "--top", "4", "--json").stdout)
    classes = [f"class_{number}" for number in range(4)]
    assert list(rows[0]) == ["file", "prediction", "confidence", *(f"p_{one}" for one in classes)]
    assert [row["file"] for row in rows] == [one["path"] for one in known["images"]]
    for row, one in zip(rows, known["images"], strict=True):
        if not one["predictions"]:
            assert set(list(row.values())[1:]) == {"" if name == "table.csv" else None}
            continue
        assert row["prediction"] == one["predictions"][0]["name"]
        wanted = {f"p_{each['name']}": each["probability"] for each in one["predictions"]}
        wanted["confidence"] = one["predictions"][0]["probability"]
        for column, probability in wanted.items():
            assert float(row[column]) == pytest.approx(probability, rel=1e-8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("table.txt", "a table is CSV or JSON: name the file *.csv or *.json"),
        ("there.csv", "there.csv exists and is not overwritten"),
        ("nowhere/table.csv", "there is no folder nowhere"),
    ],
)
def test_table_that_cannot_get_its_name_is_refused_before_anything_is_read(
    name: str, message: str, folder: Path, finished_run: Path
) -> None:
    Path("there.csv").write_text("mine")
    Path("broken.safetensors").write_text("no weights")
    result = call("predict", "broken.safetensors", ".", "-o", name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert Path("there.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("image", "code", "message"),
    [("empty", 3, "no images in empty"), ("missing.png", 2, "'missing.png' does not exist")],
)
def test_empty_folder_and_missing_file_are_errors(
    image: str, code: int, message: str, folder: Path, finished_run: Path
) -> None:
    (folder / "empty").mkdir()
    result = call("predict", finished_run, image)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr


def test_test_images_as_files_are_taken_for_what_evaluation_counts(folder: Path) -> None:
    small = ("model.stages=[{channels: 16, blocks: 1}]", "train.epochs=4", "train.ema=null")
    flags = [word for value in small for word in ("--set", value)]
    assert call("train", "resnet20_digits", "--out", "run", *flags).exit_code == 0
    write_digits(folder / "digits")
    counted = json.loads(call("evaluate", "run", "--json").stdout)["confusion"]
    images = json.loads(call("predict", "run", "digits", "--json").stdout)["images"]
    answers = Counter(
        (int(Path(one["path"]).parent.name), int(one["predictions"][0]["name"])) for one in images
    )
    assert len(images) == 360
    assert [[answers[label, answer] for answer in range(10)] for label in range(10)] == counted
    Image.new("RGB", (8, 8), (250, 10, 10)).save("red.png")
    result = call("predict", "run", "red.png")
    assert result.stderr == "1 image lost its colours: the network takes grey images\n"
    assert 100 < sum(counted[label][label] for label in range(10)) < 360, "some right, some wrong"


def write_digits(folder: Path) -> None:
    """Write the digits' test images as files, in a folder for each class."""
    loaded = DATASETS.get("digits")().load(LoadContext(folder, Preprocessing(())))
    test = loaded.test
    assert isinstance(test, InMemoryImages)
    for number, (image, label) in enumerate(zip(test.images, test.labels.tolist(), strict=True)):
        path = folder / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
