"""Fine-tuning: frozen sections, activation checkpointing, and runs that start from weights."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torchvision.ops import StochasticDepth

from resnet_builder.builder import build, load_experiment
from resnet_builder.data.datasets import Digits
from resnet_builder.data.interfaces import LoadContext
from resnet_builder.data.preprocess import Preprocessing
from resnet_builder.data.sources import InMemoryImages
from resnet_builder.errors import CheckpointError, DataError, Stopped, UsageError
from resnet_builder.experiment import Experiment
from resnet_builder.model import ResNet, sections
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import DataRecord, ResultRecord
from resnet_builder.training.ema import Ema
from resnet_builder.training.finetune import (
    checkpoint_activations,
    frozen_tensors,
    has_unused_parameters,
)
from resnet_builder.training.optim import optimizer_state, restore_optimizer
from resnet_builder.training.step import TrainStep
from resnet_builder.weights.file import read_tensors
from tests.cli.experiments import call, write_tiny
from tests.networks import cifar_spec, random_images
from tests.training.recipes import CLASSES, batch, images, recipe
from tests.training.runs import after, experiment, outcome, resume_run, start_run, train
from tests.training.test_step import make_step

SGD = {"type": "sgd", "lr": 0.1, "weight_decay": 1e-2, "nesterov": True}
RATE = 0.1
ADAMW = {"type": "adamw", "lr": 0.01, "eps": 1e-3, "weight_decay": 0.1}


def network(seed: int = 0, **model: Any) -> ResNet:
    """Build a network of three stages, with statistics that a training has moved."""
    built = build(cifar_spec(widths=(4, 6, 8), classes=CLASSES, **model), seed=seed)
    built.train()
    with torch.no_grad():
        built(images(8, seed=9))
    return built


def train_step(model: nn.Module, **changes: Any) -> TrainStep:
    return make_step(model, recipe(**changes))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Return the names of the tensors whose bytes differ from those before."""
    return {
        name
        for name, tensor in model.state_dict().items()
        if tensor.numpy().tobytes() != before[name].numpy().tobytes()
    }


def test_sections_are_stem_stages_and_head() -> None:
    assert sections(network()) == {
        "stem": ("conv1", "bn1", "relu"),
        "layer1": ("layer1",),
        "layer2": ("layer2",),
        "layer3": ("layer3",),
        "head": ("avgpool", "flatten", "fc"),
    }


@pytest.mark.parametrize(
    ("frozen", "optimizer"),
    [
        (("stem", "layer1", "layer2"), SGD),
        (("layer2",), ADAMW),
        (("head",), SGD),
        (("stem", "head", "layer3"), ADAMW),
    ],
)
def test_frozen_tensors_keep_their_bytes_and_all_others_change(
    frozen: tuple[str, ...], optimizer: dict[str, Any]
) -> None:
    model = network()
    before = state(model)
    learn = train_step(model, optimizer=optimizer, freeze=frozen, clip_norm=1.0)
    for step in range(3):
        learn(batch(step), step=step, lr=RATE)

    layers = {layer for name in frozen for layer in sections(model)[name]}
    expected = {name for name in before if name.split(".")[0] not in layers}
    assert changed(model, before) == expected
    assert frozen_tensors(model, frozen) == before.keys() - expected


def test_dropout_and_drop_path_are_off_where_frozen() -> None:
    model = network(block={"type": "basic", "dropout": 0.5}, drop_path=0.5)
    assert any(isinstance(module, StochasticDepth) for module in model.modules())
    train_step(model, freeze=["stem", "layer1", "layer2", "layer3"])
    once, again = (model[:-1](images(4)) for _ in range(2))
    assert torch.equal(once, again)


def test_no_backward_pass_goes_through_leading_frozen_layers() -> None:
    model = network()
    learn = train_step(model, freeze=["stem", "layer1"])
    needed: dict[str, bool] = {}
    for name, layer in model.named_children():
        layer.register_forward_hook(
            lambda _module, _inputs, output, name=name: needed.update({name: output.requires_grad})
        )
    learn(batch(0), step=0, lr=RATE)
    assert [name for name, needs in needed.items() if not needs] == [
        *("conv1", "bn1", "relu", "layer1"),
    ]


