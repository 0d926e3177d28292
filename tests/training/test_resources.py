"""What a training is estimated to take, against what is known and what was measured."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_builder.builder import build, read_spec
from resnet_builder.errors import ResourceError, StorageError
from resnet_builder.model import count_parameters
from resnet_builder.training import resources
from resnet_builder.training.optim import build_optimizer
from resnet_builder.training.resources import (
    Estimate,
    check_disk,
    check_memory,
    estimate_training,
    image_bytes,
    state_copies,
)
from tests.training.recipes import recipe, small_net
from tests.training.runs import experiment, small_splits

MEASURED = json.loads(
    (Path(__file__).parents[2] / "benchmarks" / "results" / "resources.json").read_text()
)["trainings"]

CPU = torch.device("cpu")


def estimate(*overrides: str, name: str = "resnet20", precision: Any = "fp32") -> Estimate:
    return estimate_training(read_spec(name, overrides=overrides), precision)


def id_of(row: dict[str, Any]) -> str:
    return f"{row['spec']}-{row['batch size']}-{row['precision']}"


@pytest.mark.parametrize("row", MEASURED, ids=id_of)
def test_estimate_is_within_a_fifth_of_what_was_measured(row: dict[str, Any]) -> None:
    """The file is written by ``python benchmarks/resources.py``."""
    overrides = (f"train.batch_size={row['batch size']}", "data.validation=0")
    found = estimate(*overrides, name=row["spec"], precision=row["precision"])
    measured = row["measured after each step"]
    assert len(measured) == 5
    assert found.steps / 2**20 == pytest.approx(measured[-1], rel=0.2)


def test_16_trainings_were_measured() -> None:
    assert len({id_of(row) for row in MEASURED}) == 16


def test_weights_are_counted_once_for_each_use() -> None:
    parameters = 4 * 269_722
    buffers = 4 * 2 * 688 + 8 * 19  # means and variances of 19 norms, and their counters
    found = estimate("train.ema={decay: 0.9}", "data.validation=5000")
    assert found.parameters == parameters + buffers
    assert found.gradients == parameters
    assert found.optimizer == parameters  # SGD's momentum
    assert found.copies == 2 * (parameters + buffers)  # the average, and the best
    assert found.checkpoint == found.parameters + found.optimizer + found.copies
    assert found.disk == found.checkpoint * 4 + 2 * found.parameters  # two kept, best and last
    assert found.memory == found.parameters + found.copies + found.steps + found.images


def test_what_is_frozen_has_no_gradients_and_keeps_nothing() -> None:
    whole = estimate("data.validation=0")
    spec = read_spec("resnet20", overrides=["data.validation=0"])
    assert spec.train is not None
    frozen = spec.train.model_copy(update={"freeze": ("stem", "layer1", "layer2", "layer3")})
    found = estimate_training(spec.model_copy(update={"train": frozen}), "fp32")
    assert found.gradients == found.optimizer == 4 * 650
    assert found.copies == 0
    assert found.activations < whole.activations / 5


@pytest.mark.parametrize(
    ("change", "part"),
    [("train.batch_size=64", 64), ("train.accumulate=2", 64), ("train.accumulate=128", 1)],
)
def test_activations_are_of_the_images_computed_together(change: str, part: int) -> None:
    whole, found = estimate(), estimate(change)
    assert found.images_at_a_time == part
    assert found.activations == pytest.approx(whole.activations * max(2, part) / 128, rel=0.01)


def test_processes_share_a_batch_out() -> None:
    spec = read_spec("resnet20", overrides=["train.accumulate=2"])
    found = estimate_training(spec, "fp32", processes=4)
    assert found.images_at_a_time == 128 // (2 * 4)


def test_stages_that_are_computed_again_keep_less() -> None:
    assert estimate("train.activation_checkpointing=all").activations < 0.6 * estimate().activations


def test_images_are_those_of_the_data_set() -> None:
    assert estimate().images == 50_000 * 3 * 32 * 32
    pictures = "{type: image_folder, path: nowhere}"
    spec = read_spec("resnet20", overrides=[f"data.dataset={pictures}", "data.validation=0"])
    assert estimate_training(spec, "fp32").images == 0
    assert image_bytes(small_splits()) == (34 + 11 + 13) * 3 * 6 * 6


@pytest.mark.parametrize(
    "optimizer",
    [
        {"type": "sgd", "lr": 0.1},
        {"type": "sgd", "lr": 0.1, "momentum": 0.0},
        {"type": "adamw", "lr": 0.1},
    ],
    ids=str,
)
def test_optimizers_remember_as_many_numbers_as_is_said(optimizer: dict[str, Any]) -> None:
    spec, model = recipe(optimizer=optimizer).optimizer, small_net()
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


def test_muon_remembers_a_momentum_of_each_weight() -> None:
    """Its convolutions' is their own, the rest's SGD's."""
    spec = recipe(optimizer={"type": "muon", "lr": 0.1}).optimizer
    model = build(experiment(), seed=0)
    made = build_optimizer(model, spec, no_weight_decay=(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    sizes = [value.numel() for state in made.state.values() for value in state.values()]
    assert sum(sizes) == state_copies(spec) * count_parameters(model)


def with_free(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr(resources, "free_memory", lambda device: free)


def test_four_fifths_of_what_is_free_may_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = estimate()
    with_free(monkeypatch, round(found.memory / 0.8) + 1)
    check_memory(found, CPU)
    with_free(monkeypatch, round(found.memory / 0.8) - 10)
    with pytest.raises(ResourceError):
        check_memory(found, CPU)
    with_free(monkeypatch, None)
    check_memory(found, CPU)


def test_images_that_are_loaded_are_not_to_be_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = estimate()
    with_free(monkeypatch, round(found.memory / 0.8) - found.images + 1)
    check_memory(found, CPU, held=found.images)


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    found = estimate()
    with_free(monkeypatch, 2 * round(found.memory / 0.8) + 2)
    check_memory(found, CPU, processes=2)
    with pytest.raises(ResourceError):
        check_memory(found, CPU, processes=3)


def test_a_gpu_holds_no_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    found = estimate()
    with_free(monkeypatch, round(found.network / 0.8) + 1)
    check_memory(found, torch.device("cuda"), processes=4)
    with pytest.raises(ResourceError):
        check_memory(found, CPU)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_largest_batch_is_one_that_fits(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 300 * 2**20
    with_free(monkeypatch, free)
    with pytest.raises(ResourceError) as caught:
        check_memory(estimate("train.batch_size=1024", precision=precision), CPU)
    words = str(caught.value).splitlines()[-1].replace(";", "").split()
    batch = int(words[words.index("is") + 1])
    check_memory(estimate(f"train.batch_size={batch}", precision=precision), CPU)
    with pytest.raises(ResourceError):
        check_memory(estimate(f"train.batch_size={round(1.05 * batch)}", precision=precision), CPU)
    accumulate = next(word for word in words if word.startswith("train.accumulate="))
    check_memory(estimate("train.batch_size=1024", accumulate, precision=precision), CPU)


def test_breakdown_and_mends_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    mib = 2**20
    found = Estimate(
        name="large",
        batch_size=120,
        accumulate=1,
        processes=1,
        precision="fp32",
        parameters=100 * mib,
        gradients=100 * mib,
        optimizer=0,
        copies=0,
        activations=2400 * mib,
        overhead=1000 * mib,
        images=2048 * mib,
        checkpoint=0,
        disk=0,
    )
    with_free(monkeypatch, 5000 * mib)
    with pytest.raises(ResourceError) as caught:
        check_memory(found, CPU)
    # 1.35 x 20 MiB an image: of 5,648 MiB in all, 1,648 are too much, or 62 images.
    assert str(caught.value) == (
        "large does not fit into memory: training is estimated to take 5.5 GiB, and 80% of the "
        "4.9 GiB that are free are 3.9 GiB\n"
        "  parameters                         100.0 MiB\n"
        "  gradients                          100.0 MiB\n"
        "  activations of 120 images, fp32      2.3 GiB\n"
        "  kernels and heap                 1,000.0 MiB\n"
        "  images of the data set               2.0 GiB\n"
        "the largest train.batch_size that would fit is 58; so would this one in smaller parts, "
        "with train.accumulate=3; --ignore-memory-estimate tries it all the same"
    )


def test_network_that_is_too_large_for_any_batch_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_free(monkeypatch, 2**20)
    with pytest.raises(ResourceError, match="no batch would fit: the network or the data set"):
        check_memory(estimate(), CPU)


@pytest.mark.parametrize(
    ("checkpoints", "code"), [(1.9, "refused"), (2.1, "told"), (100, "nothing")]
)
def test_room_for_two_checkpoints_is_needed_and_for_all_of_a_run_is_told(
    checkpoints: float, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, said = estimate(), list[str]()
    free = round(checkpoints * found.checkpoint)
    monkeypatch.setattr(resources, "free_disk", lambda path: free)
    if code == "refused":
        with pytest.raises(StorageError, match=r"two checkpoints of 3\.1 MiB each at"):
            check_disk(found, tmp_path, said.append)
    else:
        check_disk(found, tmp_path, said.append)
    assert said == (
        [f"a run keeps up to 14.5 MiB at {tmp_path}, and 6.5 MiB are free"]
        if code == "told"
        else []
    )


def test_estimate_of_other_batches_is_that_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = estimate(precision="bf16")
    for batch in (16, 64, 256):
        own = estimate(f"train.batch_size={batch}", precision="bf16")
        assert found.with_images(batch) == pytest.approx(own.network, rel=0.03)
    assert replace(found, precision="fp32").with_images(128) == found.network
