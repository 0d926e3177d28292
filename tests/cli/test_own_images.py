"""Own images at the first try: ``--data``, a dataset in place of a spec's, and wrong paths."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from resnet_builder import load_spec
from resnet_builder.builder import check_source
from resnet_builder.data.validation import default_validation
from resnet_builder.spec.load import read_draft
from tests.cli.experiments import call
from tests.data.folders import write_image

NET = """\
name: net
model:
  num_classes: 10
  in_channels: 3
  stem: {type: conv3x3, channels: 4}
  block: basic
  shortcut: pad
  stages: [{channels: 4, blocks: 1}]
data:
  dataset: cifar10
  validation: 5000
  split_seed: 3
  preprocess: [{type: resize, size: 32}]
  normalize: {mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}
train:
  steps: 3
  batch_size: 4
  optimizer: {type: sgd, lr: 0.1}
run: {device: cpu, precision: fp32, report: false}
expect: {depth: 4}
published: {test_top1: 0.5, source: nobody}
"""

LEFT_OUT = (
    "model.num_classes, model.in_channels, data.validation, data.split_seed, data.preprocess, "
    "data.normalize"
)


@pytest.fixture
def mine(folder: Path) -> Path:
    """Write a network for CIFAR-10, and a folder of 20 images of two classes and odd sizes."""
    (folder / "net.yaml").write_text(NET, encoding="utf-8")
    for split, count in (("train", 10), ("test", 2)):
        for label, name in enumerate(("ant", "bee")):
            for number in range(count):
                size = (20 + number, 30)
                write_image(folder / "mine" / split / name / f"{number}.png", label, size)
    return folder / "mine"


def resolved(run: Path) -> dict[str, Any]:
    spec = load_spec(run / "spec.yaml")
    assert spec.data is not None
    return {
        "num_classes": spec.model.num_classes,
        "path": spec.data.dataset.options.get("path"),
        "validation": spec.data.validation,
        "sizes": [getattr(step, "size", None) for step in spec.data.preprocess or ()],
    }


def test_one_line_trains_on_a_folder(mine: Path) -> None:
    result = call("train", "net.yaml", "--data", "mine", "--out", "run")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[0] == (
        "--data replaces the dataset cifar10 by image_folder; values for cifar10 are not used: "
        f"{LEFT_OUT}, expect, published"
    )
    assert "not compared" not in result.stderr
    assert resolved(Path("run")) == {
        "num_classes": 2,
        "path": str(mine),
        "validation": 0.1,
        "sizes": [32, 32],
    }
    assert json.loads(Path("run/data.json").read_text())["images"] == {
        "train": 18,
        "val": 2,
        "test": 4,
    }
    for line in (("predict", "run", mine / "test" / "ant"), ("evaluate", "run")):
        assert call(*line).exit_code == 0
    again = call("train", "net.yaml", "--data", "mine", "--out", "run", "--resume")
    assert "is already complete" in again.stderr


def test_path_in_place_of_a_dataset_gets_a_suggestion(mine: Path) -> None:
    Path("table.csv").write_text("path,label\n", encoding="utf-8")
    for path, meant in (
        ("mine", "{type: image_folder, path: mine}"),
        ("../gone/mine", "{type: image_folder, path: ../gone/mine}"),
        ("table.csv", "{type: image_table, path: table.csv}"),
        ("gone", None),
        ("cifra10", "cifar10"),
    ):
        text = f"extends: ./net.yaml\ndata: {{dataset: {path}}}\n"
        Path("pets.yaml").write_text(text, encoding="utf-8")
        said = call("validate", "pets.yaml").stderr
        assert f"no dataset is named '{path}'" in said
        assert (
            said.rstrip()
            .splitlines()[-1]
            .startswith("allowed: cifar10, " if meant is None else f"did you mean: {meant}")
        )
    said = call("validate", "net.yaml", "--set", "data.dataset=./mine").stderr
    assert "did you mean: --data ./mine\n" in said


@pytest.mark.parametrize(
    "command", ["validate", "summary", pytest.param("bench", marks=pytest.mark.slow)]
)
def test_other_commands_take_the_folder_too(command: str, mine: Path) -> None:
    more = ("--seconds", "0.01") if command == "bench" else ()
    result = call(command, "net.yaml", "--data", "mine", *more)
    assert result.exit_code == 0, result.stderr
    without = call(command, "net.yaml", "--data", "nowhere", *more)
    assert without.exit_code == 0, without.stderr
    assert "only the data tell it, and they are not there; 10 are assumed" in without.stderr


def test_spec_says_it_in_two_lines_and_is_found_from_anywhere(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run, too, finds its data from any working directory, and ends with the same bits."""
    spec = mine.parent / "pets.yaml"
    spec.write_text("extends: ./net.yaml\ndata: {dataset: {type: image_folder, path: mine}}\n")
    (mine.parent / "elsewhere").mkdir()
    monkeypatch.chdir(mine.parent / "elsewhere")
    result = call("train", spec, "--out", "run")
    assert result.exit_code == 0, result.stderr
    notice = f"{spec} replaces the dataset cifar10 by image_folder; values for cifar10 are not used"
    assert result.stderr.startswith(f"{notice}: {LEFT_OUT}\n")
    before = Path("run/last.safetensors").read_bytes()
    Path("run/result.json").unlink()
    for checkpoint in Path("run/checkpoints").iterdir():
        checkpoint.unlink()
    monkeypatch.chdir("/")
    run = mine.parent / "elsewhere" / "run"
    assert call("train", "--resume", run).exit_code == 0
    assert (run / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "left_out", "kept"),
    [
        (["data.dataset=digits"], LEFT_OUT, {}),
        (["data.dataset=cifar10"], "", {"validation": 5000}),
        (["data.dataset={train: 100}"], "", {"validation": 5000}),
        (["data.dataset=digits", "data.validation=7"], "", {"validation": 7, "split_seed": 0}),
        (["data.validation=7", "data.dataset=digits"], "", {"validation": 7, "split_seed": 0}),
        (["model.num_classes=7", "data.dataset=digits"], "", {"num_classes": 7}),
    ],
    ids=str,
)
def test_new_dataset_takes_away_what_was_said_for_another(
    overrides: list[str], left_out: str, kept: dict[str, Any], mine: Path
) -> None:
    """The same dataset takes nothing away, nor do options; the command line is one layer."""
    draft = read_draft("net.yaml", overrides=overrides)
    assert draft.model is not None
    assert draft.data is not None
    found = {**draft.data.model_dump(), **draft.model.model_dump()}
    assert {key: found[key] for key in kept} == kept
    if left_out:
        assert draft.notices == (
            "--set replaces the dataset cifar10 by digits; "
            f"values for cifar10 are not used: {left_out}, expect, published",
        )