def test_average_of_frozen_tensors_is_an_exact_copy() -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter("layer1.0.bn1.bias").fill_(-0.0)  # a sum with 0.0 would lose the sign
    before = state(model)
    frozen = ["stem", "layer1"]
    learn = train_step(model, freeze=frozen)
    given = recipe(ema={"decay": 0.9})
    assert given.ema is not None
    average = Ema(model, given.ema, frozen=frozen_tensors(model, frozen))
    for step in range(3):
        learn(batch(step), step=step, lr=RATE)
        average.update(step + 1)
    layers = ("conv1.", "bn1.", "layer1.")
    assert changed(average.model, before) == {k for k in before if not k.startswith(layers)}


def test_state_of_what_is_frozen_later_is_dropped() -> None:
    model = network()
    learn = train_step(model, optimizer=ADAMW)
    learn(batch(0), step=0, lr=RATE)
    saved = optimizer_state(learn.optimizer, model)
    later = train_step(model, optimizer=ADAMW, freeze=["stem", "layer1"])
    restore_optimizer(later.optimizer, model, saved)
    kept = optimizer_state(later.optimizer, model)
    assert kept.keys() == {
        key for key in saved if not key.startswith(("conv1.", "bn1.", "layer1."))
    }


NETWORKS: dict[str, dict[str, Any]] = {
    "basic": {"block": {"type": "basic", "dropout": 0.3}, "drop_path": 0.3, "attention": "eca"},
    "bottleneck": {"block": "bottleneck", "shortcut": "projection", "norm": "instance_norm"},
    "preact": {"block": "preact_basic", "stem": {"type": "conv3x3", "channels": 4, "bare": True}},
}
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {
        "ema": {"decay": 0.9},
        "clip_norm": 1.0,
        "accumulate": 2,
        "freeze": ["stem", "layer1"],
        "loss": {"type": "cross_entropy", "label_smoothing": 0.1},
    },
}


def two_stages(**model: Any) -> ResNet:
    return build(cifar_spec(2, widths=(4, 6), classes=CLASSES, **model), seed=0)


def kept_bytes(model: nn.Module) -> int:
    """Count what a forward pass keeps of activations, for 4 images of 16 x 16."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(random_images(4, 3, 16, 16))
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    ("network", "recipe", "precision"),
    [
        pytest.param("basic", "plain", "bf16", marks=pytest.mark.ci),
        pytest.param("basic", "all", "fp32", marks=pytest.mark.ci),
        ("bottleneck", "all", "bf16"),
        ("preact", "plain", "fp32"),
    ],
)
def test_checkpointed_run_has_the_same_bits(
    network: str, recipe: str, precision: str, tmp_path: Path
) -> None:
    """Weights, average, running statistics and their counters, momentum, metrics."""
    for name, stages in (("kept", []), ("again", "all")):
        spec = experiment(
            epochs=2,
            activation_checkpointing=stages,
            run={"precision": precision},
            **RECIPES[recipe],
        )
        train(tmp_path / name, spec, model=two_stages(**NETWORKS[network]))
    kept, again = outcome(tmp_path / "kept"), outcome(tmp_path / "again")
    assert kept["checkpoint"] == again["checkpoint"]
    assert kept["rows"] == again["rows"]


def test_run_may_be_resumed_with_other_stages_checkpointed(tmp_path: Path) -> None:
    train(tmp_path / "kept", experiment(), model=two_stages())
    with pytest.raises(Stopped):
        train(tmp_path / "again", experiment(), model=two_stages(), should_stop=after(5))
    train(tmp_path / "again", experiment(activation_checkpointing=["layer2"]), model=two_stages())
    kept, again = outcome(tmp_path / "kept"), outcome(tmp_path / "again")
    assert kept["checkpoint"] == again["checkpoint"]


def test_activations_inside_checkpointed_blocks_are_not_kept() -> None:
    """Of a block of a stage, one tensor is left of five: its input."""
    model = two_stages().train()
    pixels = 4 * 4 * 16 * 16  # floats of 4 bytes, 4 images
    everything = kept_bytes(model)
    first, second = (
        kept_bytes(checkpoint_activations(model, [name])) for name in ("layer1", "layer2")
    )
    both = kept_bytes(checkpoint_activations(model, "all"))
    inside = 3 * 4 * pixels  # conv1, its activation, conv2; 4 channels
    statistics = 2 * 2 * 4 * 4  # mean and deviation of two norms
    assert everything - first == 2 * (inside + statistics)
    assert second < everything
    assert everything - both == (everything - first) + (everything - second)


def test_buffers_are_put_back_where_computing_again_fails() -> None:
    model = two_stages().train()
    own = dict(model.named_buffers())
    output = checkpoint_activations(model, ["layer1"])(random_images(2, 3, 8, 8))
    model.get_submodule("layer1.0.bn1").register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        output.sum().backward()
    assert all(buffer is own[name] for name, buffer in model.named_buffers())


@pytest.mark.slow
def test_compiled_network_checkpoints_too() -> None:
    """It counts no batch twice in its statistics either."""
    found = []
    for is_compiled in (False, True):
        model = build(cifar_spec(1, widths=(4,), classes=CLASSES), seed=0).train()
        forward = checkpoint_activations(model, "all")
        compute = torch.compile(forward, dynamic=False) if is_compiled else forward
        compute(random_images(4, 3, 8, 8)).sum().backward()
        gradients = {f"{name}.grad": p.grad for name, p in model.named_parameters()}
        found.append({**gradients, **dict(model.named_buffers())})
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_parameters_that_the_network_does_not_use_are_found() -> None:
    class Idle(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x)

    used = two_stages()
    assert not has_unused_parameters(used, (3, 8, 8))
    idle = Idle(used, nn.Linear(2, 2))
    assert has_unused_parameters(idle, (3, 8, 8))
    idle[1].requires_grad_(False)
    assert not has_unused_parameters(idle, (3, 8, 8))


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
run: {device: cpu, precision: fp32, report: false}
"""
FIVE = """\
extends: body.yaml
model:
  num_classes: 5
  image_size: 8
  weights: {path: body/best.safetensors, new_head: true}
data:
  dataset: {type: image_folder, path: five, channels: 1}
  validation: 0
train:
  epochs: 4
  batch_size: 20
  optimizer: {lr: 0.02}
  freeze: [stem, layer1]
  head_lr_multiplier: 5.0
  no_weight_decay: [norm, bias]
  ema: {decay: 0.9}
"""


