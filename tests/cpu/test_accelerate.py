"""Networks with CPU kernels against the same networks without."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.builder import build, read_spec
from resnet_builder.cpu import accelerate
from resnet_builder.cpu.convolution import TrainingConv2d, WinogradConv2d
from resnet_builder.cpu.norm import FusedBatchNorm
from resnet_builder.cpu.shortcut import CopiedShortcut
from resnet_builder.model import fuse_conv_bn
from resnet_builder.training.finetune import checkpoint_activations
from tests.cpu import NEEDS_WINOGRAD_BF16, NEEDS_WINOGRAD_FP32, has
from tests.cpu.test_convolution import error
from tests.networks import built, cifar_spec, random_images

# Of two blocks in each of two stages: how many norms are fused, how many of them with a ReLU, with
# a sum, and returned twice.
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, int, int, int]]] = {
    "basic": ({}, (9, 9, 4, 4)),
    "plain": ({"shortcut": "none"}, (9, 9, 0, 0)),
    "projected": ({"shortcut": "projection_all"}, (13, 9, 4, 4)),
    "bottleneck": ({"block": "bottleneck", "shortcut": "projection"}, (15, 13, 4, 4)),
    "pre-activated": ({"block": "preact_basic"}, (10, 10, 0, 1)),
    "deep": ({"stem": "deep", "shortcut": "average_projection"}, (13, 11, 4, 3)),
    "attentive": ({"attention": "eca"}, (9, 5, 0, 0)),
    "smooth": ({"activation": "silu"}, (9, 0, 4, 0)),
    "dropped": ({"drop_path": 0.2}, (9, 6, 1, 1)),
}


def for_training(network: nn.Module) -> nn.Module:
    """Return the network with its training kernels."""
    return accelerate(network, training=True, precision="bf16")


def counted(network: nn.Module) -> tuple[int, int, int, int]:
    """Count fused norms, those with a ReLU, with a sum, and returned twice."""
    calls = [
        (module.get_submodule(str(node.target)), len(node.args))
        for module in network.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
        if node.op == "call_module"
    ]
    layers = [(layer, inputs) for layer, inputs in calls if isinstance(layer, FusedBatchNorm)]
    return (
        len(layers),
        sum(layer.relu for layer, _ in layers),
        sum(inputs == 2 for _, inputs in layers),
        sum(layer.returns_twice for layer, _ in layers),
    )


def trained(forward: nn.Module, network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return logits, gradients and running statistics after a step of training."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        logits = forward(images.contiguous(memory_format=torch.channels_last))
    (logits * torch.linspace(-1, 1, logits.shape[1])).sum().backward()
    gradients = {f"{name}.grad": p.grad for name, p in network.named_parameters()}
    found = {"logits": logits.detach(), **gradients, **dict(network.named_buffers())}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize("wanted", [[], ["layer1"], "all"], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_training_differs_by_rounding_only(name: str, wanted: Any) -> None:
    model, expected = NETWORKS[name]
    network = built(cifar_spec(2, widths=(16, 32), **model), seed=0)
    network.train().to(memory_format=torch.channels_last)
    twin = copy.deepcopy(network)
    forward = for_training(checkpoint_activations(twin, wanted, for_training))
    found = counted(forward)
    assert found[:3] == expected[:3]
    assert found[3] == expected[3] or wanted  # blocks that are computed again stand alone
    images = random_images(8, 3, 16, 16)
    plain, ours = trained(network, network, images), trained(forward, twin, images)
    assert plain.keys() == ours.keys()
    for key, tensor in plain.items():
        scale = float(tensor.abs().max())
        torch.testing.assert_close(ours[key], tensor, rtol=1e-4, atol=1e-4 * scale, msg=key)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_activation_checkpointing_gives_the_same_bits(precision: torch.dtype) -> None:
    network = built(cifar_spec(2, widths=(16, 32)), seed=0).train()
    network.to(memory_format=torch.channels_last)
    images = random_images(8, 3, 16, 16)
    found = []
    for wanted in ([], ["layer1"], "all"):
        twin = copy.deepcopy(network)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            forward = for_training(checkpoint_activations(twin, wanted, for_training))
            found.append(trained(forward, twin, images))
    for key, tensor in found[0].items():
        assert all(torch.equal(tensor, other[key]) for other in found[1:]), key


def test_tensors_are_shared_and_the_network_is_left_as_it_was() -> None:
    network = built(cifar_spec(1), seed=0).train()
    before = str(network)
    twin = for_training(network)
    assert {id(p) for p in twin.parameters()} == {id(p) for p in network.parameters()}
    assert {id(b) for b in twin.buffers()} == {id(b) for b in network.buffers()}
    assert str(network) == before


@pytest.mark.parametrize("norm", ["group_norm", "instance_norm", "frozen_batch_norm"])
def test_other_norms_are_left_alone(norm: str) -> None:
    network = built(cifar_spec(1, widths=(32, 64), norm=norm)).train()
    assert counted(for_training(network)) == (0, 0, 0, 0)


def test_frozen_norms_use_their_running_statistics() -> None:
    network = built(cifar_spec(1), seed=0).train()
    network.bn1.eval()
    images = random_images(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    before = network.bn1.running_mean.clone()
    logits = for_training(network)(images)
    assert torch.equal(network.bn1.running_mean, before)
    torch.testing.assert_close(logits, copy.deepcopy(network)(images), rtol=1e-4, atol=1e-4)


class Stateful(nn.Module):
    """A block that does something else at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(16)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.bn(x).relu() * self.calls


