"""Parameter groups, and an optimizer's state by parameter name."""

from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from resnet_builder.builder import build
from resnet_builder.training.optim import build_optimizer, optimizer_state, restore_optimizer
from tests.networks import cifar_spec
from tests.training.recipes import CLASSES, images, recipe, small_net

SGD = {"type": "sgd", "lr": 0.1, "weight_decay": 0.01}
ADAM = {"type": "adam", "lr": 0.1, "weight_decay": 0.01}
ADAMW = {"type": "adamw", "lr": 0.1}
MUON = {"type": "muon", "lr": 0.05, "aux": {"lr": 0.2}}


def optimizer_for(
    model: nn.Module,
    spec: dict[str, Any],
    *,
    no_weight_decay: Collection[str] = (),
    fused: bool = True,
) -> Optimizer:
    train = recipe(optimizer=spec)
    return build_optimizer(model, train.optimizer, no_weight_decay=no_weight_decay, fused=fused)


def decays(model: nn.Module, optimizer: Optimizer) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def take_steps(model: nn.Module, optimizer: Optimizer, count: int, seed: int = 0) -> None:
    for step in range(count):
        optimizer.zero_grad()
        model(images(4, seed=seed + step)).square().mean().backward()
        optimizer.step()


def test_every_trained_parameter_decays_by_default() -> None:
    model = small_net()
    found = decays(model, optimizer_for(model, SGD))
    assert found == {name: 0.01 for name, _ in model.named_parameters()}
    model[0].requires_grad_(False)
    assert decays(model, optimizer_for(model, SGD)).keys() == found.keys() - {"0.weight"}


NORMS = {"1.weight", "1.bias", "2.weight", "2.bias", "3.weight", "3.bias", "4.weight"}
BIASES = {"0.bias", "1.bias", "2.bias", "3.bias"}


@pytest.mark.parametrize(
    ("kinds", "exempt"),
    [(("norm",), NORMS), (("bias",), BIASES), (("bias", "norm"), NORMS | BIASES)],
)
def test_no_weight_decay_exempts_norms_or_biases(kinds: tuple[str, ...], exempt: set[str]) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.LayerNorm([4, 6, 6]),
        nn.PReLU(4),
    )
    found = decays(model, optimizer_for(model, SGD, no_weight_decay=kinds))
    assert found == {name: 0.0 if name in exempt else 0.01 for name, _ in model.named_parameters()}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("spec", "names"), [(SGD, {"momentum_buffer"}), (ADAM, {"exp_avg", "exp_avg_sq", "step"})]
)
def test_state_is_named_by_parameter(spec: Any, names: set[str], fused: bool) -> None:
    model = small_net()
    optimizer = optimizer_for(model, spec, fused=fused)
    assert optimizer_state(optimizer, model) == {}

    take_steps(model, optimizer, 1)

    parameters = [name for name, _ in model.named_parameters()]
    expected = {f"{parameter}/{name}" for parameter in parameters for name in names}
    assert optimizer_state(optimizer, model).keys() == expected


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("spec", "fused"), [(SGD, True), (SGD, False), (ADAM, True), (ADAMW, False), (MUON, True)]
)
def test_a_restored_optimizer_goes_on_to_the_same_bits(
    spec: Any, fused: bool, layout: torch.memory_format
) -> None:
    def network(seed: int) -> tuple[nn.Module, Optimizer]:
        model = build(cifar_spec(widths=(4, 6), classes=CLASSES), seed=seed).train()
        model.to(memory_format=layout)
        kinds = ("norm", "bias")
        return model, optimizer_for(model, spec, no_weight_decay=kinds, fused=fused)

    model, optimizer = network(seed=0)
    take_steps(model, optimizer, 3)
    saved = {k: v.clone().contiguous() for k, v in optimizer_state(optimizer, model).items()}
    other, restored = network(seed=9)
    other.load_state_dict(model.state_dict())
    restore_optimizer(restored, other, saved)
    take_steps(model, optimizer, 3, seed=10)
    take_steps(other, restored, 3, seed=10)

    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    for parameter in other.parameters():
        for value in restored.state[parameter].values():
            assert value.ndim == 0 or value.stride() == parameter.stride()
