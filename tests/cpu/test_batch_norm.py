"""The fused batch norm against torch's operations in fp64."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.cpu.library import library
from resnet_builder.cpu.norm import FusedBatchNorm

BF16, FP32 = torch.bfloat16, torch.float32
SHAPES = [(4, 16, 6, 5), (2, 32, 3, 3), (8, 48, 4, 4), (3, 64, 8, 8), (2, 512, 2, 2), (64, 8, 9, 9)]
KINDS = ["alone", "relu", "sum", "sum-relu", "twice", "twice-sum-relu"]


def images(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    made = torch.randn(shape).mul_(2).add_(0.5)
    return made.to(dtype).contiguous(memory_format=torch.channels_last)


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, momentum=0.3, eps=1e-3)
    for tensor in (layer.weight, layer.bias):
        nn.init.normal_(tensor, 0.5)
    return layer


def layer_of(kind: str, own: nn.BatchNorm2d) -> FusedBatchNorm:
    layer = FusedBatchNorm(own, relu="relu" in kind)
    layer.returns_twice = "twice" in kind
    return layer


def results(kind: str, own: nn.BatchNorm2d, x: Tensor, addend: Tensor) -> dict[str, Tensor]:
    """Compute a fused layer forward and backward."""
    inputs = [x.clone().requires_grad_(), addend.clone().requires_grad_()]
    y = layer_of(kind, own)(inputs[0], *(inputs[1:] if "sum" in kind else []))
    return _backward(y, own, inputs)


def expected(kind: str, own: nn.BatchNorm2d, x: Tensor, addend: Tensor) -> dict[str, Tensor]:
    """Compute the same one operation after the other, in fp64."""
    inputs = [t.double().requires_grad_() for t in (x, addend)]
    y = own.double()(inputs[0])
    if "sum" in kind:
        y = y + inputs[1]
    if "relu" in kind:
        y = y.relu()
    return _backward((y, y) if "twice" in kind else y, own, inputs)


def _backward(
    y: Tensor | tuple[Tensor, Tensor], own: nn.BatchNorm2d, inputs: list[Tensor]
) -> dict[str, Tensor]:
    outputs = y if isinstance(y, tuple) else (y,)
    for number, output in enumerate(outputs):
        factor = torch.linspace(-1, 2, output.shape[3]).to(BF16).to(output.dtype) + number
        (output * factor).sum().backward(retain_graph=True)
    gradients = {"dx": inputs[0].grad, "daddend": inputs[1].grad}
    tensors = {**dict(own.named_buffers()), **{n: p.grad for n, p in own.named_parameters()}}
    found = {"y": outputs[0].detach(), **gradients, **tensors}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fp32_differs_from_torch_by_rounding_only(shape: tuple[int, ...], kind: str) -> None:
    own, x, addend = norm(shape[1]), images(shape, FP32), images(shape, FP32)
    assert library().batch_norm_supports(x.numel() // shape[1], shape[1])
    found = results(kind, copy.deepcopy(own), x, addend)
    exact = expected(kind, own, x, addend)
    assert found.keys() == exact.keys()
    for name, tensor in exact.items():
        scale = float(tensor.abs().max())
        torch.testing.assert_close(
            found[name], tensor.to(found[name].dtype), rtol=1e-5, atol=2e-6 * scale, msg=name
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bf16_is_rounded_once(shape: tuple[int, ...], kind: str) -> None:
    """Gradients of two users are rounded when they are summed, as autograd does it."""
    own, x, addend = norm(shape[1]), images(shape, BF16), images(shape, BF16)
    found = results(kind, copy.deepcopy(own), x, addend)
    exact = expected(kind, own, x, addend)
    assert found["y"].dtype == found["dx"].dtype == BF16
    assert (found["y"] != exact["y"].to(BF16)).float().mean() < 1e-3
    for name in ("y", "dx", *(("daddend",) if "sum" in kind else ())):
        assert relative_error(found[name], exact[name]) < 2**-8, name
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert found[name].dtype == FP32
        assert relative_error(found[name], exact[name]) < 2**-8, name


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("mean", [1e3, -1e4])
def test_a_mean_far_off_costs_no_digits(mean: float) -> None:
    own, x = norm(32), images((16, 32, 8, 8), FP32) + mean
    FusedBatchNorm(own, relu=False)(x)
    assert own.num_batches_tracked == 1
    assert own.running_var is not None
    variance = x.double().var((0, 2, 3)).mul(0.3).add(0.7)
    torch.testing.assert_close(own.running_var.double(), variance, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_shows(value: float, dtype: torch.dtype) -> None:
    """A training that diverges is noticed by its loss."""
    x = images((2, 32, 4, 4), dtype)
    x[1, 5, 2, 2] = value
    y = layer_of("relu", norm(32))(x)
    assert isinstance(y, Tensor)
    assert y[:, 5].isnan().any()
    assert y[:, :5].isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_shows(value: float) -> None:
    own, x = norm(32), images((2, 32, 4, 4), BF16).requires_grad_()
    y = layer_of("alone", own)(x)
    gradient = torch.zeros_like(y)
    gradient[0, 3, 1, 1] = value
    y.backward(gradient)
    assert x.grad is not None
    assert own.weight.grad is not None
    assert not x.grad[:, 3].isfinite().any()
    assert not own.weight.grad[3].isfinite()
    assert own.weight.grad[4:].isfinite().all()


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    own, x, addend = norm(16), images((32, 16, 16, 16), dtype), images((32, 16, 16, 16), dtype)
    assert x.numel() > 32 * 1024  # it is shared out at all
    found = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        found.append(results("twice-sum-relu", copy.deepcopy(own), x, addend))
    for name, tensor in found[0].items():
        assert all(torch.equal(tensor, other[name]) for other in found[1:]), name


@pytest.mark.parametrize(
    ("case", "shape"),
    [
        ("evaluation", (2, 32, 4, 4)),
        ("contiguous", (2, 32, 4, 4)),
        ("odd channels", (3, 10, 3, 3)),
        ("fp64", (2, 32, 4, 4)),
        ("fp16", (2, 32, 4, 4)),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_other_inputs_are_left_to_the_layer(case: str, shape: tuple[int, ...], kind: str) -> None:
    own, x = norm(shape[1]), images(shape, FP32)
    if case == "evaluation":
        own.eval()
    elif case == "contiguous":
        x = x.contiguous()
    elif case == "fp64":
        own, x = own.double(), x.double()
    elif case == "fp16":
        x = x.half()
    y = layer_of(kind, own)(x, *([x] if "sum" in kind else []))
    first = y[0] if isinstance(y, tuple) else y
    plain = copy.deepcopy(own)(x)
    plain = plain + x if "sum" in kind else plain
    assert torch.equal(first, plain.relu() if "relu" in kind else plain)


def test_one_number_for_each_channel_is_refused_as_by_torch() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        FusedBatchNorm(norm(32), relu=True)(images((1, 32, 1, 1), FP32))
