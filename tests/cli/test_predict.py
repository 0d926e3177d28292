"""``resnet-build predict``."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.experiments import call


@pytest.fixture
def pictures(folder: Path) -> Path:
    """Make three pictures, one of them too large, and a file that is none."""
    generator = np.random.default_rng(0)
    inside = folder / "pictures" / "inside"
    inside.mkdir(parents=True)
    for path, size in ((inside.parent / "a.png", 8), (inside / "b.png", 8), (inside / "c.JPG", 30)):
        pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (inside / "notes.txt").write_text("no picture")
    (inside / ".hidden.png").write_text("no picture")
    return inside.parent


def test_pictures_in_folders_get_classes(pictures: Path, finished_run: Path) -> None:
    result = call("predict", finished_run, pictures, "--top", "2")
    assert result.exit_code == 0, result.stderr
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["picture", "class", "probability"]
    assert len(lines) == 6
    assert [line.split()[0] for line in lines[::2]] == [
        str(path)
        for path in (pictures / "a.png", pictures / "inside/b.png", pictures / "inside/c.JPG")
    ]
    assert result.stderr == "1 of 3 pictures were resized and cropped to fit the network\n"


def test_probabilities_are_the_softmax(pictures: Path, finished_run: Path) -> None:
    weights = finished_run / "best.safetensors"
    result = call("predict", weights, pictures / "a.png", pictures, "--top", "9", "--json")
    found = json.loads(result.stdout)
    assert found["weights"] == str(weights)
    assert [Path(one["path"]).name for one in found["pictures"]] == [
        "a.png",
        "a.png",
        "b.png",
        "c.JPG",
    ]
    assert [one["fitted"] for one in found["pictures"]] == [False, False, False, True]
    for one in found["pictures"]:
        probabilities = [answer["probability"] for answer in one["answers"]]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert probabilities == sorted(probabilities, reverse=True)
        assert len(probabilities) == 4
    first, again = found["pictures"][:2]
    assert first["answers"] == again["answers"]


def test_broken_picture_is_named_and_the_others_answered(
    pictures: Path, finished_run: Path
) -> None:
    (pictures / "broken.png").write_text("no picture")
    result = call("predict", finished_run, pictures)
    assert result.exit_code == 3
    assert len(result.stdout.splitlines()) == 4
    assert "1 of 4 pictures cannot be read\n" in result.stderr
    assert str(pictures / "broken.png") in result.stderr


def test_folder_without_pictures_is_3(folder: Path, finished_run: Path) -> None:
    (folder / "empty").mkdir()
    result = call("predict", finished_run, "empty")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "no pictures in empty" in result.stderr


def test_missing_picture_is_2(finished_run: Path, folder: Path) -> None:
    assert call("predict", finished_run, "missing.png").exit_code == 2
