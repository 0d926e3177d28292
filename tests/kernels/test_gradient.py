"""Convolutions whose weights' gradient is our own, against torch's in fp64."""

import copy

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.kernels import gradient as module
from resnet_builder.kernels.gradient import PairedConv2d, has_faster_gradient
from tests.kernels import NEEDS_GRADIENT, Processor

BF16 = torch.bfloat16

# Layers, and images that they are given: kernels and strides of all kinds; images of odd sides, of
# one pixel, larger than what is computed at once, and so small that many are.
CASES = {
    "3x3": (nn.Conv2d(16, 16, 3, padding=1, bias=False), (3, 16, 7, 9)),
    "to more channels": (nn.Conv2d(32, 48, 3, padding=1, bias=False), (2, 32, 8, 8)),
    "stride 2": (nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), (5, 16, 8, 8)),
    "stride 2, odd": (nn.Conv2d(32, 16, 3, stride=2, padding=1, bias=False), (2, 32, 9, 7)),
    "1x1": (nn.Conv2d(32, 48, 1, bias=False), (3, 32, 5, 7)),
    "1x1, stride 2": (nn.Conv2d(16, 16, 1, stride=2, bias=False), (3, 16, 5, 6)),
    "5x5": (nn.Conv2d(16, 16, 5, padding=2, bias=False), (2, 16, 9, 9)),
    "7x7, stride 2": (nn.Conv2d(16, 16, 7, stride=2, padding=3, bias=False), (2, 16, 11, 9)),
    "stride 3": (nn.Conv2d(16, 16, 3, stride=3, padding=1, bias=False), (2, 16, 11, 10)),
    "no padding": (nn.Conv2d(16, 16, 3, bias=False), (2, 16, 9, 9)),
    "more padding": (nn.Conv2d(16, 16, 3, padding=2, bias=False), (2, 16, 9, 9)),
    "large images": (nn.Conv2d(16, 16, 3, padding=1, bias=False), (3, 16, 40, 41)),
    "large, stride 2": (nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False), (2, 16, 75, 78)),
    "large, no padding": (nn.Conv2d(16, 16, 5, bias=False), (2, 16, 50, 50)),
    "large, 1x1": (nn.Conv2d(16, 32, 1, bias=False), (2, 16, 56, 55)),
    "wide": (nn.Conv2d(16, 16, 3, padding=1, bias=False), (2, 16, 3, 1200)),
    "many images": (nn.Conv2d(64, 64, 3, padding=1, bias=False), (70, 64, 4, 4)),
    "one image": (nn.Conv2d(16, 16, 3, padding=1, bias=False), (1, 16, 6, 6)),
    "one pixel, stride 2": (nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False), (1, 16, 1, 1)),
    "a column, stride 2": (nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False), (2, 16, 6, 1)),
    "mostly padding": (nn.Conv2d(16, 16, 1, padding=2, bias=False), (1, 16, 2, 2)),
    "one pixel": (nn.Conv2d(16, 16, 3, padding=1, bias=False), (1, 16, 1, 1)),
}


def images(*shape: int) -> Tensor:
    return torch.randn(shape).to(BF16).contiguous(memory_format=torch.channels_last)


def learnt(layer: nn.Module, x: Tensor, *, bf16: bool) -> tuple[Tensor, ...]:
    """Return output and both gradients."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", BF16, enabled=bf16):
        y = layer(x)
    y.backward(torch.linspace(-1, 2, y.shape[3]).to(BF16).to(y.dtype).expand_as(y))
    (weight,) = layer.parameters()
    assert x.grad is not None
    assert weight.grad is not None
    return y.detach(), x.grad, weight.grad


@NEEDS_GRADIENT
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gradients_are_torch_s_but_for_rounding(case: str, threads: int) -> None:
    layer, shape = copy.deepcopy(CASES[case])
    layer.to(memory_format=torch.channels_last)
    twin, exact = copy.deepcopy(layer), copy.deepcopy(layer)
    exact.weight.data = exact.weight.to(BF16).double()
    x = images(*shape)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch_s = learnt(layer, x, bf16=True)
        found = learnt(PairedConv2d(twin), x, bf16=True)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], torch_s[0])
    assert torch.equal(found[1], torch_s[1])
    assert found[2].dtype == torch.float32
    assert found[2].stride() == torch_s[2].stride()
    wanted = learnt(exact, x.double(), bf16=False)[2]
    assert (found[2] - wanted).norm() / wanted.norm() < 1e-6


@NEEDS_GRADIENT
def test_the_same_bits_each_time() -> None:
    layer, shape = copy.deepcopy(CASES["many images"])
    paired, x = PairedConv2d(layer), images(*shape)
    found = []
    for _ in range(3):
        layer.weight.grad = None
        found.append(learnt(paired, x, bf16=True)[2])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@NEEDS_GRADIENT
@pytest.mark.parametrize("bf16", [True, False])
def test_what_is_not_taken_is_computed_by_the_layer(bf16: bool) -> None:
    layer, shape = copy.deepcopy(CASES["3x3"])
    x = images(*shape)
    x = x.contiguous() if bf16 else x.float()
    ours = learnt(PairedConv2d(copy.deepcopy(layer)), x, bf16=bf16)
    assert all(map(torch.equal, ours, learnt(layer, x, bf16=bf16)))


@NEEDS_GRADIENT
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.Conv2d(16, 24, 3, padding=1, bias=False),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(32, 32, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(16, 16, 3, padding="same", bias=False),
        nn.Conv2d(16, 16, (1, 3), padding=(0, 1), bias=False),
        nn.Conv2d(16, 16, 3, padding=1, stride=(1, 2), bias=False),
        nn.Linear(16, 16),
        None,
    ],
    ids=str,
)
def test_other_layers_are_left_alone(layer: nn.Module | None) -> None:
    assert not has_faster_gradient(layer)


@pytest.mark.parametrize(
    ("layer", "by_vectors"),
    [
        (nn.Conv2d(16, 16, 3, padding=1, bias=False), True),
        (nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False), True),
        (nn.Conv2d(64, 128, 3, padding=1, bias=False), False),
        (nn.Conv2d(64, 64, 1, bias=False), False),
    ],
    ids=str,
)
def test_each_processor_has_faster_gradients_of_some(
    layer: nn.Module, by_vectors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for processor, wanted in (
        (Processor(tiles=False, vectors=False), False),
        (Processor(tiles=False, vectors=True), by_vectors),
        (Processor(tiles=True, vectors=False), True),
    ):
        monkeypatch.setattr(module, "library", lambda processor=processor: processor)
        assert has_faster_gradient(layer) == wanted


@pytest.mark.parametrize("case", CASES)
def test_all_these_are_faster_in_tiles(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "library", lambda: Processor(tiles=True, vectors=False))
    assert has_faster_gradient(CASES[case][0])


@NEEDS_GRADIENT
def test_a_frozen_weight_gets_no_gradient() -> None:
    layer = nn.Conv2d(64, 64, 1, bias=False).requires_grad_(False)
    x = images(2, 64, 4, 4).requires_grad_()
    with torch.autocast("cpu", BF16):
        PairedConv2d(layer)(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None
