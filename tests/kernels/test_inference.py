"""Convolutions in fp32 for evaluation, against torch's in fp64."""

import copy

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.kernels import inference as module
from resnet_builder.kernels.inference import InferenceConv2d, Operation, operation_for
from tests.kernels import NEEDS_KERNELS, Processor, has
from tests.kernels.test_gradient import CASES

pytestmark = NEEDS_KERNELS

OPERATIONS: dict[Operation, str] = {"split": "has_tiles", "winograd": "has_winograd"}
HERE = [name for name, question in OPERATIONS.items() if has(question)]

WINOGRAD = {
    name
    for name, (layer, _) in CASES.items()
    if (layer.kernel_size, layer.stride) == ((3, 3), (1, 1))
}
COMPUTED = [(way, case) for way in HERE for case in CASES if way == "split" or case in WINOGRAD]


def images(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def computed(layer: nn.Module, *given: Tensor) -> Tensor:
    output: Tensor = layer(*given)
    return output


@pytest.mark.parametrize(("operation", "case"), COMPUTED)
@pytest.mark.parametrize("biased", [True, False])
def test_outputs_are_torch_s_but_for_rounding(
    operation: Operation, case: str, biased: bool
) -> None:
    layer, shape = copy.deepcopy(CASES[case])
    if biased:
        layer.bias = nn.Parameter(torch.randn(layer.out_channels))
    x = images(*shape)
    exact = computed(copy.deepcopy(layer).double(), x.double())
    found = computed(InferenceConv2d(layer, operation), x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - exact).norm() / exact.norm() < 5e-7


@pytest.mark.skipif("split" not in HERE, reason="the processor has no AMX")
def test_numbers_of_all_sizes_are_exact_enough() -> None:
    layer = nn.Conv2d(16, 16, 1, bias=False)
    x = images(2, 16, 4, 4) * torch.logspace(-15, 15, 16)[:, None, None]
    layer.weight.data = torch.eye(16)[:, :, None, None] * (1 + 2**-23)
    found = computed(InferenceConv2d(layer, "split"), x)
    torch.testing.assert_close(found, computed(layer, x), rtol=2**-22, atol=0)


@pytest.mark.parametrize("operation", HERE)
def test_nan_is_not_hidden(operation: Operation) -> None:
    layer = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    x = images(1, 16, 5, 5)
    x[0, 3, 2, 2] = torch.nan
    assert computed(InferenceConv2d(layer, operation, relu=True), x).isnan().any()


@pytest.mark.parametrize("operation", HERE)
@pytest.mark.parametrize("relu", [True, False])
def test_a_sum_and_a_relu_are_taken_in(operation: Operation, relu: bool) -> None:
    layer, shape = copy.deepcopy(CASES["stride 2, odd" if operation == "split" else "3x3"])
    x = images(*shape)
    plain = computed(layer, x)
    addend = images(*plain.shape)
    wanted = (plain + addend).relu() if relu else plain + addend
    found = computed(InferenceConv2d(layer, operation, relu=relu), x, addend)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operation", HERE)
def test_bits_do_not_hang_on_threads_or_on_other_images(operation: Operation) -> None:
    layer, shape = copy.deepcopy(CASES["many images"])
    x = images(*shape)
    ours = InferenceConv2d(layer, operation)
    together = computed(ours, x)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(computed(ours, x), together)
        assert torch.equal(computed(ours, x[5:9]), together[5:9])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("hindrance", ["a gradient", "fp64", "another layout", "autocast"])
def test_what_is_not_taken_is_computed_by_the_layer(hindrance: str) -> None:
    layer, shape = copy.deepcopy(CASES["3x3"])
    x = images(*shape)
    if hindrance == "fp64":
        layer, x = layer.double(), x.double()
    if hindrance == "another layout":
        x = x.contiguous()
    ours = InferenceConv2d(layer, "winograd", relu=True)
    with (
        torch.set_grad_enabled(hindrance == "a gradient"),
        torch.autocast("cpu", enabled=hindrance == "autocast"),
    ):
        wanted = layer(x).relu()
        addend = torch.ones_like(wanted)
        assert torch.equal(ours(x), wanted)
        assert torch.equal(ours(x, addend), (layer(x) + addend).relu())


@pytest.mark.parametrize(
    ("layer", "with_vectors", "with_tiles"),
    [
        (nn.Conv2d(16, 32, 3, padding=1), "winograd", "split"),
        (nn.Conv2d(256, 256, 3, padding=1), "winograd", "split"),
        (nn.Conv2d(512, 512, 3, padding=1), None, "split"),
        (nn.Conv2d(16, 32, 3, stride=2, padding=1), None, "split"),
        (nn.Conv2d(16, 32, 1), None, "split"),
        (nn.Conv2d(3, 16, 3, padding=1), None, None),
        (nn.Linear(16, 16), None, None),
    ],
    ids=str,
)
def test_each_processor_has_its_operation(
    layer: nn.Module,
    with_vectors: Operation | None,
    with_tiles: Operation | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for processor, wanted in (
        (Processor(tiles=False, vectors=False), None),
        (Processor(tiles=False, vectors=True), with_vectors),
        (Processor(tiles=True, vectors=True), with_tiles),
    ):
        monkeypatch.setattr(module, "library", lambda processor=processor: processor)
        assert operation_for(layer) == wanted
