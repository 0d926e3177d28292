"""Data that are broken, wrong or changed: what ``train`` and ``evaluate`` make of them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.experiments import call, write_tiny
from tests.data.folders import WAYS, write_image, write_pets, write_pets_spec


def train(spec: Path, folder: Path, *more: object) -> Any:
    return call("train", spec, "--data-dir", folder, *more)


def break_images(pets: Path) -> list[Path]:
    """Break images in five ways, the first of the dataset among them."""
    broken = [
        pets / "train" / "ant" / "0.bmp",
        pets / "train" / "bee" / "cut.jpg",
        pets / "train" / "bee" / "text.jpg",
        pets / "test" / "ant" / "empty.png",
        pets / "test" / "bee" / "leads-nowhere.png",
    ]
    broken[0].write_bytes(broken[0].read_bytes()[:100])
    content = write_image(broken[1], 7).read_bytes()
    broken[1].write_bytes(content[: len(content) // 2])
    broken[2].write_text("I am no image")
    broken[3].write_bytes(b"")
    broken[4].symlink_to("gone.png")
    (pets / "train" / "ant" / "folder.png").mkdir()
    return broken


def test_broken_images_are_all_named_and_leave_no_run(folder: Path) -> None:
    broken = break_images(write_pets(folder))
    result = train(write_pets_spec(folder), folder)
    assert result.exit_code == 3
    assert "error: 5 images cannot be decoded" in result.stderr
    assert all(f"\n  {path}: cannot be decoded: " in result.stderr for path in broken)
    assert "--skip-bad" in result.stderr
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("way", WAYS)
def test_skipped_images_are_named_recorded_and_never_replaced(way: str, folder: Path) -> None:
    """A run that skipped them is resumed without the flag, unless one can be decoded by then."""
    pets = write_pets(folder)
    broken = break_images(pets)
    spec, run = write_pets_spec(folder, way), folder / "run"
    result = train(spec, folder, "--skip-bad", "--out", run)
    assert result.exit_code == 0, result.stderr
    assert all(f"left out {path}: cannot be decoded: " in result.stderr for path in broken)
    data = json.loads((run / "data.json").read_text())
    assert data["images"] == {"train": 9, "test": 10}
    assert data["skipped"] == sorted(path.relative_to(pets).as_posix() for path in broken)

    before = weights(run)
    begin_again(run)
    result = call("train", "--resume", run, "--data-dir", folder)
    assert result.exit_code == 0, result.stderr
    assert weights(run) == before
    begin_again(run)
    write_image(broken[0], 0)
    result = call("train", "--resume", run, "--data-dir", folder)
    assert result.exit_code == 3
    assert "train/ant/0.bmp: can be decoded now" in result.stderr

    for path in broken:
        path.unlink()
    assert train(spec, folder, "--out", "without").exit_code == 0
    assert weights(folder / "without") == before


def weights(run: Path) -> bytes:
    return (run / "last.safetensors").read_bytes()


def begin_again(run: Path) -> None:
    """Take a run back to its first step."""
    (run / "result.json").unlink()
    for path in (run / "checkpoints").iterdir():
        path.unlink()


@pytest.mark.parametrize("way", WAYS)
def test_evaluation_skips_only_what_it_is_told_to(way: str, folder: Path) -> None:
    pets = write_pets(folder)
    assert train(write_pets_spec(folder, way), folder, "--out", "run").exit_code == 0
    line = ("evaluate", "run", "--data-dir", folder)
    broken = pets / "test" / "bee" / "4.bmp"
    broken.write_bytes(b"")
    refused, skipping = call(*line), call(*line, "--skip-bad", "--json")
    assert refused.exit_code == 3
    assert "1 image cannot be decoded; repair or remove them" in refused.stderr
    assert f"left out {broken}: " in skipping.stderr
    assert json.loads(skipping.stdout)["images"] == 9
    for path in broken.parent.iterdir():
        path.write_bytes(b"")
    none_left = call(*line, "--skip-bad")
    assert none_left.exit_code == 3
    assert "no image in test can be decoded of bee" in none_left.stderr


@pytest.mark.parametrize("way", WAYS)
def test_images_that_have_changed_are_named_on_resume(way: str, folder: Path) -> None:
    pets = write_pets(folder)
    assert train(write_pets_spec(folder, way), folder, "--out", "run").exit_code == 0
    begin_again(folder / "run")
    changed, gone = pets / "train" / "bee" / "3.bmp", pets / "test" / "ant" / "0.bmp"
    before = changed.read_bytes(), gone.read_bytes()
    changed.write_bytes(before[0][:-4] + bytes([before[0][-4] ^ 1]) + before[0][-3:])
    gone.unlink()
    os.utime(pets / "train" / "ant" / "0.bmp")  # looked at again, and found to be the same
    result = call("train", "--resume", "run", "--data-dir", folder)
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-5:] == [
        "error: run cannot be resumed: its images have changed:",
        "  test: 10 images, now 9",
        "  train/bee: its contents have changed",
        "  test/ant: its contents have changed",
        "bring them back, or start another run",
    ]
    changed.write_bytes(before[0])
    gone.write_bytes(before[1])
    assert call("train", "--resume", "run", "--data-dir", folder).exit_code == 0


def test_evaluation_drops_no_image(folder: Path) -> None:
    spec, count = write_tiny(folder), 129  # a batch, and one image
    change = ("--set", f"data.dataset.test={count}", "--set", "train.epochs=1")
    assert call("train", spec, *change, "--out", "run").exit_code == 0
    answer = json.loads(call("evaluate", "run", "--json").stdout)
    assert answer["images"] == count
    assert sum(map(sum, answer["confusion"])) == count


def test_images_in_two_splits_are_counted(folder: Path) -> None:
    pets = write_pets(folder, ("train", "val", "test"))
    same = (pets / "train" / "ant" / "1.bmp").read_bytes()
    for path in ("val/ant/again.bmp", "val/bee/again.bmp", "test/bee/again.bmp"):
        (pets / path).write_bytes(same)
    result = train(write_pets_spec(folder, "streamed"), folder)
    assert result.exit_code == 0
    assert "2 of 12 validation images are training images too\n" in result.stderr
    assert "1 of 11 test images are training images too\n" in result.stderr


def test_copies_that_the_split_parts_are_counted(folder: Path) -> None:
    pets = write_pets(folder)
    for name in ("ant", "bee"):
        same = (pets / "train" / name / "0.bmp").read_bytes()
        for path in (pets / "train" / name).iterdir():
            path.write_bytes(same)
    change = ("--set", "data.validation=4")
    result = train(write_pets_spec(folder), folder, *change, "--out", "run")
    assert result.exit_code == 0
    assert "4 of 4 validation images are training images too\n" in result.stderr
    data = json.loads((folder / "run" / "data.json").read_text())
    assert data["images"] == {"train": 6, "val": 4, "test": 10}
    assert sorted(index // 5 for index in data["validation"]) == [0, 0, 1, 1]


def test_what_is_not_read_and_what_is_damaged_is_told(folder: Path) -> None:
    pets = write_pets(folder)
    (pets / "train" / "ant" / "notes.txt").write_text("about ants")
    (pets / "val").write_text("")
    with Image.open(pets / "train" / "bee" / "0.bmp") as image:
        image.save(pets / "train" / "bee" / "turned.webp", lossless=True, exif=b"garbage")
    result = train(write_pets_spec(folder), folder, "--out", "run")
    assert result.exit_code == 0, result.stderr
    for line in (
        f"{pets}: passed over files that are not images: 1 .txt (train/ant/notes.txt)",
        f"{pets}: passed over val (a file)",
        f"{pets}: read 1 image in spite of damaged metadata: train/bee/turned.webp: its EXIF "
        "data are damaged",
    ):
        assert f"{line}\n" in result.stderr
    assert json.loads((folder / "run" / "data.json").read_text())["images"]["train"] == 11


def test_one_class_is_refused_and_leaves_no_run(folder: Path) -> None:
    pets = write_pets(folder)
    for split in ("train", "test"):
        (pets / split).rename(pets / "aside")
        (pets / split).mkdir()
        (pets / "aside").rename(pets / split / "all")
    result = train(write_pets_spec(folder), folder, "--set", "model.num_classes=1")
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-2:] == [
        "error: data.dataset: image_folder has one class; nothing can be learnt from it",
        f"  {pets}: if train/all/ant, train/all/bee are the classes, move them 1 folder up, "
        "into train",
    ]
    assert not (folder / "runs").exists()


def test_channel_that_is_the_same_everywhere_is_told_and_trained_with(folder: Path) -> None:
    for path in write_pets(folder).rglob("*.bmp"):
        with Image.open(path) as image:
            red, _, blue = image.split()
        Image.merge("RGB", (red, red.point(lambda level: 51), blue)).save(path)
    result = train(write_pets_spec(folder), folder, "--out", "run")
    assert result.exit_code == 0, result.stderr
    assert (
        "channel 2 (green) is 51 in every pixel of the training images; it is divided by 1, "
        "unless data.normalize says otherwise\n"
    ) in result.stderr
