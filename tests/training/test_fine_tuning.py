"""Fine-tuning from end to end: from a file of weights to a run that no longer needs it."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from resnet_builder.builder import load_experiment
from resnet_builder.data.datasets import Digits
from resnet_builder.data.interfaces import LoadContext
from resnet_builder.data.preprocess import Preprocessing
from resnet_builder.data.sources import InMemoryImages
from resnet_builder.errors import CheckpointError, DataError, Stopped, UsageError
from resnet_builder.experiment import Experiment
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import DataRecord, ResultRecord
from resnet_builder.weights.file import read_tensors
from tests.cli.experiments import call, write_tiny
from tests.training.runs import after, outcome, resume_run, start_run

BODY = """\
name: body
model:
  num_classes: 10
  stem: {type: conv3x3, channels: 8}
  block: basic
  shortcut: pad
  stages: [{channels: 8, blocks: 1}, {channels: 16, blocks: 1, stride: 2}]
data: {dataset: digits}
train:
  epochs: 5
  batch_size: 64
  optimizer: {type: sgd, lr: 0.1, weight_decay: 1e-3}
  schedule: one_cycle
run: {device: cpu, precision: fp32}
"""
FIVE = """\
extends: body.yaml
model:
  num_classes: 5
  image_size: 8
  weights: {path: body/best.safetensors, new_head: true}
data:
  dataset: {type: image_folder, path: five, channels: 1}
train:
  epochs: 4
  batch_size: 20
  optimizer: {lr: 0.02}
  freeze: [stem, layer1]
  head_lr_multiplier: 5.0
  no_weight_decay: [norm, bias]
  ema: {decay: 0.9}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_five_digits(folder: Path) -> None:
    """Write the digits below five as pictures: ten of each to train on, the rest to test on."""
    digits = Digits().load(LoadContext(folder, Preprocessing())).train
    assert isinstance(digits, InMemoryImages)
    for label in range(5):
        for number, picture in enumerate(digits.images[digits.labels == label, 0].numpy()):
            split = folder / ("train" if number < 10 else "test") / str(label)
            split.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(split / f"{number}.png")


def test_body_of_ten_digits_learns_five_with_its_frozen_layers_untouched(folder: Path) -> None:
    (folder / "body.yaml").write_text(BODY, encoding="utf-8")
    (folder / "five.yaml").write_text(FIVE, encoding="utf-8")
    write_five_digits(folder / "five")
    assert call("train", "body.yaml", "--out", "body").exit_code == 0
    assert call("validate", "five.yaml").exit_code == 0
    result = call("train", "five.yaml", "--out", "run", "--data-dir", folder)
    assert result.exit_code == 0, result.stderr

    before, _ = read_tensors(folder / "body" / "best.safetensors")
    after, _ = read_tensors(folder / "run" / "best.safetensors")
    frozen = {name for name in before if name.startswith(("conv1.", "bn1.", "layer1."))}
    assert len(frozen) == 18
    for name, tensor in before.items():
        is_same = tensor.numpy().tobytes() == after[name].numpy().tobytes()
        assert is_same == (name in frozen), name
    assert after["fc.weight"].shape == (5, 16)
    record = ResultRecord.read(RunDirectory(folder / "run").result)
    assert record.test_top1 is not None
    assert record.test_top1 > 0.9
    assert record.parameters == sum(
        tensor.numel() for name, tensor in after.items() if name.endswith(("weight", "bias"))
    )


@pytest.fixture
def spec(folder: Path) -> Experiment:
    """An experiment that starts from what another run has trained, and freezes its stem."""
    path = write_tiny(folder)
    assert call("train", path, "--out", "body", "--set", "train.epochs=1").exit_code == 0
    shutil.copy(folder / "body" / "best.safetensors", folder / "body.safetensors")
    freeze = ["model.weights=body.safetensors", "train.freeze=[stem]", "train.seed=1"]
    return load_experiment(path, overrides=freeze)


