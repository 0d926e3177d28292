"""Convolutions for training in bf16, against torch's in fp64."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.cpu import training as module
from resnet_builder.cpu.training import Operations, TrainingConv2d, operations_for
from tests.cpu import NEEDS_GRADIENT, NEEDS_WINOGRAD, Processor

BF16 = torch.bfloat16

# Layers, and images that they are given: kernels and strides of all kinds; images of odd sides, of
# one pixel, larger than what is computed at once, and so small that many are; few channels, and so
# many that threads share what they come to.
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
    "many channels": (nn.Conv2d(80, 96, 3, padding=1, bias=False), (60, 80, 14, 6)),
    "more channels": (nn.Conv2d(528, 512, 3, padding=1, bias=False), (2, 528, 5, 6)),
    "one image": (nn.Conv2d(16, 16, 3, padding=1, bias=False), (1, 16, 6, 6)),
    "one pixel, stride 2": (nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False), (1, 16, 1, 1)),
    "a column, stride 2": (nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False), (2, 16, 6, 1)),
    "mostly padding": (nn.Conv2d(16, 16, 1, padding=2, bias=False), (1, 16, 2, 2)),
    "one pixel": (nn.Conv2d(16, 16, 3, padding=1, bias=False), (1, 16, 1, 1)),
}
FOR_WINOGRAD = [
    name
    for name, (layer, _) in CASES.items()
    if layer.kernel_size == (3, 3)
    and (layer.stride == (1, 1) or (layer.stride, layer.padding) == ((2, 2), (1, 1)))
]


def images(*shape: int) -> Tensor:
    return torch.randn(shape).to(BF16).contiguous(memory_format=torch.channels_last)


def learnt(
    layer: nn.Module, x: Tensor, *, bf16: bool, dy: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Return output and both gradients, by default of an output's gradient of many numbers."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", BF16, enabled=bf16):
        y = layer(x)
    if dy is None:
        dy = torch.linspace(-1, 2, y.shape[3]).to(BF16).expand_as(y)
    y.backward(dy.to(y.dtype))
    (weight,) = layer.parameters()
    assert x.grad is not None
    assert weight.grad is not None
    return y.detach(), x.grad, weight.grad


PAIRED = Operations(winograd=False, weights="paired_gradient")
WINOGRAD = Operations(winograd=True, weights="winograd_gradient")
OF_FEW_CHANNELS = Operations(winograd=True, weights="paired_gradient")

ALL = [
    pytest.param(PAIRED, marks=NEEDS_GRADIENT),
    pytest.param(WINOGRAD, marks=NEEDS_WINOGRAD),
    pytest.param(OF_FEW_CHANNELS, marks=NEEDS_WINOGRAD),
]


def error(found: Tensor, exact: Tensor) -> float:
    """Return how far a tensor is from another, over that one's length."""
    return float((found - exact).norm() / exact.norm())


@NEEDS_GRADIENT
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_paired_gradients_are_torch_s_but_for_rounding(case: str, threads: int) -> None:
    layer, shape = copy.deepcopy(CASES[case])
    layer.to(memory_format=torch.channels_last)
    twin, exact = copy.deepcopy(layer), copy.deepcopy(layer)
    exact.weight.data = exact.weight.to(BF16).double()
    x = images(*shape)
    torch.set_num_threads(threads)
    torch_s = learnt(layer, x, bf16=True)
    found = learnt(TrainingConv2d(twin, PAIRED), x, bf16=True)
    assert torch.equal(found[0], torch_s[0])
    assert torch.equal(found[1], torch_s[1])
    assert found[2].dtype == torch.float32
    assert found[2].stride() == torch_s[2].stride()
    assert error(found[2], learnt(exact, x.double(), bf16=False)[2]) < 1e-6


