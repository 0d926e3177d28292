"""Memory and disk estimate of a training, against the layers' own sizes and measured trainings."""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder import memory
from resnet_builder.builder import build, build_on_meta, load_experiment
from resnet_builder.errors import StorageError
from resnet_builder.memory import (
    ActivationMemory,
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
    assert found.checkpoint == found.parameters + found.optimizer + found.copies
    assert found.disk == found.checkpoint * 4 + 2 * found.parameters  # two kept, best and last
    assert found.images == 50_000 * 3 * 32 * 32
    assert found.memory == found.parameters + found.copies + found.steps + found.images
    folder = "data.dataset={type: image_folder, path: nowhere}"
    assert estimate(folder, "data.validation=0").images == 0


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
    least = round(found.memory / 0.8)
    cuda = torch.device("cuda")
    for free, device, processes, fits in (
        (least + 1, CPU, 1, True),
        (least - 10, CPU, 1, False),
        (None, CPU, 1, True),
        (2 * least + 2, CPU, 2, True),
        (2 * least + 2, CPU, 3, False),
        (round(found.network / 0.8) + 1, CPU, 1, False),
        (round(found.network / 0.8) + 1, cuda, 4, True),
    ):
        with_free(monkeypatch, free)
        assert (memory_warning(found, device, processes=processes) is None) is fits


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_largest_batch_is_one_that_fits(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 300 * MIB)
    warning = memory_warning(estimate("train.batch_size=1024", precision=precision), CPU)
    assert warning is not None
    words = warning.splitlines()[-1].replace(";", "").split()
    batch = int(words[words.index("is") + 1])
    accumulate = next(word for word in words if word.startswith("train.accumulate="))
    for overrides, fits in (
        ((f"train.batch_size={batch}",), True),
        ((f"train.batch_size={round(1.05 * batch)}",), False),
        (("train.batch_size=1024", accumulate), True),
    ):
        found = estimate(*overrides, precision=precision)
        assert (memory_warning(found, CPU) is None) is fits


def test_warning_lists_the_parts_and_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    found = MemoryEstimate(
        name="large",
        batch_size=120,
        accumulate=1,
        processes=1,
        precision="fp32",
        parameters=100 * MIB,
        gradients=100 * MIB,
        optimizer=0,
        copies=0,
        activations=2400 * MIB,
        overhead=1000 * MIB,
        images=2048 * MIB,
        checkpoint=0,
        disk=0,
    )
    with_free(monkeypatch, 5000 * MIB)
    # 1.35 x 20 MiB an image: of 5,648 MiB in all, 1,648 are too much, or 62 images.
    assert memory_warning(found, CPU) == (
        "large may not fit into memory: training is estimated to take 5.5 GiB, and 4.9 GiB are "
        "free\n"
        "  parameters                         100.0 MiB\n"
        "  gradients                          100.0 MiB\n"
        "  activations of 120 images, fp32      2.3 GiB\n"
        "  kernels and heap                 1,000.0 MiB\n"
        "  images of the dataset                2.0 GiB\n"
        "the largest train.batch_size that fits is 58; this one fits in smaller micro-batches, "
        "with train.accumulate=3"
    )
    with_free(monkeypatch, MIB)
    warning = memory_warning(found, CPU) or ""
    assert warning.endswith("no batch fits: the network or the dataset is too large")


@pytest.mark.parametrize(
    ("checkpoints", "outcome"), [(1.9, "refused"), (2.1, "warned"), (100, "nothing")]
)
def test_disk_needs_room_for_two_checkpoints(
    checkpoints: float, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, warnings = estimate(), list[str]()
    monkeypatch.setattr(memory, "free_disk", lambda path: round(checkpoints * found.checkpoint))
    if outcome == "refused":
        with pytest.raises(StorageError, match=r"two checkpoints of 3\.1 MiB each at"):
            check_disk(found, tmp_path, warnings.append)
    else:
        check_disk(found, tmp_path, warnings.append)
    expected = [f"a run keeps up to 14.5 MiB at {tmp_path}, and 6.5 MiB are free"]
    assert warnings == (expected if outcome == "warned" else [])


def on_meta(blocks: int = 2, **changes: Any) -> ResNet:
    return build_on_meta(resolve(cifar_spec(blocks, **changes)).model)


def test_convolution_saves_its_input_norm_its_own_and_relu_its_output() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(True))
    found = activation_memory(net, SHAPE)
    assert found.saved == [4 * 3 * PIXELS, 4 * 8 * PIXELS, 8 * 4, 8 * 4, 4 * 8 * PIXELS]
    assert found.largest_output == 4 * 8 * PIXELS
    # In bf16, a copy of the weights is saved too.
    saved = activation_memory(net, SHAPE, bf16=True).saved
    assert saved[:3] == [2 * 3 * PIXELS, 2 * 3 * 8, 2 * 8 * PIXELS]
    assert saved[-1] == 2 * 8 * PIXELS


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("block", ["basic", "bottleneck", "preact_basic"])
def test_equal_blocks_save_what_they_save_one_by_one(block: str, bf16: bool) -> None:
    """A plain sequence of the same layers is computed through all of its blocks."""
    whole = on_meta(5, block=block, drop_path=0.2)
    one_by_one = nn.Sequential(OrderedDict(whole.named_children()))
    found, expected = (activation_memory(net, SHAPE, bf16=bf16) for net in (whole, one_by_one))
    assert found.total == pytest.approx(expected.total, rel=1e-4)
    assert found.peak == pytest.approx(expected.peak, rel=1e-4)
    assert len(found.saved) == len(expected.saved)


def test_network_is_left_as_it_was() -> None:
    net = on_meta(40)
    names = [name for name, _ in net.named_modules()]
    activation_memory(net, SHAPE)
    assert [name for name, _ in net.named_modules()] == names
    assert all(tensor.is_meta for tensor in (*net.parameters(), *net.buffers()))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.modules())


def test_frozen_stages_save_nothing() -> None:
    """Left are the head's 64 features and the logits of 4 images."""
    net = on_meta()
    freeze(net, ["stem", "layer1", "layer2", "layer3"])
    found = activation_memory(net, SHAPE)
    assert found.total == 4 * 4 * 64
    assert found.peak == 2 * 4 * 16 * PIXELS  # the first stage's input and output


def test_checkpointed_blocks_save_their_inputs() -> None:
    plain = activation_memory(on_meta(3), SHAPE)
    found = activation_memory(on_meta(3), SHAPE, checkpointed=["layer1"])
    image = 4 * 16 * PIXELS
    # A basic block saves the inputs of two norms and the outputs of two activations.
    assert plain.total - found.total == pytest.approx(3 * (4 - 1) * image, rel=1e-3)
    assert found.recomputed == pytest.approx(4 * image, rel=1e-3)


def test_peak_is_what_is_saved_and_the_gradients_of_one_layer() -> None:
    assert ActivationMemory(saved=[10, 30, 5]).peak == 10 + 30 + 2 * 30
    assert ActivationMemory(saved=[2], largest_output=50).peak == 2 * 50
    assert ActivationMemory().peak == 0


def test_part_that_holds_a_plain_tensor_is_computed_in_fp32() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1, bias=False)
            self.scale = torch.ones(4, 1, 1)  # neither parameter nor buffer

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * self.scale

    with torch.device("meta"):
        net = Scaled()
    assert activation_memory(net, SHAPE, bf16=True).total == 4 * (3 * PIXELS + 4)