def write_others(folder: Path) -> str:
    """Write other weights for the same network in place of those of the body."""
    tensors, _ = read_tensors(folder / "body.safetensors")
    torch.save({name: tensor + 1 for name, tensor in tensors.items()}, folder / "body.safetensors")
    return sha256(folder / "body.safetensors")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stopped(spec: Experiment, polls: int) -> RunDirectory:
    """Begin a run and stop it; polls in reading the data count too."""
    with pytest.raises(Stopped):
        resume_run(spec, Path("run"), should_stop=after(polls))
    run = RunDirectory(Path("run"))
    assert run.is_published
    return run


def test_run_writes_down_which_bytes_it_started_from(folder: Path, spec: Experiment) -> None:
    digest = sha256(folder / "body.safetensors")
    start_run(spec, Path("run"))
    assert DataRecord.read(RunDirectory(Path("run")).data).pretrained_sha256 == digest


def test_run_with_a_checkpoint_needs_the_file_no_more(folder: Path, spec: Experiment) -> None:
    start_run(spec, Path("whole"))
    run = stopped(spec, 5)
    assert len(list(run.checkpoints.iterdir())) == 1
    (folder / "body.safetensors").unlink()
    resume_run(spec, run.path)
    assert outcome(run.path) == outcome(Path("whole"))
    assert call("evaluate", "run").exit_code == 0


def killed(spec: Experiment) -> RunDirectory:
    """Begin a run, and leave it as one that was killed before its first checkpoint."""
    run = stopped(spec, 3)
    for path in run.checkpoints.iterdir():
        path.unlink()
    return run


def test_run_without_a_checkpoint_starts_over_from_the_same_bytes(spec: Experiment) -> None:
    start_run(spec, Path("whole"))
    run = killed(spec)
    resume_run(spec, run.path)
    assert outcome(run.path) == outcome(Path("whole"))


def test_run_without_a_checkpoint_refuses_another_file(folder: Path, spec: Experiment) -> None:
    run = killed(spec)
    before, now = sha256(folder / "body.safetensors"), write_others(folder)
    with pytest.raises(DataError, match=f"its SHA-256 was {before} and is {now}; bring the file"):
        resume_run(spec, run.path, allow_spec_change=True)
    (folder / "body.safetensors").unlink()
    with pytest.raises(CheckpointError, match="there is no such file"):
        resume_run(spec, run.path)


def test_other_first_weights_are_another_experiment(folder: Path, spec: Experiment) -> None:
    run = stopped(spec, 5)
    other = load_experiment(folder / "tiny.yaml", overrides=["model.weights=body/last.safetensors"])
    with pytest.raises(UsageError, match=r"is of another network:\n(.*\n)*.*model\.weights\.path"):
        resume_run(other, run.path, allow_spec_change=True)


def test_weights_that_do_not_fit_leave_no_run_behind(folder: Path, spec: Experiment) -> None:
    wide = load_experiment(
        folder / "tiny.yaml",
        overrides=["model.weights=body.safetensors", "model.stages.0.channels=6"],
    )
    with pytest.raises(CheckpointError, match=r"model\.weights: .*body\.safetensors"):
        start_run(wide, Path("run"))
    assert not Path("run").exists()
    start_run(spec, Path("run"))


def test_run_can_be_frozen_on_the_way(spec: Experiment) -> None:
    recipe = spec.train.model_copy(update={"freeze": ()})
    free = replace(spec, spec=spec.spec.model_copy(update={"train": recipe}))
    run = stopped(free, 5)
    [checkpoint] = run.checkpoints.iterdir()
    before, _ = read_tensors(checkpoint)
    with pytest.raises(UsageError, match=r"train\.freeze"):
        resume_run(spec, run.path)
    resume_run(spec, run.path, allow_spec_change=True)
    after, _ = read_tensors(run.last)
    assert torch.equal(before["model/conv1.weight"], after["conv1.weight"])
    assert not torch.equal(before["model/fc.weight"], after["fc.weight"])