def write_five_digits(folder: Path) -> None:
    """Write the digits below five as pictures: ten of each to train on, the rest to test on."""
    digits = Digits().load(LoadContext(folder, Preprocessing())).train
    assert isinstance(digits, InMemoryImages)
    for label in range(5):
        for number, picture in enumerate(digits.images[digits.labels == label, 0].numpy()):
            split = folder / ("train" if number < 10 else "test") / str(label)
            split.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(split / f"{number}.png")


@pytest.mark.ci
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
    weights = ["model.weights=body.safetensors", "train.seed=1"]
    recipe = ["train.freeze=[stem]", "train.head_lr_multiplier=3.0"]
    return load_experiment(path, overrides=[*weights, *recipe])


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


def test_run_with_a_checkpoint_needs_the_file_no_more(folder: Path, spec: Experiment) -> None:
    start_run(spec, Path("whole"))
    run = stopped(spec, 5)
    assert len(list(run.checkpoints.iterdir())) == 1
    (folder / "body.safetensors").unlink()
    resume_run(spec, run.path)
    assert outcome(run.path) == outcome(Path("whole"))
    assert call("evaluate", "run").exit_code == 0


@pytest.mark.ci
def test_run_without_a_checkpoint_starts_over_from_the_same_bytes_alone(
    folder: Path, spec: Experiment
) -> None:
    start_run(spec, Path("whole"))
    run, before = stopped(spec, 3), sha256(folder / "body.safetensors")
    assert DataRecord.read(run.data).pretrained_sha256 == before
    for path in run.checkpoints.iterdir():
        path.unlink()  # as if the run had been killed before the first
    right = (folder / "body.safetensors").read_bytes()
    now = write_others(folder)
    with pytest.raises(DataError, match=f"its SHA-256 was {before} and is {now}; bring the file"):
        resume_run(spec, run.path, allow_spec_change=True)
    (folder / "body.safetensors").unlink()
    with pytest.raises(CheckpointError, match="there is no such file"):
        resume_run(spec, run.path)
    (folder / "body.safetensors").write_bytes(right)
    resume_run(spec, run.path)
    assert outcome(run.path) == outcome(Path("whole"))


@pytest.mark.ci
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
