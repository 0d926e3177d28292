"""Memory and disk estimate of a training, against the layers' own sizes and measured trainings."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from resnet_builder import memory
from resnet_builder.builder import build, build_on_meta, load_experiment
from resnet_builder.memory import (
    MemoryEstimate,
    activation_memory,
    check_disk,
    estimate_training,
    memory_warning,
    state_copies,
)
from resnet_builder.model import ResNet, count_parameters
from resnet_builder.parts import resolve
from resnet_builder.training.finetune import freeze
from resnet_builder.training.optim import build_optimizer
from tests.networks import cifar_spec
from tests.training.recipes import recipe
from tests.training.runs import experiment

MIB = 2**20
CPU = torch.device("cpu")
SHAPE = (4, 3, 32, 32)
PIXELS = 4 * 32 * 32
IMAGES = 50_000 * 3 * 32 * 32


def estimate(*overrides: str, name: str = "resnet20", precision: Any = "fp32") -> MemoryEstimate:
    return estimate_training(load_experiment(name, overrides=overrides), precision)


@pytest.mark.parametrize(
    ("name", "batch_size", "precision", "measured"),
    [
        ("resnet20", 32, "fp32", 85.3),
        ("resnet20", 128, "bf16", 163.4),
        ("resnet56", 128, "fp32", 804.5),
        ("resnet18_cifar", 32, "bf16", 231.1),
    ],
)
def test_estimate_is_within_a_fifth_of_measured_memory(
    name: str, batch_size: int, precision: str, measured: float
) -> None:
    """Measured was the growth of a process on a CPU, in MiB, after its first steps."""
    overrides = (f"train.batch_size={batch_size}", "data.validation=0")
    found = estimate(*overrides, name=name, precision=precision)
    assert found.steps / MIB == pytest.approx(measured, rel=0.2)


def test_weights_are_counted_once_for_each_use() -> None:
    parameters = 4 * 269_722
    buffers = 4 * 2 * 688 + 8 * 19  # means and variances of 19 norms, and their counters
    found = estimate("train.ema={decay: 0.9}", "data.validation=5000")
    assert found.parameters == parameters + buffers
    assert found.gradients == found.optimizer == parameters  # SGD's momentum
    assert found.copies == 2 * (parameters + buffers)  # the average, and the best
    assert found.images == IMAGES
    folder = "data.dataset={type: image_folder, path: nowhere}"
    assert estimate(folder, "data.validation=0", "model.num_classes=10").images == 0


def test_frozen_sections_have_no_gradients_and_save_nothing() -> None:
    whole = load_experiment("resnet20", overrides=["data.validation=0"])
    sections = ("stem", "layer1", "layer2", "layer3")
    train = whole.train.model_copy(update={"freeze": sections})
    frozen = replace(whole, spec=whole.spec.model_copy(update={"train": train}))
    found = estimate_training(frozen, "fp32")
    assert found.gradients == found.optimizer == 4 * 650
    assert found.copies == 0
    assert found.activations < estimate_training(whole, "fp32").activations / 5
    assert all(parameter.requires_grad for parameter in whole.network.parameters())
    assert all(layer.training for layer in whole.network.modules())


@pytest.mark.parametrize(
    ("change", "processes", "images"),
    [
        ("train.batch_size=64", 1, 64),
        ("train.accumulate=128", 1, 1),
        ("train.accumulate=2", 4, 16),
    ],
)
def test_activations_are_of_a_micro_batch(change: str, processes: int, images: int) -> None:
    given = load_experiment("resnet20", overrides=[change])
    found = estimate_training(given, "fp32", processes=processes)
    assert found.micro_batch_size == images
    expected = estimate().activations * max(2, images) / 128
    assert found.activations == pytest.approx(expected, rel=0.01)


def test_activation_checkpointing_saves_less() -> None:
    assert estimate("train.activation_checkpointing=all").activations < 0.6 * estimate().activations


@pytest.mark.parametrize(
    "optimizer",
    [
        {"type": "sgd", "lr": 0.1},
        {"type": "sgd", "lr": 0.1, "momentum": 0.0},
        {"type": "adam", "lr": 0.1},
        {"type": "adamw", "lr": 0.1},
        {"type": "muon", "lr": 0.1},
    ],
    ids=str,
)
def test_optimizers_have_as_many_values_as_estimated(optimizer: dict[str, Any]) -> None:
    spec, model = recipe(optimizer=optimizer).optimizer, build(experiment(), seed=0)
    made = build_optimizer(model, spec, no_weight_decay=(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    sizes = [
        value.numel()
        for state in made.state.values()
        for name, value in state.items()
        if value is not None and name != "step"
    ]
    assert sum(sizes) == state_copies(spec) * count_parameters(model)


def with_free(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: free)


def test_warning_starts_at_four_fifths_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes share a machine's memory; a GPU need not hold the dataset."""
    found = estimate()
    least, without_images = (round(size / 0.8) for size in (found.memory, found.memory - IMAGES))
    for free, device, processes, fits in (
        (least + 1, "cpu", 1, True),
        (least - 10, "cpu", 1, False),
        (None, "cpu", 1, True),
        (2 * least + 2, "cpu", 2, True),
        (2 * least + 2, "cpu", 3, False),
        (without_images + 1, "cpu", 1, False),
        (without_images + 1, "cuda", 4, True),
    ):
        with_free(monkeypatch, free)
        warning = memory_warning(found, torch.device(device), processes=processes)
        assert (warning is None) is fits


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batch_that_a_warning_names_fits(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 300 * MIB)
    warning = memory_warning(estimate("train.batch_size=1024", precision=precision), CPU)
    assert warning is not None
    assert warning.startswith("training may not fit into memory: it is estimated to take ")
    batch, accumulate = re.findall(r"train\.\w+=\d+", warning)
    size = int(batch.partition("=")[2])
    for overrides, fits in (
        ((batch,), True),
        ((f"train.batch_size={round(1.05 * size)}",), False),
        (("train.batch_size=1024", accumulate), True),
    ):
        found = estimate(*overrides, precision=precision)
        assert (memory_warning(found, CPU) is None) is fits


