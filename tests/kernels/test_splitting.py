"""Convolutions in fp32 by tiles of bf16, against torch's in fp64."""

import copy

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.kernels.splitting import SplitConv2d
from tests.kernels import NEEDS_TILES
from tests.kernels.test_convolution import CASES

pytestmark = NEEDS_TILES


def images(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def computed(layer: nn.Module, *given: Tensor) -> Tensor:
    output: Tensor = layer(*given)
    return output


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("biased", [True, False])
def test_outputs_are_torch_s_but_for_rounding(case: str, biased: bool) -> None:
    layer, shape = copy.deepcopy(CASES[case])
    if biased:
        layer.bias = nn.Parameter(torch.randn(layer.out_channels))
    x = images(*shape)
    exact = computed(copy.deepcopy(layer).double(), x.double())
    found = computed(SplitConv2d(layer), x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - exact).norm() / exact.norm() < 5e-7


def test_numbers_of_all_sizes_are_exact_enough() -> None:
    layer = nn.Conv2d(16, 16, 1, bias=False)
    x = images(2, 16, 4, 4) * torch.logspace(-15, 15, 16)[:, None, None]
    layer.weight.data = torch.eye(16)[:, :, None, None] * (1 + 2**-23)
    found = computed(SplitConv2d(layer), x)
    torch.testing.assert_close(found, computed(layer, x), rtol=2**-22, atol=0)


def test_nan_is_not_hidden() -> None:
    layer = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    x = images(1, 16, 5, 5)
    x[0, 3, 2, 2] = torch.nan
    assert computed(SplitConv2d(layer, relu=True), x).isnan().any()


@pytest.mark.parametrize("relu", [True, False])
def test_a_sum_and_a_relu_are_taken_in(relu: bool) -> None:
    layer, shape = copy.deepcopy(CASES["stride 2, odd"])
    x = images(*shape)
    plain = computed(layer, x)
    addend = images(*plain.shape)
    wanted = (plain + addend).relu() if relu else plain + addend
    found = computed(SplitConv2d(layer, relu=relu), x, addend)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_bits_do_not_hang_on_threads_or_on_other_images() -> None:
    layer, shape = copy.deepcopy(CASES["many images"])
    x = images(*shape)
    split = SplitConv2d(layer)
    together = computed(split, x)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(computed(split, x), together)
        assert torch.equal(computed(split, x[5:9]), together[5:9])
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
    split = SplitConv2d(layer, relu=True)
    with (
        torch.set_grad_enabled(hindrance == "a gradient"),
        torch.autocast("cpu", enabled=hindrance == "autocast"),
    ):
        wanted = layer(x).relu()
        addend = torch.ones_like(wanted)
        assert torch.equal(split(x), wanted)
        assert torch.equal(split(x, addend), (layer(x) + addend).relu())
