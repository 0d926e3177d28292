"""Convolutions for evaluation, against torch's in fp64."""

import copy

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.cpu import inference as module
from resnet_builder.cpu.inference import InferenceConv2d, Operation, operation_for
from tests.cpu import NEEDS_KERNELS, Processor, has
from tests.cpu.test_training import CASES, FOR_WINOGRAD, error

pytestmark = NEEDS_KERNELS

OPERATIONS: dict[Operation, str] = {
    "split_fp32": "has_tiles",
    "winograd_fp32": "has_winograd_fp32",
    "winograd_bf16": "has_winograd_bf16",
}
ERRORS: dict[Operation, float] = {"split_fp32": 5e-7, "winograd_fp32": 1e-6, "winograd_bf16": 8e-3}
HERE = [name for name, question in OPERATIONS.items() if has(question)]
COMPUTED = [
    (way, case) for way in HERE for case in CASES if way == "split_fp32" or case in FOR_WINOGRAD
]


def images(operation: Operation, *shape: int) -> Tensor:
    """Return images in the numbers that an operation takes."""
    dtype = torch.bfloat16 if operation == "winograd_bf16" else torch.float32
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def computed(layer: nn.Module, *given: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=given[0].dtype == torch.bfloat16):
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
    x = images(operation, *shape)
    exact = computed(copy.deepcopy(layer).double(), x.double())
    found = computed(InferenceConv2d(layer, operation), x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.dtype == x.dtype
    allowed = ERRORS[operation]
    if operation == "winograd_fp32":  # it grows with the channels, as torch's does
        allowed = max(allowed, 3 * error(computed(layer, x), exact))
    assert error(found, exact) < allowed


@pytest.mark.skipif("split_fp32" not in HERE, reason="the processor has no AMX")
def test_numbers_of_all_sizes_are_exact_enough() -> None:
    layer = nn.Conv2d(16, 16, 1, bias=False)
    x = images("split_fp32", 2, 16, 4, 4) * torch.logspace(-15, 15, 16)[:, None, None]
    layer.weight.data = torch.eye(16)[:, :, None, None] * (1 + 2**-23)
    found = computed(InferenceConv2d(layer, "split_fp32"), x)
    torch.testing.assert_close(found, computed(layer, x), rtol=2**-22, atol=0)


@pytest.mark.parametrize("operation", HERE)
def test_nan_is_not_hidden(operation: Operation) -> None:
    layer = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    x = images(operation, 1, 16, 5, 5)
    x[0, 3, 2, 2] = torch.nan
    assert computed(InferenceConv2d(layer, operation, relu=True), x).isnan().any()


@pytest.mark.parametrize("operation", HERE)
@pytest.mark.parametrize("relu", [True, False])
def test_a_sum_and_a_relu_are_taken_in(operation: Operation, relu: bool) -> None:
    layer, shape = copy.deepcopy(CASES["stride 2, odd"])
    x = images(operation, *shape)
    plain = computed(copy.deepcopy(layer).double(), x.double())
    addend = images(operation, *plain.shape)
    wanted = (plain + addend).relu() if relu else plain + addend
    found = computed(InferenceConv2d(layer, operation, relu=relu), x, addend)
    assert error(found, wanted) < ERRORS[operation]


@pytest.mark.parametrize("operation", HERE)
def test_bits_do_not_hang_on_threads_or_on_other_images(operation: Operation) -> None:
    layer, shape = copy.deepcopy(CASES["many images"])
    x = images(operation, *shape)
    ours = InferenceConv2d(layer, operation)
    together = computed(ours, x)
    torch.set_num_threads(3)
    assert torch.equal(computed(ours, x), together)
    assert torch.equal(computed(ours, x[5:9]), together[5:9])


@pytest.mark.parametrize("operation", HERE)
@pytest.mark.parametrize("hindrance", ["a gradient", "fp64", "another layout", "another precision"])
def test_what_is_not_taken_is_computed_by_the_layer(operation: Operation, hindrance: str) -> None:
    layer, shape = copy.deepcopy(CASES["3x3"])
    x = images(operation, *shape)
    bf16 = x.dtype == torch.bfloat16
    if hindrance == "fp64":
        layer, x = layer.double(), x.double()
        bf16 = False
    if hindrance == "another layout":
        x = x.contiguous()
    if hindrance == "another precision":
        x = x.float()
        bf16 = not bf16
    ours = InferenceConv2d(layer, operation, relu=True)
    with (
        torch.set_grad_enabled(hindrance == "a gradient"),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        wanted = layer(x).relu()
        addend = torch.ones_like(wanted)
        assert torch.equal(ours(x), wanted)
        assert torch.equal(ours(x, addend), (layer(x) + addend).relu())


@pytest.mark.parametrize(
    ("layer", "by_vectors", "by_pairs", "by_tiles"),
    [
        (nn.Conv2d(16, 32, 3, padding=1), "winograd_fp32", "winograd_bf16", "split_fp32"),
        (nn.Conv2d(256, 256, 3, padding=1), "winograd_fp32", "winograd_bf16", "split_fp32"),
        (nn.Conv2d(512, 512, 3, padding=1), None, "winograd_bf16", "split_fp32"),
        (nn.Conv2d(16, 32, 3, stride=2, padding=1), "winograd_fp32", "winograd_bf16", "split_fp32"),
        (nn.Conv2d(16, 32, 3, stride=2), None, None, "split_fp32"),
        (nn.Conv2d(16, 32, 1), None, None, "split_fp32"),
        (nn.Conv2d(3, 16, 3, padding=1), None, None, None),
        (nn.Linear(16, 16), None, None, None),
    ],
    ids=str,
)
def test_each_processor_has_its_operation(
    layer: nn.Module,
    by_vectors: Operation | None,
    by_pairs: Operation | None,
    by_tiles: Operation | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for processor, fp32, bf16 in (
        (Processor(), None, None),
        (Processor("vectors"), by_vectors, None),
        (Processor("vectors", "pairs"), by_vectors, by_pairs),
        (Processor("vectors", "tiles"), by_tiles, None),
    ):
        monkeypatch.setattr(module, "library", lambda processor=processor: processor)
        assert operation_for(layer) == fp32
        assert operation_for(layer, bf16=True) == bf16
