"""Convolutions by CPU kernels against torch's in fp64."""

import copy
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.cpu import convolution as module
from resnet_builder.cpu.convolution import (
    Algorithms,
    Precision,
    TrainingConv2d,
    WinogradConv2d,
    evaluates_by_winograd,
    gradient_memory,
    training_algorithms,
)
from tests.cpu import NEEDS_BF16, NEEDS_WINOGRAD_BF16, has, processor

BF16 = torch.bfloat16

# Layers and the images that they are given: all kinds of sizes and strides; images of odd sides,
# of one pixel, larger than what is computed at once, and so small that many are; few channels, and
# so many that threads share the sums.
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

GEMM = Algorithms(winograd=False, weight_gradient="gemm_weight_gradient")
WINOGRAD = Algorithms(winograd=True, weight_gradient="winograd_weight_gradient")
MIXED = Algorithms(winograd=True, weight_gradient="gemm_weight_gradient")
TRAINING = [
    pytest.param(GEMM, marks=NEEDS_BF16),
    pytest.param(WINOGRAD, marks=NEEDS_WINOGRAD_BF16),
    pytest.param(MIXED, marks=NEEDS_WINOGRAD_BF16),
]
EVALUATION = [
    pytest.param(each, marks=pytest.mark.skipif(not has(f"has_winograd_{each}"), reason="no AVX"))
    for each in ("fp32", "bf16")
]
MAX_ERROR = {"fp32": 1e-6, "bf16": 8e-3}


