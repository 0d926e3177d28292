"""Convolutions whose weights' gradient is a product of matrices, against torch's in fp64."""

import copy

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.kernels.convolution import ProductConv2d, has_faster_gradient

BF16 = torch.bfloat16


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the processor's matrix unit for granted; what is computed does not need it."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)


def images(*shape: int) -> Tensor:
    return torch.randn(shape).to(BF16).contiguous(memory_format=torch.channels_last)


def learnt(layer: nn.Module, x: Tensor, *, bf16: bool) -> tuple[Tensor, ...]:
    """Return output and both gradients."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", BF16, enabled=bf16):
        y = layer(x)
    (y * torch.linspace(-1, 2, y.shape[3]).to(y.dtype)).sum().backward()
    (weight,) = layer.parameters()
    assert x.grad is not None
    assert weight.grad is not None
    return y.detach(), x.grad, weight.grad


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(256, 256, 3, padding=1, bias=False), (4, 256, 4, 4)),
        (nn.Conv2d(256, 320, 3, padding=1, bias=False), (2, 256, 5, 8)),
        (nn.Conv2d(64, 256, 1, bias=False), (3, 64, 9, 11)),
        (nn.Conv2d(256, 64, 1, bias=False), (2, 256, 7, 7)),
    ],
    ids=str,
)
def test_gradients_are_torch_s_but_for_rounding(
    layer: nn.Conv2d, shape: tuple[int, ...], amx: None
) -> None:
    layer.to(memory_format=torch.channels_last)
    assert has_faster_gradient(layer)
    twin, exact = copy.deepcopy(layer), copy.deepcopy(layer)
    exact.weight.data = exact.weight.to(BF16).double()
    x = images(*shape)
    wanted = learnt(exact, x.double(), bf16=False)
    torch_s = learnt(layer, x, bf16=True)
    found = learnt(ProductConv2d(twin), x, bf16=True)
    assert twin.weight.grad is not None
    assert twin.weight.grad.dtype == torch.float32
    for ours, theirs, precise in zip(found, torch_s, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert (ours.double() - precise).norm() / precise.norm() < 2**-8
    assert torch.equal(found[0], torch_s[0])
    assert torch.equal(found[1], torch_s[1])


@pytest.mark.parametrize(
    ("shape", "bf16"), [((2, 256, 9, 9), True), ((2, 256, 4, 4), False)], ids=["wide", "fp32"]
)
def test_what_is_not_faster_is_computed_by_the_layer(
    shape: tuple[int, ...], bf16: bool, amx: None
) -> None:
    layer = nn.Conv2d(256, 256, 3, padding=1, bias=False)
    x = images(*shape) if bf16 else images(*shape).float()
    ours = learnt(ProductConv2d(copy.deepcopy(layer)), x, bf16=bf16)
    assert all(map(torch.equal, ours, learnt(layer, x, bf16=bf16)))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(128, 256, 3, padding=1, bias=False),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.Conv2d(256, 256, 3, padding=1, stride=2, bias=False),
        nn.Conv2d(256, 256, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(256, 256, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(256, 256, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(256, 256, 3, bias=False),
        nn.Conv2d(32, 256, 1, bias=False),
        nn.Conv2d(256, 256, 1, stride=2, bias=False),
        nn.Linear(256, 256),
        None,
    ],
    ids=str,
)
def test_other_layers_are_left_alone(layer: nn.Module | None, amx: None) -> None:
    assert not has_faster_gradient(layer)


def test_without_amx_nothing_is_known_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not has_faster_gradient(nn.Conv2d(256, 256, 3, padding=1, bias=False))


def test_a_frozen_weight_gets_no_gradient(amx: None) -> None:
    layer = nn.Conv2d(64, 64, 1, bias=False).requires_grad_(False)
    x = images(2, 64, 4, 4).requires_grad_()
    with torch.autocast("cpu", BF16):
        ProductConv2d(layer)(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None