def test_blocks_of_plugins_are_called_as_they_are() -> None:
    network = built(cifar_spec(1), seed=0).train()
    network.layer1.append(Stateful())
    twin = for_training(network)
    for _ in range(2):
        twin(random_images(2, 3, 8, 8))
    assert network.layer1[-1].calls == 2
    assert counted(twin)[0] == 7


@pytest.mark.parametrize("name", ["bn1", "relu", "layer2.0.bn1", "layer2.0", "layer2", ""])
def test_hooks_are_called(name: str) -> None:
    network = built(cifar_spec(1), seed=0).train()
    seen: list[int] = []
    network.get_submodule(name).register_forward_hook(lambda *_: seen.append(1))
    for_training(network)(random_images(2, 3, 8, 8))
    assert seen == [1]


@pytest.mark.parametrize(
    ("name", "by_tiles", "by_vectors", "norms", "shortcuts"),
    [("resnet20", 18, 18, 19, 2), ("resnet50_cifar", 52, 16, 53, 0)],
)
def test_layers_of_a_bundled_network_are_replaced(
    name: str, by_tiles: int, by_vectors: int, norms: int, shortcuts: int
) -> None:
    twin = for_training(build(read_spec(name), seed=0).train())
    by_vectors = by_vectors if has("has_gemm_weight_gradient") else 0
    faster = by_tiles if has("has_amx") else by_vectors
    assert sum(isinstance(layer, TrainingConv2d) for layer in twin.modules()) == faster
    assert sum(isinstance(layer, CopiedShortcut) for layer in twin.modules()) == shortcuts
    assert counted(twin)[0] == norms


def for_evaluation(name: str, *, bf16: bool) -> tuple[nn.Module, nn.Module, list[WinogradConv2d]]:
    """Return a network with fused norms, the same with kernels, and its layers by kernels."""
    network = build(read_spec(name), seed=0).eval()
    plain = fuse_conv_bn(network).to(memory_format=torch.channels_last)
    ours = accelerate(plain, training=False, precision="bf16" if bf16 else "fp32")
    return plain, ours, [layer for layer in ours.modules() if isinstance(layer, WinogradConv2d)]


@pytest.mark.parametrize(
    "bf16",
    [
        pytest.param(False, marks=NEEDS_WINOGRAD_FP32, id="fp32"),
        pytest.param(True, marks=NEEDS_WINOGRAD_BF16, id="bf16"),
    ],
)
@pytest.mark.parametrize(
    ("name", "in_fp32", "in_bf16", "shortcuts"),
    [("resnet20", 18, 18, 2), ("resnet50_cifar", 13, 16, 0), ("plain20", 18, 18, 0)],
)
def test_evaluation_differs_by_rounding_only(
    name: str, in_fp32: int, in_bf16: int, shortcuts: int, bf16: bool
) -> None:
    plain, ours, layers = for_evaluation(name, bf16=bf16)
    assert len(layers) == (in_bf16 if bf16 else in_fp32)
    assert any(layer.relu for layer in layers)
    assert sum(isinstance(layer, CopiedShortcut) for layer in ours.modules()) == shortcuts
    images = random_images(16 if bf16 else 4, 3, 32, 32)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        exact = copy.deepcopy(plain).double()(images.double())
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            by_torch, found = (error(forward(images), exact) for forward in (plain, ours))
    assert found < (2.5 * by_torch if bf16 else 2e-6)


@pytest.mark.parametrize(
    ("bf16", "parts"),
    [
        pytest.param(False, [32, 32, 6], marks=NEEDS_WINOGRAD_FP32),
        pytest.param(True, [64, 6], marks=NEEDS_WINOGRAD_BF16),
    ],
)
def test_evaluation_takes_large_batches_in_parts(bf16: bool, parts: list[int]) -> None:
    _, ours, _ = for_evaluation("resnet20", bf16=bf16)
    seen: list[int] = []
    ours.get_submodule("network").register_forward_pre_hook(
        lambda _, given: seen.append(len(given[0]))
    )
    images = random_images(70, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        together = ours(images)
        assert seen == parts
        alone = torch.cat([ours(image[None]) for image in images])
    assert error(together, alone) < (1e-2 if bf16 else 2e-6)


@NEEDS_WINOGRAD_FP32
def test_evaluation_shows_hooks_the_whole_batch() -> None:
    network = build(read_spec("resnet20"), seed=0).eval()
    seen: list[int] = []
    network.get_submodule("fc").register_forward_pre_hook(
        lambda _, given: seen.append(len(given[0]))
    )
    ours = accelerate(network, training=False, precision="fp32")
    assert any(isinstance(layer, WinogradConv2d) for layer in ours.modules())
    with torch.inference_mode():
        ours(random_images(70, 3, 8, 8))
    assert seen == [70]
    network.register_forward_hook(lambda *_: None)
    assert accelerate(network, training=False, precision="fp32") is network