def test_warning_says_that_no_batch_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, MIB)
    assert "; no batch fits: " in (memory_warning(estimate(), CPU) or "")


@pytest.mark.parametrize("checkpoints", [2.1, 100])
def test_warning_of_a_disk_without_room_for_a_whole_run(
    checkpoints: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, warnings = estimate(), list[str]()
    monkeypatch.setattr(memory, "free_disk", lambda path: round(checkpoints * found.checkpoint))
    check_disk(found, tmp_path, warnings.append)
    expected = [f"a run keeps up to 14.5 MiB at {tmp_path}, and 6.5 MiB are free"]
    assert warnings == (expected if checkpoints < 100 else [])


def on_meta(blocks: int = 2, **changes: Any) -> ResNet:
    return build_on_meta(resolve(cifar_spec(blocks, **changes)).model)


def test_convolution_saves_its_input_norm_its_own_and_relu_its_output() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(True))
    layers = 4 * (3 + 8 + 8) * PIXELS
    statistics = 4 * 2 * 8
    found = activation_memory(net, SHAPE)
    assert found.saved == layers + statistics
    assert found.peak == found.saved + 2 * 4 * 8 * PIXELS


@pytest.mark.parametrize("block", ["basic", "bottleneck", "preact_basic"])
def test_equal_blocks_save_what_they_save_one_by_one(block: str) -> None:
    """A plain sequence of the same layers is computed through all of its blocks."""
    whole = on_meta(5, block=block, drop_path=0.2)
    names = [name for name, _ in whole.named_modules()]
    found = activation_memory(whole, SHAPE)
    one_by_one = nn.Sequential(*whole.children())
    assert found.saved == pytest.approx(activation_memory(one_by_one, SHAPE).saved, rel=1e-4)
    assert [name for name, _ in whole.named_modules()] == names


def test_frozen_stages_save_nothing() -> None:
    """Left are the head's 64 features and the logits of 4 images."""
    net = on_meta()
    freeze(net, ["stem", "layer1", "layer2", "layer3"])
    found = activation_memory(net, SHAPE)
    assert found.saved == 4 * 4 * 64
    assert found.peak == found.saved + 2 * 4 * 16 * PIXELS  # the first stage's input and output


def test_checkpointed_blocks_save_their_inputs() -> None:
    plain = activation_memory(on_meta(3), SHAPE)
    found = activation_memory(on_meta(3), SHAPE, checkpointed=["layer1"])
    image = 4 * 16 * PIXELS
    # A basic block saves the inputs of two norms and the outputs of two activations; those of one
    # block are computed again.
    assert plain.saved - found.saved == pytest.approx(3 * (4 - 1) * image, rel=1e-3)
    assert plain.peak - found.peak == pytest.approx((3 * (4 - 1) - 4) * image, rel=1e-3)