def test_fragment_insists_on_what_it_says_itself(mine: Path) -> None:
    fragment = mine.parent / "with.yaml"
    text = "data: {dataset: {type: image_folder, path: mine}, validation: 4}\n"
    fragment.write_text(f"model: {{num_classes: 3}}\n{text}")
    draft = read_draft("net.yaml", fragments=[fragment])
    assert draft.data is not None
    assert (draft.data.validation, draft.data.preprocess) == (4, None)
    assert draft.data.dataset.options["path"] == str(mine)
    checked = check_source(draft, with_data=True)
    assert [str(one.path) for one in checked.problems] == ["model.num_classes"]
    assert "must be 2, the classes of image_folder, not 3" in checked.problems[0].message


def test_path_counts_from_the_file_that_names_it(mine: Path) -> None:
    """Of files that extend each other; on the command line and in Python, from where one works."""
    inner = mine.parent / "inner"
    inner.mkdir()
    text = "data: {dataset: {type: image_folder, path: ../mine}}\n"
    (inner / "base.yaml").write_text(f"extends: ../net.yaml\n{text}")
    (mine.parent / "top.yaml").write_text("extends: inner/base.yaml\n")
    again = {"extends": str(inner / "base.yaml"), "name": "x"}
    for draft in (
        read_draft("top.yaml"),
        read_draft(again),
        read_draft(again, overrides=["data.dataset.path=mine"]),
        read_draft({**again, "data": {"dataset": {"path": "mine"}}}),
        read_draft("net.yaml", data="mine"),
    ):
        assert draft.data is not None
        assert draft.data.dataset.options["path"] == str(mine)


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        ("mime", ["data.dataset.path: there is no {folder}/mime", "did you mean: {folder}/mine"]),
        ("x/y", ["there is no {folder}/x/y", "  the folders in {folder} are empty, mine"]),
        ("empty/x", ["  there are no folders in {folder}/empty"]),
    ],
)
def test_path_at_which_nothing_is_shows_what_is_there(
    path: str, lines: list[str], mine: Path
) -> None:
    (mine.parent / "empty").mkdir()
    result = call("train", "net.yaml", "--data", path)
    assert result.exit_code == 3
    for line in lines:
        assert line.format(folder=mine.parent) in result.stderr
    assert not Path("runs").exists()


