"""Muon: orthogonal updates of the stages' convolutions, plain SGD for all else."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder import build_from_spec
from resnet_builder.training.muon import Muon, orthogonalize
from resnet_builder.training.optim import build_optimizer, optimizer_state
from tests.training.recipes import recipe

SPEC: dict[str, Any] = {
    "type": "muon",
    "lr": 0.05,
    "momentum": 0.6,
    "weight_decay": 0.1,
    "aux": {"lr": 0.2, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
}
RATE = 0.03


def net(groups: int = 1) -> nn.Module:
    block = {"type": "bottleneck", "groups": groups} if groups > 1 else "basic"
    return build_from_spec(
        {
            "name": "small",
            "model": {
                "num_classes": 3,
                "image_size": 8,
                "stem": {"type": "conv3x3", "channels": 4},
                "block": block,
                "shortcut": "projection",
                "stages": [{"channels": 4, "blocks": 1}, {"channels": 8, "blocks": 1, "stride": 2}],
            },
        },
        seed=0,
    ).train()


def optimizer_for(model: nn.Module, **changes: Any) -> torch.optim.Optimizer:
    train = recipe(optimizer={**SPEC, **changes})
    made = build_optimizer(model, train.optimizer, no_weight_decay=(), fused=True)
    for group in made.param_groups:
        group["lr"] = RATE * group["lr_multiplier"]
    return made


def gradients(model: nn.Module, seed: int) -> Iterator[tuple[nn.Parameter, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        yield parameter, torch.randn(parameter.shape, generator=generator)


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        for parameter, gradient in gradients(model, step):
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        optimizer.step()


def kernels(model: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 4 and name.startswith("layer")
    }


def one_by_one(matrix: Tensor) -> Tensor:
    """Orthogonalise one matrix as it was published, in double precision."""
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


@pytest.mark.parametrize("shape", [(3, 16, 144), (2, 64, 10), (1, 8, 8)])
def test_singular_values_come_near_one(shape: tuple[int, ...]) -> None:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(drawn))
    assert values.min() > 0.3
    assert values.max() < 1.3
    assert ((values > 0.6).float().mean()) > 0.85


def test_a_matrix_of_zeros_stays_one() -> None:
    assert torch.equal(orthogonalize(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 2])
def test_kernels_move_as_a_plain_loop_moves_them(
    groups: int, memory_format: torch.memory_format
) -> None:
    model = net(groups).to(memory_format=memory_format)
    weights = {name: kernel.detach().double() for name, kernel in kernels(model).items()}
    momenta = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    optimizer = optimizer_for(model)

    take_steps(model, optimizer, range(3))

    divided = {
        name: layer.groups for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)
    }
    for step in range(3):
        drawn = {id(p): g.double() for p, g in gradients(model, step)}
        for name, kernel in kernels(model).items():
            gradient = drawn[id(kernel)]
            momenta[name] = 0.6 * momenta[name] + gradient
            ahead = gradient + 0.6 * momenta[name]
            parts = ahead.chunk(divided[name.removesuffix(".weight")])
            moved = torch.cat([one_by_one(part.flatten(1)) for part in parts])
            tall = max(1, parts[0].shape[0] / parts[0][0].numel()) ** 0.5
            weights[name] *= 1 - RATE * 0.1
            weights[name] -= RATE * tall * moved.reshape(kernel.shape)
    for name, kernel in kernels(model).items():
        torch.testing.assert_close(kernel.double(), weights[name], rtol=1e-4, atol=1e-5)


def test_the_rest_moves_as_sgd_moves_it() -> None:
    model = net()
    other = copy.deepcopy(model)
    own = kernels(other)
    sgd = torch.optim.SGD(
        [p for name, p in other.named_parameters() if name not in own],
        lr=RATE * 0.2 / 0.05,
        momentum=0.8,
        weight_decay=0.01,
        nesterov=True,
        fused=True,
    )
    take_steps(model, optimizer_for(model), range(3))
    take_steps(other, sgd, range(3))
    moved = dict(model.named_parameters())
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, moved[name]) == (name not in own), name


@pytest.mark.parametrize("on_host", [True, False])
def test_nothing_changes_where_found_inf_is_set(
    on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Muon, "_flag_is_on_host", lambda self: on_host)
    model = net()
    optimizer: Any = optimizer_for(model)
    optimizer.found_inf = torch.zeros(())
    take_steps(model, optimizer, range(2))
    before = {
        **{n: p.detach().clone() for n, p in model.named_parameters()},
        **{n: s.clone() for n, s in optimizer_state(optimizer, model).items()},
    }
    optimizer.found_inf.fill_(1)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.step()
    after = {**dict(model.named_parameters()), **optimizer_state(optimizer, model)}
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
