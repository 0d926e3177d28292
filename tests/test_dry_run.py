"""Dry run of a network: what only a training step refuses, and in what words."""

from pathlib import Path

import pytest

from resnet_builder.builder import check_source
from tests.cli.experiments import call

# Four stages that shrink 8 x 8 pixels to one.
ONE_PIXEL = """\
model:
  num_classes: 10
  stem: {type: conv3x3, channels: 4}
  block: basic
  shortcut: projection
  stages:
    - {channels: 4, blocks: 1}
    - {channels: 4, blocks: 3, stride: 2}
    - {channels: 4, blocks: 1, stride: 2}
    - {channels: 4, blocks: 1, stride: 2}
data: {dataset: digits}
train: {epochs: 1, batch_size: 4, optimizer: {type: sgd, lr: 0.1}}
run: {device: cpu}
"""
WEIGHTS = "model.weights=some.pth"
SIXTEEN = "data.preprocess=[{type: resize, size: 16}]"
HALF_SIZE = "train.progressive_resizing=[{size: 8, fraction: 0.5}]"


@pytest.mark.parametrize(
    ("overrides", "processes", "message"),
    [
        (
            ("train.batch_size=1",),
            1,
            "train.batch_size: layer 'layer4.0.bn1' (BatchNorm2d) cannot normalise a single value: "
            "it gets 1 image of 1x1 pixels at a time; compute more images at a time (a larger "
            "batch_size, a smaller accumulate, fewer processes), keep more pixels (fewer strides, "
            "larger images), or use `norm: group_norm`",
        ),
        (("train.accumulate=4",), 1, "train.batch_size: layer 'layer4.0.bn1' (BatchNorm2d) can"),
        (("train.accumulate=2",), 2, "train.batch_size: layer 'layer4.0.bn1' (BatchNorm2d) can"),
        (
            (SIXTEEN, HALF_SIZE, "train.batch_size=1"),
            1,
            "train.progressive_resizing[0].size: layer 'layer4.0.bn1' (BatchNorm2d) cannot norm",
        ),
        (
            ("model.norm=instance_norm", "train.batch_size=64"),
            1,
            "model.norm: layer 'layer4.0.bn1' (InstanceNorm2d) cannot normalise a single value: it "
            "gets 1 image of 1x1 pixels at a time; keep more pixels (fewer strides, larger images)"
            ", or use another norm",
        ),
        (
            ("model.norm=instance_norm", SIXTEEN, HALF_SIZE),
            1,
            "train.progressive_resizing[0].size: layer 'layer4.0.bn1' (InstanceNorm2d) cannot",
        ),
        (
            ("model.norm={type: group_norm, groups: 4}",),
            1,
            "model.norm: layer 'layer4.0.bn1' (GroupNorm) cannot normalise a single value",
        ),
        (
            (SIXTEEN, "data.augment=[{type: random_resized_crop, size: 8}]", "train.batch_size=1"),
            1,
            "train.batch_size: layer 'layer4.0.bn1' (BatchNorm2d) cannot normalise a single value",
        ),
        (
            (SIXTEEN, "data.augment=[{type: random_resized_crop, size: [8, 8]}]", HALF_SIZE),
            1,
            "train.progressive_resizing[0].size: 8 pixels a side are not fewer than the images' ow",
        ),
        (
            ("train.accumulate=2",),
            3,
            "train.batch_size: 4 images cannot be divided among 3 processes in 2 micro-batches "
            "each; give a multiple of 6",
        ),
    ],
)
def test_what_only_training_refuses_is_a_problem_of_the_spec(
    overrides: tuple[str, ...], processes: int, message: str, tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(ONE_PIXEL)
    checked = check_source(
        tmp_path / "s.yaml", overrides=overrides, with_forward=True, processes=processes
    )
    [problem] = checked.problems
    assert f"{problem.path}: {problem.message}".startswith(message)


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.batch_size=2",),
        ("train.batch_size=1", SIXTEEN),
        ("train.batch_size=1", "data.augment=[{type: random_resized_crop, size: 16}]"),
        ("train.batch_size=1", "model.norm={type: group_norm, groups: 2}"),
        ("train.batch_size=1", WEIGHTS, "train.freeze=[layer4]"),
    ],
)
def test_small_batches_that_can_be_trained_are_accepted(
    overrides: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(ONE_PIXEL)
    assert check_source(tmp_path / "s.yaml", overrides=overrides, with_forward=True).spec


def test_validate_train_and_bench_refuse_in_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(ONE_PIXEL)
    found = [
        call(command, "s.yaml", "--set", "train.batch_size=1")
        for command in ("validate", "train", "bench")
    ]
    assert [result.exit_code for result in found] == [2, 2, 2]
    assert len({result.stderr for result in found}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]