def test_data_folder_is_looked_into_where_nothing_else_is(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the flag and by the variable; images elsewhere of the same name are told."""
    stored = mine.parent / "stored" / "sets"
    stored.mkdir(parents=True)
    shutil.move(mine, stored / "mine")
    line = ("train", "net.yaml", "--data", "sets/mine", "--set", "train.steps=1")
    missing = call(*line, "--data-dir", "nowhere")
    assert missing.exit_code == 3
    places = f"there is no {mine.parent}/sets/mine, nor {mine.parent}/nowhere/mine\n"
    assert places in missing.stderr
    assert call(*line, "--data-dir", "stored", "--out", "run").exit_code == 0
    assert resolved(Path("run"))["path"] == str(stored / "mine")
    monkeypatch.setenv("RESNET_BUILDER_DATA", os.fspath(stored))
    assert call(*line, "--out", "again").exit_code == 0
    shutil.copytree(stored, mine.parent / "sets")
    result = call(*line, "--data-dir", "stored")
    assert f"for those in {stored}/mine, add --data {stored}/mine\n" in result.stderr


def test_moved_data_of_a_run_need_the_flag_and_give_the_same_images(mine: Path) -> None:
    line = ("train", "net.yaml", "--data", "mine", "--out", "run", "--resume")
    assert call(*line, "--set", "train.steps=2").exit_code == 0
    shutil.move(mine, mine.parent / "moved" / "mine")
    resume = ("train", "--resume", "run", "--set", "train.steps=4", "--data-dir", "moved")
    refused, allowed = call(*resume), call(*resume, "--allow-spec-change")
    assert refused.exit_code == 2
    assert "data.dataset.path: " in refused.stderr
    assert allowed.exit_code == 0, allowed.stderr
    assert resolved(Path("run"))["path"] == str(mine.parent / "moved" / "mine")


def test_number_of_classes_that_nothing_tells_is_missing(folder: Path) -> None:
    text = NET.replace("  num_classes: 10\n", "").partition("data:")[0]
    (folder / "bare.yaml").write_text(text, encoding="utf-8")
    result = call("validate", "bare.yaml")
    assert result.exit_code == 2
    message = "error[missing-key]: model.num_classes: is missing: there is no dataset that tells it"
    assert message in result.stderr


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("train.steps=64000", "its 64,000 steps see each of them 16,000 times, 4 steps an epoch"),
        ("train.steps=8", None),
    ],
)
def test_recipe_for_more_images_says_which_one_to_use(
    recipe: str, said: str | None, mine: Path
) -> None:
    result = call("validate", "net.yaml", "--data", "mine", "--set", recipe)
    assert result.exit_code == 0
    assert ("--with small_data" in result.stderr) == (said is not None)
    assert (said or "") in result.stderr
    large = call("train", "net.yaml", "--data", "mine", "--set", "train.batch_size=128")
    assert "lower train.batch_size, or add --with small_data" in large.stderr


def test_data_folder_is_nothing_to_a_dataset_without_a_path(folder: Path) -> None:
    digits = ("--set", "data.dataset=digits", "--set", "train.steps=1")
    (folder / "net.yaml").write_text(NET, encoding="utf-8")
    assert call("train", "net.yaml", *digits, "--data-dir", folder).exit_code == 0


def test_wrong_folders_are_told_apart_before_there_is_a_run(mine: Path) -> None:
    """What a newcomer gives instead of the folder of the splits; each message says what to give."""
    write_image(Path("photo.png"), 1)
    shutil.copytree(mine, Path("deep/er/mine"))
    shutil.copytree(mine / "train" / "ant", Path("one/train/ant"))
    shutil.copytree(mine, "differ")
    Path("differ/test/bee").rename("differ/test/wasp")
    for path, said in {
        "photo.png": "photo.png is a file, and a folder with a folder of images for each class is",
        "one": "data.dataset: image_folder has one class; nothing can be learnt from it",
        "deep": "add `/er/mine",
        "differ": "has folders that train has not: wasp",
    }.items():
        trained, checked = (
            call(command, "net.yaml", "--data", path) for command in ("train", "validate")
        )
        assert (trained.exit_code, checked.exit_code) == (3, 3), path
        assert said in trained.stderr, trained.stderr
        assert said in checked.stderr
    assert not Path("runs").exists()


def test_validation_share_has_each_class_or_there_is_none() -> None:
    counts = {
        (50, 50): 0.1,
        (10, 10): 0.1,
        (3, 3): 2,
        (20, 100): 0.1,
        (5, 60): 13,
        (2, 1000): 0.1,
        (1, 100): 0,
        (2, 2): 2,
        (3, 3, 4): 3,
    }
    assert {each: default_validation(each, sum(each)) for each in counts} == counts


def test_class_of_one_image_leaves_no_validation_images(mine: Path) -> None:
    for path in sorted((mine / "train" / "bee").iterdir())[1:]:
        path.unlink()
    result = call("train", "net.yaml", "--data", "mine", "--out", "run")
    assert result.exit_code == 0, result.stderr
    assert "there is 1 training image of bee: by default no images are set aside" in result.stderr
    assert resolved(Path("run"))["validation"] == 0