def images(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def error(found: Tensor, exact: Tensor) -> float:
    """Return the relative distance of a tensor from another."""
    return float((found - exact).norm() / exact.norm())


def trained(
    layer: nn.Module, x: Tensor, *, bf16: bool = True, dy: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Return output, input gradient and weight gradient."""
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


@torch.inference_mode()
def evaluated(layer: nn.Module, *inputs: Tensor) -> Tensor:
    with torch.autocast("cpu", BF16, enabled=inputs[0].dtype == BF16):
        output: Tensor = layer(*inputs)
    return output


# ---- training ------------------------------------------------------------------------------------


@NEEDS_BF16
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_implicit_gemm_differs_from_torch_by_rounding_only(case: str, threads: int) -> None:
    layer, shape = copy.deepcopy(CASES[case])
    layer.to(memory_format=torch.channels_last)
    twin, exact = copy.deepcopy(layer), copy.deepcopy(layer)
    exact.weight.data = exact.weight.to(BF16).double()
    x = images(*shape)
    torch.set_num_threads(threads)
    by_torch, found = trained(layer, x), trained(TrainingConv2d(twin, GEMM), x)
    assert torch.equal(found[0], by_torch[0])
    assert torch.equal(found[1], by_torch[1])
    assert found[2].dtype == torch.float32
    assert found[2].stride() == by_torch[2].stride()
    assert error(found[2], trained(exact, x.double(), bf16=False)[2]) < 1e-6


@NEEDS_WINOGRAD_BF16
@pytest.mark.parametrize("case", FOR_WINOGRAD)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_winograd_rounds_at_most_a_few_times_as_much(case: str, threads: int) -> None:
    layer, shape = copy.deepcopy(CASES[case])
    twin, exact = copy.deepcopy(layer), copy.deepcopy(layer).double()
    x = images(*shape)
    torch.set_num_threads(threads)
    found = trained(TrainingConv2d(layer, WINOGRAD), x)
    assert [tensor.dtype for tensor in found] == [BF16, BF16, torch.float32]
    by_torch, wanted = trained(twin, x), trained(exact, x.double(), bf16=False)
    factors = (4.5, 4.5, 7) if layer.stride == (1, 1) else (3, 3, 3)
    for ours, theirs, right, factor in zip(found, by_torch, wanted, factors, strict=True):
        # Torch's gradient of few pixels is exact, or NaN with a stride; ours rounds transforms.
        assert error(ours, right) < factor * max(2**-9, error(theirs, right))


def by_winograd_and_exact(layer: nn.Conv2d, x: Tensor, dy: Tensor) -> Iterator[tuple[Any, Any]]:
    found = trained(TrainingConv2d(copy.deepcopy(layer), WINOGRAD), x, dy=dy)
    exact = trained(layer.double(), x.double(), bf16=False, dy=dy)
    return zip(found, exact, strict=True)


@NEEDS_WINOGRAD_BF16
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
@pytest.mark.parametrize("sides", [(7, 10), (8, 9), (3, 4), (1, 2)], ids=str)
def test_winograd_reads_and_writes_all_pixels(padding: int, sides: tuple[int, int]) -> None:
    if min(sides) + 2 * padding < 3:
        pytest.skip("there is no output")
    layer = nn.Conv2d(48, 32, 3, padding=padding, bias=False)
    x = images(3, 48, *sides)
    dy = images(*layer(x.float()).shape)
    for found, exact in by_winograd_and_exact(layer, x, dy):
        # A line or a column left out anywhere would be a tenth and more.
        assert float((found - exact).abs().max() / exact.abs().max()) < 0.03


@NEEDS_WINOGRAD_BF16
@pytest.mark.parametrize(
    ("stride", "sides"), [(1, (1, 2)), (1, (2, 9)), (2, (7, 10)), (2, (8, 9)), (2, (1, 2))], ids=str
)
def test_winograd_is_exact_where_nothing_is_rounded(stride: int, sides: tuple[int, int]) -> None:
    layer = nn.Conv2d(48, 32, 3, stride=stride, padding=1, bias=False)
    layer.weight.data = torch.randint(-4, 5, layer.weight.shape) * 4.0
    x = torch.randint(-8, 9, (3, 48, *sides)).to(BF16).contiguous(memory_format=torch.channels_last)
    dy = torch.randint(-8, 9, layer(x.float()).shape).to(BF16)
    for found, exact in by_winograd_and_exact(layer, x, dy):
        assert torch.equal(found, exact.to(found.dtype))


@pytest.mark.parametrize("algorithms", TRAINING, ids=str)
def test_training_repeats_its_bits_in_any_layout_of_the_weight(algorithms: Algorithms) -> None:
    layer, shape = CASES["many images"]
    x = images(*shape)
    torch.set_num_threads(2)
    layouts = (torch.contiguous_format, torch.channels_last, torch.channels_last)
    found = [
        trained(TrainingConv2d(copy.deepcopy(layer).to(memory_format=layout), algorithms), x)
        for layout in cast(Any, layouts)
    ]
    assert all(map(torch.equal, found[1], found[2]))
    assert all(map(torch.equal, found[0], found[1])) or not algorithms.winograd


@NEEDS_WINOGRAD_BF16
@pytest.mark.parametrize("stride", [1, 2])
def test_winograd_of_images_depends_neither_on_threads_nor_on_other_images(stride: int) -> None:
    layer, shape = copy.deepcopy(CASES["many images"])
    layer.stride = (stride, stride)
    ours, x = TrainingConv2d(layer, WINOGRAD), images(*shape)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(trained(ours, x)[:2])
    assert all(map(torch.equal, (*found[1], *found[2]), (*found[0], *found[0])))
    for some, all_ in zip(trained(ours, x[5:9]), found[0], strict=False):
        assert torch.equal(some, all_[5:9])


@pytest.mark.parametrize("algorithms", TRAINING, ids=str)
@pytest.mark.parametrize("case", ["another layout", "fp32", "weights in bf16"])
def test_training_leaves_other_inputs_to_the_layer(algorithms: Algorithms, case: str) -> None:
    layer, shape = copy.deepcopy(CASES["3x3"])
    x = images(*shape)
    if case == "another layout":
        x = x.contiguous()
    elif case == "weights in bf16":
        layer.to(BF16)
    else:
        x = x.float()
    ours = trained(TrainingConv2d(copy.deepcopy(layer), algorithms), x, bf16=case != "fp32")
    assert all(map(torch.equal, ours, trained(layer, x, bf16=case != "fp32")))


@pytest.mark.parametrize("algorithms", TRAINING, ids=str)
@pytest.mark.parametrize("frozen", ["weight", "images"])
def test_frozen_tensors_get_no_gradient(algorithms: Algorithms, frozen: str) -> None:
    layer, shape = copy.deepcopy(CASES["3x3"])
    layer.requires_grad_(frozen != "weight")
    x = images(*shape).requires_grad_(frozen != "images")
    with torch.autocast("cpu", BF16):
        TrainingConv2d(layer, algorithms)(x).sum().backward()
    assert (layer.weight.grad is None) == (frozen == "weight")
    assert (x.grad is None) == (frozen == "images")


# ---- evaluation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", EVALUATION)
@pytest.mark.parametrize("case", FOR_WINOGRAD)
@pytest.mark.parametrize("has_bias", [True, False])
def test_evaluation_differs_from_torch_by_rounding_only(
    precision: Precision, case: str, has_bias: bool
) -> None:
    layer, shape = copy.deepcopy(CASES[case])
    if has_bias:
        layer.bias = nn.Parameter(torch.randn(layer.out_channels))
    x = images(*shape, dtype=BF16 if precision == "bf16" else torch.float32)
    exact = evaluated(copy.deepcopy(layer).double(), x.double())
    found = evaluated(WinogradConv2d(layer, precision), x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.dtype == x.dtype
    allowed = MAX_ERROR[precision]
    if precision == "fp32":  # it grows with the channels, as torch's does
        allowed = max(allowed, 3 * error(evaluated(layer, x), exact))
    assert error(found, exact) < allowed


@pytest.mark.parametrize("precision", EVALUATION)
@pytest.mark.parametrize("relu", [True, False])
def test_evaluation_fuses_the_sum_and_the_relu(precision: Precision, relu: bool) -> None:
    layer, shape = copy.deepcopy(CASES["stride 2, odd"])
    x = images(*shape, dtype=BF16 if precision == "bf16" else torch.float32)
    plain = evaluated(copy.deepcopy(layer).double(), x.double())
    addend = images(*plain.shape, dtype=x.dtype)
    wanted = (plain + addend).relu() if relu else plain + addend
    found = evaluated(WinogradConv2d(layer, precision, relu=relu), x, addend)
    assert error(found, wanted) < MAX_ERROR[precision]
    x[0, 3, 2, 2] = torch.nan
    assert evaluated(WinogradConv2d(layer, precision, relu=relu), x).isnan().any()


@pytest.mark.parametrize("precision", EVALUATION)
def test_evaluation_depends_neither_on_threads_nor_on_other_images(precision: Precision) -> None:
    layer, shape = copy.deepcopy(CASES["many images"])
    x = images(*shape, dtype=BF16 if precision == "bf16" else torch.float32)
    ours = WinogradConv2d(layer, precision)
    together = evaluated(ours, x)
    torch.set_num_threads(3)
    assert torch.equal(evaluated(ours, x), together)
    assert torch.equal(evaluated(ours, x[5:9]), together[5:9])


@pytest.mark.parametrize("precision", EVALUATION)
@pytest.mark.parametrize("case", ["a gradient", "fp64", "another layout", "another precision"])
def test_evaluation_leaves_other_inputs_to_the_layer(precision: Precision, case: str) -> None:
    layer, shape = copy.deepcopy(CASES["3x3"])
    bf16 = precision == "bf16"
    x = images(*shape, dtype=BF16 if bf16 else torch.float32)
    if case == "fp64":
        layer, x, bf16 = layer.double(), x.double(), False
    elif case == "another layout":
        x = x.contiguous()
    elif case == "another precision":
        x, bf16 = x.float(), not bf16
    ours = WinogradConv2d(layer, precision, relu=True)
    with (
        torch.set_grad_enabled(case == "a gradient"),
        torch.autocast("cpu", BF16, enabled=bf16),
    ):
        wanted = layer(x).relu()
        addend = torch.ones_like(wanted)
        assert torch.equal(ours(x), wanted)
        assert torch.equal(ours(x, addend), (layer(x) + addend).relu())


# ---- which algorithm -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.Conv2d(16, 24, 3, padding=1, bias=False),
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
def test_other_layers_are_left_alone(
    layer: nn.Module | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "library", lambda: processor("AVX512", "AVX512-BF16"))
    assert training_algorithms(layer) is None
    assert not evaluates_by_winograd(layer, "fp32")
    assert not evaluates_by_winograd(layer, "bf16")


@pytest.mark.parametrize(
    ("layer", "on_avx512_bf16", "evaluates"),
    [
        (nn.Conv2d(16, 16, 3, padding=1, bias=False), MIXED, "both"),
        (nn.Conv2d(16, 32, 3, padding=1, bias=False), MIXED, "both"),
        (nn.Conv2d(32, 64, 3, padding=1, bias=False), WINOGRAD, "both"),
        (nn.Conv2d(256, 256, 3, padding=1, bias=False), WINOGRAD, "both"),
        (nn.Conv2d(512, 512, 3, padding=1, bias=False), WINOGRAD, "bf16"),
        (nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False), WINOGRAD, "both"),
        (nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), MIXED, "both"),
        (nn.Conv2d(32, 64, 3, stride=2, bias=False), GEMM, ""),
        (nn.Conv2d(32, 64, 3, stride=3, padding=1, bias=False), GEMM, ""),
        (nn.Conv2d(64, 128, 5, padding=2, bias=False), GEMM, ""),
        (nn.Conv2d(64, 64, 1, bias=False), None, ""),
    ],
    ids=str,
)
def test_each_processor_has_its_algorithms(
    layer: nn.Module,
    on_avx512_bf16: Algorithms | None,
    evaluates: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fp32, bf16 = evaluates == "both", evaluates in {"both", "bf16"}
    for found, training, evaluation in (
        (processor(), None, (False, False)),
        (processor("AVX512"), None, (fp32, False)),
        (processor("AVX512", "AVX512-BF16"), on_avx512_bf16, (fp32, bf16)),
        (processor("AVX512", "AMX"), GEMM, (False, False)),
    ):
        monkeypatch.setattr(module, "library", lambda found=found: found)
        assert training_algorithms(layer) == training
        assert (
            evaluates_by_winograd(layer, "fp32"),
            evaluates_by_winograd(layer, "bf16"),
        ) == evaluation


def test_a_convolution_with_a_bias_is_trained_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "library", lambda: processor("AVX512", "AMX"))
    assert training_algorithms(nn.Conv2d(16, 16, 3, padding=1)) is None


# ---- memory of gradients -------------------------------------------------------------------------


def test_gradients_share_blocks_but_no_memory() -> None:
    shapes = [(3, 5), (1,), (64, 3, 3, 64), (2, 16)] * 40  # more than a block
    tensors = [gradient_memory(*shape).fill_(number) for number, shape in enumerate(shapes)]
    for number, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
        assert tensor.shape == shape
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0
        assert bool((tensor == number).all())
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) < 4
    large = gradient_memory(2**20 + 3)
    assert large.untyped_storage().nbytes() < 4 * 2**20 + 1024


@NEEDS_BF16
def test_gradients_are_not_copied_out_of_their_block_and_add_up() -> None:
    layer = nn.Conv2d(32, 32, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    algorithms = training_algorithms(layer)
    assert algorithms is not None
    ours, x = TrainingConv2d(layer, algorithms), images(2, 32, 6, 6, dtype=torch.float32)
    trained(ours, x)
    assert layer.weight.grad is not None
    assert layer.weight.grad.untyped_storage().nbytes() == 4 * 2**20
    once = layer.weight.grad.clone()
    trained(ours, x)
    assert torch.equal(layer.weight.grad, 2 * once)