@NEEDS_WINOGRAD
@pytest.mark.parametrize("case", FOR_WINOGRAD)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_winograd_rounds_no_more_than_a_few_times_as_much(case: str, threads: int) -> None:
    layer, shape = copy.deepcopy(CASES[case])
    twin, exact = copy.deepcopy(layer), copy.deepcopy(layer).double()
    x = images(*shape)
    torch.set_num_threads(threads)
    found = learnt(TrainingConv2d(layer, WINOGRAD), x, bf16=True)
    assert [tensor.dtype for tensor in found] == [BF16, BF16, torch.float32]
    torch_s, wanted = learnt(twin, x, bf16=True), learnt(exact, x.double(), bf16=False)
    times = (4.5, 4.5, 7) if layer.stride == (1, 1) else (3, 3, 3)
    for ours, theirs, right, most in zip(found, torch_s, wanted, times, strict=True):
        # Torch's gradient of few pixels is exact, or NaN with a stride; ours has rounded factors.
        assert error(ours, right) < most * max(2**-9, error(theirs, right))


def filtered_and_exact(layer: nn.Conv2d, x: Tensor, dy: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Return output and gradients as Winograd's filtering has them, and what they are."""
    found = learnt(TrainingConv2d(copy.deepcopy(layer), WINOGRAD), x, bf16=True, dy=dy)
    exact = learnt(layer.double(), x.double(), bf16=False, dy=dy)
    return zip(found, exact, strict=True)


@NEEDS_WINOGRAD
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
@pytest.mark.parametrize("sides", [(7, 10), (8, 9), (3, 4), (1, 2)], ids=str)
def test_winograd_reads_and_writes_all_places(padding: int, sides: tuple[int, int]) -> None:
    if min(sides) + 2 * padding < 3:
        pytest.skip("there is no output")
    layer = nn.Conv2d(48, 32, 3, padding=padding, bias=False)
    x = images(3, 48, *sides)
    dy = images(*layer(x.float()).shape)
    for found, exact in filtered_and_exact(layer, x, dy):
        # A line or a column that was left out anywhere would be a tenth and more.
        assert float((found - exact).abs().max() / exact.abs().max()) < 0.03


@NEEDS_WINOGRAD
@pytest.mark.parametrize(
    ("stride", "sides"), [(1, (1, 2)), (1, (2, 9)), (2, (7, 10)), (2, (8, 9)), (2, (1, 2))], ids=str
)
def test_winograd_is_exact_where_nothing_is_rounded(stride: int, sides: tuple[int, int]) -> None:
    layer = nn.Conv2d(48, 32, 3, stride=stride, padding=1, bias=False)
    layer.weight.data = torch.randint(-4, 5, layer.weight.shape) * 4.0
    x = torch.randint(-8, 9, (3, 48, *sides)).to(BF16).contiguous(memory_format=torch.channels_last)
    dy = torch.randint(-8, 9, layer(x.float()).shape).to(BF16)
    for found, exact in filtered_and_exact(layer, x, dy):
        assert torch.equal(found, exact.to(found.dtype))


@NEEDS_WINOGRAD
def test_weights_may_have_any_layout() -> None:
    layer, shape = copy.deepcopy(CASES["to more channels"])
    x = images(*shape)
    found = [
        learnt(TrainingConv2d(copy.deepcopy(layer).to(memory_format=each), WINOGRAD), x, bf16=True)
        for each in (torch.contiguous_format, torch.channels_last)
    ]
    assert all(map(torch.equal, *found))


@NEEDS_WINOGRAD
@pytest.mark.parametrize("stride", [1, 2])
def test_winograd_of_images_does_not_hang_on_threads_or_on_other_images(stride: int) -> None:
    layer, shape = copy.deepcopy(CASES["many images"])
    layer.stride = (stride, stride)
    ours, x = TrainingConv2d(layer, WINOGRAD), images(*shape)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(learnt(ours, x, bf16=True)[:2])
    for output, gradient in found[1:]:
        assert torch.equal(output, found[0][0])
        assert torch.equal(gradient, found[0][1])
    for some, all_ in zip(learnt(ours, x[5:9], bf16=True), found[0], strict=False):
        assert torch.equal(some, all_[5:9])


@pytest.mark.parametrize("operations", ALL, ids=str)
def test_the_same_bits_each_time(operations: Operations) -> None:
    layer, shape = copy.deepcopy(CASES["many images"])
    ours, x = TrainingConv2d(layer, operations), images(*shape)
    torch.set_num_threads(2)
    found = []
    for _ in range(3):
        layer.weight.grad = None
        found.append(learnt(ours, x, bf16=True))
    assert all(map(torch.equal, found[0], found[1]))
    assert all(map(torch.equal, found[0], found[2]))


@pytest.mark.parametrize("operations", ALL, ids=str)
@pytest.mark.parametrize("hindrance", ["another layout", "fp32", "weights in bf16"])
def test_what_is_not_taken_is_computed_by_the_layer(operations: Operations, hindrance: str) -> None:
    layer, shape = copy.deepcopy(CASES["3x3"])
    x = images(*shape)
    bf16 = hindrance != "fp32"
    if hindrance == "another layout":
        x = x.contiguous()
    elif hindrance == "weights in bf16":
        layer.to(BF16)
    else:
        x = x.float()
    ours = learnt(TrainingConv2d(copy.deepcopy(layer), operations), x, bf16=bf16)
    assert all(map(torch.equal, ours, learnt(layer, x, bf16=bf16)))


@pytest.mark.parametrize("operations", ALL, ids=str)
@pytest.mark.parametrize("frozen", ["weight", "images"])
def test_what_needs_no_gradient_gets_none(operations: Operations, frozen: str) -> None:
    layer, shape = copy.deepcopy(CASES["3x3"])
    layer.requires_grad_(frozen != "weight")
    x = images(*shape).requires_grad_(frozen != "images")
    with torch.autocast("cpu", BF16):
        TrainingConv2d(layer, operations)(x).sum().backward()
    assert (layer.weight.grad is None) == (frozen == "weight")
    assert (x.grad is None) == (frozen == "images")


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
    assert operations_for(layer) is None


@pytest.mark.parametrize(
    ("layer", "by_vectors"),
    [
        (nn.Conv2d(16, 16, 3, padding=1, bias=False), (True, "paired_gradient")),
        (nn.Conv2d(16, 32, 3, padding=1, bias=False), (True, "paired_gradient")),
        (nn.Conv2d(32, 64, 3, padding=1, bias=False), (True, "winograd_gradient")),
        (nn.Conv2d(512, 512, 3, padding=1, bias=False), (True, "winograd_gradient")),
        (nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False), (True, "winograd_gradient")),
        (nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), (True, "paired_gradient")),
        (nn.Conv2d(32, 64, 3, stride=2, bias=False), (False, "paired_gradient")),
        (nn.Conv2d(32, 64, 3, stride=3, padding=1, bias=False), (False, "paired_gradient")),
        (nn.Conv2d(64, 128, 5, padding=2, bias=False), (False, "paired_gradient")),
        (nn.Conv2d(64, 64, 1, bias=False), None),
    ],
    ids=str,
)
def test_each_processor_has_its_operations(
    layer: nn.Module, by_vectors: tuple[bool, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for processor, wanted in (
        (Processor(), None),
        (Processor("vectors"), None),
        (Processor("vectors", "pairs"), by_vectors),
        (Processor("vectors", "tiles"), (False, "paired_gradient")),
    ):
        monkeypatch.setattr(module, "library", lambda processor=processor: processor)
        assert operations_for(layer) == (None if wanted is None else Operations(*wanted))


@pytest.mark.parametrize("case", CASES)
def test_all_these_are_faster_in_tiles(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "library", lambda: Processor("vectors", "tiles"))
    assert operations_for(CASES[case][0]) == PAIRED
