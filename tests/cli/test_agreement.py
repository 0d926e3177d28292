"""Agreement of ``validate`` and ``train`` about data: the same words, and no run directory."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli.experiments import call
from tests.data.folders import write_image, write_pets, write_pets_spec

WARM_UP = "train.schedule={type: cosine, warmup: {epochs: 2}}"


def empty(pets: Path) -> None:
    for image in (pets / "train" / "ant").iterdir():
        image.unlink()


def one_class(pets: Path) -> None:
    for split in ("train", "test"):
        shutil.rmtree(pets / split / "bee")


def another_class(pets: Path) -> None:
    write_image(pets / "test" / "cat" / "0.png", 1)


def single(pets: Path) -> None:
    for number in range(1, 5):
        (pets / "train" / "bee" / f"{number}.bmp").unlink()


def rare(pets: Path) -> None:
    for number in range(2, 5):
        (pets / "train" / "bee" / f"{number}.bmp").unlink()
    for number in range(5, 34):
        write_image(pets / "train" / "ant" / f"{number}.bmp", 300 + number)


def nothing(pets: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "overrides", "code", "messages"),
    [
        (empty, (), 3, ["error: {pets}/train has no images in ant"]),
        (one_class, (), 3, ["image_folder has one class; nothing can be learnt from it"]),
        (one_class, ("model.num_classes=1",), 3, ["has one class; nothing can be learnt"]),
        (another_class, (), 3, ["error: {pets}/test has folders that train has not: cat"]),
        (nothing, ("data.validation=0.99",), 3, ["training images cannot be set aside"]),
        (
            single,
            ("data.validation=2",),
            3,
            ["a class has 1 training image; at least 2 are needed"],
        ),
        (
            rare,
            ("data.validation=0.9",),
            3,
            ["with 32 of 36 training images set aside, none would be left of a class of 2"],
        ),
        (
            nothing,
            ("model.num_classes=3",),
            2,
            ["error[mismatch]: model.num_classes: must be 2, the classes of image_folder, not 3"],
        ),
        (
            nothing,
            ("train.batch_size=64",),
            2,
            ["a batch of 64 images is larger than the training set"],
        ),
        (
            nothing,
            (WARM_UP,),
            2,
            ["train.schedule.warmup: its 4 steps leave nothing of the training"],
        ),
        (nothing, ("train.early_stop={patience: 1}",), 2, ["`early_stop` has no effect without"]),
        (
            another_class,
            ("model.block=basik", "train.epochs=0"),
            2,
            ["no block is named 'basik'", "0 is out of range", "test has folders that train has"],
        ),
    ],
)
def test_data_that_do_not_fit_are_refused_in_the_same_words(
    change: Callable[[Path], None],
    overrides: tuple[str, ...],
    code: int,
    messages: list[str],
    folder: Path,
) -> None:
    pets, spec = write_pets(folder), write_pets_spec(folder)
    change(pets)
    flags = ["--data-dir", folder, *(word for one in overrides for word in ("--set", one))]
    validated, trained = (call(command, spec, *flags) for command in ("validate", "train"))
    assert (validated.exit_code, trained.exit_code) == (code, code), validated.stderr
    assert trained.stderr.endswith(validated.stderr)
    for message in messages:
        assert message.format(pets=pets) in validated.stderr
    assert not (folder / "runs").exists()


def test_spec_without_its_data_is_checked_with_a_notice(folder: Path) -> None:
    spec = write_pets_spec(folder)
    result = call("validate", spec, "--data-dir", folder)
    assert result.exit_code == 0
    missing = f"data.dataset.path: there is no {folder}/pets"
    assert f"checked without the data: {missing}; there are no folders in" in result.stderr
    trained = call("train", spec, "--data-dir", folder)
    assert trained.exit_code == 3
    assert f"error: {missing}" in trained.stderr


def test_weights_of_another_network_are_refused_in_the_same_words(folder: Path) -> None:
    write_pets(folder)
    spec = write_pets_spec(folder)
    torch.save({"conv1.weight": torch.zeros(7, 3, 3, 3)}, folder / "other.pth")
    flags = ["--data-dir", folder, "--set", "model.weights=other.pth"]
    validated, trained = (call(command, spec, *flags) for command in ("validate", "train"))
    assert (validated.exit_code, trained.exit_code) == (4, 4)
    assert validated.stderr.startswith("error: model.weights: ")
    assert trained.stderr.endswith(validated.stderr)
    assert not (folder / "runs").exists()


def test_device_that_is_not_here_is_a_notice_of_validate(folder: Path) -> None:
    write_pets(folder)
    result = call("validate", write_pets_spec(folder), "--set", "run.device=cuda:99")
    assert result.exit_code == 0
    assert "checked without the device: there is no device 'cuda:99' here" in result.stderr


def test_images_that_are_left_out_count_before_there_is_a_directory(folder: Path) -> None:
    """How many images can be decoded is known only once they are read."""
    pets = write_pets(folder)
    (pets / "train" / "ant" / "0.bmp").write_bytes(b"no image")
    flags = ["--data-dir", folder, "--skip-bad", "--set", "train.batch_size=10"]
    result = call("train", write_pets_spec(folder), *flags)
    assert result.exit_code == 2
    message = "train.batch_size: a batch of 10 images is larger than the training set of 9 images"
    assert f"<command line>:--set: error[mismatch]: {message}" in result.stderr
    assert not (folder / "runs").exists()
